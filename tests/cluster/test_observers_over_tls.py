"""Observers with real sockets, mutual TLS and real LMDB: who is let in as one, and what becomes of its connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from raftreg import certificates, errors
from raftreg.config import Limits, TlsFiles
from raftreg.peer import Peer
from raftreg.store import StoreError, initialise
from raftreg.transport import encode_frame
from tests.cluster.harness import applied_index
from tests.cluster.test_peers_over_tls import Group, group, hello, propose, say, until

_ENDED_S = 10.0


class Connection:
    """A link to a voter, in somebody else's hands."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, message: dict[str, Any]) -> None:
        self._writer.write(encode_frame(message))

    async def frame(self) -> dict[str, Any]:
        length = int.from_bytes(await self._reader.readexactly(4), "big")
        frame: dict[str, Any] = msgpack.unpackb(await self._reader.readexactly(length))
        return frame

    async def ended(self) -> bool:
        """Whether the voter ends the connection, whatever it says before."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(_ENDED_S):
                while await self._reader.read(1 << 16):
                    pass
        return True


@contextlib.asynccontextmanager
async def connected(address: str, tls: TlsFiles) -> AsyncIterator[Connection]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=certificates.client_context(tls))
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


async def test_an_observer_serves_all_reads_and_refuses_writes_with_the_leader_s_name(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", observers="o") as cluster:
        leader, observer = await cluster.leader(), cluster.running["o"]
        await propose(leader, "one")
        await until(lambda: observer.raft.staleness_s() is not None)
        results = await propose(leader, "two")
        await observer.reads.barrier("linearizable")
        assert applied_index(observer.reads.view()) >= results[0]["ok"]["index"]
        await observer.reads.barrier("bounded", 10.0)
        await observer.reads.barrier("stale")
        with pytest.raises(errors.NotLeader) as refused:
            await propose(observer, "elsewhere")
        assert refused.value.details["leader"] == leader.config.name
        assert observer.status()["role"] == "observer"
        await until(lambda: (leader.raft.match_index("o") or 0) >= results[0]["ok"]["index"])
        assert leader.status()["observers"]["o"]["connected"]
        assert "o" not in leader.status()["peers"]


async def test_an_observer_goes_on_with_the_next_leader_and_says_when_there_is_none(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", observers="o") as cluster:
        first, observer = await cluster.leader(), cluster.running["o"]
        await propose(first, "one")
        await cluster.stop(first.config.name)
        second = await cluster.leader()
        results = await propose(second, "two")
        await until(lambda: observer.raft.applied >= results[0]["ok"]["index"])
        await until(lambda: observer.raft.leader == second.config.name)
        await observer.reads.barrier("linearizable")
        await cluster.stop(second.config.name)
        await until(lambda: observer.raft.leader is None)
        with pytest.raises(errors.NoQuorum):
            await observer.reads.barrier("linearizable")
        await until(lambda: (observer.raft.staleness_s() or 0.0) > 1.0)
        with pytest.raises(errors.NoQuorum):
            await observer.reads.barrier("bounded", 1.0)
        await observer.reads.barrier("stale")


async def test_a_wiped_observer_gets_a_snapshot_while_writes_go_on(tmp_path: Path) -> None:
    limits = replace(Limits(), log_keep_entries=5)
    async with group(tmp_path, "abc", observers="o", limits=limits) as cluster:
        leader = await cluster.leader()
        leader.raft.snapshots.spool._threaded = False  # the copying process knows the registry's state, not this one
        await cluster.stop("o")
        for number in range(30):
            await propose(leader, f"value{number}")
        await until(lambda: leader.raft.journal.first_index > 2)
        (tmp_path / "o" / "store" / "data.mdb").unlink()
        initialise(tmp_path / "o", cluster_id="group", peer="o", peers="abc", observer=True)
        observer = await cluster.start("o")
        writes = asyncio.gather(*(propose(leader, f"later{number}") for number in range(30)))
        await until(lambda: observer.raft.snapshots.installed >= 1)
        await writes
        await until(lambda: observer.raft.applied == leader.raft.applied)
        assert observer.raft.role == "observer"


async def test_a_full_observer_stops_nobody_s_writes(tmp_path: Path) -> None:
    async with group(tmp_path, "abc", observers="o") as cluster:
        leader, observer = await cluster.leader(), cluster.running["o"]
        await until(lambda: observer.raft.leader == leader.config.name)
        observer.config = replace(observer.config, limits=replace(Limits(), db_soft_limit_bytes=1))
        await until(lambda: any("above its limit" in error for error in observer.status()["errors"]))
        results = await propose(leader, "still taken")
        await until(lambda: observer.raft.applied >= results[0]["ok"]["index"])
        assert leader.full() is None


async def test_a_newer_connection_of_an_observer_ends_the_older_one(tmp_path: Path) -> None:
    async with group(tmp_path, "a") as cluster:
        voter, tls = await cluster.leader(), cluster.tls("o", "observer")
        async with connected(cluster.addresses["a"], tls) as older, connected(cluster.addresses["a"], tls) as newer:
            older.send(hello(voters=["a"]))
            assert (await older.frame())["type"] == "hello_ack"
            await until(lambda: "o" in voter.raft.observers)
            newer.send(hello(voters=["a"]))
            assert "error" not in await newer.frame()
            assert await older.ended()
            assert list(voter.raft.observers) == ["o"]
            older.send({"type": "next_node_idx", "next_node_idx": 1, "reset": True, "success": False, "_term": 1})
            await propose(voter, "goes on")
        await until(lambda: len(voter.raft.observers) == 0)
        await propose(voter, "and on")
        assert not cluster.fatal


async def test_an_observer_that_falls_silent_is_dropped(tmp_path: Path) -> None:
    async with group(tmp_path, "a") as cluster:
        voter = await cluster.leader()
        async with connected(cluster.addresses["a"], cluster.tls("o", "observer")) as link:
            link.send(hello(voters=["a"]))
            await until(lambda: "o" in voter.raft.observers)
            assert await link.ended()
        assert "o" not in voter.raft.observers


async def test_no_more_observers_than_the_limit_are_let_in_and_the_refusal_names_it(tmp_path: Path) -> None:
    async with group(tmp_path, "a", limits=replace(Limits(), observers_max=1), observers="op") as cluster:
        voter = await cluster.leader()
        await until(lambda: len(voter.raft.observers) == 1)
        (linked,) = voter.raft.observers
        (left,) = {"o", "p"} - {linked}
        await until(lambda: any("observers_max" in error for error in cluster.running[left].status()["errors"]))
        assert list(voter.raft.observers) == [linked]
        await cluster.stop(linked)
        await until(lambda: list(voter.raft.observers) == [left])
        await until(lambda: cluster.running[left].status()["errors"] == [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cluster_id": "another"}, "belongs to cluster another"),
        ({"epoch": 2}, "lives in epoch 2"),
        ({"protocol": 99}, "protocol 99"),
        ({"membership_generation": 7}, "generation 7"),
        ({"type": "append_entries"}, "starts with a peer's certificate and a hello"),
        ({"last_index": "far"}, "incomplete or malformed"),
    ],
)
async def test_an_observer_s_hello_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    async with group(tmp_path, "a") as cluster:
        answer = await say(cluster.addresses["a"], cluster.tls("o", "observer"), hello(**{"voters": ["a"], **changes}))
        assert answer is not None
        assert reason in answer["error"]
        assert "o" not in cluster.running["a"].raft.observers


async def test_the_certificate_says_who_observes_and_who_votes(tmp_path: Path) -> None:
    """Neither does an observer's certificate with a voter's name make a voter, nor a stranger's an observer."""
    async with group(tmp_path, "a") as cluster:
        for name, role, reason in (
            ("a", "observer", "needs a name of its own"),
            ("o", "peer", "is not a voter of this cluster"),
            ("o", "client", "peer's certificate"),
        ):
            answer = await say(cluster.addresses["a"], cluster.tls(name, role), hello())
            assert answer is not None
            assert reason in answer["error"]
        assert len(cluster.running["a"].raft.observers) == 0


async def test_what_follows_the_answer_to_hello_in_the_same_read_is_not_lost(tmp_path: Path) -> None:
    made = Group(tmp_path, "a", observers="o")
    greeted = asyncio.Event()
    entry = [b"\0", 2, 1]
    append = {"type": "append_entries", "term": 1, "commit_index": 1, "prevLogIdx": 1, "prevLogTerm": 0}

    async def voter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
            writer.write(encode_frame({"type": "hello_ack"}) + encode_frame({**append, "entries": [entry]}))
            greeted.set()
            await reader.read()

    host, _, port = made.addresses["a"].rpartition(":")
    context = certificates.server_context(made.configs["a"].tls)
    async with await asyncio.start_server(voter, host, int(port), ssl=context):
        observer = await made.start("o")
        async with asyncio.timeout(_ENDED_S):
            await greeted.wait()
        await until(lambda: observer.raft.journal.last_index == 2)
        assert observer.raft.leader == "a"
        await made.stop("o")


def test_a_store_and_a_configuration_of_different_kinds_are_refused(tmp_path: Path) -> None:
    made = Group(tmp_path, "ab", observers="o")
    with pytest.raises(StoreError, match="holds the store of an observer"):
        peer(replace(made.configs["o"], observer=False))
    with pytest.raises(StoreError, match="holds the store of a voter"):
        peer(replace(made.configs["a"], observer=True))
    with pytest.raises(StoreError, match="needs a name of its own"):
        initialise(tmp_path / "x", cluster_id="group", peer="a", peers="ab", observer=True)


def peer(config: Any) -> Peer:
    return Peer(config, apply=lambda *_: None, applied_index=applied_index)
