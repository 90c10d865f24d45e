"""A row that rots on the disk of one peer: it is found, that peer stops and says why, it comes back with a new store,
and writes go on all the time.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chaos.faults.stores import rot
from ops.dev.cluster import Cluster
from ops.dev.processes import wait_until
from ops.dev.wiring import ROOT
from tests.system.conftest import MakeCluster
from tests.system.test_fatal_faults import assert_ended_fatally
from tests.system.workload import Workload, judged

FOUND_WAIT_S = 60.0


def raftreg(*arguments: object) -> tuple[int, str]:
    """Exit status and output of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "raftreg.cli", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=FOUND_WAIT_S,
        check=False,
    )
    return done.returncode, done.stdout


async def verify(cluster: Cluster, *options: str) -> tuple[int, dict[str, Any]]:
    config = cluster.wiring.peer_dir("a") / "raftreg.toml"
    status, output = await asyncio.to_thread(raftreg, "verify", "--config", config, "--json", *options)
    document: dict[str, Any] = json.loads(output[output.index("{") :])
    return status, document


async def make_lead(cluster: Cluster, peer: str) -> None:
    """Stop whoever else leads until `peer` does: a stopping leader hands over to the last by name of the furthest."""
    for _ in range(6):
        leader = await asyncio.to_thread(cluster.wait_leader)
        if leader == peer:
            return
        await asyncio.to_thread(cluster.stop_process, leader)
        await asyncio.to_thread(cluster.wait_leader)
        cluster.start_process(leader)
        await asyncio.to_thread(cluster.wait_ready, [leader])
    raise AssertionError(f"{peer} did not become leader")


async def rejoin(cluster: Cluster, peer: str) -> None:
    """What the refusal says: move the directory away, rejoin, start."""
    cluster.start_process(peer)
    process = cluster.processes[peer]
    assert await asyncio.to_thread(wait_until, lambda: not process.running, FOUND_WAIT_S)
    assert process.exit_status == 1, process.ending()
    assert "stopped for good" in process.log.read_text(), process.ending()
    directory = cluster.wiring.peer_dir(peer)
    (directory / "store").rename(directory / "damaged store")
    status, output = await asyncio.to_thread(raftreg, "rejoin", directory)
    assert status == 0, output
    cluster.start_process(peer)
    await asyncio.to_thread(cluster.wait_ready, [peer])
    assert await asyncio.to_thread(wait_until, lambda: has_caught_up(cluster, peer), FOUND_WAIT_S)


def has_caught_up(cluster: Cluster, peer: str) -> bool:
    status = cluster.ask_peer(peer, "/registry/v1/status")
    return status is not None and not status["recovering"]


@pytest.mark.slow
@pytest.mark.parametrize("leads", [False, True], ids=["follower, by its own scrub", "leader, by verify --scrub"])
async def test_a_rotten_row_is_found_and_its_peer_stops_and_rejoins_while_writes_go_on(
    make_cluster: MakeCluster, tmp_path: Path, seed: int, leads: bool
) -> None:
    cluster, peer = make_cluster(gateways={}, peer_limits={"scrub_step_rows": 1 if leads else 500}), "c"
    await asyncio.to_thread(cluster.start)
    directory = cluster.wiring.peer_dir(peer)
    async with Workload(cluster, tmp_path / "history.jsonl", seed=seed, clients=4) as workload:
        await workload.progress(100)
        await asyncio.to_thread(cluster.stop_process, peer)
        assert (await asyncio.to_thread(raftreg, "verify", "--offline", directory))[0] == 0
        rot(cluster, peer)
        assert (await asyncio.to_thread(raftreg, "verify", "--offline", directory))[0] == 1
        cluster.start_process(peer)
        if leads:
            await asyncio.to_thread(cluster.wait_ready, [peer])
            await make_lead(cluster, peer)
            status, document = await verify(cluster, "--scrub")
            assert status == 1
            assert not document["sound"]
        await asyncio.to_thread(
            assert_ended_fatally, cluster.processes[peer], "a scrub found that", "the data are damaged"
        )
        await workload.progress(50)
        await rejoin(cluster, peer)
        await workload.progress(50)
        status, document = await verify(cluster, "--scrub")
        assert status == 0, document
    verdict, _ = await judged(workload)
    assert verdict.ok, f"seed {seed}, base {cluster.base}: {verdict.problems}"
