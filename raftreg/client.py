"""Client of the registry API: picks an endpoint, follows leader hints, fails over, and retries what is safe.

What is safe to send twice: reads, PUTs, whatever carries an idempotency key, operations of a session, and anything
that surely did not happen. Everything else is sent once; when its outcome is not known, OutcomeUnknown says so.
The typed writes mint an idempotency key by themselves.

    async with Client(["https://a:4711", "https://b:4711"], ssl=client_ssl_context(ca, cert, key)) as registry:
        image = await registry.create_image(attributes={"name": "cirros"})
        async for message in registry.changes("1.0"):
            ...

Errors are those of `raftreg.errors`; `error.definite` says whether it surely did not happen.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import secrets
import ssl as tls
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import msgpack

from raftreg import certificates, errors, wire
from raftreg.config import TlsFiles
from raftreg.http_once import send_once

Document = dict[str, Any]
Ref = int | str | Mapping[str, int | str]
"""An image: its number, its UUID, or {"number", "uuid"} when both are known (then both must fit)."""

CONNECT_S = 0.4
"""A peer in reach accepts within a round trip; more than this and another one is asked."""
ATTEMPT_S = 0.8
"""First wait for an answer to something that may be sent again; doubles with each attempt."""
ATTEMPT_MIN_S = 0.05
"""With less time than this left, another attempt could only end without an answer."""
RETRY_MIN_S, RETRY_MAX_S = 0.02, 0.25
"""Pause between attempts, while the peers elect a leader; drawn at random up to a bound that doubles."""
UNHEALTHY_S = 1.0
"""How long an endpoint that failed is asked only when no other one is left."""
FEED_SILENCE_S = 3.0
"""A feed says something every second; after this it is followed elsewhere."""
FEED_BEHIND_S = 5.0
"""How long a peer whose state is older than what was already seen is waited for."""
CONNECTIONS_MAX = 512
_FEED_MESSAGE_BYTES_MAX = 64 << 20
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT"})
# What asks for another try somewhere else: it surely did not happen, and will work once a leader is there.
_NOT_NOW = (errors.NotLeader, errors.NoQuorum)


def _decoded(data: bytes, answer: aiohttp.ClientResponse, attempt: _Attempt) -> Document:
    """The body of a success. One that cannot be read says nothing about what was done."""
    try:
        document: Document = wire.decode(data, answer.headers.get("Content-Type", ""))
    except errors.BadRequest as error:
        attempt.sent = True
        raise errors.InternalError(f"{answer.url.origin()} sent an answer that cannot be read: {error}") from None
    return document


def _written(ok: Document) -> Document:
    """The image after a write. The answer to a retry has none when somebody has deleted it since."""
    image: Document | None = ok["image"]
    if image is None:
        raise errors.ImageDeleted(
            f"the write was done, and image {ok['number']} has been deleted since",
            **{name: ok[name] for name in ("number", "uuid", "version", "revision")},
        )
    return image


def client_ssl_context(ca: Path | str, cert: Path | str, key: Path | str) -> tls.SSLContext:
    """TLS for `Client` from PEM files. The other end must be a peer of the cluster; its address does not matter."""
    return certificates.api_client_context(TlsFiles(Path(ca), Path(cert), Path(key)))


_PROCESS = secrets.token_hex(8)
_KEYS = itertools.count()


def new_key() -> str:
    """A fresh idempotency key: time, process, counter, and randomness in case the process was forked.

    It carries its time, so that a retry after the retention is refused, not applied. Keys of one process rise, so the
    registry stores them side by side; entirely random ones cost it a page of disk each.
    """
    return f"{int(time.time())}-{_PROCESS}-{next(_KEYS):08x}-{secrets.token_hex(4)}"


@dataclass(slots=True)
class _Endpoint:
    url: str
    name: str | None = None
    unhealthy_until: float = 0.0


@dataclass(slots=True)
class _Attempt:
    """One request to one endpoint. `sent`: it may have been carried out; `silent`: no answer came."""

    method: str
    path: str
    params: Mapping[str, str] | None
    data: bytes | None
    headers: dict[str, str]
    sent: bool = False
    silent: bool = False


class Client:
    """Talks to one registry through any of its endpoints; use one per process, from one event loop.

    `deadline_s` bounds every call, retries included. `actor` (user, project, request_id) goes into what is written.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        ssl: tls.SSLContext | None = None,
        deadline_s: float = 10.0,
        attempt_s: float = ATTEMPT_S,
        connections_max: int = CONNECTIONS_MAX,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not endpoints:
            raise ValueError("a registry client needs at least one endpoint, like https://host:port")
        self._endpoints = [_Endpoint(url.rstrip("/")) for url in dict.fromkeys(endpoints)]
        self._ssl, self._deadline_s, self._attempt_s = ssl, deadline_s, attempt_s
        self._connections_max = connections_max
        self._headers = {"Accept": wire.MSGPACK, **(headers or {})}
        self._preferred = random.choice(self._endpoints)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Break all connections; calls under way end as Unreachable or OutcomeUnknown."""
        if self._session is not None:
            await self._session.close()

    # -- requests -------------------------------------------------------------------------------------------------

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
    ) -> Document:
        """One request to whichever endpoint answers; `path` is relative to the API's prefix unless it starts with it.

        `safe` says that it may be sent again when its outcome is not known; by default reads, PUTs and what has a
        `key`. A DELETE without key gets one. Raises errors of `raftreg.errors`.
        """
        if method == "DELETE" and key is None:
            key = new_key()
        attempt = _Attempt(
            method,
            path if path.startswith(("/registry/", "/healthcheck")) else f"{wire.PREFIX}/{path.lstrip('/')}",
            _query(params),
            None if body is None else wire.pack(body),
            {**self._headers, **(headers or {})},
        )
        if body is not None:
            attempt.headers["Content-Type"] = wire.MSGPACK
        if key is not None:
            attempt.headers[wire.HEADER_KEY] = key
        repeatable = (method in _IDEMPOTENT or key is not None) if safe is None else safe
        return await self._persist(attempt, repeatable, self._deadline_s if deadline_s is None else deadline_s)

    async def _persist(self, attempt: _Attempt, repeatable: bool, deadline_s: float) -> Document:
        """Try until it worked, is refused, must not be repeated, or the deadline is near."""
        deadline = time.monotonic() + deadline_s
        patience, pause, ever_sent = self._attempt_s, RETRY_MIN_S, False
        asked: set[str] = set()
        last: errors.RegistryError | None = None
        while True:
            left = deadline - time.monotonic()
            endpoint = self._choose(asked)
            asked.add(endpoint.url)
            attempt.sent = attempt.silent = False
            try:
                return await self._once(attempt, endpoint, min(left, patience) if repeatable else left)
            except _NOT_NOW as error:
                last = error
                self._follow_hint(error)
            except errors.Indefinite as error:
                ever_sent = ever_sent or attempt.sent
                # An attempt that the deadline cut short tells less than an answer that came before it.
                if last is None or not attempt.silent or left >= patience:
                    last = error
                if attempt.silent:
                    self._avoid(endpoint)
                if attempt.sent and not repeatable:
                    raise
                patience *= 2
            if len(asked) >= len(self._endpoints):
                asked.clear()
                pause = min(pause * 2, RETRY_MAX_S)
            delay = random.uniform(0, pause)
            if time.monotonic() + delay + ATTEMPT_MIN_S >= deadline:
                raise self._given_up(last, attempt, ever_sent)
            await asyncio.sleep(delay)

    @staticmethod
    def _given_up(last: errors.RegistryError, attempt: _Attempt, ever_sent: bool) -> errors.RegistryError:
        """The last error, made indefinite when an earlier attempt may have been carried out."""
        if attempt.method == "GET" or not ever_sent:
            last.definite = True
            return last
        if last.definite:
            return errors.OutcomeUnknown(
                f"an attempt got no answer, and the last one: {last.message}", key=attempt.headers.get(wire.HEADER_KEY)
            )
        return last

    def _choose(self, asked: set[str]) -> _Endpoint:
        """The preferred endpoint while it is healthy, then the healthy ones, then any that was not asked yet."""
        now = time.monotonic()
        candidates = [endpoint for endpoint in self._endpoints if endpoint.url not in asked] or self._endpoints
        healthy = [endpoint for endpoint in candidates if endpoint.unhealthy_until <= now] or candidates
        return self._preferred if self._preferred in healthy else random.choice(healthy)

    def _avoid(self, endpoint: _Endpoint) -> None:
        endpoint.unhealthy_until = time.monotonic() + UNHEALTHY_S
        if endpoint is self._preferred:
            others = [other for other in self._endpoints if other is not endpoint]
            self._preferred = random.choice(others or self._endpoints)

    def _follow_hint(self, error: errors.RegistryError) -> None:
        self._prefer(error.details.get("leader"))

    def _prefer(self, leader: str | None) -> None:
        for endpoint in self._endpoints:
            if leader is not None and endpoint.name == leader and endpoint.unhealthy_until <= time.monotonic():
                self._preferred = endpoint

    async def _once(self, attempt: _Attempt, endpoint: _Endpoint, timeout_s: float) -> Document:
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

    async def _exchange(self, attempt: _Attempt, endpoint: _Endpoint, headers: dict[str, str]) -> Document:
        async with self._http().request(
            attempt.method, endpoint.url + attempt.path, params=attempt.params, data=attempt.data, headers=headers
        ) as answer:
            endpoint.name = answer.headers.get(wire.HEADER_PEER, endpoint.name)
            endpoint.unhealthy_until = 0.0
            self._prefer(answer.headers.get(wire.HEADER_LEADER))
            data = await answer.read()
            if answer.status < 400:
                return _decoded(data, answer, attempt)
            error = _error_of(answer, data)
            attempt.sent = not error.definite
            raise error

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections_max, ssl=self._ssl or False),
                cookie_jar=aiohttp.DummyCookieJar(),
                middlewares=(send_once,),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            )
        return self._session

    # -- images ---------------------------------------------------------------------------------------------------

    async def create_image(self, *, key: str | None = None, **fields: Any) -> Document:
        """Create an image from `uuid`, `attributes`, `properties`, `tags`, `home_zone`, `locations`…; as it is now."""
        return _written(await self.request("POST", "images", body=fields, key=key or new_key()))

    async def get_image(self, ref: Ref, *, consistency: str = "linearizable") -> Document:
        """The image. Raises ImageNotFound, ImageDeleted."""
        path, params = _image(ref)
        answer = await self.request("GET", path, params={**params, "consistency": consistency})
        image: Document = answer["image"]
        return image

    async def list_images(self, **filters: Any) -> Document:
        """One page: {"images", "next"}; pass `next` as `marker` for the following one. See GET images for filters."""
        return await self.request("GET", "images", params=filters)

    async def update_image(
        self,
        ref: Ref,
        set: Mapping[str, Any] | None = None,
        *,
        unset: Sequence[str] = (),
        base_version: int | None = None,
        key: str | None = None,
        **more: Any,
    ) -> Document:
        """Change attributes ("name", "properties.os_distro", "tags"…); Conflict if one changed since base_version."""
        path, params = _image(ref)
        body = {"set": dict(set or {}), "unset": list(unset), **more}
        if base_version is not None:
            body["base_version"] = base_version
        return _written(await self.request("PATCH", path, params=params, body=body, key=key or new_key()))

    async def delete_image(
        self, ref: Ref, *, base_version: int | None = None, force: bool = False, key: str | None = None
    ) -> Document:
        """Delete for ever: number and UUID are not used again."""
        path, params = _image(ref)
        headers = {} if base_version is None else {"If-Match": str(base_version)}
        if force:
            params["force"] = "true"
        return await self.request("DELETE", path, params=params, headers=headers, key=key or new_key())

    async def allocate_ids(self, count: int = 1, *, key: str | None = None) -> tuple[int, int]:
        """(first, last) of IDs that nobody else ever gets."""
        ok = await self.request("POST", "ids", body={"count": count}, key=key or new_key())
        return ok["first"], ok["last"]

    async def batch(
        self, operations: Sequence[Mapping[str, Any]], *, atomic: bool = False, key: str | None = None
    ) -> list[Document]:
        """One result per operation, {"ok"} or {"error"}; an atomic batch raises AtomicRefused instead.

        Without `atomic`, only operations that carry a `key` of their own are sent again when the outcome is unknown.
        """
        body = {"operations": list(operations), "atomic": atomic}
        safe = atomic or all("key" in operation for operation in operations)
        answer = await self.request("POST", "batch", body=body, key=(key or new_key()) if atomic else None, safe=safe)
        results: list[Document] = answer["results"]
        return results

    # -- zones, gateways, sessions --------------------------------------------------------------------------------

    async def zones(self, *, consistency: str = "linearizable") -> dict[str, Document]:
        """The registered zones by name."""
        answer = await self.request("GET", "zones", params={"consistency": consistency})
        zones: dict[str, Document] = answer["zones"]
        return zones

    async def register_zone(self, zone: str, **fields: Any) -> Document:
        """Register the zone (`endpoint`, `capabilities`), or change what is said about it."""
        return await self.request("PUT", f"zones/{zone}", body=fields)

    async def register_gateway(self, zone: str, gateway: str, endpoint: str) -> Document:
        """Say where the other zones' gateways reach this one."""
        return await self.request("PUT", f"zones/{zone}/gateways/{gateway}", body={"endpoint": endpoint})

    async def heartbeat(self, zone: str, gateway: str, *, deadline_s: float | None = None) -> Document:
        """Renew the zone's lease; the answer's `lease_s` is the term."""
        return await self.request(
            "POST", f"zones/{zone}/heartbeat", body={"gateway": gateway}, safe=True, deadline_s=deadline_s
        )

    async def open_session(
        self,
        *,
        gateway: str,
        zone: str,
        session: str,
        highest_sequence: int,
        acked_sequence: int,
        acked_hash: bytes,
    ) -> Document:
        """Open the session or learn how far it got: {"session", "last_sequence", "last_hash", "token", "diverged"}."""
        body = {
            "gateway": gateway,
            "zone": zone,
            "session": session,
            "highest_sequence": highest_sequence,
            "acked_sequence": acked_sequence,
            "acked_hash": acked_hash,
        }
        return await self.request("POST", "sessions", body=body, safe=True)

    async def grant_block(
        self, *, gateway: str, session: str, size: int, token: int, key: str | None = None
    ) -> Document:
        """{"first", "last", "token"}: numbers for the session's creates."""
        body = {"gateway": gateway, "session": session, "size": size, "token": token}
        return await self.request("POST", "blocks", body=body, key=key or new_key())

    async def session_operations(
        self,
        session: str,
        operations: Sequence[Mapping[str, Any]],
        *,
        gateway: str | None = None,
        deadline_s: float | None = None,
    ) -> list[Document]:
        """Drain {"sequence", "previous_hash", "payload"} in order; one result each. Safe to repeat, by sequence."""
        body: Document = {"operations": list(operations)}
        if gateway is not None:
            body["gateway"] = gateway
        answer = await self.request(
            "POST", f"sessions/{session}/operations", body=body, safe=True, deadline_s=deadline_s
        )
        results: list[Document] = answer["results"]
        return results

    # -- state of the registry ------------------------------------------------------------------------------------

    async def status(self) -> Document:
        """What one peer says about the cluster and itself."""
        return await self.request("GET", "status")

    async def peer_status(self, deadline_s: float = 2.0) -> dict[str, Document | errors.RegistryError]:
        """What every endpoint says, by URL; the error of those that do not answer in time."""
        return await self.each("GET", "status", deadline_s=deadline_s)

    async def each(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, deadline_s: float = 2.0
    ) -> dict[str, Document | errors.RegistryError]:
        """One request without a body to every endpoint, once, at the same time; answers or errors by URL."""

        async def ask(endpoint: _Endpoint) -> Document | errors.RegistryError:
            attempt = _Attempt(method, f"{wire.PREFIX}/{path}", _query(params), None, dict(self._headers))
            try:
                return await self._once(attempt, endpoint, deadline_s)
            except errors.RegistryError as error:
                return error

        answers = await asyncio.gather(*(ask(endpoint) for endpoint in self._endpoints))
        return {endpoint.url: answer for endpoint, answer in zip(self._endpoints, answers, strict=True)}

    # -- changefeed -----------------------------------------------------------------------------------------------

    async def bootstrap(self, *, chunk_rows: int = 500) -> AsyncGenerator[Document, None]:
        """Chunks {"images", "start", "next"} of all images in order of their number.

        Follow `changes` from the `start` of the *first* chunk and merge by version: later chunks may already hold
        what the feed brings again.
        """
        after: int | None = 0
        while after is not None:
            chunk = await self.request("GET", "bootstrap", params={"after": after, "limit": chunk_rows})
            yield chunk
            after = chunk["next"]

    async def changes(self, after: str, *, heartbeat_s: float = 0.5) -> AsyncGenerator[Document, None]:
        """Changes behind the cursor `after` in order, each once, and heartbeats; goes on at another peer for ever.

        A message is {"type": "change", "cursor", ...change record} or {"type": "heartbeat", "cursor", "staleness_s"}.
        Cursors never decrease. While no peer answers nothing comes: watch the clock. Raises Compacted or WrongEpoch
        when the images must be read again by `bootstrap`, and definite refusals such as Forbidden.
        """
        feed = _Position(wire.parse_cursor(after))
        pause = RETRY_MIN_S
        while True:
            endpoint = self._choose_any()
            try:
                async for message in self._follow(endpoint, feed, heartbeat_s):
                    pause = RETRY_MIN_S
                    yield message
            except (errors.Unavailable, errors.TooManyRequests, errors.Indefinite):
                pass
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                pass
            self._avoid(endpoint)
            await asyncio.sleep(random.uniform(0, pause))
            pause = min(pause * 2, RETRY_MAX_S)

    def _choose_any(self) -> _Endpoint:
        """Feeds spread over all peers; the leader has enough to do."""
        now = time.monotonic()
        return random.choice([e for e in self._endpoints if e.unhealthy_until <= now] or self._endpoints)

    async def _follow(self, endpoint: _Endpoint, feed: _Position, heartbeat_s: float) -> AsyncIterator[Document]:
        """Messages of one connection, from where the feed stands."""
        params = {"after": str(feed.cursor), "heartbeat_s": str(heartbeat_s)}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=FEED_SILENCE_S)
        async with self._http().get(
            f"{endpoint.url}{wire.PREFIX}/changes", params=params, headers=self._headers, timeout=timeout
        ) as answer:
            if answer.status != 200:
                raise _error_of(answer, await answer.read())
            unpacker = msgpack.Unpacker(max_buffer_size=_FEED_MESSAGE_BYTES_MAX)
            async for data in answer.content.iter_any():
                unpacker.feed(data)
                for message in unpacker:
                    if message["type"] == "error":
                        raise errors.from_fields(message["error"])
                    if feed.advance(message):
                        yield message
                    elif feed.gave_up():
                        return


class _Position:
    """How far a feed has come. It never goes back: a source that is behind is waited for, then left."""

    def __init__(self, cursor: wire.Cursor) -> None:
        self.cursor = cursor
        self._behind_since: float | None = None

    def advance(self, message: Document) -> bool:
        """Whether the message is news (a heartbeat at the position counts); moves on to its cursor."""
        cursor = wire.parse_cursor(message["cursor"])
        repeated = message["type"] == "change" and cursor == self.cursor
        if cursor < self.cursor or repeated:
            if self._behind_since is None:
                self._behind_since = time.monotonic()
            return False
        self.cursor, self._behind_since = cursor, None
        return True

    def gave_up(self) -> bool:
        """Whether the source has been behind for too long; counts anew afterwards."""
        if self._behind_since is None or time.monotonic() - self._behind_since < FEED_BEHIND_S:
            return False
        self._behind_since = None
        return True


def _query(params: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Query parameters as text; None values are left out."""
    if not params:
        return None
    return {
        name: ("true" if value else "false") if isinstance(value, bool) else str(value)
        for name, value in params.items()
        if value is not None
    }


def _image(ref: Ref) -> tuple[str, dict[str, Any]]:
    """Path and parameters which name an image."""
    if not isinstance(ref, Mapping):
        return f"images/{ref}", {}
    names = {kind: ref[kind] for kind in ("number", "uuid") if ref.get(kind) is not None}
    if not names:
        raise errors.BadRequest("an image is named by number, uuid or both")
    first = next(iter(names.values()))
    return f"images/{first}", names


def _error_of(answer: aiohttp.ClientResponse, data: bytes) -> errors.RegistryError:
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


def _lost(attempt: _Attempt, endpoint: _Endpoint, error: Exception) -> errors.RegistryError:
    """No answer: for a read that is all, for a write the outcome is not known."""
    why = f"{endpoint.url} gave no answer ({type(error).__name__})"
    if attempt.method == "GET":
        return errors.Unreachable(why)
    key = attempt.headers.get(wire.HEADER_KEY)
    advice = "ask again with the same idempotency key" if key else "it may have happened"
    return errors.OutcomeUnknown(f"{why}; {advice}", **({"key": key} if key else {}))
