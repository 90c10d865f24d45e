"""The changefeed over real peers: order, completeness, cut-offs, bounds."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgpack
import pytest

from raftreg import changefeed, errors, wire
from raftreg.changefeed import Feed
from raftreg.client import Client
from raftreg.config import Limits
from tests.registry import Http, Registry, registry, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as cluster:
        yield cluster


async def create(client: Client, count: int, **fields: Any) -> list[int]:
    made = [await client.create_image(attributes={"name": f"i{n}"}, **fields) for n in range(count)]
    return [image["number"] for image in made]


async def changes(client: Client, after: str, count: int) -> list[dict[str, Any]]:
    """The first `count` changes behind the cursor."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(20), aclosing(client.changes(after)) as feed:
        async for message in feed:
            if message["type"] == "change":
                found.append(message)
            if len(found) == count:
                break
    return found


async def test_changes_come_in_order_each_once_from_any_cursor(cluster: Registry) -> None:
    async with cluster.client() as client:
        numbers = await create(client, 5)
        await client.update_image(numbers[0], {"name": "new"})
        await client.delete_image(numbers[1])
        found = await changes(client, "1.0", 7)
        assert [change["revision"] for change in found] == list(range(1, 8))
        assert [change["cursor"] for change in found] == [f"1.{revision}" for revision in range(1, 8)]
        assert [change["number"] for change in found] == [*numbers, numbers[0], numbers[1]]
        assert found[5]["image"]["name"] == "new"
        assert found[6]["deleted"]
        assert await changes(client, "1.4", 3) == found[4:]


async def test_changes_that_happen_later_arrive_while_the_feed_is_open(cluster: Registry) -> None:
    async with cluster.client() as client:
        following = asyncio.create_task(changes(client, "1.0", 60))
        numbers = await create(client, 60)
        assert [change["number"] for change in await following] == numbers


async def test_a_new_consumer_hears_at_once_where_it_is_and_then_every_second(cluster: Registry) -> None:
    async with cluster.client() as client, asyncio.timeout(20), aclosing(client.changes("1.0", heartbeat_s=60)) as feed:
        started = time.monotonic()
        first = await anext(feed)
        assert (first["type"], first["cursor"]) == ("heartbeat", "1.0")
        assert 0 <= first["staleness_s"] < 5
        assert time.monotonic() - started < 1.0
        await anext(feed)
        assert time.monotonic() - started < 3.0, "a heartbeat is due every second, whatever the consumer asked for"


async def test_json_and_msgpack_carry_the_same_changes(cluster: Registry) -> None:
    async with cluster.client() as client, cluster.http() as http:
        await create(client, 3)
        url = f"{http.url}{wire.PREFIX}/changes?after=1.0"
        async with asyncio.timeout(10), http.session.get(url) as feed:
            assert feed.headers["Content-Type"] == wire.NDJSON
            as_json = [wire.from_json(await feed.content.readline()) for _ in range(3)]
        async with asyncio.timeout(10), http.session.get(url, headers={"Accept": wire.MSGPACK}) as feed:
            unpacker = msgpack.Unpacker()
            as_msgpack: list[dict[str, Any]] = []
            while len(as_msgpack) < 3:
                unpacker.feed(await feed.content.readany())
                as_msgpack += list(unpacker)
        assert as_json == as_msgpack[:3]


async def test_a_cursor_of_another_epoch_or_below_the_floor_is_gone(cluster: Registry) -> None:
    async with cluster.client() as client, cluster.http() as http:
        await create(client, 5)
        with pytest.raises(errors.WrongEpoch) as wrong:
            await changes(client, "2.0", 1)
        assert (wrong.value.details["epoch"], wrong.value.details["cursor"]) == (1, "1.5")
        await cluster.peers["a"].proposer.propose([{"op": "compact_changes", "floor": 4}])
        compacted = await http("GET", "changes?after=1.2")
        assert (compacted.status, compacted.error["code"]) == (410, "compacted")
        assert (compacted.error["floor"], compacted.error["epoch"]) == (4, 1)
        assert [change["revision"] for change in await changes(client, "1.3", 2)] == [4, 5]


async def test_a_consumer_which_compaction_overtakes_is_told_so(cluster: Registry) -> None:
    """The stream has begun with 200 by then, so the refusal is its last message."""
    async with cluster.client() as client:
        await create(client, 5)
        feed = cluster.peers["a"].reads
        limits = dataclasses.replace(Limits(), feed_chunk_rows=1)
        written: list[dict[str, Any]] = []

        async def write(data: bytes) -> None:
            unpacker = msgpack.Unpacker()
            unpacker.feed(data)
            written.extend(unpacker)
            await cluster.peers["a"].proposer.propose([{"op": "compact_changes", "floor": 5}])

        follower = Feed(feed, epoch=1, limits=limits)
        async with asyncio.timeout(10):
            await follower.follow(wire.Cursor(1, 0), write, as_msgpack=True, heartbeat_s=60)
        assert [message["type"] for message in written] == ["change", "heartbeat", "error"]
        assert written[-1]["error"]["code"] == "compacted"
        assert follower.consumers == 0


async def test_a_change_is_encoded_once_for_all_consumers(cluster: Registry) -> None:
    async with cluster.client() as client:
        await create(client, 3)
    feed = Feed(cluster.peers["a"].reads, epoch=1, limits=Limits())
    first, _ = feed.chunk(0, as_msgpack=True)
    view = cluster.peers["a"].reads.view()
    for revision in (1, 2, 3):
        view.delete(b"C" + revision.to_bytes(8, "big"))  # never committed: what is read now comes from memory
    assert feed.chunk(0, as_msgpack=True) == (first, 3)
    assert feed.chunk(1, as_msgpack=True)[1] == 3


async def test_many_consumers_are_woken_some_at_a_time_and_all_get_everything(cluster: Registry) -> None:
    feed = Feed(cluster.peers["a"].reads, epoch=1, limits=Limits())
    turns = 0
    got: list[list[tuple[int, int]]] = [[] for _ in range(100)]  # (revision, turn of the loop) of each consumer

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def writing_to(mine: list[tuple[int, int]]) -> Callable[[bytes], Awaitable[None]]:
        async def write(data: bytes) -> None:
            unpacker = msgpack.Unpacker()
            unpacker.feed(data)
            mine.extend((message["revision"], turns) for message in unpacker if message["type"] == "change")

        return write

    async def all_have(revision: int) -> bool:
        return all(mine and mine[-1][0] == revision for mine in got)

    async with cluster.client() as client, asyncio.TaskGroup() as group:
        counting = group.create_task(count_turns())
        for mine in got:
            group.create_task(feed.follow(wire.Cursor(1, 0), writing_to(mine), as_msgpack=True, heartbeat_s=60))
        for revision in (1, 2, 3):
            await create(client, 1)
            feed.notify()
            await until(lambda revision=revision: all_have(revision))  # type: ignore[misc]
        feed.close()
        counting.cancel()
    assert all([revision for revision, _ in mine] == [1, 2, 3] for mine in got)
    together = Counter(turn for mine in got for _, turn in mine)
    assert max(together.values()) <= changefeed._WOKEN_AT_ONCE
    assert feed.consumers == 0


async def test_writes_to_many_consumers_are_bounded_per_second_and_hold_several_changes(cluster: Registry) -> None:
    limits = dataclasses.replace(Limits(), feed_writes_per_s_max=200)
    feed = Feed(cluster.peers["a"].reads, epoch=1, limits=limits)
    writes, complete = 0, 0

    async def write(data: bytes) -> None:
        nonlocal writes, complete
        unpacker = msgpack.Unpacker()
        unpacker.feed(data)
        revisions = [message["revision"] for message in unpacker if message["type"] == "change"]
        writes += bool(revisions)
        complete += 10 in revisions

    async def is_complete() -> bool:
        return complete == 100

    async with cluster.client() as client, asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(feed.follow(wire.Cursor(1, 0), write, as_msgpack=True, heartbeat_s=60))
        await asyncio.sleep(0)  # they have begun
        began = time.monotonic()
        for _ in range(10):
            await create(client, 1)
            feed.notify()
        await until(is_complete)
        took_s = time.monotonic() - began
        feed.close()
    assert writes <= took_s * limits.feed_writes_per_s_max + changefeed._WOKEN_AT_ONCE
    assert writes < 10 * 100


async def test_what_is_kept_encoded_is_bounded(cluster: Registry) -> None:
    async with cluster.client() as client:
        await create(client, 20)
    limits = dataclasses.replace(Limits(), feed_encoded_max_bytes=4000, feed_chunk_rows=3)
    feed = Feed(cluster.peers["a"].reads, epoch=1, limits=limits)
    revisions, after = [], 0
    for _ in range(2):
        after = 0
        while True:
            data, reached = feed.chunk(after, as_msgpack=True)
            if not data:
                break
            unpacker = msgpack.Unpacker()
            unpacker.feed(data)
            revisions += [message["revision"] for message in unpacker]
            after = reached
    assert revisions == [*range(1, 21), *range(1, 21)]
    assert sum(len(change.whole) for change in feed._encoded[True]._changes.values()) <= 2000


async def test_a_consumer_that_does_not_read_is_cut_off_and_the_others_are_not(tmp_path: Path) -> None:
    limits = dataclasses.replace(Limits(), feed_buffer_max_bytes=16_384, feed_stall_max_s=0.5)
    async with registry(tmp_path, api_tls=False, limits=limits) as cluster, cluster.http() as http:
        plain = Client([cluster.url("a")])
        host, port = cluster.url("a").removeprefix("http://").split(":")
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(deaf, (host, int(port)))
        await loop.sock_sendall(deaf, f"GET {wire.PREFIX}/changes?after=1.0 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await until(lambda: consumers(http, 1))
        following = asyncio.create_task(changes(plain, "1.0", 200))
        await create(plain, 200, properties={"p": "x" * 30_000})
        assert len(await following) == 200
        await until(lambda: consumers(http, 0))
        assert "raftreg_feed_cut_off_total 1.0" in (await http("GET", "/metrics")).body
        deaf.close()
        await plain.close()


async def consumers(http: Http, count: int) -> bool:
    return bool((await http("GET", "status")).body["feed_consumers"] == count)


async def test_more_consumers_than_the_limit_are_refused(tmp_path: Path) -> None:
    limits = dataclasses.replace(Limits(), feed_consumers_max=1)
    async with registry(tmp_path, limits=limits) as cluster, cluster.http() as http:
        url = f"{http.url}{wire.PREFIX}/changes?after=1.0"
        async with http.session.get(url) as first:
            await first.content.readline()
            refused = await http("GET", "changes?after=1.0")
            assert (refused.status, refused.error["code"]) == (429, "too_many_requests")
        await until(lambda: consumers(http, 0))
        async with http.session.get(url) as again:
            assert again.status == 200


async def test_a_bootstrap_and_the_changes_behind_it_give_the_whole_catalogue(cluster: Registry) -> None:
    """Images are created, changed and deleted while the chunks are read; merged by version nothing is missing."""
    async with cluster.client() as client:
        numbers = await create(client, 30)
        catalogue: dict[int, dict[str, Any]] = {}
        start = None
        async for chunk in client.bootstrap(chunk_rows=7):
            start = start or chunk["start"]
            for image in chunk["images"]:
                catalogue[image["number"]] = image
            await create(client, 1)
            await client.update_image(numbers.pop(0), {"name": "changed"})
            await client.delete_image(numbers.pop())
        assert start is not None
        end = (await client.status())["revision"]
        for change in await changes(client, start, end - wire.parse_cursor(start).revision):
            known = catalogue.get(change["number"])
            if change.get("deleted"):
                catalogue.pop(change["number"], None)
            elif known is None or known["version"] < change["version"]:
                catalogue[change["number"]] = change["image"]
        page = await client.list_images(limit=1000)
        assert catalogue == {image["number"]: image for image in page["images"]}


async def test_a_feed_goes_on_at_another_peer_without_gap_or_repetition(tmp_path: Path) -> None:
    async with registry(tmp_path, "abc") as cluster, cluster.client() as client:
        found: list[int] = []
        feed = client.changes("1.0")

        async def follow() -> None:
            async for message in feed:
                if message["type"] == "change":
                    found.append(message["revision"])
                if found and found[-1] == 60:
                    return

        following = asyncio.create_task(follow())
        for name in "abc":
            await create(client, 20)
            if name != "c":
                await cluster.stop(name)
                await cluster.start(name)
                await cluster.leader()
        async with asyncio.timeout(20):
            await following
        await feed.aclose()
        assert found == list(range(1, 61))
