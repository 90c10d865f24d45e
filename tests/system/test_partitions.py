"""A leader that the others can't reach: the rest goes on, it acknowledges nothing of its own, and nothing is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from chaos import links
from ops.dev import processes
from tests.system.conftest import MakeCluster
from tests.system.workload import PROGRESS_TIMEOUT_S, Workload, judged


@pytest.mark.parametrize("mode", ["blackhole", pytest.param("reset", marks=pytest.mark.slow)])
async def test_an_isolated_leader_is_replaced_and_its_writes_are_not_doubled(
    make_cluster: MakeCluster, tmp_path: Path, seed: int, mode: links.Mode
) -> None:
    cluster = make_cluster(proxied=True, gateways={})
    await asyncio.to_thread(cluster.start)
    async with Workload(cluster, tmp_path / "history.jsonl", seed=seed) as workload:
        await workload.progress(40)
        leader = await asyncio.to_thread(cluster.wait_leader)
        await asyncio.to_thread(cluster.isolate_peer, leader, mode)

        def replaced() -> bool:
            return cluster.leader() not in (None, leader)

        assert await asyncio.to_thread(processes.wait_until, replaced, PROGRESS_TIMEOUT_S)
        await workload.progress(40)
        await asyncio.to_thread(cluster.heal_peer, leader)
        await asyncio.to_thread(cluster.wait_ready, cluster.peers)
        await workload.progress(40)
    verdict, _ = await judged(workload)
    assert verdict.ok, f"seed {seed}, base {cluster.base}: {verdict.problems}"


@pytest.mark.slow
async def test_a_flapping_link_between_two_peers_stops_nobody_for_long(
    make_cluster: MakeCluster, tmp_path: Path, seed: int
) -> None:
    cluster = make_cluster(proxied=True, gateways={})
    await asyncio.to_thread(cluster.start)
    assert cluster.links is not None
    async with Workload(cluster, tmp_path / "history.jsonl", seed=seed) as workload:
        with cluster.links.flap("raft-a-b", down_s=0.3, up_s=0.2), cluster.links.flap("raft-b-a", down_s=0.2, up_s=0.3):
            for _ in range(3):
                await workload.progress(50)
        await asyncio.to_thread(cluster.wait_ready, cluster.peers)
        await workload.progress(50)
    verdict, _ = await judged(workload)
    assert verdict.ok, f"seed {seed}, base {cluster.base}: {verdict.problems}"
