"""What every test may rely on: the caller's environment changes nothing, and enough files may be open.

`make test` arranges this already; here it is arranged again for those who run pytest by hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from ops.dev import environment
from tests.state_life import Gateway, Life, a_state

_CLEAN = environment.clean(os.environ)
for _name in set(os.environ) - set(_CLEAN):
    # pytest reads its own variables again later.
    if not _name.startswith("PYTEST_"):
        del os.environ[_name]
environment.raise_open_files_limit()

# Real disks and processes have no deadline that holds on a busy machine. A failing example prints what repeats it.
hypothesis.settings.register_profile("raftreg", deadline=None, print_blob=True, derandomize=False)
hypothesis.settings.load_profile("raftreg")


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    with a_state(tmp_path) as view:
        yield Life(view)


@pytest.fixture
def gateway(life: Life) -> Gateway:
    """A gateway with an open session."""
    gateway = Gateway(life)
    gateway.open()
    return gateway
