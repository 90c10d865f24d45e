"""The lead over HTTP: who may move it, how a write finds whoever leads, and how a stopping peer lets its clients go."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from raftreg import errors, wire
from raftreg.config import Limits, Timing
from tests.registry import Registry, registry, until

# A busy machine may stop a process for as long as a default election timeout; here nobody but the test moves the lead.
STEADY = Timing(raft_min_timeout_s=1.0, raft_max_timeout_s=1.5, leader_fallback_s=3.0, link_silence_s=3.0)


async def roles(cluster: Registry) -> tuple[str, str, str]:
    """The leader, and two who are not, once all know it."""
    leader = await cluster.leader()

    async def is_known() -> bool:
        return all(peer.raft.leader == leader for peer in cluster.peers.values())

    await until(is_known)
    first, second = (name for name in "abc" if name != leader)
    return leader, first, second


# -- moving the lead ----------------------------------------------------------------------------------------------


async def test_an_operator_moves_the_lead_through_any_peer(tmp_path: Path) -> None:
    async with registry(tmp_path, "abc", timing=STEADY) as cluster:
        leader, first, second = await roles(cluster)
        async with cluster.http(at=first) as http:
            moved = await http("POST", "leader/transfer", {"to": second})
            assert (moved.status, moved.body["from"], moved.body["to"]) == (200, leader, second)
            assert 0 < moved.body["took_s"] < cluster.configs[leader].timing.transfer_max_s
            assert cluster.peers[second].raft.is_leader
            anywhere = await http("POST", "leader/transfer")
            assert (anywhere.status, anywhere.body["from"]) == (200, second)
            stranger = await http("POST", "leader/transfer", {"to": "nobody"})
            assert (stranger.status, stranger.error["code"]) == (400, "invalid")
        async with cluster.http("ams-1", at=first) as gateway:
            assert (await gateway("POST", "leader/transfer")).status == 403


async def test_a_single_peer_cannot_give_the_lead_away(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, cluster.http() as http:
        refused = await http("POST", "leader/transfer")
        assert (refused.status, refused.error["code"], refused.error["definite"]) == (503, "transfer_failed", True)
        assert (await http("POST", "leader/transfer", {"to": "a"})).body["to"] == "a"
        assert (await http("POST", "ids", {"count": 1})).status == 201


# -- finding the leader -------------------------------------------------------------------------------------------


async def test_a_write_sent_to_a_peer_that_leads_no_more_goes_on_to_the_one_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with registry(tmp_path, "abc", timing=STEADY) as cluster:
        leader, first, second = await roles(cluster)
        proposer = cluster.peers[first].proposer
        asked: list[str] = []

        async def remembers_another(*_: Any, **__: Any) -> None:
            asked.append(second)
            raise errors.NotLeader(second)

        monkeypatch.setattr(proposer, "propose", remembers_another)
        async with cluster.http(at=first) as http:
            answer = await http("POST", "ids", {"count": 1})
        assert (answer.status, answer.headers[wire.HEADER_PEER]) == (201, leader)
        assert asked == [second]


async def test_a_write_waits_for_the_next_leader_when_the_one_that_is_known_is_gone(tmp_path: Path) -> None:
    limits = dataclasses.replace(Limits(), leader_wait_s=10.0)
    async with registry(tmp_path, "abc", limits=limits, timing=STEADY) as cluster:
        leader, first, _ = await roles(cluster)
        async with cluster.http(at=first) as http:
            # As by SIGKILL: nothing is handed over, and connections to it are refused.
            gone = cluster.peers[leader]
            gone.raft.transfer_leadership = lambda to=None: False  # type: ignore[method-assign]
            stopping = asyncio.create_task(cluster.stop(leader))
            answers = [await http("POST", "ids", {"count": 1}) for _ in range(20)]
            await stopping
            answers += [await http("POST", "ids", {"count": 1}) for _ in range(20)]
        assert {answer.status for answer in answers} == {201}


async def test_a_write_at_a_deposed_leader_that_does_not_answer_is_in_doubt_soon_and_not_at_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with registry(tmp_path, "abc", timing=STEADY) as cluster:
        leader, first, second = await roles(cluster)
        arrived = asyncio.Event()

        async def hangs(*_: Any, **__: Any) -> None:
            arrived.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(cluster.peers[leader].proposer, "propose", hangs)
        async with cluster.http(at=first) as http, cluster.http(at=second) as operator:
            headers = {wire.HEADER_DEADLINE_MS: "60000", wire.HEADER_KEY: "k"}
            write = asyncio.create_task(http("POST", "ids", {"count": 1}, headers=headers))
            await arrived.wait()
            assert (await operator("POST", "leader/transfer", {"to": second})).status == 200
            answer = await write
        assert (answer.status, answer.error["code"], answer.error["key"]) == (504, "outcome_unknown", "k")


# -- letting clients go -------------------------------------------------------------------------------------------


async def test_a_stopping_peer_answers_on_kept_connections_and_ends_them_with_the_answer(tmp_path: Path) -> None:
    limits = dataclasses.replace(Limits(), drain_quiet_s=20.0, drain_max_s=20.0)
    async with registry(tmp_path, limits=limits) as cluster, cluster.http() as kept, cluster.http() as other:
        for http in (kept, other):
            first = await http("GET", "images")
            assert (first.status, first.headers.get("Connection")) == (200, None)
        stopping = asyncio.create_task(cluster.stop("a"))

        async def refuses_new_connections() -> bool:
            try:
                async with cluster.http() as late:
                    await late("GET", "/healthcheck")
            except aiohttp.ClientConnectorError:
                return True
            return False

        await until(refuses_new_connections)
        answer = await kept("POST", "ids", {"count": 1})
        assert (answer.status, answer.headers["Connection"]) == (201, "close")
        health = await other("GET", "/healthcheck")
        assert (health.status, health.headers["Connection"]) == (503, "close")
        assert "stopping" in health.error["message"]
        await stopping  # nobody is connected any more, so it waits no longer


async def test_feeds_of_a_stopping_peer_end_at_once(tmp_path: Path) -> None:
    limits = dataclasses.replace(Limits(), drain_quiet_s=0.01, drain_max_s=20.0)
    async with registry(tmp_path, limits=limits) as cluster, cluster.http() as http:
        url = f"{http.url}{wire.PREFIX}/changes?after=1.0"
        async with http.session.get(url) as feed:
            assert feed.status == 200
            await feed.content.readany()
            stopping = asyncio.create_task(cluster.stop("a"))
            while await feed.content.readany():
                pass
        await stopping
