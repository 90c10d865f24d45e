"""Reads that need not be linearizable, bootstraps and feeds go to the nearest endpoint that can answer them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from raftreg import endpoints, errors, wire
from raftreg.client import Client
from raftreg.endpoints import MEASURED_S, NEARER_S, UNHEALTHY_S, Endpoints
from tests.registry import until

# Far above what a busy machine adds to a request on loopback, so that the order of the distances is sure.
STEP_S = 0.15
IMAGE = {"number": 1, "uuid": "0b1c2d3e-0000-4000-8000-00000000000a"}


class Place:
    """A small registry endpoint that answers after `delay_s`; it notes what it was asked, and can refuse."""

    def __init__(self, name: str, delay_s: float, leader: str = "far") -> None:
        self.name, self.delay_s, self.leader = name, delay_s, leader
        self.asked: list[str] = []
        self.refusal: errors.RegistryError | None = None
        self.is_observer = False
        self.start = "1.10"
        self.url = ""
        self.feed_ends = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(self.delay_s)
        if request.path == "/healthcheck":
            return self.document({})
        self.asked.append(request.path_qs.removeprefix(wire.PREFIX))
        if self.refusal is not None:
            return self.document(self.refusal.to_wire(), self.refusal.http_status)
        if self.is_observer and request.method != "GET":
            refused = errors.NotLeader(self.leader)
            return self.document(refused.to_wire(), refused.http_status)
        if request.path.endswith("/changes"):
            return await self.feed(request)
        if request.path.endswith("/bootstrap"):
            after = int(request.query["after"])
            return self.document({"images": [], "start": self.start, "next": after + 1 if after < 2 else None})
        return self.document({"image": IMAGE, "zones": {}, "images": [], "next": None, "first": 1, "last": 1})

    async def feed(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=self.headers())
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while not self.feed_ends.is_set():
                await response.write(wire.pack({"type": "heartbeat", "cursor": "1.10", "staleness_s": 0.0}))
                await asyncio.sleep(0.02)
        return response

    def document(self, value: Any, status: int = 200) -> web.Response:
        return web.Response(body=wire.pack(value), status=status, headers=self.headers())

    def headers(self) -> dict[str, str]:
        return {"Content-Type": wire.MSGPACK, wire.HEADER_PEER: self.name, wire.HEADER_LEADER: self.leader}


@contextlib.asynccontextmanager
async def places(*served: Place) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for place in served:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", place.answer)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            place.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield


async def measured(client: Client) -> None:
    """Let the client find out how near its endpoints are."""
    client.nearest()

    async def is_measured() -> bool:
        return client._measuring is None

    await until(is_measured)


def forget(*served: Place) -> None:
    for place in served:
        place.asked.clear()


@pytest.fixture
async def near_and_far() -> AsyncIterator[tuple[Place, Place, Place]]:
    """Three endpoints, the leader the farthest of them."""
    near, middle, far = Place("near", 0.0), Place("middle", STEP_S), Place("far", 2 * STEP_S)
    async with places(near, middle, far):
        yield near, middle, far


async def test_reads_that_may_be_old_go_to_the_nearest_and_all_others_to_the_leader(
    near_and_far: tuple[Place, Place, Place],
) -> None:
    near, middle, far = near_and_far
    async with Client([far.url, middle.url, near.url]) as client:
        await measured(client)
        await client.status()  # from whichever answers the client learns who leads
        forget(near, middle, far)
        await client.get_image(1, consistency="stale")
        await client.get_image(1, consistency="bounded", max_staleness=2.5)
        await client.list_images(consistency="bounded", max_staleness=1)
        await client.zones(consistency="stale")
        assert near.asked == [
            "/images/1?consistency=stale",
            "/images/1?consistency=bounded&max_staleness=2.5",
            "/images?consistency=bounded&max_staleness=1",
            "/zones?consistency=stale",
        ]
        await client.get_image(1)
        await client.allocate_ids(1)
        assert far.asked == ["/images/1?consistency=linearizable", "/ids"]
        assert middle.asked == []


async def test_a_write_that_an_observer_refuses_goes_to_the_leader_that_it_names_and_then_always_there(
    near_and_far: tuple[Place, Place, Place],
) -> None:
    near, middle, far = near_and_far
    near.is_observer = middle.is_observer = True
    async with Client([far.url, middle.url, near.url]) as client:
        await measured(client)
        client.endpoints.preferred = next(endpoint for endpoint in client.endpoints if endpoint.url == near.url)
        assert await client.allocate_ids(1) == (1, 1)
        forget(near, middle, far)
        assert await client.allocate_ids(1) == (1, 1)
        await client.get_image(1, consistency="stale")
        assert (near.asked, middle.asked, far.asked) == (["/images/1?consistency=stale"], [], ["/ids"])


@pytest.mark.parametrize(
    "refusal",
    [
        errors.NoQuorum("cut off"),
        errors.Overloaded("busy"),
        errors.TooManyRequests("busy"),
        errors.InternalError("bug"),
    ],
)
async def test_a_refusal_of_the_nearest_sends_a_read_to_the_next_nearest_at_once(
    near_and_far: tuple[Place, Place, Place], refusal: errors.RegistryError
) -> None:
    near, middle, far = near_and_far
    async with Client([far.url, middle.url, near.url]) as client:
        await measured(client)
        near.refusal = refusal
        forget(near, middle, far)
        await client.get_image(1, consistency="stale")
        assert (len(near.asked), len(middle.asked), len(far.asked)) == (1, 1, 0)
        await client.get_image(1, consistency="stale")
        assert (len(near.asked), len(middle.asked), len(far.asked)) == (1, 2, 0), "it is left alone for a while"


async def test_a_verdict_on_the_request_itself_is_no_reason_to_ask_elsewhere(
    near_and_far: tuple[Place, Place, Place],
) -> None:
    near, middle, far = near_and_far
    async with Client([far.url, middle.url, near.url]) as client:
        await measured(client)
        near.refusal = errors.ImageNotFound("none")
        forget(near, middle, far)
        with pytest.raises(errors.ImageNotFound):
            await client.get_image(1, consistency="stale")
        assert (len(near.asked), len(middle.asked), len(far.asked)) == (1, 0, 0)


async def test_the_nearest_is_asked_again_when_it_is_back(
    near_and_far: tuple[Place, Place, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "UNHEALTHY_S", 0.02)
    near, middle, far = near_and_far
    async with Client([far.url, middle.url, near.url]) as client:
        await measured(client)
        near.refusal = errors.NoQuorum("cut off")
        await client.get_image(1, consistency="stale")
        near.refusal = None

        async def is_back() -> bool:
            forget(near, middle, far)
            await client.get_image(1, consistency="stale")
            return len(near.asked) == 1

        await until(is_back)


async def test_a_feed_moves_to_the_nearest_endpoint_and_back_to_it_after_a_failure(
    near_and_far: tuple[Place, Place, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "UNHEALTHY_S", 0.02)
    near, middle, far = near_and_far
    async with Client([far.url, middle.url, near.url]) as client, asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow(client))

        async def follows_near() -> bool:
            return bool(near.asked) and client.nearest().name == "near"

        async def fled() -> bool:
            return len(middle.asked) + len(far.asked) > 0

        async def is_back() -> bool:
            return len(near.asked) > 0

        await until(follows_near)
        forget(middle, far)
        near.refusal = errors.NoQuorum("stopping")
        near.feed_ends.set()
        await until(fled)
        near.refusal = None
        near.feed_ends.clear()
        forget(near)
        await until(is_back)
        following.cancel()


async def follow(client: Client) -> None:
    async for _ in client.changes("1.10"):
        pass


async def test_a_bootstrap_that_goes_on_at_an_endpoint_which_is_behind_reads_that_chunk_anew() -> None:
    """The feed starts at the first chunk's revision: what a later chunk lacks of that would never come."""
    ahead, behind = Place("ahead", 0.0), Place("behind", STEP_S)
    ahead.start, behind.start = "1.20", "1.10"
    async with places(ahead, behind), Client([ahead.url, behind.url]) as client:
        await measured(client)
        chunks = client.bootstrap(consistency="stale")
        assert (await anext(chunks))["start"] == "1.20"
        ahead.refusal = errors.NoQuorum("cut off")
        forget(ahead, behind)
        await anext(chunks)
        assert ["consistency=stale" in asked for asked in behind.asked] == [True, False]
        assert "consistency=linearizable" in behind.asked[1]
        await chunks.aclose()


# -- how the nearest is chosen ------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def three(rtts_s: dict[str, float], clock: Callable[[], float] | None = None) -> tuple[Endpoints, Clock]:
    """Endpoints x, y and z, measured, and their clock."""
    time = Clock()
    chosen = Endpoints(["x", "y", "z"], clock or time)
    for endpoint in chosen:
        chosen.measured(endpoint, rtts_s[endpoint.url])
    return chosen, time


def test_a_small_gain_is_no_reason_to_change_and_a_large_one_is() -> None:
    chosen, _ = three({"x": 0.020, "y": 0.050, "z": 0.100})
    assert chosen.nearest().url == "x"
    by_url = {endpoint.url: endpoint for endpoint in chosen}
    chosen.measured(by_url["y"], 0.020 - NEARER_S / 2)
    assert chosen.nearest().url == "x"
    chosen.measured(by_url["y"], 0.001)
    assert chosen.nearest().url == "y"


def test_one_slow_answer_changes_no_mind_and_many_do() -> None:
    chosen, _ = three({"x": 0.010, "y": 0.030, "z": 0.100})
    x = chosen.nearest()
    chosen.measured(x, 0.050)
    assert chosen.nearest() is x
    for _ in range(20):
        chosen.measured(x, 0.050)
    assert chosen.nearest().url == "y"


def test_distances_are_measured_again_after_a_while_and_after_a_rest_that_grows() -> None:
    chosen, clock = three({"x": 0.010, "y": 0.030, "z": 0.100})
    assert chosen.due() == []
    clock.now += MEASURED_S
    assert len(chosen.due()) == 3
    chosen, clock = three({"x": 0.010, "y": 0.030, "z": 0.100})
    x = chosen.nearest()
    for rest_s in (1, 2, 4, 8, 8):
        chosen.avoid(x)
        assert chosen.nearest().url == "y"
        clock.now += (rest_s - 0.5) * UNHEALTHY_S
        assert x not in chosen.due()
        clock.now += UNHEALTHY_S
        assert x in chosen.due()
        assert chosen.nearest().url == "y", "not before it was measured"
    chosen.measured(x, 0.010)
    assert chosen.nearest() is x


def test_with_all_endpoints_in_trouble_one_of_them_is_asked_all_the_same() -> None:
    chosen, _ = three({"x": 0.010, "y": 0.030, "z": 0.100})
    for endpoint in chosen:
        chosen.avoid(endpoint)
    assert chosen.nearest().url in "xyz"
    assert chosen.nearest(["x", "y"]).url == "z"
    assert chosen.leading(["x", "z"]).url == "y"
