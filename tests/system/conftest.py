"""Clusters of real processes for system tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ops.dev.cluster import Cluster

MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    """Makes clusters, not started, each in a directory whose name holds a space; stops them after the test."""
    made: list[Cluster] = []

    def make(**options: Any) -> Cluster:
        made.append(Cluster(tmp_path / f"the cluster {len(made)}", **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop()


@pytest.fixture
def seed() -> int:
    """Another one in each run; SEED=... in the environment repeats one. It is printed when a test fails."""
    drawn = int(os.environ.get("SEED", "0")) or int.from_bytes(os.urandom(4))
    print(f"seed {drawn}; to repeat: SEED={drawn} .venv/bin/python -m pytest ...")
    return drawn
