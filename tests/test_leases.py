"""Zone leases over a real peer: heartbeats keep a zone live, silence ends it, and a new leader grants a full term."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from raftreg import errors, queries
from raftreg.leases import LeaseKeeper
from tests.registry import Registry, registry


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as cluster, cluster.client() as client:
        await client.register_zone("ams")
        await client.register_zone("fra")
        yield cluster


def keeper(cluster: Registry, clock: Clock, name: str = "a") -> LeaseKeeper:
    peer = cluster.peers["a"]
    return LeaseKeeper(peer.proposer, peer.reads, peer_name=name, lease_s=10.0, clock=clock)


def live(cluster: Registry) -> set[str]:
    return {name for name, zone in queries.zones(cluster.peers["a"].reads.view()).items() if zone["live"]}


async def test_a_zone_is_live_from_its_first_heartbeat_until_a_term_of_silence(cluster: Registry) -> None:
    clock = Clock()
    leases = keeper(cluster, clock)
    await leases.check()
    for zone in ("ams", "fra"):
        assert await leases.heartbeat(zone, f"{zone}-1") == {
            "zone": zone, "gateway": f"{zone}-1", "live": True, "lease_s": 10.0, "level": 1,
        }  # fmt: skip
    assert live(cluster) == {"ams", "fra"}
    clock.now += 6
    await leases.heartbeat("ams", "ams-1")
    clock.now += 6
    assert await leases.check() == ["fra"]
    assert live(cluster) == {"ams"}
    await leases.heartbeat("fra", "fra-1")
    assert live(cluster) == {"ams", "fra"}


async def test_heartbeats_that_change_nothing_are_no_commands(cluster: Registry) -> None:
    leases = keeper(cluster, Clock())
    await leases.heartbeat("ams", "ams-1")
    applied = cluster.peers["a"].raft.applied
    for _ in range(10):
        await leases.heartbeat("ams", "ams-1")
    assert cluster.peers["a"].raft.applied == applied


async def test_a_new_leader_grants_every_lease_a_full_term(cluster: Registry) -> None:
    await keeper(cluster, Clock()).heartbeat("ams", "ams-1")
    clock = Clock()
    successor = keeper(cluster, clock)
    assert await successor.check() == []
    clock.now += 9.9
    assert await successor.check() == []
    clock.now += 0.2
    assert await successor.check() == ["ams"]


async def test_a_peer_that_does_not_lead_names_the_leader_and_lets_nothing_lapse(cluster: Registry) -> None:
    clock = Clock()
    await keeper(cluster, clock).heartbeat("ams", "ams-1")
    follower = keeper(cluster, clock, name="b")
    with pytest.raises(errors.NotLeader) as refused:
        await follower.heartbeat("ams", "ams-1")
    assert refused.value.leader == "a"
    clock.now += 100
    assert await follower.check() == []
    assert live(cluster) == {"ams"}


async def test_an_unknown_zone_is_refused(cluster: Registry) -> None:
    with pytest.raises(errors.NotFound, match="not registered"):
        await keeper(cluster, Clock()).heartbeat("nowhere", "x")


async def test_the_running_keeper_lets_leases_lapse_by_itself(cluster: Registry) -> None:
    peer = cluster.peers["a"]
    leases = LeaseKeeper(peer.proposer, peer.reads, peer_name="a", lease_s=0.2)
    await leases.heartbeat("ams", "ams-1")
    running = asyncio.create_task(leases.run())
    async with asyncio.timeout(10):
        while live(cluster):  # noqa: ASYNC110 - the state has no event
            await asyncio.sleep(0.01)
    running.cancel()


async def test_losing_the_lead_between_two_lapses_ends_neither_the_check_nor_the_keeper(cluster: Registry) -> None:
    """While the first lapse is proposed a heartbeat finds out that another peer leads now."""
    peer, clock, reign = cluster.peers["a"], Clock(), {"leader": "a"}

    class LosesTheLead:
        async def propose(self, commands: Sequence[dict[str, Any]], **_: float) -> list[dict[str, Any]]:
            reign["leader"] = "b"
            with pytest.raises(errors.NotLeader):
                await leases.heartbeat("ams", "ams-1")
            return [{} for _ in commands]

    class Reads:
        view = staticmethod(peer.reads.view)
        freshness = staticmethod(lambda: reign)

    for zone in ("ams", "fra"):
        await keeper(cluster, clock).heartbeat(zone, f"{zone}-1")
    leases = LeaseKeeper(LosesTheLead(), Reads(), peer_name="a", lease_s=10.0, clock=clock)
    assert await leases.check() == []
    clock.now += 10.1
    assert await leases.check() == ["ams", "fra"]
    assert await leases.check() == []
