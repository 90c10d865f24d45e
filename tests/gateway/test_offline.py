"""A gateway without a registry in reach: the Images API from the zone's own disk."""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.gateway.running import PATCH_TYPE, Zone, queued_commands, running, seed_block, until
from zonegw.limits import MIB

BLOB = os.urandom(3 * MIB + 17)
OCTETS = {"Content-Type": "application/octet-stream"}
UNKNOWN_UUID = "7ed3bc2c-4f0c-4d8e-9f25-0c6b1a5e7d10"


async def test_an_image_is_created_filled_shown_listed_read_and_deleted(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(
            name="cirros", disk_format="raw", container_format="bare", os_distro="tiny", tags=["a"]
        )
        assert (image["status"], image["os_distro"], image["tags"]) == ("queued", "tiny", ["a"])
        await zone.upload(image, BLOB)
        shown = await zone.get(image["self"])
        assert shown["status"] == "active"
        assert shown["size"] == len(BLOB)
        assert shown["checksum"] == hashlib.md5(BLOB).hexdigest()
        assert shown["os_hash_value"] == hashlib.sha512(BLOB).hexdigest()
        assert shown["stores"] == "fra"
        assert await zone.names() == ["cirros"]
        assert await zone.data(image) == BLOB
        assert await zone.status("DELETE", image["self"]) == 204
        assert await zone.status("GET", image["self"]) == 404
        assert await zone.names() == []


async def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create_active(BLOB, name="kept")
        assert await zone.rename(image, "renamed") == 200
    async with running(tmp_path) as zone:
        assert await zone.names() == ["renamed"]
        assert await zone.data(image) == BLOB
        assert [command["op"] for command in queued_commands(zone)] == ["create_image", "update_image", "update_image"]


async def test_every_answer_says_state_staleness_revision_and_request_id(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        for path, user in (
            ("/", None),
            ("/v2/images", "alice"),
            (f"/v2/images/{uuid4()}", "alice"),
            ("/v2/images", None),
        ):
            async with zone.ask("GET", path, user=user) as answer:
                assert answer.headers["X-Zonegw-State"] == "degraded"
                assert answer.headers["X-Zonegw-Staleness"] == "unknown"
                assert answer.headers["X-Zonegw-Revision"] == "none"
                assert answer.headers["x-openstack-request-id"].startswith("req-")


async def test_numbers_come_from_the_block_and_run_out_without_stopping_creates(tmp_path: Path) -> None:
    seed_block(tmp_path, 41, 42)
    async with running(tmp_path) as zone:
        numbers = [(await zone.create(name=str(n)))["os_glance_v1_id"] for n in range(3)]
    assert numbers == [41, 42, None]


async def test_concurrent_creates_share_commits_and_get_different_numbers(tmp_path: Path) -> None:
    seed_block(tmp_path, 1, 100)
    async with running(tmp_path) as zone:
        commits = 0

        def count(seconds: float) -> None:
            nonlocal commits
            commits += 1

        zone.gateway.store.on_commit = count
        images = await asyncio.gather(*(zone.create(name="same") for _ in range(60)))
        assert {image["os_glance_v1_id"] for image in images} == set(range(1, 61))
        assert commits < 60


async def test_tenants_do_not_learn_of_each_others_private_images(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create_active(b"secret", name="private", visibility="private")
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/file")):
            assert await zone.status(method, image["self"] + path, user="bob") == 404
        assert await zone.rename(image, "mine", user="bob") == 404
        assert await zone.names(user="bob") == []
        assert await zone.names("?visibility=all", user="bob") == []
        assert await zone.names(f"?owner={image['owner']}", user="bob") == []
        async with zone.ask("GET", f"/v2/images?marker={image['id']}", user="bob") as answer:
            assert answer.status == 400
        assert await zone.names(user="root") == ["private"]


async def test_a_public_image_is_read_by_all_and_changed_by_its_owner_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        assert await zone.status("POST", "/v2/images", json={"visibility": "public"}) == 403
        image = await zone.create_active(BLOB, user="root", name="base", visibility="public")
        assert await zone.data(image, user="bob") == BLOB
        assert await zone.rename(image, "mine", user="bob") == 403
        assert await zone.status("DELETE", image["self"], user="bob") == 403
        assert await zone.names(user="bob") == ["base"]


async def test_a_community_image_is_found_by_name_of_its_visibility_only(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="ours", visibility="community")
        assert await zone.names(user="bob") == []
        assert await zone.names("?visibility=community", user="bob") == ["ours"]
        assert await zone.status("GET", image["self"], user="bob") == 200
        assert await zone.names() == ["ours"]


@pytest.mark.parametrize("token", [None, "wrong", "", "x" * 5000])
async def test_nobody_gets_in_without_a_known_token(tmp_path: Path, token: str | None) -> None:
    async with running(tmp_path) as zone:
        headers = {} if token is None else {"X-Auth-Token": token}
        for method, path in (
            ("GET", "/v2/images"),
            ("POST", "/v2/images"),
            ("GET", "/v2/schemas/image"),
            ("GET", "/v2/x"),
        ):
            assert await zone.status(method, path, user=None, headers=headers) == 401


async def test_a_percent_encoded_token_is_known(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        encoded = "".join(f"%{ord(c):02X}" for c in zone.tokens["alice"])
        assert await zone.status("GET", "/v2/images", user=None, headers={"X-Auth-Token": encoded}) == 200


BAD_CREATES: list[tuple[Any, int]] = [
    ([], 400),
    ("text", 400),
    ({"id": "no-uuid"}, 400),
    ({"id": 7}, 400),
    ({"status": "active"}, 403),
    ({"size": 1}, 403),
    ({"locations": []}, 403),
    ({"os_glance_v1_id": 7}, 403),
    ({"os_glance_anything": "x"}, 403),
    ({"owner": "someone-else"}, 403),
    ({"name": "n" * 256}, 400),
    ({"name": 7}, 400),
    ({"disk_format": "floppy"}, 400),
    ({"disk_format": []}, 400),
    ({"container_format": "box"}, 400),
    ({"disk_format": "ami", "container_format": "ari"}, 400),
    ({"visibility": "secret"}, 400),
    ({"visibility": None}, 400),
    ({"min_disk": -1}, 400),
    ({"min_ram": "1"}, 400),
    ({"min_ram": True}, 400),
    ({"min_ram": 2**40}, 400),
    ({"protected": "yes"}, 400),
    ({"tags": "a"}, 400),
    ({"tags": ["t" * 256]}, 400),
    ({"tags": [""]}, 400),
    ({"tags": [7]}, 400),
    ({"property": 7}, 400),
    ({"property": None}, 400),
    ({"": "x"}, 400),
    ({f"p{n}": "x" for n in range(129)}, 413),
    ({"tags": [str(n) for n in range(129)]}, 413),
    ({"property": "x" * 70_000}, 413),
]


async def test_bad_creates_are_refused_with_a_reason_and_leave_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        for body, status in BAD_CREATES:
            async with zone.ask("POST", "/v2/images", json=body) as answer:
                assert answer.status == status, (body, await answer.text())
                assert len(await answer.text()) > 100
        for data in (b"", b"{", b"\xff\xfe", b'{"name": NaN}'):
            headers = {"Content-Type": "application/json"}
            assert await zone.status("POST", "/v2/images", data=data, headers=headers) == 400
        big = b'{"name": "' + b"x" * (2 * MIB) + b'"}'
        assert await zone.status("POST", "/v2/images", data=big, headers={"Content-Type": "application/json"}) == 413
        assert queued_commands(zone) == []


BAD_PATCHES: list[tuple[Any, int]] = [
    ({}, 400),
    ([7], 400),
    ([{"op": "test", "path": "/name", "value": "x"}], 400),
    ([{"op": "replace", "path": "name", "value": "x"}], 400),
    ([{"op": "replace", "path": "/", "value": "x"}], 400),
    ([{"op": "replace", "path": "/a/b", "value": "x"}], 400),
    ([{"op": "replace", "path": "/a~2", "value": "x"}], 400),
    ([{"op": "replace", "path": "/name"}], 400),
    ([{"op": "replace", "path": "/missing", "value": "x"}], 409),
    ([{"op": "remove", "path": "/missing"}], 409),
    ([{"op": "remove", "path": "/name"}], 403),
    ([{"op": "replace", "path": "/status", "value": "active"}], 403),
    ([{"op": "add", "path": "/os_glance_x", "value": "1"}], 403),
    ([{"op": "replace", "path": "/visibility", "value": "public"}], 403),
    ([{"op": "replace", "path": "/owner", "value": "other"}], 403),
    ([{"op": "replace", "path": "/tags", "value": "x"}], 400),
    ([{"op": "add", "path": "/number", "value": 7}], 400),
]


async def test_bad_patches_are_refused_and_change_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="same", kept="yes")
        headers = {"Content-Type": PATCH_TYPE}
        for body, status in BAD_PATCHES:
            async with zone.ask("PATCH", image["self"], json=body, headers=headers) as answer:
                assert answer.status == status, (body, await answer.text())
        assert await zone.status("PATCH", image["self"], json=[]) == 415
        assert await zone.status("PATCH", f"/v2/images/{uuid4()}", json=[], headers=headers) == 404
        assert await zone.get(image["self"]) == image
        assert len(queued_commands(zone)) == 1


async def test_patches_set_and_remove_attributes_properties_and_tags(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="old", gone="1", changed="1", **{"with/slash": "1"})
        assert (
            await zone.patch(
                image,
                {"op": "replace", "path": "/name", "value": "new"},
                {"op": "remove", "path": "/gone"},
                {"op": "replace", "path": "/changed", "value": "2"},
                {"op": "add", "path": "/fresh", "value": "3"},
                {"op": "add", "path": "/with~1slash", "value": "4"},
                {"op": "replace", "path": "/tags", "value": ["x", "y"]},
            )
            == 200
        )
        shown = await zone.get(image["self"])
        assert (shown["name"], shown["changed"], shown["fresh"], shown["with/slash"]) == ("new", "2", "3", "4")
        assert shown["tags"] == ["x", "y"]
        assert "gone" not in shown


async def test_a_uuid_chosen_by_the_client_names_one_image_only(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        uuid = str(uuid4())
        assert (await zone.create(id=uuid))["id"] == uuid
        assert await zone.status("POST", "/v2/images", json={"id": uuid}) == 409
        assert await zone.status("DELETE", f"/v2/images/{uuid}") == 204
        assert await zone.status("POST", "/v2/images", json={"id": uuid}) == 409


async def test_a_protected_image_is_deleted_only_after_protection_ended(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="safe", protected=True)
        assert await zone.status("DELETE", image["self"]) == 403
        assert await zone.patch(image, {"op": "replace", "path": "/protected", "value": False}) == 200
        assert await zone.status("DELETE", image["self"]) == 204


async def test_uploads_are_checked_and_leave_nothing_when_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        bare = await zone.create(name="no formats")
        assert await zone.status("PUT", f"{bare['self']}/file", data=b"x", headers=OCTETS) == 400
        image = await zone.create(disk_format="raw", container_format="bare")
        assert (
            await zone.status("PUT", f"{image['self']}/file", data=b"x", headers={"Content-Type": "text/plain"}) == 415
        )
        wrong = {**OCTETS, "x-openstack-image-size": "5"}
        assert await zone.status("PUT", f"{image['self']}/file", data=b"x", headers=wrong) == 400
        assert await zone.status("PUT", f"/v2/images/{uuid4()}/file", data=b"x", headers=OCTETS) == 404
        assert (await zone.get(image["self"]))["status"] == "queued"
        await zone.upload(image, BLOB)
        assert await zone.status("PUT", f"{image['self']}/file", data=b"x", headers=OCTETS) == 409
        assert await zone.data(image) == BLOB
        await until(lambda: len(stored_files(tmp_path)) == 1, "one file")


async def test_a_client_that_breaks_off_its_upload_leaves_the_image_queued(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(disk_format="raw", container_format="bare")
        host, port = zone.gateway.address
        _, writer = await asyncio.open_connection(host, port)
        head = f"PUT {image['self']}/file HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {zone.tokens['alice']}\r\n"
        writer.write((head + "Content-Type: application/octet-stream\r\nContent-Length: 9000000\r\n\r\n").encode())
        writer.write(BLOB)
        await writer.drain()
        await until(lambda: zone.gateway.images.is_uploading(image["id"]), "the upload to start")
        assert (await zone.get(image["self"]))["status"] == "saving"
        assert await zone.status("PUT", f"{image['self']}/file", data=b"x", headers=OCTETS) == 409
        writer.close()
        await until(lambda: not zone.gateway.images.is_uploading(image["id"]), "the upload to end")
        assert (await zone.get(image["self"]))["status"] == "queued"
        await until(lambda: not stored_files(tmp_path), "no file")
        await zone.upload(image, BLOB)


RANGES = [
    ("bytes=0-9", 206, slice(0, 10)),
    ("bytes=5-", 206, slice(5, None)),
    ("bytes=-7", 206, slice(-7, None)),
    ("bytes=10-99999999", 206, slice(10, None)),
    ("bytes=99999999-", 416, None),
    ("bytes=9-2", 400, None),
    ("lines=1", 400, None),
]


async def test_ranges_of_the_data_are_served_and_bad_ones_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create_active(BLOB)
        for text, status, part in RANGES:
            async with zone.ask("GET", f"{image['self']}/file", headers={"Range": text}) as answer:
                body = await answer.read()
                assert answer.status == status, text
                if part is not None:
                    assert body == BLOB[part]
                if status == 416:
                    assert answer.headers["Content-Range"] == f"bytes */{len(BLOB)}"


async def test_an_image_without_data_yet_has_an_empty_answer(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(disk_format="raw", container_format="bare")
        assert await zone.status("GET", f"{image['self']}/file") == 204
        await zone.upload(image, b"")
        assert await zone.data(image) == b""


async def test_a_full_data_store_refuses_uploads_until_an_image_is_deleted(tmp_path: Path) -> None:
    async with running(tmp_path, data_store_max_bytes=4 * MIB) as zone:
        first = await zone.create_active(BLOB, name="first")
        second = await zone.create(name="second", disk_format="raw", container_format="bare")
        assert await zone.status("PUT", f"{second['self']}/file", data=BLOB, headers=OCTETS) == 507
        assert (await zone.get(second["self"]))["status"] == "queued"
        assert await zone.data(first) == BLOB
        assert await zone.status("DELETE", first["self"]) == 204
        await until(lambda: zone.gateway.data.used_bytes == 0, "the bytes to be removed")
        await zone.upload(second, BLOB)
        assert await zone.data(second) == BLOB


async def test_full_metadata_refuses_creates_definitely_and_still_takes_deletes(tmp_path: Path) -> None:
    async with running(tmp_path, store_soft_limit_bytes=400_000) as zone:
        images = []
        while True:
            async with zone.ask("POST", "/v2/images", json={"name": "x", "p": "x" * 2000}) as answer:
                if answer.status == 507:
                    break
                assert answer.status == 201
                images.append(await answer.json())
        assert len(images) > 10
        before = len(queued_commands(zone))
        assert await zone.status("POST", "/v2/images", json={"name": "y"}) == 507
        assert len(queued_commands(zone)) == before
        for image in images:
            assert await zone.status("DELETE", image["self"]) == 204
    async with running(tmp_path, store_soft_limit_bytes=400_000) as zone:
        assert len(queued_commands(zone)) == 2 * len(images)


async def test_bytes_that_no_image_came_to_own_are_removed_at_start(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create_active(BLOB, name="kept")
        orphan = "0" * 32
        with zone.gateway.store.transaction() as txn:
            txn.put_row("uploads", orphan.encode(), {"uuid": image["id"]})
        path = zone.gateway.data.path(orphan)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"left by a crash")
        (tmp_path / "data" / "data" / "incoming" / "half").write_bytes(b"half")
    async with running(tmp_path) as zone:
        await until(lambda: not path.exists(), "the orphan to be removed")
        assert len(stored_files(tmp_path)) == 1
        assert await zone.data(image) == BLOB


async def test_lists_are_paged_in_every_order_without_gap_or_repetition(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        for n in range(12):
            await zone.create(name=f"n{n % 4}", min_ram=n, user="alice" if n % 3 else "root", os_hidden=False)
            await zone.create(name=None, user="bob")
        queries = ["", "sort_key=name&sort_dir=asc", "sort=name:asc,created_at:desc", "sort_key=size", "sort=id:asc",
                   "sort=name:desc,status:asc,id:asc", "sort_key=updated_at&sort_dir=asc"]  # fmt: skip
        for query in queries:
            whole = [i["id"] for i in (await zone.get(f"/v2/images?limit=1000&{query}"))["images"]]
            assert len(whole) == 8
            assert await pages(zone, f"/v2/images?limit=3&{query}") == whole, query


async def pages(zone: Zone, link: str | None) -> list[str]:
    """IDs of all pages, followed by their `next` links."""
    found: list[str] = []
    while link:
        page = await zone.get(link)
        found += [image["id"] for image in page["images"]]
        link = page.get("next")
    return found


async def test_lists_are_filtered_as_the_images_api_says(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        await zone.create_active(b"12345", name="five", tags=["x", "y"], os_distro="a")
        await zone.create(name="none", protected=True, os_distro="b")
        await zone.create(name="hidden", os_hidden=True)
        for query, expected in (
            ("?name=five", {"five"}),
            ("?name=missing", set()),
            ("?name=in:five,none", {"five", "none"}),
            ('?name=in:"five","none"', {"five", "none"}),
            ("?status=active", {"five"}),
            ("?status=bogus", set()),
            ("?tag=x&tag=y", {"five"}),
            ("?tag=x&tag=z", set()),
            ("?os_distro=b", {"none"}),
            ("?unknown=1", set()),
            ("?protected=True", {"none"}),
            ("?os_hidden=true", {"hidden"}),
            ("?size_min=5&size_max=5", {"five"}),
            ("?size_min=6", set()),
            ("?visibility=public", set()),
            ("?created_at=gt:2001-01-01T00:00:00Z", {"five", "none"}),
            ("?created_at=lt:2001-01-01T00:00:00Z", set()),
            ("?limit=0", set()),
        ):
            assert set(await zone.names(query)) == expected, query


@pytest.mark.parametrize(
    "query",
    ["limit=-1", "limit=x", "marker=x", f"marker={UNKNOWN_UUID}", "sort_key=bogus", "sort_dir=up", "sort=name:up",
     "sort=name&sort_key=name", "visibility=x", "member_status=x", "protected=maybe", "size_min=x", "created_at=x",
     "created_at=around:2001-01-01", "name=neq:x", 'name=in:"a', "changes-since=1",
     "sort_key=name&sort_key=id&sort_dir=asc&sort_dir=asc&sort_dir=asc"],
)  # fmt: skip
async def test_a_bad_list_query_is_refused(tmp_path: Path, query: str) -> None:
    async with running(tmp_path) as zone:
        assert await zone.status("GET", f"/v2/images?{query}") == 400


async def test_names_and_unknown_paths_are_not_found(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        await zone.create(name="by-name")
        for path in ("/v2/images/by-name", "/v2/schemas/nothing", "/v2/images/%00", f"/v2/images/{uuid4().hex}"):
            assert await zone.status("GET", path) == 404, path
        assert await zone.status("HEAD", "/v2/images") == 405


async def test_clients_discover_versions_schemas_and_stores(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        async with zone.ask("GET", "/", user=None) as answer:
            assert answer.status == 300
            versions = (await answer.json())["versions"]
        assert {v["id"] for v in versions if v["status"] == "CURRENT"} == {"v2.17"}
        assert versions[0]["links"][0]["href"] == f"{zone.url}/v2/"
        assert (await zone.get("/versions", user=None))["versions"] == versions
        schema = await zone.get("/v2/schemas/image")
        image = await zone.create(name="x", custom="y")
        assert set(image) - set(schema["properties"]) == {"custom"}
        for name in ("images", "member", "members"):
            assert (await zone.get(f"/v2/schemas/{name}"))["name"] == name
        assert [s["id"] for s in (await zone.get("/v2/info/stores"))["stores"]] == ["fra"]
        assert await zone.status("GET", "/healthcheck", user=None) == 200
        async with zone.ask("GET", "/metrics", user=None) as answer:
            assert "zonegw_queue_depth 1.0" in await answer.text()


def stored_files(directory: Path) -> list[Path]:
    return [path for path in (directory / "data" / "data").rglob("*") if path.is_file()]


async def test_an_uplink_that_swallows_everything_does_not_slow_the_zone(tmp_path: Path) -> None:
    """A server accepts connections and never answers; requests are timed while the uplink waits for it."""
    swallowed: list[asyncio.StreamWriter] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        swallowed.append(writer)

    hole = await asyncio.start_server(swallow, "127.0.0.1", 0)
    host, port = hole.sockets[0].getsockname()
    async with running(tmp_path, endpoint=f"http://{host}:{port}") as zone:
        await until(lambda: len(swallowed) > 0, "the uplink to try")
        loop = asyncio.get_running_loop()
        slowest = 0.0
        for n in range(100):
            started = loop.time()
            image = await zone.create(name=f"n{n}")
            await zone.get(image["self"])
            slowest = max(slowest, loop.time() - started)
        # The uplink's shortest wait for an answer is 0.8 s: no request may have waited for one.
        assert slowest < 0.7
        assert zone.gateway.status.state == "degraded"
    for writer in swallowed:
        writer.close()
    hole.close()
