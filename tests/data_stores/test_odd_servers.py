"""Servers that are no Swift and no S3, overloaded ones, and those that never answer: the gateway's part stays whole."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.data_stores.test_contract import pieces
from zonegw.data_stores.interface import DataStore, mint_key
from zonegw.data_stores.opening import opened
from zonegw.data_stores.s3_uploads import signed
from zonegw.errors import BadRequest, DataUnavailable, StorageFull
from zonegw.limits import Limits
from zonegw.store_config import S3Config, SwiftConfig

LIMITS = Limits(
    store_attempts_max=2, store_retry_delay_s=0.01, store_idle_max_s=0.5, store_put_wait_max_s=0.5,
    upload_idle_max_s=0.5, store_probe_max_s=0.5,
)  # fmt: skip
TAKEN: dict[str, Any] = {}
PAGE = {"status": 200, "text": "<html>Welcome to nginx!</html>", "content_type": "text/html"}


class Server:
    """Answers everything with `answer`, logins apart where they are to work."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | None = PAGE
        self.asked: list[str] = []
        self.logins = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/auth":
            self.logins += 1
            return web.Response(headers={"X-Storage-Url": f"{self.url}/v1/A", "X-Auth-Token": f"t{self.logins}"})
        self.asked.append(f"{request.method} {request.path}")
        if self.answer is None:
            await asyncio.sleep(60)
        if self.answer is TAKEN:
            etag = hashlib.md5(await request.read()).hexdigest()
            return web.Response(status=201, headers={"ETag": etag})
        return web.Response(**self.answer or {})


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server, app = Server(), web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


def store_of(kind: str, server: Server, tmp_path: Path) -> DataStore:
    file = tmp_path / "secret"
    file.write_text("s")
    if kind == "swift":
        login = {"auth": "v1", "auth_url": f"{server.url}/auth", "user": "u", "password_file": file}
        return opened(SwiftConfig(name="s", container="c", **login), LIMITS)  # type: ignore[arg-type]
    return opened(S3Config(name="s", endpoint=server.url, bucket="b", access_key="k", secret_key_file=file), LIMITS)


async def read(store: DataStore) -> None:
    async for _ in store.read(mint_key(), 0, 10):
        pass


@pytest.mark.parametrize("kind", ["swift", "s3"])
@pytest.mark.parametrize("answer", [PAGE, {"status": 503}, None], ids=["a page", "overloaded", "silent"])
async def test_it_is_unavailable_and_named_within_its_bounds(
    kind: str, answer: dict[str, Any] | None, tmp_path: Path
) -> None:
    async with serving() as server:
        server.answer = answer
        store = store_of(kind, server, tmp_path)
        with pytest.raises(DataUnavailable, match="store s"):
            await read(store)
        with pytest.raises(DataUnavailable, match="store s"):
            await store.delete(mint_key())
        if answer is not PAGE or kind == "swift":
            with pytest.raises(DataUnavailable, match="store s"):
                await store.write(mint_key(), pieces(b"x" * 100), 100)
        if answer is not PAGE:
            with pytest.raises(DataUnavailable, match="store s"):
                await store.size(mint_key())
            assert not await store.reachable()
        await store.close()


async def test_an_overloaded_server_is_asked_again_a_bounded_number_of_times(tmp_path: Path) -> None:
    async with serving() as server:
        server.answer = {"status": 503}
        store = store_of("swift", server, tmp_path)
        with pytest.raises(DataUnavailable):
            await store.size(mint_key())
        assert len(server.asked) == LIMITS.store_attempts_max
        await store.close()


async def test_a_token_that_is_refused_again_is_no_reason_to_go_on_logging_in(tmp_path: Path) -> None:
    async with serving() as server:
        server.answer = {"status": 401}
        store = store_of("swift", server, tmp_path)
        for _ in range(2):
            with pytest.raises(DataUnavailable, match="answered 401"):
                await store.size(mint_key())
        assert server.logins <= 3
        await store.close()


async def test_no_room_is_told_apart_from_being_away(tmp_path: Path) -> None:
    async with serving() as server:
        for status in (413, 507):
            server.answer = {"status": status, "text": "no room"}
            store = store_of("swift", server, tmp_path)
            with pytest.raises(StorageFull, match="no room"):
                await store.write(mint_key(), pieces(b"x"), 1)
            await store.close()


@pytest.mark.parametrize("announced", [1 << 20, 3 << 20])
async def test_more_or_fewer_bytes_than_were_announced_are_refused_at_any_boundary(
    announced: int, tmp_path: Path
) -> None:
    """The server takes them all; only the stream tells."""
    async with serving() as server:
        server.answer = TAKEN
        store = store_of("swift", server, tmp_path)
        with pytest.raises(BadRequest, match="Size mismatch"):
            await store.write(mint_key(), pieces(bytes(2 << 20), 1 << 20), announced)
        await store.close()


def test_a_signature_is_the_one_that_amazon_publishes(tmp_path: Path) -> None:
    """The example of a list in the documentation of signature version 4 (2013), with its published keys."""
    file = tmp_path / "secret"
    file.write_text("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    config = S3Config(
        name="s", endpoint="https://examplebucket.s3.amazonaws.com", bucket="examplebucket", virtual_hosted=True,
        access_key="AKIAIOSFODNN7EXAMPLE", secret_key_file=file,
    )  # fmt: skip
    at, query = datetime(2013, 5, 24, tzinfo=UTC), "max-keys=2&prefix=J"
    headers = signed("GET", "examplebucket.s3.amazonaws.com", "/", query, config, at)
    wanted = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    assert headers["Authorization"].endswith(f"Signature={wanted}")
