"""Data that break on their way: the right status, a message that says what to do, nothing left behind, and a retry."""

import asyncio
import base64
import errno
import hashlib
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.gateway.running import Zone, running, until
from tests.gateway.test_imports import files
from tests.registry import registry
from zonegw.data_stores import filesystem
from zonegw.limits import MIB

OCTETS = {"Content-Type": "application/octet-stream"}
FORMATS = {"disk_format": "raw", "container_format": "bare"}
BLOB = os.urandom(3 * MIB + 7)
MD5 = hashlib.md5(BLOB)


async def refused(
    zone: Zone, image: dict[str, Any], data: Any, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Status and message of an upload."""
    async with zone.ask("PUT", f"{image['self']}/file", data=data, headers=OCTETS | (headers or {})) as answer:
        return answer.status, await answer.text()


async def nothing_is_left(zone: Zone, image: dict[str, Any]) -> None:
    """Neither bytes nor a note of them; the image waits for its data."""
    read = zone.gateway.store.read
    await until(lambda: not files(zone), "the bytes to go")
    await until(lambda: read().count("uploads") == read().count("garbage") == 0, "the notes to go")
    assert zone.gateway.data.used_bytes == 0
    assert (await zone.get(image["self"]))["status"] == "queued"


async def a_retry_works(zone: Zone, image: dict[str, Any]) -> None:
    await zone.upload(image, BLOB)
    assert await zone.data(image) == BLOB
    assert zone.gateway.data.used_bytes == len(BLOB)


@pytest.mark.parametrize("framing", [f"Content-Length: {len(BLOB)}", "Transfer-Encoding: chunked"])
async def test_a_client_that_breaks_off_leaves_nothing(tmp_path: Path, framing: str) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="n", **FORMATS)
        _, writer = await asyncio.open_connection(*zone.gateway.address)
        head = f"PUT {image['self']}/file HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {zone.tokens['alice']}\r\n{framing}\r\n"
        writer.write(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode())
        sent = BLOB[: 2 * MIB]
        writer.write(f"{len(sent):x}\r\n".encode() + sent + b"\r\n" if "chunked" in framing else sent)
        await writer.drain()
        await until(lambda: bool(files(zone)), "the first bytes to come")
        assert (await zone.get(image["self"]))["status"] == "saving"
        writer.transport.abort()
        await until(lambda: not zone.gateway.image_data._uploading, "the upload to end")
        await nothing_is_left(zone, image)
        await a_retry_works(zone, image)


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Content-MD5": hashlib.md5(b"other").hexdigest()}, "Checksum mismatch"),
        ({"Content-MD5": base64.b64encode(hashlib.md5(b"other").digest()).decode()}, "Checksum mismatch"),
        ({"Content-MD5": "none"}, "Content-MD5"),
        ({"x-openstack-image-size": str(len(BLOB) + 1)}, "Size mismatch"),
        ({"x-openstack-image-size": "0"}, "Size mismatch"),
        ({"x-openstack-image-size": "all"}, "whole number"),
    ],
)
async def test_data_that_are_not_what_was_announced_are_not_kept(
    tmp_path: Path, headers: dict[str, str], said: str
) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="n", **FORMATS)
        status, message = await refused(zone, image, BLOB, headers)
        assert (status, said in message) == (400, True), message
        await nothing_is_left(zone, image)
        right = {"Content-MD5": base64.b64encode(MD5.digest()).decode(), "x-openstack-image-size": str(len(BLOB))}
        assert (await refused(zone, image, BLOB, right))[0] == 204
        assert (await zone.get(image["self"]))["checksum"] == MD5.hexdigest()


async def test_staged_data_and_an_image_of_v1_are_held_to_their_checksum_too(tmp_path: Path) -> None:
    wrong = hashlib.md5(b"other").hexdigest()
    async with running(tmp_path) as zone:
        with zone.gateway.store.transaction() as txn:
            zone.gateway.ids.add(txn, 1, 10, 1)
        image = await zone.create(name="n", **FORMATS)
        headers = OCTETS | {"Content-MD5": wrong}
        assert await zone.status("PUT", f"{image['self']}/stage", data=BLOB, headers=headers) == 400
        await nothing_is_left(zone, image)
        meta = {f"x-image-meta-{name}": value for name, value in {**FORMATS, "name": "v1", "checksum": wrong}.items()}
        async with zone.ask("POST", "/v1/images", data=BLOB, headers=OCTETS | meta) as answer:
            assert (answer.status, "Checksum mismatch" in await answer.text()) == (400, True)
        await nothing_is_left(zone, image)
        assert await zone.names() == ["n"]
        meta["x-image-meta-checksum"] = MD5.hexdigest()
        assert await zone.status("POST", "/v1/images", data=BLOB, headers=OCTETS | meta) == 201


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """The kernel lets no file of this process grow beyond `size`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_store_that_takes_no_more_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "quota", data_store_max_bytes=2 * MIB) as zone:
        image = await zone.create(name="n", **FORMATS)
        status, message = await refused(zone, image, BLOB)
        assert (status, "data_store_max_bytes" in message) == (507, True)
        await nothing_is_left(zone, image)
        await zone.upload(image, BLOB[:MIB])
    async with running(tmp_path / "disk") as zone:
        image = await zone.create(name="n", **FORMATS)
        with small_files(2 * MIB):
            status, message = await refused(zone, image, BLOB)
        assert (status, "full" in message) == (507, True)
        await nothing_is_left(zone, image)
        await a_retry_works(zone, image)


async def test_an_upload_that_says_it_is_too_large_is_refused_before_its_data_come(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await never.wait()

    async with running(tmp_path, data_store_max_bytes=2 * MIB, image_max_bytes=4 * MIB) as zone:
        image = await zone.create(name="n", **FORMATS)
        for size, status, said in ((3 * MIB, 507, "data_store_max_bytes"), (5 * MIB, 413, "image_max_bytes")):
            found, message = await refused(zone, image, body(), {"x-openstack-image-size": str(size)})
            assert (found, said in message) == (status, True)
            await nothing_is_left(zone, image)


@pytest.mark.parametrize("sync", ["fsync", "fdatasync"], ids=["at the end", "on the way"])
async def test_a_disk_that_fails_is_told_from_one_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str
) -> None:
    failures = [OSError(errno.EIO, os.strerror(errno.EIO))]

    def broken(handle: int) -> None:
        if failures:  # a kernel says it once
            raise failures.pop()

    async with running(tmp_path) as zone:
        image = await zone.create(name="n", **FORMATS)
        with monkeypatch.context() as disk:
            disk.setattr(filesystem, "SYNC_BYTES", 1)
            disk.setattr(os, sync, broken)
            async with zone.ask("PUT", f"{image['self']}/file", data=BLOB, headers=OCTETS) as answer:
                assert answer.status == 503
                assert int(answer.headers["Retry-After"]) > 0
                assert "data store default failed" in await answer.text()
        await nothing_is_left(zone, image)
        await a_retry_works(zone, image)


@pytest.mark.parametrize("left", [0, MIB, len(BLOB) + 1])
async def test_a_file_that_was_damaged_is_never_sent_as_the_whole_image(tmp_path: Path, left: int) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create_active(BLOB)
        os.truncate(files(zone)[0], left)
        async with zone.ask("GET", f"{image['self']}/file") as answer:
            assert answer.status == 503
        files(zone)[0].write_bytes(BLOB)
        assert await zone.data(image) == BLOB


class Way:
    """Connections to a zone that break after `bytes_max` bytes of it went through, and are refused then."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self.bytes_max: int | None = None
        self._passed = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near, far = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._copy(reader, far, counted=False))
                both.create_task(self._copy(near, writer, counted=True))
        except* OSError:
            pass
        finally:
            far.transport.abort()
            writer.transport.abort()

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counted: bool) -> None:
        while data := await source.read(65_536):
            self._passed += len(data) if counted else 0
            if self.bytes_max is not None and self._passed > self.bytes_max:
                break
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError


@asynccontextmanager
async def way_to(zone: Zone) -> AsyncIterator[tuple[Way, str]]:
    """With the URL at which it is reached."""
    way = Way(zone.gateway.interzone_address or ("", 0))
    server = await asyncio.start_server(way.connected, "127.0.0.1", 0)
    async with server:
        yield way, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def torn(zone: Zone, image: dict[str, Any]) -> bytes:
    """What came of a download that breaks."""
    got = bytearray()
    async with zone.ask("GET", f"{image['self']}/file") as answer:
        assert (answer.status, answer.content_length) == (200, len(BLOB))
        try:
            async for piece in answer.content.iter_any():
                got += piece
        except aiohttp.ClientPayloadError:
            return bytes(got)
    raise AssertionError("the download ended as if it were complete")


async def test_a_source_zone_that_dies_during_a_download_never_makes_a_complete_file_and_a_retry_goes_on(
    tmp_path: Path,
) -> None:
    async with (
        registry(tmp_path) as cluster,
        running(tmp_path / "fra", registry=cluster) as fra,
        running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1") as ams,
        way_to(ams) as (way, url),
    ):
        await fra.drained()
        fra.gateway.interzone._endpoints = lambda zone: [url]
        image = await ams.create_active(BLOB, user="root", visibility="public")
        catalogue, store, cache = fra.gateway.catalogue, fra.gateway.store, fra.gateway.cache
        await until(
            lambda: (catalogue.get(store.committed(), image["id"]) or {}).get("status") == "active", "the image"
        )
        way.bytes_max = 2 * MIB
        got = await torn(fra, image)
        assert BLOB.startswith(got)
        assert 0 < len(got) < len(BLOB)
        directory = tmp_path / "fra/data/cache"
        await until(lambda: not [path for path in directory.rglob("*") if path.is_file()], "the broken copy to go")
        assert cache.used_bytes == 0
        assert await fra.status("GET", f"{image['self']}/file") == 503
        way.bytes_max = None
        got += await fra.data(image, headers={"Range": f"bytes={len(got)}-"})
        assert got == BLOB
        assert await fra.data(image) == BLOB
