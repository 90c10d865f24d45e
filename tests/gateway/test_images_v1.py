"""The Images API v1, by plain HTTP: images by their numbers, in a zone that is cut off."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running import Zone, queued_commands, running, seed_block, until
from zonegw.limits import MIB

BLOB = os.urandom(2 * MIB + 17)
RAW = {"x-image-meta-disk_format": "raw", "x-image-meta-container_format": "bare"}
OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture
async def zone(tmp_path: Path) -> AsyncIterator[Zone]:
    seed_block(tmp_path, 41, 1000)
    async with running(tmp_path) as started:
        yield started


def meta(**attributes: Any) -> dict[str, str]:
    """Headers; a name in capitals is a property."""
    return {
        f"x-image-meta-{'property-' if name.isupper() else ''}{name.lower()}": str(value)
        for name, value in attributes.items()
    }


async def create(zone: Zone, data: bytes | None = None, *, user: str = "alice", **attributes: Any) -> dict[str, Any]:
    headers = meta(**attributes) | (OCTETS | RAW if data is not None else {})
    async with zone.ask("POST", "/v1/images", user=user, headers=headers, data=data) as answer:
        assert answer.status == 201, await answer.text()
        image: dict[str, Any] = (await answer.json())["image"]
        assert answer.headers["Location"] == f"/v1/images/{image['id']}"
        assert answer.headers.get("ETag") == image["checksum"]
        return image


async def head(zone: Zone, number: int, *, user: str = "alice") -> dict[str, str]:
    """The metadata headers, without their prefix."""
    async with zone.ask("HEAD", f"/v1/images/{number}", user=user) as answer:
        assert answer.status == 200
        prefix = "x-image-meta-"
        found = {name.lower(): value for name, value in answer.headers.items()}
        return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


async def put(zone: Zone, number: int, *, user: str = "alice", **options: Any) -> int:
    return await zone.status("PUT", f"/v1/images/{number}", user=user, **options)


async def names(zone: Zone, query: str = "", *, user: str = "alice") -> list[str]:
    return [image["name"] for image in (await zone.get(f"/v1/images{query}", user=user))["images"]]


async def test_an_image_is_created_with_its_data_shown_read_and_deleted(zone: Zone) -> None:
    md5 = hashlib.md5(BLOB).hexdigest()
    image = await create(zone, BLOB, name="cirros", OS_DISTRO="tiny", checksum=md5.upper(), size=len(BLOB))
    assert (image["id"], image["status"], image["size"], image["checksum"]) == (41, "active", len(BLOB), md5)
    shown = await head(zone, 41)
    assert (shown["id"], shown["name"], shown["is_public"], shown["owner"]) == ("41", "cirros", "False", "demo")
    assert (shown["property-os_distro"], shown["deleted_at"]) == ("tiny", "")
    v2 = (await zone.get("/v2/images"))["images"][0]
    assert (v2["os_glance_v1_id"], v2["id"]) == (41, shown["property-os_glance_uuid"])
    async with zone.ask("GET", "/v1/images/41") as answer:
        assert await answer.read() == BLOB
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["X-Image-Meta-Checksum"] == answer.headers["ETag"] == md5
        assert int(answer.headers["Content-Length"]) == len(BLOB)
    async with zone.ask("DELETE", "/v1/images/41") as answer:
        assert (answer.status, await answer.read()) == (200, b"")
    for method in ("HEAD", "GET", "DELETE", "PUT"):
        assert await zone.status(method, "/v1/images/41") == 404
    assert (await create(zone))["id"] == 42


async def test_an_image_without_data_is_queued_and_takes_them_once(zone: Zone) -> None:
    image = await create(zone, name="later")
    assert (image["status"], image["size"]) == ("queued", 0)
    assert await zone.status("GET", "/v1/images/41") == 404
    assert await put(zone, 41, headers=OCTETS, data=BLOB) == 400  # the formats are missing
    assert await put(zone, 41, headers=OCTETS | RAW | meta(checksum="0" * 32), data=BLOB) == 400
    assert (await head(zone, 41))["status"] == "queued"
    assert await put(zone, 41, headers=OCTETS | RAW, data=BLOB) == 200
    assert (await head(zone, 41))["status"] == "active"
    refused = meta(name="changed") | OCTETS
    assert await put(zone, 41, headers=refused, data=b"other") == 409
    async with zone.ask("GET", "/v1/images/41") as answer:
        assert await answer.read() == BLOB
        assert answer.headers["X-Image-Meta-Name"] == "later"


async def test_data_come_without_a_length_too_and_an_empty_body_is_none(zone: Zone) -> None:
    async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    headers = OCTETS | RAW | meta(size=6)
    async with zone.ask("POST", "/v1/images", headers=headers, data=pieces(b"abc", b"def")) as answer:
        assert (await answer.json())["image"]["size"] == 6
    async with zone.ask("POST", "/v1/images", headers=OCTETS, data=pieces()) as answer:
        assert (await answer.json())["image"]["status"] == "queued"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (meta(checksum="0" * 32), 400),
        (meta(size=7), 400),
        (meta(disk_format="floppy"), 400),
        (meta(container_format=""), 400),
        (meta(status="done"), 400),
        (meta(store="swift"), 400),
        (meta(location="http://192.0.2.1/x"), 400),
        ({"x-glance-api-copy-from": "http://192.0.2.1/x"}, 400),
        ({"Content-Type": "application/json"}, 400),
        (meta(id=7), 403),
        (meta(is_public=True), 403),
        (meta(owner="other"), 403),
    ],
)
async def test_a_refused_create_leaves_neither_image_nor_bytes(
    zone: Zone, headers: dict[str, str], status: int
) -> None:
    assert await zone.status("POST", "/v1/images", headers=OCTETS | RAW | headers, data=b"abc") == status
    await until(lambda: zone.gateway.data.used_bytes == 0, "the bytes to go")
    assert queued_commands(zone) == []
    assert await names(zone, user="root") == []
    assert await create(zone, b"abc", store="fra")


async def test_a_client_that_goes_away_in_the_middle_leaves_no_image(zone: Zone) -> None:
    head = {"Host": "zone", "X-Auth-Token": zone.tokens["alice"], "Content-Length": "1000000"} | OCTETS | RAW
    lines = ["POST /v1/images HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", "a part"]
    _, writer = await asyncio.open_connection(*zone.gateway.address)
    writer.write("\r\n".join(lines).encode())
    await until(lambda: bool(zone.gateway.image_data._uploading), "the upload to begin")
    assert await names(zone) == []
    writer.close()
    await until(lambda: not zone.gateway.image_data._uploading, "the upload to end")
    await until(lambda: zone.gateway.data.used_bytes == 0, "the bytes to go")
    assert queued_commands(zone) == []


async def test_without_numbers_on_hand_v1_creates_nothing_and_hides_what_v2_creates(tmp_path: Path) -> None:
    seed_block(tmp_path, 7, 7)
    async with running(tmp_path) as zone:
        assert (await create(zone, name="last"))["id"] == 7
        await zone.create(name="v2 alone")
        before = len(queued_commands(zone))
        for data in (None, b"abc"):
            async with zone.ask("POST", "/v1/images", headers=OCTETS | RAW, data=data) as answer:
                assert answer.status == 503
                assert int(answer.headers["Retry-After"]) > 0
        assert len(queued_commands(zone)) == before
        for query in ("", "?sort_key=id", "?name=v2+alone"):
            assert "v2 alone" not in await names(zone, query)


async def test_an_update_purges_the_properties_that_it_does_not_name(zone: Zone) -> None:
    await create(zone, name="a", ONE="1", TWO="2")
    keep = {"x-glance-registry-purge-props": "false"}
    assert await put(zone, 41, headers=keep | meta(THREE="3", min_ram=5)) == 200
    assert await put(zone, 41, headers=meta(ONE="1", TWO="b", name="")) == 200
    shown = await head(zone, 41)
    assert (shown["name"], shown["min_ram"]) == ("", "5")
    assert {n: v for n, v in shown.items() if n.startswith("property-")} == {
        "property-one": "1", "property-two": "b", "property-os_glance_uuid": shown["property-os_glance_uuid"],
    }  # fmt: skip
    writes = len(queued_commands(zone))
    back = {f"x-image-meta-{name}": value for name, value in shown.items()}
    assert await put(zone, 41, headers=back) == 200
    assert len(queued_commands(zone)) == writes


async def test_protected_images_stay_and_others_images_are_not_changed(zone: Zone) -> None:
    await create(zone, name="base", is_public=True, protected="True", user="root")
    assert await zone.status("DELETE", "/v1/images/41", user="root") == 403
    assert await put(zone, 41, headers=meta(name="mine")) == 403
    assert await zone.status("DELETE", "/v1/images/41") == 403
    assert await put(zone, 41, headers=meta(is_public=False, protected=False), user="root") == 200
    assert await zone.status("HEAD", "/v1/images/41") == 404
    assert await zone.status("DELETE", "/v1/images/41", user="root") == 200


async def test_anothers_private_image_has_no_number_that_a_tenant_can_find(zone: Zone) -> None:
    await create(zone, b"secret", name="secret")
    member = "/v1/images/41/members/other"
    for method, path, body in (
        ("HEAD", "/v1/images/41", None),
        ("GET", "/v1/images/41", None),
        ("PUT", "/v1/images/41", b"x"),
        ("DELETE", "/v1/images/41", None),
        ("GET", "/v1/images/41/members", None),
        ("PUT", "/v1/images/41/members", b'{"memberships": [{"member_id": "other"}]}'),
        ("PUT", member, None),
        ("DELETE", member, None),
    ):
        assert await zone.status(method, path, user="bob", headers=OCTETS, data=body) == 404, (method, path)
        assert await zone.status(method, path.replace("41", "999"), user="bob", headers=OCTETS, data=body) == 404
    for query in ("", "?sort_key=id", "?name=secret", "?owner=demo", "?is_public=None", "?status=active"):
        assert await names(zone, query, user="bob") == []
    assert await names(zone) == ["secret"]


async def test_what_is_no_number_is_not_found_and_other_methods_are_not_allowed(zone: Zone) -> None:
    await create(zone)
    for text in ("x", "0", "-41", "41.0", "²", "9" * 30, "7ed3bc2c-4f0c-4d8e-9f25-0c6b1a5e7d10"):
        assert await zone.status("GET", f"/v1/images/{text}") == 404, text
    assert await zone.status("GET", "/v1/nothing") == 404
    for method, path in (
        ("POST", "/v1/images/41"),
        ("PUT", "/v1/images"),
        ("GET", "/v1/images/41/members/other"),
        ("POST", "/v1/images/41/members/other"),
        ("DELETE", "/v1/images/detail"),
    ):
        assert await zone.status(method, path) in (404, 405), path
    assert await zone.status("GET", "/v1/images/41/members/other") == 405
    assert await zone.status("GET", "/v1/images", user=None) == 401


async def test_texts_that_headers_cannot_carry_are_shown_as_they_were_set(zone: Zone) -> None:
    await create(zone, name="Gr%C3%BC%C3%9Fe%0Aallerseits", NOTE="50%25 off")
    assert (await zone.get("/v2/images"))["images"][0]["name"] == "Grüße\nallerseits"
    detail = (await zone.get("/v1/images/detail"))["images"][0]
    assert (detail["name"], detail["properties"]["note"]) == ("Grüße\nallerseits", "50% off")
    shown = await head(zone, 41)
    assert (shown["name"], shown["property-note"]) == ("Gr%C3%BC%C3%9Fe%0Aallerseits", "50% off")


async def test_images_are_shared_with_members_who_see_them_at_once(zone: Zone) -> None:
    await create(zone, b"gift", name="gift")
    path = "/v1/images/41/members"
    assert await zone.status("PUT", f"{path}/other", user="bob") == 404
    assert await zone.status("PUT", f"{path}/other") == 204
    assert await zone.status("PUT", f"{path}/third", json={"member": {"can_share": True}}) == 204
    assert (await zone.get(path))["members"] == [
        {"member_id": "other", "can_share": False},
        {"member_id": "third", "can_share": True},
    ]
    assert await names(zone, user="bob") == ["gift"]
    assert await zone.names(user="bob") == []  # v2 lists what was accepted
    shared = await zone.get("/v1/shared-images/other", user="bob")
    assert shared == {"shared_images": [{"image_id": 41, "can_share": False}]}
    assert await zone.status("GET", "/v1/shared-images/other") == 403
    assert await zone.status("PUT", f"{path}/third") == 204  # keeps what is said of it
    assert (await zone.get(path))["members"][1]["can_share"]
    body = {"memberships": [{"member_id": "fourth", "can_share": True}, {"member_id": "third"}]}
    assert await zone.status("PUT", path, json=body) == 204
    assert [one["member_id"] for one in (await zone.get(path))["members"]] == ["fourth", "third"]
    assert await zone.status("HEAD", "/v1/images/41", user="bob") == 404
    assert await zone.status("DELETE", f"{path}/fourth") == 204
    assert await zone.status("DELETE", f"{path}/fourth") == 404


@pytest.mark.parametrize(
    "body",
    [[], {}, {"memberships": {}}, {"memberships": ["x"]}, {"memberships": [{"can_share": True}]},
     {"memberships": [{"member_id": "x", "can_share": "maybe"}]}, {"memberships": [{"member_id": ""}]}],
)  # fmt: skip
async def test_malformed_memberships_are_refused(zone: Zone, body: Any) -> None:
    await create(zone)
    assert await zone.status("PUT", "/v1/images/41/members", json=body) == 400


async def test_a_public_image_has_no_members(zone: Zone) -> None:
    await create(zone, is_public=True, user="root")
    assert (await zone.get("/v1/images/41/members"))["members"] == []
    assert await zone.status("PUT", "/v1/images/41/members/other", user="root") == 403


async def test_v1_is_found_by_its_versions_and_can_be_switched_off(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        async with zone.ask("GET", "/", user=None) as answer:
            versions = {v["id"]: v["links"][0]["href"] for v in (await answer.json())["versions"]}
        assert versions["v1.0"] == versions["v1.1"] == f"{zone.url}/v1/"
        assert await zone.status("GET", "/v1", user=None) == 300
        assert await names(zone) == []
    async with running(tmp_path, images="v1 = false") as zone:
        for path in ("/v1", "/v1/images", "/v1/images/41"):
            async with zone.ask("GET", path) as answer:
                assert answer.status == 300
                assert not any(v["id"].startswith("v1") for v in (await answer.json())["versions"])


async def test_requests_to_v1_are_counted_by_a_bounded_number_of_client_programs(tmp_path: Path) -> None:
    async with running(tmp_path, v1_user_agents_max=2) as zone:
        for program in ("python-glanceclient", "curl/8.1", "curl/8.2 (x)", "third/1", "fourth", '"evil"'):
            await zone.get("/v1/images", headers={"User-Agent": program})
        await zone.get("/v2/images", headers={"User-Agent": "curl/8.1"})
        async with zone.ask("GET", "/metrics", user=None) as answer:
            lines = [one for one in (await answer.text()).splitlines() if one.startswith("zonegw_images_v1_requests")]
    counts = {line for line in lines if "_total{" in line}
    assert counts == {
        f'zonegw_images_v1_requests_total{{user_agent="{name}"}} {count}'
        for name, count in (("python-glanceclient", 1.0), ("curl", 2.0), ("other", 3.0))
    }
