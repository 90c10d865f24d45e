"""Requests to one Swift account: logged in, tried again within bounds, refused in the words of this gateway.

A request is tried again only while nothing of its body was taken: bodies are streams, and can be sent once. So bodies
wait for Swift's `100 Continue`, which comes after it has looked at token and quota.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp

from zonegw.data_stores.swift_auth import Access, login_of
from zonegw.errors import DataUnavailable, GatewayError, NotFound, StorageFull
from zonegw.limits import Limits
from zonegw.store_config import SwiftConfig

log = logging.getLogger(__name__)

# Overloaded, rate limited (498 is Swift's own), restarted, or gone between two requests: the next try may succeed.
PASSING = frozenset({408, 429, 498, 500, 502, 503, 504})
FULL = frozenset({413, 507})
FINE = frozenset({200, 201, 202, 204, 206})


class Body:
    """A stream on its way out: whether it was begun, what ended it early on this side, and a deadline that moves on
    with every piece."""

    def __init__(self, pieces: AsyncIterator[bytes], idle_s: float, end_s: float) -> None:
        self._pieces = pieces
        self._idle_s = idle_s
        self._end_s = end_s
        self.begun = False
        self.problem: Exception | None = None
        self.watch: asyncio.Timeout | None = None
        self._left_alone = asyncio.Event()
        self._left_alone.set()

    async def sent(self) -> AsyncIterator[bytes]:
        self.begun = True
        self._within(self._idle_s)
        while (piece := await self._next()) is not None:
            yield piece
            self._within(self._idle_s)
        self._within(self._end_s)

    async def _next(self) -> bytes | None:
        self._left_alone.clear()
        try:
            return await anext(self._pieces, None)
        except Exception as error:
            self.problem = error
            raise
        finally:
            self._left_alone.set()

    async def left_alone(self) -> None:
        """Wait until nobody takes of the stream any more: who sends it may yet be about to stop."""
        await self._left_alone.wait()

    def _within(self, seconds: float) -> None:
        if self.watch is not None:
            self.watch.reschedule(asyncio.get_running_loop().time() + seconds)


class SwiftConnection:
    """Speaks to one account, in the name of one store."""

    def __init__(self, config: SwiftConfig, limits: Limits) -> None:
        self._name = config.name
        self._limits = limits
        self._login = login_of(config)
        self._ssl: ssl.SSLContext | bool = (
            ssl.create_default_context(cafile=str(config.ca_file)) if config.ca_file else True
        )
        self._session: aiohttp.ClientSession | None = None
        self._access: Access | None = None
        self._until = 0.0
        self._logging_in = asyncio.Lock()
        self._complained = False

    @asynccontextmanager
    async def ask(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None, body: Body | None = None, data: bytes | None = None,
        also: tuple[int, ...] = (), attempts: int | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
        """The answer to one request below the account; a status that is neither good nor in `also` is raised as
        NotFound, StorageFull or DataUnavailable."""
        options: dict[str, Any] = {"headers": dict(headers or {}), "params": params, "data": data}
        try:
            answer = await self._tried(method, path, options, body, attempts or self._limits.store_attempts_max)
            async with answer:
                with self._understood(), self._reached():
                    if answer.status not in FINE and answer.status not in also:
                        raise await self._refusal(answer, f"{method} {path}")
                    yield answer
        finally:
            if body is not None:
                await body.left_alone()

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """What listens there need not be a Swift, or a Keystone."""
        try:
            yield
        except (ValueError, LookupError, TypeError) as error:
            raise DataUnavailable(f"store {self._name} answered what is not understood: {error!r:.200}") from error

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """An answer may break off."""
        try:
            yield
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._away(error) from error

    async def _tried(
        self, method: str, path: str, options: dict[str, Any], body: Body | None, attempts: int
    ) -> aiohttp.ClientResponse:
        while True:
            attempts -= 1
            try:
                answer = await self._renewing(method, path, options, body)
                if answer.status not in PASSING or attempts == 0 or _is_begun(body):
                    return answer
                answer.close()
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                if body is not None and body.problem is not None:
                    raise body.problem from None
                if attempts == 0 or isinstance(error, PermissionError) or _is_begun(body):
                    raise self._away(error) from error
            await asyncio.sleep(self._limits.store_retry_delay_s)

    async def _renewing(
        self, method: str, path: str, options: dict[str, Any], body: Body | None
    ) -> aiohttp.ClientResponse:
        """One try, and another one with a new token where the one on hand was refused."""
        before = self._access
        answer = await self._once(method, path, options, body)
        if answer.status != 401 or before is None or _is_begun(body):
            return answer
        answer.close()
        if self._access is before:
            self._access = None
        return await self._once(method, path, options, body)

    async def _once(self, method: str, path: str, options: dict[str, Any], body: Body | None) -> aiohttp.ClientResponse:
        access = await self._logged_in()
        if access.token is not None:
            options["headers"]["X-Auth-Token"] = access.token
        if method == "PUT":
            # The answer comes when the bytes are on all their disks, or every segment was looked at.
            options["timeout"] = self._timeout(self._limits.store_put_wait_max_s)
        url = f"{access.url}/{path}"
        if body is None:
            return await self._http().request(method, url, **options)
        async with asyncio.timeout(self._limits.store_idle_max_s) as body.watch:
            return await self._http().request(method, url, **options | {"data": body.sent(), "expect100": True})

    # Logging in.

    async def _logged_in(self) -> Access:
        async with self._logging_in:
            if self._access is None or time.monotonic() > self._until:
                self._access = await self._log_in()
                left = self._access.left_s
                self._until = float("inf") if left is None else time.monotonic() + left * 0.9
            return self._access

    async def _log_in(self) -> Access:
        try:
            with self._understood():
                access = await self._login(self._http())
        except PermissionError as error:
            if not self._complained:
                log.error(
                    "store %s: %s; mend the credentials in zonegw.toml or the file of the secret", self._name, error
                )
            self._complained = True
            raise
        self._complained = False
        return access

    # Refusals.

    def _away(self, error: BaseException) -> GatewayError:
        said = str(error) or type(error).__name__
        if isinstance(error, PermissionError):
            return DataUnavailable(f"store {self._name} does not let this gateway in: {said}")
        return DataUnavailable(f"store {self._name} can't be reached: {said}")

    async def _refusal(self, answer: aiohttp.ClientResponse, what: str) -> GatewayError:
        """Named by the transaction, by which Swift's operator finds it in the logs."""
        text = (await answer.content.read(self._limits.store_complaint_max_bytes)).decode(errors="replace").strip()
        said = f"{answer.status} {text}".strip()
        trace = f"store {self._name}: Swift answered {said} (transaction {answer.headers.get('X-Trans-Id', 'unknown')})"
        log.warning("%s to %s", trace, what)
        if answer.status == 404:
            return NotFound("the image's data are gone")
        if answer.status in FULL:
            return StorageFull(f"{trace}: it is full or over its quota; nothing was kept of this upload")
        if answer.status in (401, 403):
            log.error(
                "store %s refuses this gateway's requests: look at its role and at the container's rights", self._name
            )
        return DataUnavailable(trace)

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = self._timeout(self._limits.store_idle_max_s)
            connector = aiohttp.TCPConnector(limit=0, ssl=self._ssl)
            self._session = aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False)
        return self._session

    def _timeout(self, read_s: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=None, sock_connect=self._limits.store_connect_max_s, sock_read=read_s)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _is_begun(body: Body | None) -> bool:
    return body is not None and body.begun
