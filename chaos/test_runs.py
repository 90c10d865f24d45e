"""`pytest chaos/`: every fault heals what it broke, and every workload keeps its promises under each basic fault.

SEED=number repeats a run that failed; longer ones, and all faults with all workloads, are for `make chaos`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.cluster import ClusterUnderTest, Shape
from chaos.faults.fault import Fault
from chaos.faults.known import FAULTS, faults
from chaos.scenarios import Plan, run
from chaos.verdict import PASS, overall
from chaos.workloads.known import WORKLOADS, workloads

BASIC = ["kill", "pause", "partition-leader", "partition-zone", "latency-peer", "latency-zone"]
GROUPS = (("register", "images", "ids", "feed", "set"), ("life", "conflict", "sharing", "data", "backup"))
SOON_S = 60.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    made = ClusterUnderTest(tmp_path_factory.mktemp("chaos") / "cluster", Shape(observers=1))
    made.start()
    yield made
    made.stop()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_heals_what_it_broke(cluster: ClusterUnderTest, kind: type[Fault]) -> None:
    fault = kind()
    if reason := fault.available(cluster):
        pytest.skip(reason)
    before = set(cluster.processes)
    fault.aim(cluster, random.Random(kind.name))
    try:
        fault.inject(cluster)
    finally:
        fault.heal(cluster)
    assert cluster.wait(cluster.is_whole, SOON_S), cluster.away()
    assert cluster.through.broken() == []
    assert {name for name, process in cluster.processes.items() if process.running} == before
    assert cluster.mend() == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_every_basic_fault_once_leaves_all_promises_kept(tmp_path: Path, names: tuple[str, ...]) -> None:
    seed = int(os.environ.get("SEED", "0")) or int.from_bytes(os.urandom(4))
    plan = Plan(tmp_path / "run", seed, 1.0, faults(BASIC), workloads(names), each_once=True)
    ran = asyncio.run(run(plan))
    broken = [breach.sentence for check in ran.checks for breach in check.shown]
    assert overall(ran.checks) == PASS, f"seed {seed}: {broken}"
    assert {one.name for one in ran.faults} == set(BASIC)
    written = [json.loads(line) for line in (plan.directory / "faults.jsonl").read_text().splitlines()]
    assert [one["name"] for one in written] == [one.name for one in ran.faults]
    kinds = {operation.kind for operation in ran.operations if operation.acknowledged}
    assert kinds >= {"create"} | (
        {"allocate", "cas", "read", "feed"} if "register" in names else {"update", "download"}
    )


def test_every_workload_is_in_a_short_run() -> None:
    assert sorted(name for group in GROUPS for name in group) == sorted(WORKLOADS)
