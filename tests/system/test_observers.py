"""Observers as processes: reads and feed near a zone, however far the voters are, and the truth about their age."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from chaos import links
from ops.dev.cluster import Cluster
from raftreg import wire
from raftreg.certificates import api_client_context
from raftreg.client import Client
from tests.registry import Answer, Http, until
from tests.system.conftest import MakeCluster

_FAR_MS = 50  # each way: round trips of 100 ms


@contextlib.asynccontextmanager
async def asking(cluster: Cluster, name: str) -> Any:
    """Bare HTTP to one peer or observer, as the operator."""
    connector = aiohttp.TCPConnector(ssl=api_client_context(cluster.wiring.operator_tls()))
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(20)) as session:
        yield Http(session, cluster.url(name))


def names(answer: Answer) -> list[str]:
    return [image["name"] for image in answer.body["images"]]


def staleness(answer: Answer) -> float:
    return float(answer.headers[wire.HEADER_STALENESS])


def voters(cluster: Cluster) -> Client:
    return Client(cluster.registry_urls, ssl=api_client_context(cluster.wiring.operator_tls()))


async def started(make_cluster: MakeCluster, *observers: str) -> Cluster:
    cluster = make_cluster(proxied=True, gateways={}, observers=observers)
    await asyncio.to_thread(cluster.start)
    return cluster


@pytest.mark.slow
async def test_a_far_observer_answers_all_reads_and_refuses_writes(make_cluster: MakeCluster) -> None:
    cluster = await started(make_cluster, "ams")
    await asyncio.to_thread(cluster.delay_observer, "ams", _FAR_MS)
    async with voters(cluster) as registry, asking(cluster, "ams") as ask:
        await registry.create_image(attributes={"name": "one"})
        assert names(await ask("GET", "images")) == ["one"], "a linearizable read sees what was acknowledged before"
        fresh = await ask("GET", "images?consistency=bounded&max_staleness=5")
        assert names(fresh) == ["one"]
        assert staleness(fresh) < 5
        refused = await ask("POST", "images", {"attributes": {"name": "two"}})
        assert refused.status == 503
        assert refused.headers["Retry-After"]
        leader = await asyncio.to_thread(cluster.wait_leader)
        assert (refused.error["code"], refused.error["leader"]) == ("not_leader", leader)
        assert leader in refused.error["message"]
        assert refused.error["definite"]
        beat = await ask("POST", "zones/ams/heartbeat", {"gateway": "ams-1"})
        assert (beat.status, beat.error["code"]) == (503, "not_leader")
        status = (await ask("GET", "status")).body
        assert (status["role"], status["leader"]) == ("observer", leader)
    seen = await asyncio.to_thread(cluster.ask_peer, leader, "/registry/v1/status")
    assert seen is not None
    assert seen["observers"]["ams"]["connected"]
    assert set(seen["peers"]) == set(cluster.peers) - {leader}


@pytest.mark.slow
async def test_an_observer_s_feed_and_bootstrap_come_from_its_own_state(make_cluster: MakeCluster) -> None:
    cluster = await started(make_cluster, "ams")
    async with voters(cluster) as registry, asking(cluster, "ams") as ask:
        await registry.create_image(attributes={"name": "one"})
        chunk = (await ask("GET", "bootstrap")).body
        assert [image["name"] for image in chunk["images"]] == ["one"]
        near = Client([cluster.url("ams")], ssl=api_client_context(cluster.wiring.operator_tls()))
        async with near, contextlib.aclosing(near.changes(chunk["start"])) as feed:
            await registry.create_image(attributes={"name": "two"})
            async with asyncio.timeout(20):
                async for message in feed:
                    if message["type"] == "change":
                        break
        assert message["revision"] == 2


@pytest.mark.parametrize("mode", ["blackhole", pytest.param("reset", marks=pytest.mark.slow)])
async def test_an_isolated_observer_s_staleness_grows_and_it_serves_what_it_can(
    make_cluster: MakeCluster, mode: links.Mode
) -> None:
    cluster = await started(make_cluster, "ams")
    async with voters(cluster) as registry, asking(cluster, "ams") as ask:
        await registry.create_image(attributes={"name": "one"})
        assert names(await ask("GET", "images")) == ["one"]
        await asyncio.to_thread(cluster.isolate_observer, "ams", mode)

        async def is_on_its_own() -> bool:
            return bool((await ask("GET", "/healthcheck")).body["leader"] is None)

        await until(is_on_its_own)
        await registry.create_image(attributes={"name": "two"})
        ages = []

        async def is_seconds_old() -> bool:
            answer = await ask("GET", "images?consistency=stale")
            assert names(answer) == ["one"]
            ages.append(staleness(answer))
            return ages[-1] > 2

        await until(is_seconds_old)
        assert ages == sorted(ages)
        assert names(await ask("GET", "images?consistency=bounded&max_staleness=3600")) == ["one"]
        for query in ("images", "images?consistency=bounded&max_staleness=1"):
            refused = await ask("GET", query)
            assert (refused.status, refused.error["code"]) == (503, "no_quorum")
        assert (await ask("POST", "ids", {"count": 1})).error["code"] == "no_quorum"
        await asyncio.to_thread(cluster.heal_observer, "ams")

        async def is_back() -> bool:
            answer = await ask("GET", "images")
            return answer.status == 200 and sorted(names(answer)) == ["one", "two"]

        await until(is_back)


@pytest.mark.slow
async def test_observers_that_come_and_go_fail_no_write(make_cluster: MakeCluster) -> None:
    cluster = await started(make_cluster, "ams", "fra")
    async with voters(cluster) as registry:
        for number in range(6):
            name = ("ams", "fra")[number % 2]
            await asyncio.to_thread(cluster.kill, name)
            await registry.create_image(attributes={"name": f"image{number}"})
            await asyncio.to_thread(cluster.start_process, name)
        await asyncio.to_thread(cluster.wait_ready, cluster.observers)
        for name in cluster.observers:
            async with asking(cluster, name) as ask:
                assert len(names(await ask("GET", "images"))) == 6


@pytest.mark.slow
async def test_an_observer_alone_with_one_voter_of_three_makes_no_quorum(make_cluster: MakeCluster) -> None:
    cluster = await started(make_cluster, "ams", "fra")
    leader = await asyncio.to_thread(cluster.wait_leader)
    async with voters(cluster) as registry:
        await registry.create_image(attributes={"name": "one"})
    await asyncio.to_thread(cluster.kill, *(peer for peer in cluster.peers if peer != leader))
    async with asking(cluster, leader) as ask_leader, asking(cluster, "ams") as ask:

        async def steps_down() -> bool:
            return bool((await ask_leader("GET", "status")).body["role"] != "leader")

        await until(steps_down)
        assert (await ask_leader("POST", "ids", {"count": 1})).status == 503
        assert names(await ask("GET", "images?consistency=stale")) == ["one"]
        assert (await ask("GET", "images")).status == 503


@pytest.mark.slow
async def test_the_directories_of_observers_survive_a_restart_of_everything(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = await started(make_cluster, "ams")
    async with voters(cluster) as registry:
        await registry.create_image(attributes={"name": "one"})
    await asyncio.to_thread(cluster.stop)
    again = Cluster(cluster.base, gateways={}, observers=("ams",))
    try:
        await asyncio.to_thread(again.start)
        async with asking(again, "ams") as ask:
            assert names(await ask("GET", "images")) == ["one"]
    finally:
        await asyncio.to_thread(again.stop)
