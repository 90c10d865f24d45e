"""Gateways whose images lie in a real Swift, by its own API or as S3."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.data_stores.swift_server import ACCOUNT, READER, USER, Swift
from tests.data_stores.test_contract import pieces
from tests.gateway.running import Zone, running, seed_block, until
from tests.gateway.test_imports import FORMATS, OCTETS, imported, method, stage
from tests.gateway.test_stores import seen
from tests.registry import registry
from zonegw import config
from zonegw.data_stores.interface import mint_key
from zonegw.data_stores.swift import SwiftStore
from zonegw.errors import BadRequest
from zonegw.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MIB = 1 << 20
BLOB = os.urandom(6 * MIB + 11)
LIMITS = {
    "swift_segment_bytes": 2 * MIB, "s3_part_bytes": 5 * MIB, "store_attempts_max": 2, "store_retry_delay_s": 0.05,
    "store_probe_keep_s": 1e-6, "far_garbage_retry_s": 0.2,
}  # fmt: skip


def entry(kind: str, server: Swift, container: str, **more: Any) -> str:
    """TOML of one store."""
    login: dict[str, Any] = {"type": kind}
    if kind == "swift":
        login |= {"auth": "v1", "auth_url": server.auth_url, "user": f"{ACCOUNT}:{USER}", "container": container}
        login |= {"password_file": str(server.key_file)}
    else:
        login |= {"endpoint": server.url, "bucket": container, "access_key": f"{ACCOUNT}:{USER}"}
        login |= {"secret_key_file": str(server.key_file)}
    values = {name: value for name, value in (login | more).items() if value is not None}
    return "\n".join(["[[stores]]", *(f"{name} = {config._literal(value)}" for name, value in values.items())]) + "\n"


@dataclasses.dataclass
class Place:
    """A container of its own."""

    server: Swift
    kind: str
    container: str

    async def names(self) -> list[str]:
        beside = f"{self.container}_segments" if self.kind == "swift" else f"{self.container}+segments"
        return await self.server.names(self.container) + await self.server.names(beside)

    async def empty(self) -> None:
        async with asyncio.timeout(20):
            while await self.names():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    def entry(self, name: str, **more: Any) -> str:
        return entry(self.kind, self.server, self.container, name=name, **more)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        self.server.stop("proxy")
        try:
            yield
        finally:
            self.server.start("proxy")


@pytest.fixture(params=["swift", "s3"])
async def place(request: pytest.FixtureRequest, swift_server: Swift) -> Place:
    container = f"images-{mint_key()}"
    await swift_server.ask("PUT", container)
    return Place(swift_server, request.param, container)


only_swift = pytest.mark.parametrize("place", ["swift"], indirect=True)


async def put(zone: Zone, image: dict[str, Any], data: Any, **headers: str) -> tuple[int, str, Any]:
    async with zone.ask("PUT", f"{image['self']}/file", data=data, headers=OCTETS | headers) as answer:
        return answer.status, await answer.text(), answer.headers


async def test_an_image_is_uploaded_downloaded_in_ranges_and_deleted(place: Place, tmp_path: Path) -> None:
    async with running(tmp_path, more=place.entry("default"), **LIMITS) as zone:
        image = await zone.create_active(BLOB)
        assert (await zone.get(image["self"]))["stores"] == "fra"
        assert await zone.data(image) == BLOB
        assert await zone.data(image, headers={"Range": "bytes=3000000-3000099"}) == BLOB[3000000:3000100]
        assert await zone.data(image, headers={"Range": "bytes=-10"}) == BLOB[-10:]
        assert await zone.status("GET", f"{image['self']}/file", headers={"Range": f"bytes={len(BLOB)}-"}) == 416
        assert list((tmp_path / "data" / "data").glob("??/*")) == []
        assert await zone.status("DELETE", image["self"]) == 204
        await place.empty()


async def test_a_broken_upload_leaves_nothing_and_may_be_repeated(place: Place, tmp_path: Path) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield BLOB[: 5 * MIB]
        raise BadRequest("here the client dies")

    async with running(tmp_path, more=place.entry("default"), **LIMITS) as zone:
        image = await zone.create(**FORMATS)
        with pytest.raises(aiohttp.ClientConnectionError):
            await put(zone, image, breaks())
        await until(lambda: not zone.gateway.image_data._uploading, "the upload to end")
        await place.empty()
        assert (await zone.get(image["self"]))["status"] == "queued"
        assert zone.gateway.store.read().count("uploads") == 0
        await zone.upload(image, BLOB)
        assert await zone.data(image) == BLOB


async def test_data_of_another_size_than_announced_are_refused_and_not_kept(place: Place, tmp_path: Path) -> None:
    async with running(tmp_path, more=place.entry("default"), **LIMITS) as zone:
        image = await zone.create(**FORMATS)
        for wrong in (len(BLOB) - 1, len(BLOB) + 1, 5, 1000):
            data = BLOB if wrong > MIB else b"twenty bytes of image"
            status, text, _ = await put(zone, image, pieces(data), **{"x-openstack-image-size": str(wrong)})
            assert (status, "Size mismatch" in text) == (400, True), text
        await place.empty()
        await zone.upload(image, b"right")


async def test_data_of_another_checksum_than_announced_are_refused_and_not_kept(place: Place, tmp_path: Path) -> None:
    chosen = {"more": place.entry("default"), **LIMITS}
    seed_block(tmp_path, 1, 100, **chosen)
    async with running(tmp_path, **chosen) as zone:
        headers = OCTETS | {
            "x-image-meta-name": "n", "x-image-meta-disk_format": "raw", "x-image-meta-container_format": "bare",
            "x-image-meta-checksum": "0" * 32,
        }  # fmt: skip
        assert await zone.status("POST", "/v1/images", data=BLOB, headers=headers) == 400
        await place.empty()


async def test_a_store_that_is_away_is_a_503_with_its_name_and_the_zone_goes_on(place: Place, tmp_path: Path) -> None:
    async with running(tmp_path, more=place.entry("far", default=True), **LIMITS) as zone:
        image, other = await zone.create_active(BLOB), await zone.create(**FORMATS)
        doomed = await zone.create_active(BLOB)
        with place.away():
            status, text, headers = await put(zone, other, BLOB)
            assert (status, "store far" in text, "Retry-After" in headers) == (503, True, True), text
            async with zone.ask("GET", f"{image['self']}/file") as answer:
                assert (answer.status, "store far" in await answer.text()) == (503, True)
                assert answer.headers["Retry-After"]
            rows = (await zone.get("/v2/info/stores"))["stores"]
            assert [(row["id"], row["reachable"]) for row in rows] == [("fra.far", "false")]
            assert await zone.status("DELETE", doomed["self"]) == 204
            assert (await zone.get(other["self"]))["status"] == "queued"
        await zone.upload(other, b"the next try")
        assert await zone.data(image) == BLOB
        for made in (image, other):
            assert await zone.status("DELETE", made["self"]) == 204
        await place.empty()


@only_swift
async def test_a_store_over_its_quota_is_a_507_and_nothing_is_kept(place: Place, tmp_path: Path) -> None:
    await place.server.ask("POST", place.container, headers={"X-Container-Meta-Quota-Bytes": "1000"})
    async with running(tmp_path, more=place.entry("default"), **LIMITS) as zone:
        image = await zone.create(**FORMATS)
        status, text, _ = await put(zone, image, b"x" * 1001)
        assert (status, "store default" in text) == (507, True), text
        await place.empty()
        await zone.upload(image, b"x" * 999)
        details = (await zone.get("/v2/info/stores/detail", user="root"))["stores"]
        assert details[0]["type"] == "swift"
        assert details[0]["properties"]["quota_bytes"] == 1000


async def test_what_a_crash_left_of_an_upload_is_removed_at_the_next_start(place: Place, tmp_path: Path) -> None:
    """The note was durable, some segments or parts were there, and then the process was gone."""
    goes_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        async for piece in pieces(BLOB):
            yield piece
        begun.set()
        await goes_on.wait()

    begun, key, more = asyncio.Event(), mint_key(), place.entry("far", default=True)
    async with running(tmp_path, more=more, **LIMITS) as zone:
        writing = asyncio.create_task(zone.gateway.own_stores.get("far").write(key, body()))
        await begun.wait()
        async with asyncio.timeout(20):
            while not await place.names():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        chosen = zone.gateway.config
    store = Store(chosen.data_dir / "store", chosen.limits)
    with store.transaction() as txn:
        txn.put_row("uploads", key.encode(), {"uuid": "0" * 32, "store": "far"})
    store.close()
    assert await place.names()
    async with running(tmp_path, more=more, **LIMITS):
        await place.empty()


async def test_an_image_goes_to_the_store_that_was_chosen_and_is_copied_and_removed_between_stores(
    place: Place, tmp_path: Path
) -> None:
    here = '[[stores]]\nname = "default"\ntype = "filesystem"\ndirectory = "files"\ndefault = true\n'
    async with running(tmp_path, more=here + place.entry("far"), **LIMITS) as zone:
        rows = (await zone.get("/v2/info/stores"))["stores"]
        assert [(row["id"], row.get("default")) for row in rows] == [("fra", "true"), ("fra.far", None)]
        image = await zone.create(**FORMATS)
        assert (await put(zone, image, b"x", **{"X-Image-Meta-Store": "fra.none"}))[0] == 400
        assert (await put(zone, image, BLOB, **{"X-Image-Meta-Store": "fra.far"}))[0] == 204
        assert (await zone.get(image["self"]))["stores"] == "fra.far"
        shown = await imported(zone, image, method("copy-image") | {"stores": ["fra"]})
        assert shown["stores"] == "fra.far,fra"
        assert await zone.status("DELETE", f"/v2/stores/fra.far/{image['id']}") == 204
        assert (await zone.get(image["self"]))["stores"] == "fra"
        assert await zone.data(image) == BLOB


async def test_staged_data_lie_in_files_until_they_are_imported_into_the_store(place: Place, tmp_path: Path) -> None:
    async with running(tmp_path, more=place.entry("default"), **LIMITS) as zone:
        image = await zone.create(**FORMATS)
        assert await stage(zone, image, BLOB) == 204
        assert await place.names() == []
        assert len(list((tmp_path / "data" / "data").glob("??/*"))) == 1
        shown = await imported(zone, image, method("glance-direct"))
        assert (shown["status"], shown["stores"]) == ("active", "fra")
        assert await zone.data(image) == BLOB
        await until(lambda: not list((tmp_path / "data" / "data").glob("??/*")), "the staged bytes to go")


@only_swift
async def test_a_token_that_is_refused_is_renewed_before_the_body_is_sent(place: Place, tmp_path: Path) -> None:
    async with running(tmp_path, more=place.entry("default"), **LIMITS) as zone:
        store = zone.gateway.own_stores.get("default")
        assert isinstance(store, SwiftStore)
        image = await zone.create_active(BLOB)
        for again in (BLOB, b"small"):
            access = store._swift._access
            assert access is not None
            store._swift._access = dataclasses.replace(access, token="expired")
            assert await zone.data(image) == BLOB
            store._swift._access = dataclasses.replace(access, token="expired")
            assert await zone.data(await zone.create_active(again)) == again


# What other zones read directly.


def shared(place: Place, how: str) -> str:
    """How ams reads fra's store: with rights of its own, or as everybody may."""
    if place.kind == "s3":
        return place.entry("default", zone="fra")
    if how == "reader":
        return place.entry("default", zone="fra", user=f"{ACCOUNT}:{READER}")
    nobody = dict.fromkeys(("auth_url", "user", "password_file"))
    return place.entry("default", zone="fra", auth="none", url=place.server.account_url, **nobody)


@pytest.mark.parametrize(
    ("place", "how"), [("swift", "reader"), ("swift", "public"), ("s3", "its own keys")], indirect=["place"]
)
async def test_a_zone_reads_another_zones_shared_store_while_its_gateways_and_the_registry_are_down(
    place: Place, tmp_path: Path, how: str
) -> None:
    if place.kind == "swift":
        readers = ".r:*" if how == "public" else f"{ACCOUNT}:{READER}"
        for container in (place.container, f"{place.container}_segments"):
            await place.server.ask("PUT", container, headers={"X-Container-Read": readers})
    async with (
        registry(tmp_path) as cluster,
        running(
            tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1", more=shared(place, how), **LIMITS
        ) as ams,
    ):
        async with running(tmp_path / "fra", registry=cluster, more=place.entry("default"), **LIMITS) as fra:
            await fra.drained()
            images = [await fra.create_active(BLOB, visibility="public", user="root") for _ in range(2)]
            for image in images:
                await seen(ams, image, status="active")
        await cluster.stop_all()
        assert await ams.data(images[0]) == BLOB
        assert await ams.data(images[0], headers={"Range": "bytes=3000000-3000099"}) == BLOB[3000000:3000100]
        assert ams.gateway.cache.misses == 1
        assert await ams.data(images[1]) == BLOB


@only_swift
async def test_other_bytes_in_a_shared_store_are_not_taken_for_the_images(place: Place, tmp_path: Path) -> None:
    async with (
        registry(tmp_path) as cluster,
        running(
            tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1", more=place.entry("default", zone="fra"),
            **LIMITS,
        ) as ams,
    ):  # fmt: skip
        async with running(tmp_path / "fra", registry=cluster, more=place.entry("default"), **LIMITS) as fra:
            await fra.drained()
            image = await fra.create_active(BLOB, visibility="public", user="root")
            shown = await seen(ams, image, status="active")
        key = shown["locations"][0]["key"]
        for data in (b"x" * len(BLOB), b"", b"x" * (len(BLOB) + 1)):
            await place.server.ask("PUT", f"{place.container}/{key}", data=data)
            with contextlib.suppress(aiohttp.ClientPayloadError):
                async with ams.ask("GET", f"{image['self']}/file") as answer:
                    await answer.read()
                    assert answer.status == 503, "what came was taken for complete"
            await until(lambda: not ams.gateway.cache._fetches, "the fetch to end")
            assert ams.gateway.cache._files == {}


@only_swift
async def test_what_a_zone_reads_directly_it_never_deletes(place: Place, tmp_path: Path) -> None:
    """Also where its entry has the rights: the bytes are the other zone's, which removes them once it is back."""
    async with (
        registry(tmp_path) as cluster,
        running(
            tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1", more=place.entry("default", zone="fra"),
            **LIMITS,
        ) as ams,
    ):  # fmt: skip
        await ams.drained()
        chosen = {"registry": cluster, "more": place.entry("default"), **LIMITS}
        async with running(tmp_path / "fra", **chosen) as fra:
            await fra.drained()
            image = await fra.create_active(BLOB, visibility="public", user="root")
            await seen(ams, image, status="active")
            await fra.drained()
        before = await place.names()
        assert await ams.data(image) == BLOB
        async with cluster.client() as client:
            await client.delete_image(image["id"])
        await until(lambda: ams.gateway.cache._files == {}, "the cached copy to go")
        assert await place.names() == before
        async with running(tmp_path / "fra", **chosen):
            await place.empty()
