"""What each data store promises, held by each of them: files, a real Swift, and the same Swift as S3."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.data_stores.swift_server import ACCOUNT, USER, Swift
from zonegw.data_stores.interface import DataStore, mint_key
from zonegw.data_stores.opening import opened
from zonegw.errors import BadRequest, BodyTooLarge, DataUnavailable, NotFound
from zonegw.limits import Limits
from zonegw.store_config import FilesystemConfig, S3Config, StoreConfig, SwiftConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MIB = 1 << 20
# Small parts, so that a large object has several; S3 takes none below 5 MiB.
LIMITS = Limits(
    swift_segment_bytes=4 * MIB, s3_part_bytes=5 * MIB, data_chunk_bytes=MIB, store_attempts_max=2,
    store_retry_delay_s=0.05, fetch_attempts_max=2,
)  # fmt: skip
LARGE = os.urandom(11 * MIB + 7)
SMALL = b"an image"


async def pieces(data: bytes, size: int = 300_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def broken(data: bytes) -> AsyncIterator[bytes]:
    async for piece in pieces(data):
        yield piece
    raise BadRequest("the client is gone")


async def read(store: DataStore, key: str, start: int, end: int) -> bytes:
    return b"".join([piece async for piece in store.read(key, start, end)])


@dataclass
class Kind:
    """One kind of store, and what it lets one see behind its back."""

    kind: str
    directory: Path
    server: Swift | None
    container: str

    def config(self, **options: object) -> StoreConfig:
        if self.server is None:
            return FilesystemConfig(name="s", directory=self.directory)
        if self.kind == "swift":
            login = {"auth_url": self.server.auth_url, "user": f"{ACCOUNT}:{USER}"}
            values = (
                {"container": self.container, "password_file": self.server.key_file, "auth": "v1"} | login | options
            )
            return SwiftConfig(name="s", **values)  # type: ignore[arg-type]
        keys = {"access_key": f"{ACCOUNT}:{USER}", "secret_key_file": self.server.key_file}
        values = {"endpoint": self.server.url, "bucket": self.container} | keys | options
        return S3Config(name="s", **values)  # type: ignore[arg-type]

    async def everything(self) -> list[str]:
        """All that is there, what can't be read under a key as well."""
        if self.server is None:
            return [path.name for path in self.directory.rglob("*") if path.is_file()]
        beside = f"{self.container}_segments" if self.kind == "swift" else f"{self.container}+segments"
        return await self.server.names(self.container) + await self.server.names(beside)


@pytest.fixture(params=["filesystem", "swift", "s3"])
async def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    if request.param == "filesystem":
        return Kind("filesystem", tmp_path / "data", None, "")
    server: Swift = request.getfixturevalue("swift_server")
    container = f"images-{mint_key()}"
    if request.param == "s3":
        await server.ask("PUT", container)
    return Kind(request.param, tmp_path, server, container)


@contextlib.asynccontextmanager
async def store_of(kind: Kind, **options: object) -> AsyncIterator[DataStore]:
    store = opened(kind.config(**options), LIMITS)
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("announced", [True, False])
async def test_what_was_written_is_there_with_its_digests_and_its_ranges(
    kind: Kind, data: bytes, announced: bool
) -> None:
    async with store_of(kind) as store:
        key = mint_key()
        stored = await store.write(key, pieces(data), len(data) if announced else None)
        assert (stored.key, stored.size, stored.store) == (key, len(data), "s")
        assert stored.md5 == hashlib.md5(data).hexdigest()
        assert stored.sha512 == hashlib.sha512(data).hexdigest()
        assert await store.size(key) == len(data)
        last = len(data)
        for start, end in ((0, last), (min(1, last), last), (last // 2, min(last // 2 + 1, last)), (last, last)):
            assert await read(store, key, start, end) == data[start:end]


@pytest.mark.parametrize("size", [len(LARGE), None])
async def test_an_upload_that_breaks_off_can_not_be_read_and_leaves_nothing_once_it_is_deleted(
    kind: Kind, size: int | None
) -> None:
    async with store_of(kind) as store:
        key = mint_key()
        with pytest.raises(BadRequest, match="the client is gone"):
            await store.write(key, broken(LARGE[: 10 * MIB]), size)
        assert await store.size(key) is None
        with pytest.raises(NotFound):
            await read(store, key, 0, 1)
        await store.delete(key)
        assert await kind.everything() == []


async def test_an_upload_that_is_cancelled_leaves_nothing_once_it_is_deleted(kind: Kind) -> None:
    begun = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        async for piece in pieces(LARGE):
            yield piece
        begun.set()
        await asyncio.Event().wait()

    async with store_of(kind) as store:
        key = mint_key()
        writing = asyncio.create_task(store.write(key, body()))
        await begun.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert await store.size(key) is None
        await store.delete(key)
        assert await kind.everything() == []


async def test_a_delete_removes_all_of_the_object_and_nothing_of_others_and_may_be_repeated(kind: Kind) -> None:
    async with store_of(kind) as store:
        first, second = mint_key(), mint_key()
        for key in (first, second):
            await store.write(key, pieces(LARGE))
        before = await kind.everything()
        for _ in range(2):
            await store.delete(first)
        assert await store.size(first) is None
        assert await read(store, second, 0, len(LARGE)) == LARGE
        assert sorted(await kind.everything()) == sorted(name for name in before if not name.startswith(first))
        await store.delete(second)
        assert await kind.everything() == []


async def test_bytes_that_are_not_there_are_not_found(kind: Kind) -> None:
    async with store_of(kind) as store:
        await store.write(mint_key(), pieces(SMALL))
        key = mint_key()
        assert await store.size(key) is None
        with pytest.raises(NotFound):
            await read(store, key, 0, 1)
        await store.delete(key)


async def test_it_says_that_it_can_be_reached_and_what_it_is(kind: Kind) -> None:
    async with store_of(kind) as store:
        assert await store.reachable()
        assert await store.properties()


async def test_another_life_of_the_gateway_reads_and_deletes_what_is_there(kind: Kind) -> None:
    key = mint_key()
    async with store_of(kind) as store:
        await store.write(key, pieces(LARGE))
    async with store_of(kind) as store:
        assert await read(store, key, 0, len(LARGE)) == LARGE
        await store.delete(key)
        assert await store.size(key) is None


@pytest.mark.parametrize("kind", ["swift", "s3"], indirect=True)
class TestElsewhere:
    """Stores that are reached over a network."""

    async def test_wrong_credentials_are_told_with_the_stores_name(self, kind: Kind, tmp_path: Path) -> None:
        wrong = tmp_path / "wrong"
        wrong.write_text("wrong")
        options = {"password_file": wrong} if kind.kind == "swift" else {"secret_key_file": wrong}
        async with store_of(kind, **options) as store:
            with pytest.raises(DataUnavailable, match="store s does not let this gateway in"):
                await store.write(mint_key(), pieces(SMALL), len(SMALL))
            assert not await store.reachable()

    async def test_credentials_that_were_mended_work_without_a_restart(self, kind: Kind, tmp_path: Path) -> None:
        file = tmp_path / "secret"
        file.write_text("wrong")
        options = {"password_file": file} if kind.kind == "swift" else {"secret_key_file": file}
        async with store_of(kind, **options) as store:
            with pytest.raises(DataUnavailable):
                await store.size(mint_key())
            assert kind.server is not None
            file.write_text(f"{kind.server.key_file.read_text()}\n")
            await store.write(mint_key(), pieces(SMALL), len(SMALL))

    async def test_a_store_that_is_away_is_told_with_its_name_and_works_again_when_it_is_back(self, kind: Kind) -> None:
        assert kind.server is not None
        async with store_of(kind) as store:
            key = mint_key()
            await store.write(key, pieces(SMALL), len(SMALL))
            kind.server.stop("proxy")
            try:
                for attempt in (
                    store.write(mint_key(), pieces(SMALL), len(SMALL)), store.write(mint_key(), pieces(LARGE)),
                    read(store, key, 0, 1), store.size(key), store.delete(key),
                ):  # fmt: skip
                    with pytest.raises(DataUnavailable, match="store s"):
                        await attempt
                assert not await store.reachable()
            finally:
                kind.server.start("proxy")
            assert await read(store, key, 0, len(SMALL)) == SMALL

    async def test_an_image_of_too_many_parts_is_refused(self, kind: Kind) -> None:
        few = Limits(swift_segment_bytes=MIB, swift_segments_max=2, s3_part_bytes=5 * MIB, s3_parts_max=1)
        store = opened(kind.config(), few)
        key = mint_key()
        with pytest.raises(BodyTooLarge, match="limits"):
            await store.write(key, pieces(LARGE))
        await store.delete(key)
        await store.close()
        assert await kind.everything() == []
