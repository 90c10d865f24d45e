"""The lead moves under load, by command and because its process is told to stop: no request of a plain client fails."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from ops.dev.cluster import Cluster
from ops.dev.readout import client_of
from ops.soak.plain_clients import PlainClients
from tests.system.conftest import MakeCluster

CHANGES = 60  # answered writes between two events
# A busy machine may stop a process for as long as a default election timeout; here nobody but the test moves the lead.
STEADY = {
    "raft_min_timeout_s": 2.0,
    "raft_max_timeout_s": 3.0,
    "leader_fallback_s": 4.0,
    "link_silence_s": 4.0,
}


async def raftreg(cluster: Cluster, *arguments: str, status: int = 0) -> str:
    """One command of `raftreg` about this cluster; its output."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "raftreg.cli", *arguments, "--config", str(cluster.wiring.registry)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
async def test_no_request_fails_while_the_lead_is_given_away_ten_times(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(gateways={}, peer_timing=STEADY)
    await asyncio.to_thread(cluster.start)
    leader = await asyncio.to_thread(cluster.wait_leader)
    async with PlainClients(cluster) as clients, client_of(cluster) as operator:
        for number in range(9):
            await clients.progress(CHANGES)
            to = next(peer for peer in cluster.peers[number % 3 :] + cluster.peers if peer != leader)
            done = await operator.transfer_leadership(to)
            assert (done["from"], done["to"]) == (leader, to)
            leader = to
        done = json.loads(await raftreg(cluster, "leader", "transfer", "--json"))
        assert done["from"] == leader
        leader = done["to"]
        await clients.progress(CHANGES)
    assert clients.failures == []
    assert leader == await asyncio.to_thread(cluster.wait_leader)


@pytest.mark.slow
async def test_no_request_fails_while_leaders_are_told_to_stop_five_times(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(gateways={}, peer_timing=STEADY)
    await asyncio.to_thread(cluster.start)
    async with PlainClients(cluster) as clients:
        for _ in range(5):
            await clients.progress(CHANGES)
            leader = await asyncio.to_thread(cluster.wait_leader)
            await asyncio.to_thread(cluster.stop_process, leader)
            assert cluster.processes[leader].exit_status == 0
            await clients.progress(CHANGES)
            await asyncio.to_thread(cluster.start_process, leader)
            await asyncio.to_thread(cluster.wait_ready, [leader])
    assert clients.failures == []


@pytest.mark.slow
async def test_no_request_fails_while_followers_are_told_to_stop(make_cluster: MakeCluster) -> None:
    """What a stopping follower has forwarded is answered before it ends."""
    cluster = make_cluster(gateways={}, peer_timing=STEADY)
    await asyncio.to_thread(cluster.start)
    leader = await asyncio.to_thread(cluster.wait_leader)
    async with PlainClients(cluster) as clients:
        for follower in [peer for peer in cluster.peers if peer != leader]:
            await clients.progress(CHANGES)
            await asyncio.to_thread(cluster.stop_process, follower)
            await clients.progress(CHANGES)
            await asyncio.to_thread(cluster.start_process, follower)
            await asyncio.to_thread(cluster.wait_ready, [follower])
    assert clients.failures == []
    assert leader == await asyncio.to_thread(cluster.wait_leader)


@pytest.mark.parametrize("to", ["nobody", None])
async def test_a_transfer_that_cannot_be_is_refused_in_a_sentence(make_cluster: MakeCluster, to: str | None) -> None:
    cluster = make_cluster(gateways={}, peer_timing=STEADY)
    await asyncio.to_thread(cluster.start)
    leader = await asyncio.to_thread(cluster.wait_leader)
    to = to or next(peer for peer in cluster.peers if peer != leader)
    await asyncio.to_thread(cluster.kill, to) if to in cluster.peers else None
    said = await raftreg(cluster, "leader", "transfer", "--to", to, status=1)
    assert said.startswith(f"raftreg: {to} is away" if to in cluster.peers else "raftreg: 'nobody' is no voter")
    assert await asyncio.to_thread(cluster.wait_leader) == leader
