"""Voters in one process with real sockets, mutual TLS and real LMDB: links, turns, proposer, reads, storage limits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from raftreg import certificates, errors
from raftreg.certificates import Authority, Subject
from raftreg.config import Limits, PeerConfig, TlsFiles
from raftreg.peer import Peer
from raftreg.peer_links import PROTOCOL
from raftreg.store import Store, StoreError, initialise
from raftreg.tables import View
from raftreg.transport import encode_frame
from tests.cluster.harness import applied_index, apply_value

WAIT_S = 20.0


def apply_commands(view: View, index: int, payload: bytes | None) -> list[dict[str, Any]]:
    """The harness's list machine behind the proposer's entry format."""
    apply_value(view, index, payload)
    commands = msgpack.unpackb(payload)[2] if payload else []
    return [{"ok": {"index": index, "value": command["value"]}} for command in commands]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Group:
    """Configurations, stores and running peers and observers of one cluster."""

    def __init__(
        self, base: Path, names: str, limits: Limits | None = None, cluster_id: str = "group", observers: str = ""
    ) -> None:
        self.base, self.observers = base, observers
        self.authority: Authority = certificates.create_authority(cluster_id)
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in names}
        self.running: dict[str, Peer] = {}
        self.fatal: dict[str, str] = {}
        self.configs = {name: self._config(name, limits or Limits()) for name in names + observers}
        for name in names + observers:
            initialise(base / name, cluster_id=cluster_id, peer=name, peers=names, observer=name in observers)

    def _config(self, name: str, limits: Limits) -> PeerConfig:
        observer = name in self.observers
        return PeerConfig(
            name=name,
            data_dir=self.base / name,
            raft_listen="" if observer else self.addresses[name],
            raft_peers=dict(self.addresses),
            api_listen="127.0.0.1:0",
            api_tls=True,
            api_peers={},
            tls=self.tls(name, "observer" if observer else "peer"),
            limits=limits,
            observer=observer,
        )

    def tls(self, name: str, role: str) -> TlsFiles:
        return certificates.issue(self.authority, Subject(name, role), self.base / "tls" / f"{name}-{role}")

    async def start(self, name: str) -> Peer:
        peer = Peer(
            self.configs[name],
            apply=apply_commands,
            applied_index=applied_index,
            fatal=lambda reason: self.fatal.__setitem__(name, reason),
        )
        self.running[name] = peer
        await peer.start()
        return peer

    async def stop(self, name: str) -> None:
        await self.running.pop(name).stop()

    async def leader(self) -> Peer:
        await until(lambda: any(peer.raft.is_leader for peer in self.running.values()))
        return next(peer for peer in self.running.values() if peer.raft.is_leader)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the peers do by themselves; bounded."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what the peers do sets no event of ours
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def group(base: Path, names: str, **options: Any) -> AsyncIterator[Group]:
    made = Group(base, names, **options)
    try:
        for name in made.configs:
            await made.start(name)
        yield made
    finally:
        for name in list(made.running):
            await made.stop(name)


async def propose(peer: Peer, *values: str) -> list[dict[str, Any]]:
    return await peer.proposer.propose([{"op": "put", "value": value} for value in values])


async def test_three_voters_elect_replicate_and_read(tmp_path: Path) -> None:
    async with group(tmp_path, "abc") as cluster:
        leader = await cluster.leader()
        results = await asyncio.gather(*(propose(leader, f"value{number}") for number in range(40)))
        assert [result[0]["ok"]["value"] for result in results] == [f"value{number}" for number in range(40)]
        for peer in cluster.running.values():
            await peer.reads.barrier("linearizable")
            assert applied_index(peer.reads.view()) >= max(result[0]["ok"]["index"] for result in results)
        follower = next(peer for peer in cluster.running.values() if peer is not leader)
        with pytest.raises(errors.NotLeader) as refused:
            await propose(follower, "elsewhere")
        assert refused.value.details["leader"] == leader.config.name
        await follower.reads.barrier("bounded", 5.0)


async def test_a_stopped_leader_is_replaced_and_nothing_acknowledged_is_missing(tmp_path: Path) -> None:
    async with group(tmp_path, "abc") as cluster:
        first = await cluster.leader()
        await propose(first, "one", "two")
        name = first.config.name
        await cluster.stop(name)
        second = await cluster.leader()
        await propose(second, "three")
        again = await cluster.start(name)
        await until(lambda: again.raft.applied == second.raft.applied)
        assert applied_index(again.store.view()) == applied_index(second.store.view())


async def test_a_leader_whose_disk_is_slow_again_and_again_hands_over(tmp_path: Path) -> None:
    async with group(tmp_path, "abc") as cluster:
        leader = await cluster.leader()
        await propose(leader, "before")
        for _ in range(5):
            leader._committed(seconds=0.2)
        await until(lambda: not leader.raft.is_leader)
        second = await cluster.leader()
        assert second is not leader
        await propose(second, "after")


async def test_without_a_quorum_writes_and_linearizable_reads_are_refused_definitely(tmp_path: Path) -> None:
    async with group(tmp_path, "abc") as cluster:
        leader = await cluster.leader()
        await propose(leader, "before")
        for name in [name for name in cluster.running if name != leader.config.name]:
            await cluster.stop(name)
        await until(lambda: not leader.raft.is_leader)
        with pytest.raises(errors.NoQuorum):
            await propose(leader, "after")
        with pytest.raises(errors.NoQuorum):
            await leader.reads.barrier("linearizable")
        await leader.reads.barrier("stale")


async def test_a_single_voter_serves_alone_and_survives_its_restart(tmp_path: Path) -> None:
    async with group(tmp_path, "a") as cluster:
        peer = await cluster.leader()
        await propose(peer, "alone")
        await cluster.stop("a")
        peer = await cluster.start("a")
        await cluster.leader()
        await peer.reads.barrier("linearizable")
        assert applied_index(peer.reads.view()) >= 3


async def test_growth_is_refused_while_the_database_is_full(tmp_path: Path) -> None:
    limits = replace(Limits(), db_soft_limit_bytes=64 << 10, log_keep_entries=8, log_keep_bytes=4096)
    async with group(tmp_path, "a", limits=limits) as cluster:
        peer = await cluster.leader()
        while peer._growth_refusal() is None:
            await propose(peer, "x" * 1000)
        peer._full = peer._growth_refusal()
        with pytest.raises(errors.StorageFull, match="db_soft_limit_bytes"):
            await propose(peer, "one more")
        (result,) = await peer.proposer.propose([{"op": "delete_image", "value": "still possible"}])
        assert "ok" in result


async def test_too_many_and_too_large_commands_are_refused_before_anything_happens(tmp_path: Path) -> None:
    limits = replace(Limits(), propose_queue_max=10)
    async with group(tmp_path, "a", limits=limits) as cluster:
        peer = await cluster.leader()
        applied = peer.raft.applied
        with pytest.raises(errors.TooLarge):
            await propose(peer, "x" * (limits.entry_bytes_max + 1))
        with pytest.raises(errors.Overloaded):
            await propose(peer, *("many" for _ in range(11)))
        assert peer.raft.applied == applied


def hello(store_id: str = "0" * 16, **changes: Any) -> dict[str, Any]:
    return {
        "type": "hello",
        "protocol": PROTOCOL,
        "cluster_id": "group",
        "epoch": 1,
        "membership_generation": 1,
        "voters": ["a", "b"],
        "previous_voters": [],
        "store_id": store_id,
        "term": 0,
        "last_index": 1,
        "last_log_term": 0,
        "recovering": False,
        "recovered": None,
        **changes,
    }


async def say(address: str, tls: TlsFiles, message: dict[str, Any]) -> dict[str, Any] | None:
    """What a voter answers to the first frame of a link, or None when it just ends it."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=certificates.client_context(tls))
    try:
        writer.write(encode_frame(message))
        await writer.drain()
        length = int.from_bytes(await reader.readexactly(4), "big")
        answer: dict[str, Any] = msgpack.unpackb(await reader.readexactly(length))
        return answer
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cluster_id": "another"}, "belongs to cluster another"),
        ({"epoch": 2}, "lives in epoch 2"),
        ({"protocol": 99}, "protocol 99"),
        ({"membership_generation": 7}, "generation 7"),
        ({"voters": ["a", "b", "c"]}, "voters of generation 1 are ['a', 'b', 'c'], ours are a, b"),
        ({"previous_voters": ["a"]}, "previous_voters of generation 1 are ['a']"),
        ({"type": "append_entries"}, "starts with a peer's certificate and a hello"),
        ({"last_index": "far"}, "incomplete or malformed"),
        ({"recovered": [1, 2, 3]}, "incomplete or malformed"),
        ({"term": 1 << 63}, "incomplete or malformed"),
        ({"recovering": None}, "incomplete or malformed"),
    ],
)
async def test_a_hello_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    made = Group(tmp_path, "ab")
    await made.start("a")
    answer = await say(made.addresses["a"], made.configs["b"].tls, hello(**changes))
    assert answer is not None
    assert reason in answer["error"]
    assert not made.running["a"].raft.is_connected("b")
    await made.stop("a")


async def test_only_a_peer_s_certificate_of_this_authority_gets_in(tmp_path: Path) -> None:
    made = Group(tmp_path, "ab")
    await made.start("a")
    gateway = certificates.issue(made.authority, Subject("b", "gateway", "ams"), tmp_path / "gateway")
    answer = await say(made.addresses["a"], gateway, hello())
    assert answer is not None
    assert "peer's certificate" in answer["error"]
    stranger = certificates.issue(certificates.create_authority("other"), Subject("b", "peer"), tmp_path / "stranger")
    with contextlib.suppress(OSError):
        mixed = replace(stranger, ca=made.configs["a"].tls.ca)
        assert await say(made.addresses["a"], mixed, hello()) is None
    assert not made.running["a"].raft.is_connected("b")
    await made.stop("a")


def test_a_directory_of_another_peer_cluster_or_release_is_refused_with_what_to_do(tmp_path: Path) -> None:
    initialise(tmp_path / "a", cluster_id="one", peer="a", peers="abc")
    with pytest.raises(StoreError, match="belongs to peer 'a'"):
        Store(tmp_path / "a", map_size_bytes=1 << 24, peer="b")
    with pytest.raises(StoreError, match="cluster of a, b, c"):
        Store(tmp_path / "a", map_size_bytes=1 << 24, peer="a", peers="ab")
    with pytest.raises(StoreError, match="belongs to cluster one"):
        Store(tmp_path / "a", map_size_bytes=1 << 24, cluster_id="two")
    with pytest.raises(StoreError, match="raftreg init"):
        Store(tmp_path / "nothing", map_size_bytes=1 << 24)
    with pytest.raises(StoreError, match="initialised once"):
        initialise(tmp_path / "a", cluster_id="one", peer="a", peers="abc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raftreg.store.FORMAT", 2)
        initialise(tmp_path / "newer", cluster_id="one", peer="a", peers="a")
    with pytest.raises(StoreError, match="newer release"):
        Store(tmp_path / "newer", map_size_bytes=1 << 24)
