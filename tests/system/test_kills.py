"""SIGKILL of any peer, or of all, at random moments under load: no acknowledged write is lost, no number reissued."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from ops.dev.cluster import Cluster
from tests.system.conftest import MakeCluster
from tests.system.workload import Workload, judged

# Long enough to meet every phase of a batch, short enough for many rounds.
MOMENT_MAX_S = 0.5


async def strike(cluster: Cluster, workload: Workload, chance: random.Random, victims: list[str]) -> None:
    """Kill at a random moment under load; if a majority is left it must go on; then all come back."""
    await workload.progress(chance.randint(1, 60))
    await asyncio.sleep(chance.uniform(0, MOMENT_MAX_S))
    await asyncio.to_thread(cluster.kill, *victims)
    if len(victims) * 2 < len(cluster.peers):
        await workload.progress(30)
    for victim in victims:
        await asyncio.to_thread(cluster.start_process, victim)
    await workload.progress(30)
    await asyncio.to_thread(cluster.wait_ready, cluster.peers)


async def rounds(cluster: Cluster, path: Path, seed: int, count: int) -> None:
    chance = random.Random(seed)
    await asyncio.to_thread(cluster.start)
    async with Workload(cluster, path, seed=seed) as workload:
        for round_number in range(count):
            leader = await asyncio.to_thread(cluster.wait_leader)
            everyone = cluster.peers
            choices = [[leader], everyone, [chance.choice(everyone)], chance.sample(everyone, 2)]
            await strike(cluster, workload, chance, choices[round_number % len(choices)])
    verdict, operations = await judged(workload)
    assert verdict.ok, f"seed {seed}, base {cluster.base}: {verdict.problems}"
    assert verdict.acknowledged > 20 * count, "the clients have hardly written anything"
    # A client that is told "no" or "don't know" all the time would make a good verdict easy.
    assert sum(operation.acknowledged for operation in operations) > len(operations) / 2


@pytest.mark.slow
async def test_killed_peers_lose_no_acknowledged_write(make_cluster: MakeCluster, tmp_path: Path, seed: int) -> None:
    await rounds(make_cluster(gateways={}), tmp_path / "history.jsonl", seed, count=4)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_peers_killed_many_times_lose_no_acknowledged_write(
    make_cluster: MakeCluster, tmp_path: Path, seed: int
) -> None:
    await rounds(make_cluster(gateways={}), tmp_path / "history.jsonl", seed, count=40)


async def test_a_single_peer_killed_again_and_again_loses_nothing(
    make_cluster: MakeCluster, tmp_path: Path, seed: int
) -> None:
    cluster, chance = make_cluster(peers=("a",), gateways={}), random.Random(seed)
    await asyncio.to_thread(cluster.start)
    async with Workload(cluster, tmp_path / "history.jsonl", seed=seed) as workload:
        for _ in range(3):
            await strike(cluster, workload, chance, ["a"])
    verdict, _ = await judged(workload)
    assert verdict.ok, f"seed {seed}, base {cluster.base}: {verdict.problems}"
