"""Sends a write on to the leader, once: the request arrives there with a hop mark and is never forwarded again."""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
from aiohttp import web

from raftreg import errors, wire
from raftreg.api_context import Context, format_subject
from raftreg.http_once import send_once

_PASSED_ON = (
    "Content-Type",
    "Accept",
    "If-Match",
    wire.HEADER_KEY,
    wire.HEADER_USER,
    wire.HEADER_PROJECT,
    wire.HEADER_REQUEST_ID,
    wire.HEADER_ZONE,
    wire.HEADER_GATEWAY,
)
_HANDED_BACK = (
    "Content-Type",
    "Location",
    "Retry-After",
    wire.HEADER_CLUSTER,
    wire.HEADER_PEER,
    wire.HEADER_EPOCH,
    wire.HEADER_REVISION,
    wire.HEADER_APPLIED,
    wire.HEADER_LEADER,
    wire.HEADER_STALENESS,
)


def _refused_by_observer(not_leader: errors.NotLeader, url: str | None) -> errors.NotLeader:
    """An observer is believed nothing, so it can't speak for others; the caller is told where to go itself."""
    leader = f"{not_leader.leader} at {url}" if url else str(not_leader.leader)
    return errors.NotLeader(not_leader.leader, f"an observer takes no writes; send them to {leader}", url=url)


class Forwarder:
    """One HTTP client to the other peers, by name. Use on the running loop; `close` it."""

    def __init__(self, context: Context, tls: ssl.SSLContext | None) -> None:
        self._context, self._tls = context, tls
        self._session: aiohttp.ClientSession | None = None
        self._under_way: dict[asyncio.Timeout, tuple[str, float | None]] = {}
        context.leadership.on_change.append(self._hurry)

    async def forward(self, request: web.Request, not_leader: errors.NotLeader) -> web.Response:
        """The leader's answer. Raises NotLeader or NoQuorum when it surely did not happen, else OutcomeUnknown."""
        if self._context.config.observer:
            raise _refused_by_observer(not_leader, self._context.config.api_peers.get(not_leader.leader or ""))
        try:
            return await self._forward(request, not_leader)
        except errors.NotLeader as moved:
            # The one that was asked may know its successor before this peer does.
            if moved.leader in (None, not_leader.leader):
                raise
            return await self._forward(request, moved)

    def reaches(self, leader: str | None) -> bool:
        """Whether a write may be sent on to that one's API."""
        return leader in self._context.config.api_peers and not self._context.config.observer

    async def _forward(self, request: web.Request, not_leader: errors.NotLeader) -> web.Response:
        leader = not_leader.leader or ""
        url = self._context.config.api_peers.get(leader)
        if url is None or leader == self._context.peer_name or wire.HEADER_HOP in request.headers:
            raise not_leader
        deadline_s = self._context.deadline_s(request)
        body = await request.read()
        try:
            async with asyncio.timeout(deadline_s + self._context.limits.forward_grace_s) as patience:
                self._under_way[patience] = leader, patience.when()
                try:
                    return await self._send(request, url, body, deadline_s)
                finally:
                    del self._under_way[patience]
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise errors.NotLeader(
                not_leader.leader, f"the leader {not_leader.leader} cannot be reached from here"
            ) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise errors.OutcomeUnknown(
                f"the connection to the leader {not_leader.leader} broke before its answer ({type(error).__name__}); "
                "ask again with the same idempotency key"
            ) from None

    async def _send(self, request: web.Request, url: str, body: bytes, deadline_s: float) -> web.Response:
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers[wire.HEADER_HOP] = "1"
        headers[wire.HEADER_DEADLINE_MS] = str(max(1, int(deadline_s * 1000)))
        if self._context.config.api_tls:
            headers[wire.HEADER_FORWARDED_SUBJECT] = format_subject(self._context.caller(request).subject)
        target = url.rstrip("/") + request.raw_path
        async with self._client().request(request.method, target, data=body, headers=headers) as answer:
            back = {name: answer.headers[name] for name in _HANDED_BACK if name in answer.headers}
            data = await answer.read()
            if answer.status == 503:
                _raise_if_not_now(data, answer.headers.get("Content-Type", ""))
            return web.Response(body=data, status=answer.status, headers=back)

    def _hurry(self) -> None:
        """The lead has changed: whoever led before answers soon what it was asked, or never. One that was only silent
        for a while gets the whole time again."""
        soon = asyncio.get_running_loop().time() + self._context.limits.forward_grace_s
        leader = self._context.leadership.leader
        for patience, (asked, until) in self._under_way.items():
            if until is not None and not patience.expired():
                patience.reschedule(until if asked == leader else min(soon, until))

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=self._context.limits.forward_connections_max, ssl=self._tls or False, keepalive_timeout=60
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                middlewares=(send_once,),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(sock_connect=self._context.limits.forward_connect_s),
            )
        return self._session

    async def close(self) -> None:
        """Break what is under way; it ends as OutcomeUnknown."""
        if self._session is not None:
            await self._session.close()


def _raise_if_not_now(data: bytes, content_type: str) -> None:
    """Raise the refusal of a peer that does not lead (any more): it has done nothing with the request."""
    try:
        refused = errors.from_fields(wire.decode(data, content_type)["error"], 503)
    except (errors.BadRequest, KeyError, TypeError):
        return
    if isinstance(refused, errors.NotLeader | errors.NoQuorum):
        raise refused
