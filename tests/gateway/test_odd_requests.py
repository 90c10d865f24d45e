"""Requests that no good client sends: each is answered with what is wrong with it, never with a 500."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.running import PATCH_TYPE, Zone, queued_commands, running
from tests.registry import registry
from zonegw.data_stores.filesystem import FilesystemStore
from zonegw.data_stores.interface import mint_key

OCTETS = {"Content-Type": "application/octet-stream"}
JSON_BUT_NO_TEXT: tuple[object, ...] = ([], {}, 1, True)
UUID = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
async def zone(tmp_path: Path) -> AsyncIterator[Zone]:
    async with running(tmp_path) as gateway:
        yield gateway


async def test_a_line_end_outside_of_quotes_in_a_list_of_names_is_refused(zone: Zone) -> None:
    assert await zone.status("GET", "/v2/images?name=in:a%0Db") == 400
    assert await zone.status("GET", "/v2/images?name=in:%22a%0Db%22") == 200


async def test_an_announced_size_with_more_digits_than_a_number_has_is_refused(zone: Zone) -> None:
    image = await zone.create(disk_format="raw", container_format="bare")
    for action in ("file", "stage"):
        headers = {**OCTETS, "x-openstack-image-size": "9" * 5000}
        assert await zone.status("PUT", f"{image['self']}/{action}", data=b"abc", headers=headers) == 400


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v2/images", "application/json"),
        ("PATCH", "{image}", PATCH_TYPE),
        ("PUT", "{image}/file", "application/octet-stream"),
        ("PUT", "{image}/stage", "application/octet-stream"),
        ("POST", "/v1/images", "application/octet-stream"),
    ],
)
async def test_a_body_that_is_not_in_its_content_encoding_is_refused_and_nothing_is_kept(
    zone: Zone, method: str, path: str, kind: str
) -> None:
    image = await zone.create(disk_format="raw", container_format="bare")
    written = len(queued_commands(zone))
    headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
    path = path.format(image=image["self"])
    for torn in (b"[]", gzip.compress(b"[]")[:-10] + b"0123456789"):
        assert await zone.status(method, path, data=torn, headers=headers) == 400
    assert len(queued_commands(zone)) == written
    assert (await zone.get(image["self"]))["status"] == "queued"


async def test_a_uri_that_is_no_text_is_refused_with_every_method_of_import(zone: Zone) -> None:
    image = await zone.create(disk_format="raw", container_format="bare")
    for name in ("glance-direct", "copy-image", "web-download"):
        for uri in JSON_BUT_NO_TEXT:
            body = {"method": {"name": name, "uri": uri}}
            assert await zone.status("POST", f"{image['self']}/import", json=body) == 400


async def test_a_patch_can_name_nothing_below_tags_and_no_location(zone: Zone) -> None:
    image = await zone.create(tags=["blue"])
    for path, refused in (("/tags/red", 400), ("/tags/", 400), ("/locations/-", 403), ("/locations/0", 403)):
        assert await zone.patch(image, {"op": "add", "path": path, "value": "red"}) == refused
    assert await zone.get(image["self"]) == image


async def test_a_wrong_method_of_a_path_of_ours_is_told_so_and_not_the_versions(zone: Zone) -> None:
    for path in ("/versions", "/healthcheck", "/metrics", "/zonegw/v1/status"):
        assert await zone.status("POST", path) == 405
    for method in ("HEAD", "PUT", "DELETE"):
        assert await zone.status(method, "/v1/images/detail") == 405
    assert await zone.status("POST", "/elsewhere") == 300


async def test_the_uuid_of_a_deleted_image_is_used_up(tmp_path: Path) -> None:
    """The registry gives it to no other image: acknowledged, a create with it would be parked."""
    async with registry(tmp_path) as cluster, running(tmp_path / "zone", registry=cluster) as zone:
        await zone.drained()
        image = await zone.create(id=UUID)
        await zone.drained()
        assert await zone.status("DELETE", image["self"]) == 204
        assert await zone.status("POST", "/v2/images", json={"id": UUID}) == 409
        await zone.drained()
        assert await zone.status("POST", "/v2/images", json={"id": UUID}) == 409
        assert zone.gateway.status.document()["parked"] == 0


async def test_of_too_many_uuids_of_deleted_images_some_are_forgotten(tmp_path: Path) -> None:
    limits = {"deleted_uuids_max": 2}
    async with registry(tmp_path) as cluster, running(tmp_path / "zone", registry=cluster, **limits) as zone:
        await zone.drained()
        for image in [await zone.create() for _ in range(4)]:
            assert await zone.status("DELETE", image["self"]) == 204
        await zone.drained()
        assert zone.gateway.store.read().count("deleted") == 2


async def test_what_a_data_store_holds_is_counted_right_while_much_comes_and_goes(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path, max_bytes=1 << 30, disk_reserve_bytes=1, chunk_bytes=1 << 20)
    old, new = [mint_key() for _ in range(20)], [mint_key() for _ in range(20)]
    await asyncio.gather(*(store.write(key, _pieces()) for key in old))
    await asyncio.gather(*(store.delete(key) for key in old), *(store.write(key, _pieces()) for key in new))
    assert store.used_bytes == 20 * len(b"piece")


async def _pieces() -> AsyncIterator[bytes]:
    yield b"piece"
