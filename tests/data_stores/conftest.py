"""One Swift for all tests here: it takes some ten seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.data_stores.swift_server import Swift, swift, why_not


@pytest.fixture(scope="session")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with swift(tmp_path_factory.mktemp("server")) as server:
        yield server
