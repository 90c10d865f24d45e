"""A cluster per test, closed whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raftreg import engine
from tests.cluster.harness import Cluster

MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    made: list[Cluster] = []

    def make(names: str, **options: object) -> Cluster:
        made.append(Cluster(tmp_path / str(len(made)), names, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """append_entries of two entries or so, so that a re-send is split into several messages."""
    monkeypatch.setattr(engine, "APPEND_BATCH_BYTES", 8)
    monkeypatch.setattr(engine, "ENTRY_BYTES_MAX", 1 << 20)
