"""What only operators ask of the registry's API: sessions, blocks, and forgetting old changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from raftreg import wire
from raftreg.config import Limits
from tests.registry import Http, Registry, registry
from tests.test_api import SESSION, create, session


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def http(cluster: Registry) -> AsyncIterator[Http]:
    async with cluster.http() as http:
        yield http


async def test_operators_see_sessions_and_blocks_by_pages(cluster: Registry) -> None:
    async with cluster.http() as http:
        opened = (await http("POST", "sessions", session())).body
        firsts = []
        for size in (10, 20, 30):
            block = {"gateway": "ams-1", "session": SESSION, "size": size, "token": opened["token"]}
            firsts.append((await http("POST", "blocks", block)).body["first"])
        shown = (await http("GET", f"sessions/{SESSION.upper()}")).body["session"]
        assert (shown["gateway"], shown["blocks"]) == ("ams-1", firsts)
        for unknown in ("x", SESSION.replace("1", "2")):
            answer = await http("GET", f"sessions/{unknown}")
            assert (answer.status, answer.error["code"]) == (404, "session_unknown")
        page = (await http("GET", "blocks?limit=2")).body
        assert ([block["first"] for block in page["blocks"]], page["next"]) == (firsts[:2], firsts[1])
        page = (await http("GET", f"blocks?limit=2&after={page['next']}")).body
        assert ([block["first"] for block in page["blocks"]], page["next"]) == (firsts[2:], None)
        assert (await http("GET", "blocks?gateway=fra-1")).body == {"blocks": [], "next": None}


async def test_zones_and_sessions_come_in_pages_and_the_client_reads_them_all(tmp_path: Path) -> None:
    limits = Limits(page_rows_default=2, page_rows_max=2)
    async with registry(tmp_path, limits=limits) as cluster, cluster.http() as http, cluster.client() as client:
        zones = ["ams", "ber", "fra", "lon", "osl"]
        for zone in reversed(zones):
            await client.register_zone(zone)
        page = (await http("GET", "zones")).body
        assert (list(page["zones"]), page["next"]) == (zones[:2], "ber")
        page = (await http("GET", "zones?limit=9&after=fra")).body
        assert (list(page["zones"]), page["next"]) == (zones[3:], None)
        assert (list((await http("GET", "zones?limit=0")).body["zones"])) == zones[:1]
        assert sorted(await client.zones()) == zones
        sessions = [SESSION[:-1] + str(number) for number in range(3)]
        for number, name in enumerate(sessions):
            await client.open_session(
                gateway=f"gw{number}", zone="ams", session=name, highest_sequence=0, acked_sequence=0,
                acked_hash=wire.CHAIN_START,
            )  # fmt: skip
        page = (await http("GET", f"sessions?after={sessions[0].upper()}&limit=1")).body
        assert (list(page["sessions"]), page["next"]) == ([sessions[1]], sessions[1])
        assert sorted(await client.sessions()) == sessions


# -- compaction ---------------------------------------------------------------------------------------------------


async def test_old_changes_are_forgotten_by_revision_in_as_many_steps_as_it_takes(http: Http) -> None:
    steps = 3
    for _ in range(steps):
        operations = [{"op": "create_image", "attributes": {}} for _ in range(Limits().batch_operations_max)]
        assert (await http("POST", "batch", {"operations": operations})).status == 200
    revision = int((await http("GET", "status")).headers[wire.HEADER_REVISION])
    assert revision > Limits().compact_rows_max
    floor = revision - 5
    answer = await http("POST", "compact", {"floor": floor})
    assert (answer.status, answer.body["floor"], answer.body["more"]) == (200, floor, False)
    lower = await http("POST", "compact", {"floor": 1})
    assert lower.body["floor"] == floor
    assert (await http("GET", f"changes?after=1.{floor - 2}")).error["code"] == "compacted"
    assert len((await http("GET", "images?limit=1000")).body["images"]) == 1000


async def test_old_changes_are_forgotten_by_age(http: Http) -> None:
    await create(http)
    await create(http)
    assert (await http("POST", "compact", {"age_s": 3600})).body["floor"] == 1
    assert (await http("POST", "compact", {"age_s": 0})).body["floor"] == 3


@pytest.mark.parametrize("body", [{}, {"floor": 1, "age_s": 1}, {"age_s": -1}, {"floor": 0}, {"floor": "1"}])
async def test_a_compaction_needs_one_sensible_bound(http: Http, body: dict[str, Any]) -> None:
    answer = await http("POST", "compact", body)
    assert (answer.status, answer.error["code"]) == (400, "invalid"), answer.body


async def test_only_operators_compact(cluster: Registry) -> None:
    for who in ("ams-1", "app"):
        async with cluster.http(who) as http:
            assert (await http("POST", "compact", {"floor": 1})).status == 403


async def test_a_follower_sends_a_compaction_on_to_the_leader(tmp_path: Path) -> None:
    async with registry(tmp_path, "abc") as cluster:
        leader = await cluster.leader()
        follower = next(name for name in "abc" if name != leader)
        async with cluster.http(at=follower) as http:
            for _ in range(3):
                await create(http)
            answer = await http("POST", "compact", {"floor": 3})
            assert (answer.status, answer.body["floor"], answer.headers[wire.HEADER_PEER]) == (200, 3, leader)


async def test_the_client_reads_sessions_and_blocks_and_compacts(cluster: Registry) -> None:
    async with cluster.client() as client:
        opened = await client.open_session(
            gateway="ams-1", zone="ams", session=SESSION, highest_sequence=0, acked_sequence=0,
            acked_hash=wire.CHAIN_START,
        )  # fmt: skip
        block = await client.grant_block(gateway="ams-1", session=SESSION, size=5, token=opened["token"])
        assert await client.sessions() == {SESSION: await client.session(SESSION)}
        assert (await client.list_blocks(gateway="ams-1"))["blocks"][0]["last"] == block["last"]
        assert (await client.seal_blocks("ams-1"))["sealed"] == 1
        assert (await client.zone("ams"))["gateways"] == {"ams-1": {"endpoint": None}}
        assert await client.compact(floor=2) == 2
        assert await client.compact(age_s=0) == (await client.status())["revision"] + 1
