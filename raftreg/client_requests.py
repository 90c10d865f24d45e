"""One request of a client: which endpoint it goes to, how long it is tried, and whether it may be sent again.

What is safe to send twice: reads, PUTs, whatever carries an idempotency key, operations of a session, and anything
that surely did not happen. Everything else is sent once; when its outcome is not known, OutcomeUnknown says so.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import secrets
import ssl as tls
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

from raftreg import errors, wire
from raftreg.endpoints import Endpoint, Endpoints
from raftreg.http_once import send_once

Document = dict[str, Any]

CONNECT_S = 0.4
"""A peer in reach accepts within a round trip; more than this and another one is asked."""
ATTEMPT_S = 0.8
"""First wait for an answer to something that may be sent again; doubles with each attempt."""
ATTEMPT_MIN_S = 0.05
"""With less time than this left, another attempt could only end without an answer."""
RETRY_MIN_S, RETRY_MAX_S = 0.02, 0.25
"""Pause between attempts, while the peers elect a leader; drawn at random up to a bound that doubles."""
CONNECTIONS_MAX = 512
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT"})
# What asks for another try somewhere else: it surely did not happen, and will work once a leader is there.
_NOT_NOW = (errors.NotLeader, errors.NoQuorum)
# The first question may have to open a connection, which takes several round trips.
_MEASUREMENTS = 2

_PROCESS = secrets.token_hex(8)
_KEYS = itertools.count()


def new_key() -> str:
    """A fresh idempotency key: time, process, counter, and randomness in case the process was forked.

    It carries its time, so that a retry after the retention is refused, not applied. Keys of one process rise, so the
    registry stores them side by side; entirely random ones cost it a page of disk each.
    """
    return f"{int(time.time())}-{_PROCESS}-{next(_KEYS):08x}-{secrets.token_hex(4)}"


@dataclass(slots=True)
class Attempt:
    """One request to one endpoint. `sent`: it may have been carried out; `silent`: no answer came."""

    method: str
    path: str
    params: Sequence[tuple[str, str]] | None
    data: bytes | None
    headers: dict[str, str]
    # Gets the headers of the answer.
    answered: dict[str, str] = field(default_factory=dict)
    sent: bool = False
    silent: bool = False


class Requests:
    """Requests to one registry through any of its endpoints; `raftreg.client.Client` has the names for them.

    `deadline_s` bounds every call, retries included; `attempt_s` is the first wait for an answer, `connect_s` that for
    a connection: those who are far away choose longer ones. `actor` (user, project, request_id) goes into what is
    written.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        ssl: tls.SSLContext | None = None,
        deadline_s: float = 10.0,
        attempt_s: float = ATTEMPT_S,
        connect_s: float = CONNECT_S,
        connections_max: int = CONNECTIONS_MAX,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.endpoints = Endpoints(endpoints)
        self._ssl, self._deadline_s, self._attempt_s = ssl, deadline_s, attempt_s
        self._connect_s, self._connections_max = connect_s, connections_max
        self.headers = {"Accept": wire.MSGPACK, **(headers or {})}
        self._measuring: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Break all connections; calls under way end as Unreachable or OutcomeUnknown."""
        if self._measuring is not None:
            self._measuring.cancel()
        if self._session is not None:
            await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        key: str | None = None,
        deadline_s: float | None = None,
        safe: bool | None = None,
        headers: Mapping[str, str] | None = None,
        near: bool | None = None,
        answered: dict[str, str] | None = None,
    ) -> Document:
        """One request to whichever endpoint answers; `path` is relative to the API's prefix unless it starts with it.

        `safe` says that it may be sent again when its outcome is not known; by default reads, PUTs and what has a
        `key`. A DELETE without key gets one. `near` sends it to the nearest endpoint instead of the leader; by default
        reads which need not be linearizable. `answered` gets the headers of the answer. Raises errors of
        `raftreg.errors`.
        """
        if method == "DELETE" and key is None:
            key = new_key()
        attempt = Attempt(
            method,
            path if path.startswith(("/registry/", "/healthcheck")) else f"{wire.PREFIX}/{path.lstrip('/')}",
            query_of(params),
            None if body is None else wire.pack(body),
            {**self.headers, **(headers or {})},
            {} if answered is None else answered,
        )
        if body is not None:
            attempt.headers["Content-Type"] = wire.MSGPACK
        if key is not None:
            attempt.headers[wire.HEADER_KEY] = key
        repeatable = (method in _IDEMPOTENT or key is not None) if safe is None else safe
        if near is None:
            near = method == "GET" and (params or {}).get("consistency", "linearizable") != "linearizable"
        return await self._persist(attempt, repeatable, near, self._deadline_s if deadline_s is None else deadline_s)

    async def _persist(self, attempt: Attempt, repeatable: bool, near: bool, deadline_s: float) -> Document:
        """Try until it worked, is refused, must not be repeated, or the deadline is near."""
        deadline = time.monotonic() + deadline_s
        patience, pause, ever_sent = self._attempt_s, RETRY_MIN_S, False
        asked: set[str] = set()
        last: errors.RegistryError | None = None
        while True:
            left = deadline - time.monotonic()
            endpoint = self.nearest(asked) if near else self.endpoints.leading(asked)
            asked.add(endpoint.url)
            attempt.sent = attempt.silent = False
            try:
                return await self.once(attempt, endpoint, min(left, patience) if repeatable else left)
            except errors.Indefinite as error:
                ever_sent = ever_sent or attempt.sent
                # An attempt that the deadline cut short tells less than an answer that came before it.
                if last is None or not attempt.silent or left >= patience:
                    last = error
                if attempt.silent or near:
                    self.endpoints.avoid(endpoint)
                if attempt.sent and not repeatable:
                    raise
                patience *= 2
            except (errors.Unavailable, errors.TooManyRequests) as error:
                last = error
                self._elsewhere(endpoint, error, near)
            delay = 0.0 if near else random.uniform(0, pause)
            if len(asked) >= len(self.endpoints):
                asked.clear()
                pause = min(pause * 2, RETRY_MAX_S)
                delay = random.uniform(0, pause)
            if time.monotonic() + delay + ATTEMPT_MIN_S >= deadline:
                raise self._given_up(last, attempt, ever_sent)
            await asyncio.sleep(delay)

    @staticmethod
    def _given_up(last: errors.RegistryError, attempt: Attempt, ever_sent: bool) -> errors.RegistryError:
        """The last error, made indefinite when an earlier attempt may have been carried out."""
        if attempt.method == "GET" or not ever_sent:
            last.definite = True
            return last
        if last.definite:
            return errors.OutcomeUnknown(
                f"an attempt got no answer, and the last one: {last.message}", key=attempt.headers.get(wire.HEADER_KEY)
            )
        return last

    def _elsewhere(self, endpoint: Endpoint, error: errors.RegistryError, near: bool) -> None:
        """Go on elsewhere after a definite refusal, if that can help. Raises it otherwise."""
        if near:
            self.endpoints.avoid(endpoint)
        elif isinstance(error, _NOT_NOW):
            self.endpoints.prefer(error.details.get("leader"))
        else:
            raise error

    def nearest(self, asked: Collection[str] = ()) -> Endpoint:
        """The nearest endpoint as far as it is known; what is not known is measured meanwhile, for the next time."""
        due = self.endpoints.due() if self._measuring is None else []
        if due:
            self._measuring = asyncio.create_task(self._measure(due))
        return self.endpoints.nearest(asked)

    async def _measure(self, due: Sequence[Endpoint]) -> None:
        try:
            await asyncio.gather(*(self._measure_one(endpoint) for endpoint in due))
        finally:
            self._measuring = None

    async def _measure_one(self, endpoint: Endpoint) -> None:
        attempt, took = Attempt("GET", "/healthcheck", None, None, dict(self.headers)), []
        try:
            for _ in range(_MEASUREMENTS):
                started = time.monotonic()
                await self.once(attempt, endpoint, self._attempt_s)
                took.append(time.monotonic() - started)
        except errors.RegistryError:
            self.endpoints.avoid(endpoint)
        else:
            self.endpoints.measured(endpoint, min(took))

    async def once(self, attempt: Attempt, endpoint: Endpoint, timeout_s: float) -> Document:
        headers = {**attempt.headers, wire.HEADER_DEADLINE_MS: str(max(1, int(timeout_s * 1000)))}
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(attempt, endpoint, headers)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            attempt.silent = True
            raise errors.Unreachable(f"{endpoint.url} cannot be reached: {_reason(error)}") from None
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            attempt.sent = attempt.silent = True
            raise _lost(attempt, endpoint, error) from None

    async def _exchange(self, attempt: Attempt, endpoint: Endpoint, headers: dict[str, str]) -> Document:
        async with self.http().request(
            attempt.method, endpoint.url + attempt.path, params=attempt.params, data=attempt.data, headers=headers
        ) as answer:
            endpoint.name = answer.headers.get(wire.HEADER_PEER, endpoint.name)
            self.endpoints.answered(endpoint)
            self.endpoints.prefer(answer.headers.get(wire.HEADER_LEADER))
            data = await answer.read()
            if answer.status < 400:
                attempt.answered.update(answer.headers)
                return _decoded(data, answer, attempt)
            error = error_of(answer, data)
            attempt.sent = not error.definite
            raise error

    def http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections_max, ssl=self._ssl or False),
                cookie_jar=aiohttp.DummyCookieJar(),
                middlewares=(send_once,),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s),
            )
        return self._session


def _decoded(data: bytes, answer: aiohttp.ClientResponse, attempt: Attempt) -> Document:
    """The body of a success. One that cannot be read says nothing about what was done."""
    try:
        document: Document = wire.decode(data, answer.headers.get("Content-Type", ""))
    except errors.BadRequest as error:
        attempt.sent = True
        raise errors.InternalError(f"{answer.url.origin()} sent an answer that cannot be read: {error}") from None
    return document


def query_of(params: Mapping[str, Any] | None) -> list[tuple[str, str]] | None:
    """Query parameters as text; None values are left out, a list is a parameter that is repeated."""
    if not params:
        return None
    listed = [(name, value if isinstance(value, list) else [value]) for name, value in params.items()]
    return [(name, _text(value)) for name, values in listed for value in values if value is not None]


def _text(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def error_of(answer: aiohttp.ClientResponse, data: bytes) -> errors.RegistryError:
    """The error that an answer describes; of something that is no registry, InternalError with its status."""
    try:
        document = wire.decode(data, answer.headers.get("Content-Type", ""))
        return errors.from_fields(document["error"], answer.status)
    except (errors.BadRequest, KeyError, TypeError):
        return errors.InternalError(f"{answer.url.origin()} answered {answer.status} without an error of the registry")


def _reason(error: Exception) -> str:
    """Why a connection did not come about, in a few words."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else str(error) or "no answer in time"


def _lost(attempt: Attempt, endpoint: Endpoint, error: Exception) -> errors.RegistryError:
    """No answer: for a read that is all, for a write the outcome is not known."""
    why = f"{endpoint.url} gave no answer ({type(error).__name__})"
    if attempt.method == "GET":
        return errors.Unreachable(why)
    key = attempt.headers.get(wire.HEADER_KEY)
    advice = "ask again with the same idempotency key" if key else "it may have happened"
    return errors.OutcomeUnknown(f"{why}; {advice}", **({"key": key} if key else {}))
