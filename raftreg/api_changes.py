"""The changefeed, its bootstrap and its compaction over HTTP."""

from __future__ import annotations

import asyncio
import logging
import time

from aiohttp import web

from raftreg import errors, queries, wire
from raftreg.api_context import Context, Document, fill_page, number_parameter, refuse_unknown, take, wants_msgpack
from raftreg.feed_filter import ALL, FILTERS, FeedFilter, parse_filter

logger = logging.getLogger(__name__)

# What HTTP and TLS add to one write, at most.
_FRAMING_BYTES = 1024
_COMPACT = {"floor": int, "age_s": int}
_FOLLOW_PARAMETERS = {"after", "heartbeat_s", *FILTERS}
_BOOTSTRAP_PARAMETERS = {
    "after", "limit", "consistency", "max_staleness", *FILTERS, *(f"known_{name}" for name in FILTERS),
}  # fmt: skip


class Changes:
    """Handlers of /registry/v1/changes, bootstrap and compact."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(f"{wire.PREFIX}/changes", self.follow, allow_head=False),
            web.get(f"{wire.PREFIX}/bootstrap", self.bootstrap, allow_head=False),
            web.post(f"{wire.PREFIX}/compact", self.compact),
        ]

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """An endless stream of messages: msgpack maps one after the other, or one JSON object per line.

        Filters are `kind`, `tenant` and `visibility`, each repeatable; cursors move on past what is not sent.
        """
        context, limits = self._context, self._context.limits
        context.caller(request)
        refuse_unknown(request.query, _FOLLOW_PARAMETERS)
        after = request.query.get("after")
        if after is None:
            raise errors.BadRequest("after=EPOCH.REVISION is missing; GET bootstrap names a cursor to start from")
        cursor = wire.parse_cursor(after)
        heartbeat_s = number_parameter(request.query, "heartbeat_s", float)
        heartbeat_s = min(heartbeat_s or limits.feed_heartbeat_s, limits.feed_heartbeat_max_s)
        wanted = self._filter(request)
        context.feed.check(cursor)
        context.feed.admit()
        as_msgpack = wants_msgpack(request)
        response = web.StreamResponse(headers=context.headers())
        response.content_type = wire.MSGPACK if as_msgpack else wire.NDJSON
        await response.prepare(request)
        write = _Writer(request, response, limits.feed_buffer_max_bytes, limits.feed_stall_max_s)
        try:
            await context.feed.follow(cursor, write, as_msgpack=as_msgpack, heartbeat_s=heartbeat_s, wanted=wanted)
        except TimeoutError:
            context.metrics.feed_cut_off.inc()
            logger.warning("a feed consumer took nothing for %.1f s; cut off", limits.feed_stall_max_s)
        except ConnectionError:
            pass  # It went away, which is how a feed ends.
        return response

    async def bootstrap(self, request: web.Request) -> web.Response:
        """{"images", "next", "start"}: read all chunks, then follow from the `start` of the first one.

        Nothing is pinned between chunks: what changes meanwhile comes again by the feed, to be merged by version. It
        takes the filters of the feed. A consumer that widens its own names the one before as `known_kind`,
        `known_tenant` and `known_visibility`, and gets only what is not in that one: it follows the feed from the
        cursor that it had, with the wide filter, and merges by version too.
        """
        context, limits = self._context, self._context.limits
        context.caller(request)
        query = request.query
        refuse_unknown(query, _BOOTSTRAP_PARAMETERS)
        limit = number_parameter(query, "limit")
        rows_max = max(1, min(limits.page_rows_max if limit is None else limit, limits.page_rows_max))
        after = number_parameter(query, "after")
        wanted, known = self._filter(request), self._filter(request, "known_")
        view = await context.view(request)

        def is_wanted(image: Document) -> bool:
            return wanted.shows(image) and (known == ALL or not known.shows(image))

        def read(after: int | None, count: int) -> tuple[list[Document], int | None]:
            return queries.state_chunk(view, after or 0, count, None if wanted == known == ALL else is_wanted)

        as_msgpack = wants_msgpack(request)
        rows, after = fill_page(read, after, rows_max, limits.page_bytes_max, as_msgpack=as_msgpack)
        rest = {"next": after, "start": f"{context.epoch}.{queries.revision(view)}"}
        return context.encoded(wire.encode_page("images", rows, rest, as_msgpack=as_msgpack), as_msgpack)

    def _filter(self, request: web.Request, prefix: str = "") -> FeedFilter:
        query = request.query
        return parse_filter(lambda name: query.getall(name, []), self._context.limits.feed_filter_values_max, prefix)

    async def compact(self, request: web.Request) -> web.Response:
        """{"floor", "more"}, for operators: changes below `floor`, or older than `age_s`, are forgotten.

        It takes many commands, each of a bounded number of rows; `more` says that the deadline came before the floor
        was reached: ask again. Asking twice is harmless, so no idempotency key is kept for it.
        """
        context = self._context
        caller = context.caller(request)
        caller.require_role("operator")
        fields = take(await context.body(request), _COMPACT)
        if len(fields) != 1:
            raise errors.BadRequest("name either floor (a revision) or age_s (in seconds)")
        ends = time.monotonic() + context.deadline_s(request) / 2
        command = {"op": "compact_changes", "actor": caller.actor, "floor": self._wanted_floor(fields)}
        while True:
            (result,) = await context.propose_all(request, [command])
            if "error" in result:
                raise errors.refusal(result["error"])
            if not result["ok"]["more"] or time.monotonic() >= ends:
                return context.answer(request, result["ok"])

    def _wanted_floor(self, fields: Document) -> int:
        if "floor" in fields:
            return int(fields["floor"])
        if fields["age_s"] < 0:
            raise errors.BadRequest("age_s must be 0 or more")
        since_us = time.time_ns() // 1000 - fields["age_s"] * 1_000_000
        return max(1, queries.first_change_since(self._context.reads.view(), since_us))


class _Writer:
    """Writes to one consumer; waits while more than `buffer_max_bytes` wait in its socket, at most `stall_max_s`."""

    def __init__(
        self, request: web.Request, response: web.StreamResponse, buffer_max_bytes: int, stall_max_s: float
    ) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the consumer is gone")
        low = buffer_max_bytes // 4
        transport.set_write_buffer_limits(high=buffer_max_bytes, low=low)
        self._transport, self._response, self._stall_max_s = transport, response, stall_max_s
        self._never_waits_bytes = low - _FRAMING_BYTES

    async def __call__(self, data: bytes) -> None:
        """Raises TimeoutError after breaking the connection, ConnectionError when it is gone."""
        if self._transport.is_closing():
            raise ConnectionResetError("the consumer is gone")
        if self._transport.get_write_buffer_size() + len(data) <= self._never_waits_bytes:
            await self._response.write(data)  # a timer would cost as much as the write
            return
        try:
            async with asyncio.timeout(self._stall_max_s):
                await self._response.write(data)
        except TimeoutError:
            self._transport.abort()
            raise
