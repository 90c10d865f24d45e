"""Filters of the changefeed: who is sent what, what is gone, what a widened filter brings, what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from raftreg import errors, wire
from raftreg.changefeed import Feed
from raftreg.client import Client, FeedFilter
from raftreg.config import Limits
from raftreg.feed_filter import ALL
from tests.registry import Registry, registry

Message = dict[str, Any]
A, B = "project-a", "project-b"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: Registry) -> AsyncIterator[Client]:
    async with cluster.client() as client:
        yield client


def of(*tenants: str, kinds: tuple[str, ...] = (), visibilities: tuple[str, ...] = ()) -> FeedFilter:
    return FeedFilter(frozenset(kinds), frozenset(tenants), frozenset(visibilities))


async def image(client: Client, visibility: str = "private", owner: str | None = A, **fields: Any) -> int:
    made = await client.create_image(attributes={"owner": owner, "visibility": visibility, **fields})
    return int(made["number"])


async def sent(client: Client, wanted: FeedFilter, after: str = "1.0", **more: Any) -> list[Message]:
    """All that a consumer is sent up to the revision that the registry has now, and the heartbeat that says so."""
    end = wire.Cursor(1, (await client.status())["revision"])
    found: list[Message] = []
    async with asyncio.timeout(20), aclosing(client.changes(after, wanted=wanted, **more)) as feed:
        async for message in feed:
            if message["type"] != "heartbeat":
                found.append(message)
            elif wire.parse_cursor(message["cursor"]) >= end:
                return [*found, message]
    raise AssertionError("the feed ended")


def told(messages: list[Message]) -> list[tuple[str, int]]:
    """("create_image", "gone", "image" …, number) of what came of images."""
    found: list[tuple[str, int]] = []
    for message in messages:
        if message["type"] == "image":
            found.append(("image", message["image"]["number"]))
        elif message["type"] == "gone" or message.get("kind") == "image":
            found.append((message.get("op", "gone"), message["number"]))
    return found


async def test_a_tenant_is_sent_what_images_v2_would_show_to_it(client: Client) -> None:
    own = await image(client)
    public, community = await image(client, "public", B), await image(client, "community", B)
    hidden = await image(client, "public", B, os_hidden=True)
    shared, _private = await image(client, "shared", B), await image(client, "private", B)
    for project, status in ((A, "rejected"), ("another", "pending")):
        await client.update_image(shared, set_members={project: {"status": status}})
    assert told(await sent(client, of(A))) == [
        ("create_image", own), ("create_image", public), ("create_image", community), ("create_image", hidden),
        ("update_image", shared), ("update_image", shared),
    ]  # fmt: skip
    assert told(await sent(client, of("another")))[-1] == ("update_image", shared)
    assert [number for _, number in told(await sent(client, of("stranger")))] == [public, community, hidden]


async def test_members_of_an_image_that_is_not_shared_do_not_see_it(client: Client) -> None:
    number = await image(client, "shared", A)
    await client.update_image(number, set_members={B: {}})
    await client.update_image(number, {"visibility": "private"})
    assert [name for name, _ in told(await sent(client, of(B)))] == ["update_image", "gone"]


@pytest.mark.parametrize(
    ("leaving", "fields"),
    [
        ({"visibility": "private"}, {"visibility": "public"}),
        ({"owner": A}, {"owner": B, "visibility": "private"}),
        ({}, {"visibility": "shared"}),
    ],
    ids=["visibility", "owner", "member"],
)
async def test_an_image_that_leaves_a_filter_is_gone_and_nothing_of_it_is_told(
    client: Client, leaving: dict[str, Any], fields: dict[str, Any]
) -> None:
    number = await image(client, **{"owner": A, **fields})
    shared = fields["visibility"] == "shared"
    await client.update_image(number, {"name": "seen"}, set_members={B: {}} if shared else {})
    members = [B] if shared else []
    after = await client.update_image(number, {"name": "secret", **leaving}, remove_members=members)
    await client.update_image(number, {"name": "secret too"})
    await client.delete_image(number)
    messages = await sent(client, of(B))
    gone = messages[-2]
    assert gone == {
        "type": "gone", "cursor": f"1.{after['revision']}", "number": number, "uuid": after["uuid"],
        "version": after["version"],
    }  # fmt: skip
    assert b"secret" not in wire.to_json(messages)
    # Whoever sees it all the time is told as ever.
    assert "gone" not in dict(told(await sent(client, of(A))))


async def test_a_deletion_is_told_only_to_those_who_saw_the_image(client: Client) -> None:
    number = await image(client)
    await client.delete_image(number)
    assert told(await sent(client, of(A))) == [("create_image", number), ("delete_image", number)]
    assert (await sent(client, of(A)))[-2]["deleted"] is True
    assert told(await sent(client, of(B))) == []


async def test_who_saw_an_image_before_is_for_the_feed_alone(client: Client) -> None:
    number = await image(client)
    await client.update_image(number, {"visibility": "public"})
    await client.delete_image(number)
    assert all("before" not in message for message in await sent(client, ALL))


async def test_visibilities_narrow_and_together_with_tenants_both_must_be_content(client: Client) -> None:
    private, public = await image(client), await image(client, "public", B)
    assert told(await sent(client, of(visibilities=("public", "shared")))) == [("create_image", public)]
    assert told(await sent(client, of(A, visibilities=("private",)))) == [("create_image", private)]
    await client.update_image(public, {"visibility": "private"})
    assert told(await sent(client, of(visibilities=("public",))))[-1] == ("gone", public)


async def test_kinds_narrow_and_other_kinds_know_no_tenants_but_projects(client: Client) -> None:
    await image(client)
    await client.register_zone("z1", endpoint="https://z1")
    await client.set_quota(A, images_max=7)
    await client.set_quota(B, images_max=7)

    async def kinds(wanted: FeedFilter) -> list[str]:
        return [message["kind"] for message in await sent(client, wanted) if message["type"] == "change"]

    assert await kinds(of(kinds=("zone", "image"))) == ["image", "zone"]
    assert await kinds(of(kinds=("project",))) == ["project", "project"]
    assert await kinds(of(B)) == ["zone", "project"]


async def test_a_consumer_that_sees_nothing_moves_on_all_the_same(client: Client) -> None:
    for _ in range(3):
        await image(client)
    end = (await client.status())["revision"]
    assert [message["cursor"] for message in await sent(client, of(B))] == [f"1.{end}"]


async def test_filtered_consumers_share_the_encoded_changes_and_read_in_bounded_steps(
    cluster: Registry, client: Client
) -> None:
    numbers = [await image(client, "private", owner) for owner in (A, B, A, B, A)]
    feed = Feed(cluster.peers["a"].reads, epoch=1, limits=dataclasses.replace(Limits(), feed_chunk_rows=2))
    whole = [feed.chunk(after, as_msgpack=True)[0] for after in (0, 2, 4)]
    view = cluster.peers["a"].reads.view()
    for revision in range(1, len(numbers) + 1):
        view.delete(b"C" + revision.to_bytes(8, "big"))  # never committed: what is read now comes from memory
    of_a, of_b = (
        [feed.chunk(after, as_msgpack=True, wanted=of(tenant)) for after in (0, 2, 4, 5)] for tenant in (A, B)
    )
    assert [reached for _, reached in of_a] == [reached for _, reached in of_b] == [2, 4, 5, 5]
    assert [a + b for (a, _), (b, _) in zip(of_a, of_b, strict=True)] == [*whole, b""]


# -- bootstrap and widened filters --------------------------------------------------------------------------------


async def in_bootstrap(client: Client, wanted: FeedFilter, known: FeedFilter | None = None) -> list[int]:
    return [
        found["number"]
        async for chunk in client.bootstrap(wanted=wanted, known=known, chunk_rows=2)
        for found in chunk["images"]
    ]


async def test_a_bootstrap_takes_the_same_filters(client: Client) -> None:
    own, public, other = await image(client), await image(client, "public", B), await image(client, "private", B)
    assert await in_bootstrap(client, of(A)) == [own, public]
    assert await in_bootstrap(client, of(visibilities=("private",))) == [own, other]
    assert await in_bootstrap(client, of(kinds=("zone",))) == []


async def test_a_bootstrap_leaves_out_what_is_known(client: Client) -> None:
    own, public, other = await image(client), await image(client, "public", B), await image(client, "private", B)
    assert await in_bootstrap(client, of(A, B), of(A)) == [other]
    assert await in_bootstrap(client, ALL, of(visibilities=("public",))) == [own, other]
    assert await in_bootstrap(client, ALL, of(kinds=("zone",))) == [own, public, other]
    assert await in_bootstrap(client, ALL, ALL) == []


async def test_one_request_of_a_bootstrap_looks_at_a_bounded_number_of_images(
    client: Client, cluster: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftreg.queries.SCAN_ROWS_MAX", 2)
    numbers = [await image(client, "private", owner) for owner in (A, A, A, B, A)]
    async with cluster.http() as http:
        first = (await http("GET", f"bootstrap?tenant={B}")).body
        assert (first["images"], first["next"]) == ([], numbers[1])
        second = (await http("GET", f"bootstrap?tenant={B}&after={numbers[1]}")).body
        assert [found["number"] for found in second["images"]] == [numbers[3]]
    assert await in_bootstrap(client, of(B)) == [numbers[3]]


async def test_a_widened_filter_is_filled_and_merged_by_version_it_gives_what_a_bootstrap_gives(client: Client) -> None:
    """Images change audience, change and go before the cursor, and again between the cursor and the fill."""
    numbers = [await image(client, visibility, owner) for visibility in ("private", "public") for owner in (A, B)]
    moved, deleted = await image(client, "private", B), await image(client, "private", B)
    catalogue: dict[int, Message] = {}
    versions: dict[int, int] = {}

    def merge(message: Message) -> None:
        found = message.get("image", {})
        number, version = message.get("number", found.get("number")), message.get("version", found.get("version"))
        if number is None or version <= versions.get(number, 0):
            return
        versions[number] = version
        catalogue.pop(number, None)
        if found:
            catalogue[number] = found

    narrow, wide = of(A), of(A, B)
    before = await sent(client, narrow)
    for message in before:
        merge(message)
    assert sorted(catalogue) == [numbers[0], numbers[2], numbers[3]]
    await client.update_image(moved, {"owner": A})
    await client.update_image(numbers[0], {"owner": "stranger"})
    await client.update_image(numbers[1], {"name": "changed"})
    await client.delete_image(deleted)
    after = await sent(client, wide, before[-1]["cursor"], widened_from=narrow)
    assert ("image", numbers[1]) in told(after)
    filled = [message["type"] for message in after].index("filled")
    assert {message["cursor"] for message in after[: filled + 1]} == {before[-1]["cursor"]}
    for message in after:
        merge(message)
    expected = {found["number"]: found async for chunk in client.bootstrap(wanted=wide) for found in chunk["images"]}
    assert catalogue == expected
    assert sorted(expected) == [numbers[1], numbers[2], numbers[3], moved]


async def test_a_fill_goes_on_at_another_peer(tmp_path: Path) -> None:
    async with registry(tmp_path, "abc") as cluster, cluster.client() as client:
        numbers = [await image(client) for _ in range(3)]
        cursor = f"1.{(await client.status())['revision']}"
        leader = await cluster.leader()
        await cluster.stop(leader)
        messages = await sent(client, ALL, cursor, widened_from=of(B))
        assert told(messages) == [("image", number) for number in numbers]
        assert messages[len(numbers)]["type"] == "filled"


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("kind=picture", "kind='picture' is none of image, zone, session, block, epoch, project, level"),
        ("visibility=secret", "visibility='secret' is none of private, shared, community, public"),
        ("tenant=", "tenant must have 1 to 255 characters"),
        (f"tenant={'x' * 256}", "tenant must have 1 to 255 characters"),
        ("&".join(["tenant=x"] * 4), "tenant is named 4 times; at most 3 are allowed"),
    ],
)
async def test_a_filter_that_makes_no_sense_is_refused(tmp_path: Path, query: str, said: str) -> None:
    limits = dataclasses.replace(Limits(), feed_filter_values_max=3)
    async with registry(tmp_path, limits=limits) as cluster, cluster.http() as http:
        for path in ("changes?after=1.0&", "bootstrap?"):
            answer = await http("GET", path + query)
            assert (answer.status, answer.error["code"], answer.error["message"]) == (400, "invalid", said)
        known = await http("GET", "bootstrap?" + "&".join(f"known_{part}" for part in query.split("&")))
        assert (known.status, known.error["message"]) == (400, f"known_{said}")


async def test_a_misspelt_filter_is_refused_instead_of_showing_everything(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, cluster.http() as http:
        for query in ("changes?after=1.0&tennant=p1", "bootstrap?tennant=p1", "bootstrap?known_tennant=p1"):
            answer = await http("GET", query)
            assert answer.status == 400, query
            assert answer.error["message"].startswith("unknown parameter '"), query


async def test_the_client_passes_a_refused_filter_on(client: Client) -> None:
    with pytest.raises(errors.BadRequest, match="is none of"):
        await sent(client, of(visibilities=("secret",)))
