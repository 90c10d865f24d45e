"""The registry's HTTP API over a real peer: documents, refusals, identities, forwarding."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from raftreg import errors, wire
from raftreg.config import Limits
from tests.registry import Http, Registry, registry, until

UUID = "0b1c2d3e-0000-4000-8000-00000000000a"
SESSION = "5e551017-0000-4000-8000-000000000001"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def http(cluster: Registry) -> AsyncIterator[Http]:
    async with cluster.http() as http:
        yield http


def image(name: str = "cirros", **more: Any) -> dict[str, Any]:
    return {"attributes": {"name": name, "disk_format": "qcow2", "container_format": "bare"}, **more}


async def create(http: Http, name: str = "cirros", **more: Any) -> dict[str, Any]:
    answer = await http("POST", "images", image(name, **more))
    assert answer.status == 201, answer.body
    made: dict[str, Any] = answer.body["image"]
    return made


# -- images -------------------------------------------------------------------------------------------------------


async def test_an_image_is_created_shown_changed_and_deleted(http: Http) -> None:
    made = await create(http, uuid=UUID, properties={"os_distro": "cirros"}, tags=["test"])
    assert (made["uuid"], made["version"], made["status"]) == (UUID, 1, "queued")
    by_number = await http("GET", f"images/{made['number']}")
    by_uuid = await http("GET", f"images/{UUID}")
    by_both = await http("GET", f"images/{UUID.upper()}?number={made['number']}")
    assert by_number.body == by_uuid.body == by_both.body == {"image": made}

    changed = await http("PATCH", f"images/{UUID}", {"set": {"name": "new", "properties.os_distro": "other"}})
    assert changed.status == 200
    assert (changed.body["image"]["name"], changed.body["image"]["version"]) == ("new", 2)
    assert changed.body["image"]["properties"] == {"os_distro": "other"}

    assert (await http("DELETE", f"images/{made['number']}")).status == 200
    gone = await http("GET", f"images/{UUID}")
    assert (gone.status, gone.error["code"]) == (404, "image_deleted")
    again = await http("POST", "images", image(uuid=UUID))
    assert (again.status, again.error["code"]) == (409, "uuid_taken")


async def test_msgpack_is_spoken_as_well_as_json(http: Http, cluster: Registry) -> None:
    made = await create(http)
    packed = await http("GET", f"images/{made['number']}", headers={"Accept": wire.MSGPACK})
    assert packed.headers["Content-Type"] == wire.MSGPACK
    assert packed.body == {"image": made}
    sent = await http("POST", "images", data=wire.pack(image("packed")), headers={"Content-Type": wire.MSGPACK})
    assert (sent.headers["Content-Type"], sent.body["image"]["name"]) == (wire.MSGPACK, "packed")


async def test_every_answer_says_which_state_it_comes_from(http: Http, cluster: Registry) -> None:
    before = int((await http("GET", "status")).headers[wire.HEADER_REVISION])
    for method, path, body in [
        ("POST", "images", image()),
        ("GET", "images", None),
        ("GET", "images/999999", None),
        ("GET", "nowhere", None),
    ]:
        answer = await http(method, path, body)
        assert answer.headers[wire.HEADER_CLUSTER] == cluster.cluster_id
        assert answer.headers[wire.HEADER_EPOCH] == "1"
        assert answer.headers[wire.HEADER_LEADER] == answer.headers[wire.HEADER_PEER] == "a"
        assert int(answer.headers[wire.HEADER_REVISION]) == before + 1
        assert int(answer.headers[wire.HEADER_APPLIED]) > 0
        assert 0 <= float(answer.headers[wire.HEADER_STALENESS]) < 5


async def test_an_update_against_an_old_version_conflicts_only_where_the_same_attribute_changed(http: Http) -> None:
    number = (await create(http))["number"]
    assert (await http("PATCH", f"images/{number}", {"set": {"name": "first"}})).status == 200
    other = await http("PATCH", f"images/{number}", {"set": {"min_ram": 5}}, headers={"If-Match": '"1"'})
    assert other.status == 200
    clash = await http("PATCH", f"images/{number}", {"set": {"name": "second"}, "base_version": 1})
    assert (clash.status, clash.error["code"], clash.error["attributes"]) == (409, "conflict", ["name"])
    assert clash.error["image"]["name"] == "first"
    assert clash.error["definite"] is True


async def test_the_pages_of_a_list_hold_every_image_once(tmp_path: Path) -> None:
    limits = dataclasses.replace(Limits(), page_rows_max=7, page_rows_default=5)
    async with registry(tmp_path, limits=limits) as cluster, cluster.http() as http:
        made = [(await create(http, f"i{n}"))["number"] for n in range(23)]
        for query, page_rows in (("", 5), ("&limit=3", 3), ("&limit=1000", 7)):
            listed: list[int] = []
            marker = ""
            while True:
                page = (await http("GET", f"images?sort=created_at:asc{query}{marker}")).body
                assert len(page["images"]) <= page_rows
                listed += [row["number"] for row in page["images"]]
                if page["next"] is None:
                    break
                marker = f"&marker={page['next']}"
            assert listed == made


async def test_a_page_ends_at_its_limit_of_bytes(tmp_path: Path) -> None:
    limits = dataclasses.replace(Limits(), page_bytes_max=20_000)
    async with registry(tmp_path, limits=limits) as cluster, cluster.http() as http:
        made = [(await create(http, f"i{n}", properties={"p": "x" * 6000}))["number"] for n in range(9)]
        listed: list[int] = []
        page: dict[str, Any] = {"next": 0}
        for path, rows in (("images?sort=created_at:asc&limit=9&marker=", listed), ("bootstrap?limit=9&after=", [])):
            page = {"next": None}
            while True:
                page = (
                    await http("GET", path.rsplit("&", 1)[0] if page["next"] is None else f"{path}{page['next']}")
                ).body
                assert len(page["images"]) <= 4
                rows += [row["number"] for row in page["images"]]
                if page["next"] is None:
                    break
            assert rows == made


async def test_a_list_is_filtered_by_the_documented_parameters(http: Http) -> None:
    await create(http, "one")
    two = await create(http, "two")
    answer = await http("GET", "images?name=two")
    assert [row["number"] for row in answer.body["images"]] == [two["number"]]
    assert (await http("GET", "images?status=active")).body == {"images": [], "next": None}


async def test_an_image_is_shared_and_listed_for_its_members(http: Http) -> None:
    shared = (await create(http, tags=["gold", "lts"]))["number"]
    await create(http, "other", tags=["gold"])
    added = await http("PATCH", f"images/{shared}", {"set_members": {"p2": {}}})
    assert added.body["image"]["members"]["p2"]["status"] == "pending"

    async def listed(query: str) -> list[int]:
        return [one["number"] for one in (await http("GET", f"images?{query}")).body["images"]]

    assert await listed("member=p2") == await listed("member=p2&member_status=pending") == [shared]
    assert await listed("member=p2&member_status=accepted") == await listed("member=p3") == []
    assert await listed("tag=gold&tag=lts") == await listed("tag=lts&owner=") + [shared] == [shared]
    unfit = await http("GET", "images?member_status=accepted")
    assert (unfit.status, "name the `member`" in unfit.body["error"]["message"]) == (400, True)
    many = await http("GET", "images?" + "&".join(f"tag={n}" for n in range(17)))
    assert (many.status, "at most 16" in many.body["error"]["message"]) == (400, True)
    await http("PATCH", f"images/{shared}", {"remove_members": ["p2"]})
    assert await listed("member=p2") == []


async def test_lists_are_filtered_by_any_attribute_and_sorted_by_any_key(http: Http) -> None:
    """Which index serves them is tested in test_listing; here, that parameters arrive as what they are."""
    attributes = {"name": "a", "disk_format": "raw", "size": 7, "protected": True}
    raw = (await create(http, attributes=attributes, properties={"os_distro": "x"}))["number"]
    iso = (await create(http, attributes={"name": "b", "disk_format": "iso", "size": 9, "min_ram": 512}))["number"]

    async def listed(query: str) -> list[int]:
        return [one["number"] for one in (await http("GET", f"images?{query}")).body["images"]]

    assert await listed("sort=size") == await listed("sort=name:asc") == await listed("sort=number:asc") == [raw, iso]
    assert await listed("sort=disk_format:asc") == await listed("sort=updated_at:desc&size_min=7") == [iso, raw]
    for query in ("disk_format=raw", "size=7", "size_max=8", "protected=true", "properties.os_distro=x", "min_ram=0"):
        assert await listed(query) == [raw], query
    for query in ("size_min=8", "protected=false", "min_ram=512", "disk_format=iso&size_max=9"):
        assert await listed(query) == [iso], query
    now_us = (await http("GET", f"images/{iso}")).body["image"]["updated_at"]
    assert await listed(f"created_at_min={now_us}&updated_at_max={now_us}") == [iso]
    assert await listed("properties.os_distro=y") == await listed(f"updated_at_min={now_us + 1}") == []
    many = await http("GET", "images?" + "&".join(f"properties.p{n}=1" for n in range(17)))
    assert (many.status, "at most 16" in many.body["error"]["message"]) == (400, True)


async def test_a_project_is_counted_and_bounded(http: Http, cluster: Registry) -> None:
    await http("POST", "images", {"attributes": {"name": "one", "owner": "p"}})
    set_to = await http("PUT", "projects/p", {"images_max": 1})
    assert set_to.body["project"] == {"project": "p", "images": 1, "bytes": 0, "images_max": 1, "bytes_max": None}
    refused = await http("POST", "images", {"attributes": {"name": "two", "owner": "p"}})
    assert (refused.status, refused.body["error"]["code"]) == (413, "quota_exceeded")
    assert (await http("GET", "projects")).body == {"projects": [set_to.body["project"]], "next": None}
    assert (await http("GET", "projects/nobody")).body["project"]["images"] == 0
    assert (await http("PUT", "projects/p", {"images": 1})).status == 400
    assert (await http("PUT", "projects/p", {"images_max": -1})).status == 400
    async with cluster.http("app") as client:
        assert (await client("PUT", "projects/p", {"images_max": 9})).status == 403
    assert (await http("PUT", "projects/p", {})).body["project"]["images_max"] is None


async def test_a_batch_answers_for_each_operation_and_an_atomic_one_for_all(http: Http) -> None:
    create_one = {"op": "create_image", "uuid": UUID, "attributes": {"name": "x"}}
    bad = {"op": "delete_image", "image": {"number": 999_999}}
    atomic = await http("POST", "batch", {"operations": [create_one, bad], "atomic": True})
    assert (atomic.status, atomic.error["code"], atomic.error["failed"]) == (409, "atomic_refused", 1)
    assert (await http("GET", f"images/{UUID}")).status == 404
    loose = await http("POST", "batch", {"operations": [create_one, bad, {"op": "allocate_ids", "count": 2}]})
    first, second, third = loose.body["results"]
    assert first["ok"]["uuid"] == UUID
    assert second["error"]["code"] == "image_not_found"
    assert third["ok"]["last"] == third["ok"]["first"] + 1


# -- bad input ----------------------------------------------------------------------------------------------------

BAD = [
    ("POST", "images", b"", 400, "invalid", "empty"),
    ("POST", "images", b"{", 400, "bad_json", "not JSON"),
    ("POST", "images", b"[]", 400, "invalid", "map"),
    ("POST", "images", b'{"attributes": 7}', 400, "invalid", "attributes must be a map"),
    ("POST", "images", b'{"colour": 7}', 400, "invalid", "unknown field 'colour'"),
    ("POST", "images", b'{"attributes": {"status": "purple"}}', 400, "invalid", "status"),
    ("POST", "images", b'{"attributes": {"min_ram": -1}}', 400, "invalid", "min_ram"),
    ("POST", "images", b'{"uuid": "nope"}', 400, "invalid", "uuid"),
    ("POST", "images", b'{"number": true}', 400, "invalid", "whole number"),
    ("GET", "images/0", None, 400, "invalid", "neither"),
    ("GET", "images/nope", None, 400, "invalid", "neither"),
    ("GET", "images/99999999999999999", None, 400, "invalid", "neither"),
    ("GET", f"images/1?uuid={UUID}x", None, 400, "invalid", "neither"),
    ("GET", "images/1?number=2", None, 400, "image_mismatch", "two images"),
    ("GET", "images/1?consistency=maybe", None, 400, "invalid", "linearizable"),
    ("GET", "images/1?consistency=bounded", None, 400, "invalid", "max_staleness"),
    ("GET", "images/1?consistency=bounded&max_staleness=-1", None, 400, "invalid", "0 or more"),
    ("GET", "images/1?consistency=bounded&max_staleness=nan", None, 400, "invalid", "0 or more"),
    ("GET", "images?limit=x", None, 400, "invalid", "whole number"),
    ("GET", "images?lost=perhaps", None, 400, "invalid", "true or false"),
    ("GET", f"zones?after={'x' * 64}", None, 400, "invalid", "name of a zone"),
    ("GET", f"zones/{'x' * 600}", None, 404, "zone_not_found", "not registered"),
    ("GET", "sessions?after=nope", None, 400, "invalid", "UUID of a session"),
    ("POST", "level/raise", b'{"level": "high"}', 400, "invalid", "whole number"),
    ("POST", "level/raise", b'{"level": 0}', 400, "invalid", "never go back"),
    ("POST", "level/raise", b'{"level": 2}', 409, "level_held_back", "voter a (supports 1)"),
    ("GET", "images?colour=x", None, 400, "invalid", "unknown parameter"),
    ("GET", "images?sort=colour", None, 400, "invalid", "sort"),
    ("GET", "images?size_min=some", None, 400, "invalid", "whole number"),
    ("GET", "images?protected=maybe", None, 400, "invalid", "true or false"),
    ("GET", "images?properties=x", None, 400, "invalid", "unknown parameter"),
    ("GET", "images?sort=name:up", None, 400, "invalid", "asc"),
    ("PATCH", "images/1", b'{"set": []}', 400, "invalid", "set must be a map"),
    ("PATCH", "images/1", b'{"set": {"number": 5}}', 400, "invalid", "number"),
    ("PATCH", "images/999999", b'{"set": {"name": "x"}}', 404, "image_not_found", ""),
    ("DELETE", "images/1?force=perhaps", None, 400, "invalid", "true or false"),
    ("POST", "ids", b'{"count": 0}', 400, "invalid", "count"),
    ("POST", "ids", b'{"count": 100000000}', 400, "invalid", "count"),
    ("POST", "ids", b"{}", 400, "invalid", "count is missing"),
    ("POST", "batch", b'{"operations": []}', 413, "too_large", "operations"),
    ("POST", "batch", b'{"operations": [7]}', 400, "invalid", "operation 0"),
    ("POST", "batch", b'{"operations": [{"op": "set_zone_lease"}]}', 400, "invalid", "op"),
    ("POST", "sessions", b"{}", 400, "invalid", "missing"),
    ("POST", f"sessions/{SESSION}/operations", b'{"operations": [{"sequence": 1}]}', 400, "invalid", "missing"),
    ("POST", "zones/nowhere/heartbeat", b'{"gateway": "g"}', 404, "zone_not_found", "not registered"),
    ("GET", "zones/nowhere", None, 404, "zone_not_found", "not registered"),
    ("GET", "changes", None, 400, "invalid", "after"),
    ("GET", "changes?after=7", None, 400, "invalid", "cursor"),
    ("GET", "changes?after=9.0", None, 410, "wrong_epoch", "bootstrap"),
    ("GET", "nowhere", None, 404, "unknown_route", "no such route"),
    ("PUT", "images", b"{}", 405, "method_not_allowed", "use"),
]


async def test_bad_input_is_refused_with_a_sentence_and_changes_nothing(http: Http) -> None:
    before = (await http("GET", "status")).headers[wire.HEADER_REVISION]
    for method, path, data, status, code, sentence in BAD:
        answer = await http(method, path, data=data)
        assert (answer.status, answer.error["code"]) == (status, code), (method, path, data, answer.body)
        assert sentence in answer.error["message"], (method, path, data, answer.body)
        assert answer.error["definite"] is True
    assert (await http("GET", "status")).headers[wire.HEADER_REVISION] == before


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({wire.HEADER_DEADLINE_MS: "soon"}, "milliseconds"),
        ({wire.HEADER_DEADLINE_MS: "0"}, "milliseconds"),
        ({wire.HEADER_KEY: ""}, "bytes"),
        ({wire.HEADER_KEY: "x" * 129}, "bytes"),
        ({wire.HEADER_USER: "x" * 300}, "characters"),
        ({"Content-Type": wire.MSGPACK}, "not msgpack"),
    ],
)
async def test_a_bad_header_is_refused_with_a_sentence(http: Http, headers: dict[str, str], sentence: str) -> None:
    answer = await http("POST", "images", image(), headers=headers)
    assert (answer.status, sentence in answer.error["message"]) == (400, True), answer.body


async def test_an_oversized_body_is_refused_and_the_peer_goes_on(http: Http) -> None:
    answer = await http("POST", "images", data=b"x" * (Limits().body_bytes_max + 1))
    assert (answer.status, answer.error["code"]) == (413, "too_large")
    assert str(Limits().body_bytes_max) in answer.error["message"]
    await create(http)


async def served(http: Http) -> bool:
    return (await http("GET", "status")).status == 200


async def test_more_requests_than_the_limit_are_refused_at_once(tmp_path: Path) -> None:
    limits = dataclasses.replace(Limits(), requests_max=2)
    async with registry(tmp_path, limits=limits) as cluster, cluster.http() as http:
        feeds = [await http.session.get(f"{http.url}{wire.PREFIX}/changes?after=1.0") for _ in range(2)]
        refused = await http("GET", "status")
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        for feed in feeds:
            feed.close()
        await until(lambda: served(http))


# -- idempotency --------------------------------------------------------------------------------------------------


async def test_the_same_key_gets_the_first_result_and_another_request_a_conflict(http: Http) -> None:
    key = {wire.HEADER_KEY: "k1"}
    first = await http("POST", "ids", {"count": 3}, headers=key)
    second = await http("POST", "ids", {"count": 3}, headers=key)
    assert second.body == {**first.body, "replayed": True}
    other = await http("POST", "ids", {"count": 4}, headers=key)
    assert (other.status, other.error["code"]) == (409, "idempotency_mismatch")


async def test_a_create_without_uuid_can_be_repeated_with_its_key(http: Http) -> None:
    key = {wire.HEADER_KEY: "k1"}
    first = await http("POST", "images", image(), headers=key)
    second = await http("POST", "images", image(), headers=key)
    assert (second.status, second.body.get("uuid")) == (201, first.body["uuid"]), second.body


async def test_a_key_that_carries_an_old_time_is_refused_and_a_fresh_one_is_not(http: Http) -> None:
    old = await http("POST", "ids", {"count": 1}, headers={wire.HEADER_KEY: f"{int(time.time()) - 25 * 3600}-x"})
    assert (old.status, old.error["code"]) == (409, "idempotency_expired")
    fresh = await http("POST", "ids", {"count": 1}, headers={wire.HEADER_KEY: f"{int(time.time())}-x"})
    assert fresh.status == 201


# -- who may do what ----------------------------------------------------------------------------------------------


def session(gateway: str = "ams-1", zone: str = "ams") -> dict[str, Any]:
    return {
        "gateway": gateway, "zone": zone, "session": SESSION, "highest_sequence": 0, "acked_sequence": 0,
        "acked_hash": wire.CHAIN_START.hex(),
    }  # fmt: skip


async def test_a_gateway_acts_for_itself_and_its_zone_only(cluster: Registry) -> None:
    async with cluster.http("ams-1") as gateway, cluster.http() as operator:
        assert (await operator("PUT", "zones/fra", {})).status == 200
        assert (await gateway("PUT", "zones/ams", {})).status == 200
        assert (await gateway("PUT", "zones/ams/gateways/ams-1", {"endpoint": "https://x:1"})).status == 200
        assert (await gateway("POST", "zones/ams/heartbeat")).status == 200
        assert (await gateway("POST", "sessions", session())).status == 200
        for method, path, body in [
            ("PUT", "zones/fra", {}),
            ("PUT", "zones/ams/gateways/ams-2", {"endpoint": "https://x:1"}),
            ("POST", "zones/fra/heartbeat", {"gateway": "ams-1"}),
            ("POST", "zones/ams/heartbeat", {"gateway": "ams-2"}),
            ("POST", "sessions", session("ams-2")),
            ("POST", "sessions", session("ams-1", "fra")),
            ("POST", "blocks", {"gateway": "fra-1", "session": SESSION, "size": 10, "token": 1}),
            ("POST", "images", image(home_zone="fra")),
            ("GET", "sessions", None),
        ]:
            answer = await gateway(method, path, body)
            assert (answer.status, answer.error["code"]) == (403, "forbidden"), (method, path, body, answer.body)
        made = await create(gateway)
        assert made["home_zone"] == "ams"


async def test_a_client_creates_images_and_is_no_gateway(cluster: Registry) -> None:
    async with cluster.http("app") as client:
        made = await create(client)
        assert made["home_zone"] is None
        for method, path, body in [("POST", "sessions", session()), ("PUT", "zones/ams", {})]:
            assert (await client(method, path, body)).status == 403


async def test_nobody_becomes_somebody_else_by_a_header(cluster: Registry) -> None:
    """The subject of a forwarded request counts only when a peer's certificate presents it."""
    posing = {
        wire.HEADER_FORWARDED_SUBJECT: "operator;operator;",
        wire.HEADER_ZONE: "ams",
        wire.HEADER_GATEWAY: "ams-1",
        wire.HEADER_HOP: "1",
    }
    async with cluster.http("app") as client:
        assert (await client("PUT", "zones/ams", {}, headers=posing)).status == 403
        assert (await client("POST", "sessions", session(), headers=posing)).status == 403
    async with cluster.http("a") as peer:
        assert (await peer("PUT", "zones/ams", {}, headers=posing)).status == 200


async def test_without_certificates_only_this_machine_is_served_and_headers_name_the_gateway(tmp_path: Path) -> None:
    async with registry(tmp_path, api_tls=False) as cluster, cluster.http() as http:
        assert cluster.url("a").startswith("http://127.0.0.1")
        made = await create(http)
        assert made["home_zone"] is None
        as_gateway = {wire.HEADER_ZONE: "ams", wire.HEADER_GATEWAY: "ams-1"}
        assert (await http("PUT", "zones/ams", {})).status == 200
        answer = await http("POST", "images", image(), headers=as_gateway)
        assert answer.body["image"]["home_zone"] == "ams"


async def test_the_actor_of_a_change_is_the_caller_whatever_the_body_says(cluster: Registry) -> None:
    async with cluster.http("ams-1") as gateway:
        headers = {wire.HEADER_USER: "u", wire.HEADER_PROJECT: "p", wire.HEADER_REQUEST_ID: "req-1"}
        operation = {"op": "create_image", "uuid": UUID, "attributes": {}, "actor": {"zone": "fra", "admin": True}}
        registered = await gateway("PUT", "zones/ams", {})
        answer = await gateway("POST", "batch", {"operations": [operation]}, headers=headers)
        assert answer.body["results"][0]["ok"]["uuid"] == UUID
        url = f"{gateway.url}{wire.PREFIX}/changes?after=1.{registered.body['revision']}"
        async with asyncio.timeout(10), gateway.session.get(url) as feed:
            change = json.loads(await feed.content.readline())
        actor = {name: value for name, value in change["actor"].items() if value}
        assert actor == {"user": "u", "project": "p", "request_id": "req-1", "zone": "ams", "gateway": "ams-1"}


# -- sessions -----------------------------------------------------------------------------------------------------


async def test_a_session_drains_operations_in_order_and_once(cluster: Registry) -> None:
    async with cluster.http("ams-1") as gateway:
        await gateway("PUT", "zones/ams", {})
        await gateway("PUT", "zones/ams/gateways/ams-1", {})
        opened = await gateway("POST", "sessions", session())
        assert (opened.status, opened.body["last_sequence"], opened.body["diverged"]) == (200, 0, False)
        previous, operations = wire.CHAIN_START, []
        for sequence in (1, 2, 3):
            uuid = f"0b1c2d3e-0000-4000-8000-{sequence:012}"
            inner = {"op": "create_image", "uuid": uuid, "attributes": {"name": f"i{sequence}"}, "home_zone": "ams"}
            payload = wire.pack({**inner, "actor": {"zone": "ams", "gateway": "ams-1"}})
            operations.append({"sequence": sequence, "previous_hash": previous.hex(), "payload": payload.hex()})
            previous = wire.chain_hash(previous, payload)
        path = f"sessions/{SESSION}/operations"
        gap = await gateway("POST", path, {"operations": operations[1:2]})
        assert gap.body["results"][0]["error"]["code"] == "sequence_gap"
        first = await gateway("POST", path, {"operations": operations})
        assert [result["ok"]["sequence"] for result in first.body["results"]] == [1, 2, 3]
        revision = first.headers[wire.HEADER_REVISION]
        again = await gateway("POST", path, {"operations": operations})
        numbers = [[r["ok"]["result"]["ok"]["number"] for r in answer.body["results"]] for answer in (first, again)]
        assert numbers[0] == numbers[1]
        assert len((await gateway("GET", "images")).body["images"]) == 3
        assert again.headers[wire.HEADER_REVISION] == revision


# -- several peers ------------------------------------------------------------------------------------------------


async def test_a_follower_forwards_a_write_once_with_the_callers_identity(tmp_path: Path) -> None:
    async with registry(tmp_path, "abc") as cluster:
        leader = await cluster.leader()
        follower = next(name for name in "abc" if name != leader)
        async with cluster.http("ams-1", at=follower) as gateway:
            assert (await gateway("PUT", "zones/ams", {})).status == 200
            made = await create(gateway)
            assert made["home_zone"] == "ams"
            shown = await gateway("GET", f"images/{made['number']}")
            assert shown.headers[wire.HEADER_PEER] == follower
            assert shown.body == {"image": made}
            hopped = await gateway("POST", "images", image(), headers={wire.HEADER_HOP: "1"})
            assert (hopped.status, hopped.error["code"], hopped.error["leader"]) == (503, "not_leader", leader)
            assert hopped.headers["Retry-After"] == "1"
            clash = await gateway("POST", "images", image(uuid=made["uuid"]))
            assert (clash.status, clash.error["code"]) == (409, "uuid_taken")
            forbidden = await gateway("POST", "images", image(home_zone="fra"))
            assert forbidden.status == 403


async def refused_for_want_of_quorum(http: Http, headers: dict[str, str]) -> bool:
    answer = await http("POST", "ids", {"count": 1}, headers=headers)
    return str(answer.error["code"]) == "no_quorum"


async def test_a_write_without_a_quorum_ends_in_time_and_says_whether_it_may_have_happened(tmp_path: Path) -> None:
    async with registry(tmp_path, "abc") as cluster:
        leader = await cluster.leader()
        async with cluster.http(at=leader) as http:
            await create(http)
            for name in "abc":
                if name != leader:
                    await cluster.stop(name)
            headers = {wire.HEADER_DEADLINE_MS: "200", wire.HEADER_KEY: "k1"}
            unknown = await http("POST", "ids", {"count": 1}, headers=headers)
            assert unknown.status in (503, 504)
            assert unknown.error["definite"] is (unknown.status == 503)
            if unknown.status == 504:
                assert (unknown.error["code"], unknown.error["key"]) == ("outcome_unknown", "k1")
            await until(lambda: refused_for_want_of_quorum(http, headers))
            read = await http("GET", "images", headers=headers)
            assert (read.status, read.error["code"]) == (503, "no_quorum")
            stale = await http("GET", "images?consistency=stale")
            assert (stale.status, len(stale.body["images"])) == (200, 1)
            health = await http("GET", "/healthcheck")
            assert (health.status, health.body["serves"]) == (200, "stale")


# -- the peer itself ----------------------------------------------------------------------------------------------


async def test_health_status_and_metrics_tell_about_the_peer(http: Http, cluster: Registry) -> None:
    await create(http)
    health = await http("GET", "/healthcheck")
    assert (health.status, health.body) == (200, {"serves": "linearizable", "leader": "a"})
    status = (await http("GET", "status")).body
    assert (status["name"], status["role"], status["cluster_id"], status["epoch"]) == (
        "a",
        "leader",
        cluster.cluster_id,
        1,
    )
    assert status["revision"] >= 1
    assert status["db"]["used_bytes"] > 0
    metrics = (await http("GET", "/metrics")).body
    assert 'raftreg_http_requests_total{route="POST /registry/v1/images",status="201"} 1.0' in metrics
    assert "raftreg_has_leader 1.0" in metrics
    assert 'raftreg_proposals_total{outcome="answered"} 1.0' in metrics
    assert "raftreg_fsync_seconds_count" in metrics


async def test_a_bug_in_a_handler_is_an_indefinite_500_and_not_a_dropped_connection(
    cluster: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cluster.peers["a"].proposer, "propose", broken)
    async with cluster.http() as http:
        answer = await http("POST", "images", image())
    assert (answer.status, answer.error["code"], answer.error["definite"]) == (500, "internal", False)
    assert isinstance(errors.from_fields(answer.error, 500), errors.InternalError)
