"""The changefeed from the client's side: bootstrap, changes at whichever peer is near, filters that widen."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator

import aiohttp
import msgpack

from raftreg import errors, wire
from raftreg.client_requests import RETRY_MAX_S, RETRY_MIN_S, Document, Requests, error_of, query_of
from raftreg.endpoints import Endpoint
from raftreg.feed_filter import ALL, KINDS, FeedFilter

FEED_SILENCE_S = 3.0
"""A feed says something every second; after this it is followed elsewhere."""
FEED_BEHIND_S = 5.0
"""How long a peer whose state is older than what was already seen is waited for."""
_FEED_MESSAGE_BYTES_MAX = 64 << 20
_EVERY_KIND = FeedFilter(kinds=frozenset(KINDS))


class FeedRequests(Requests):
    """What `Client` can ask of the changefeed."""

    async def bootstrap(
        self,
        *,
        wanted: FeedFilter = ALL,
        known: FeedFilter | None = None,
        chunk_rows: int = 500,
        consistency: str = "linearizable",
        max_staleness: float | None = None,
    ) -> AsyncGenerator[Document, None]:
        """Chunks {"images", "start", "next"} of the wanted images, without those in `known`, in order of their number.

        Follow `changes` from the `start` of the *first* chunk and merge by version: later chunks may already hold
        what the feed brings again.
        """
        after: int | None = 0
        start: wire.Cursor | None = None
        params: Document = {"limit": chunk_rows, "consistency": consistency, "max_staleness": max_staleness}
        params |= wanted.to_query()
        if known is not None:
            params |= (known if known != ALL else _EVERY_KIND).to_query("known_")
        while after is not None:
            chunk = await self.request("GET", "bootstrap", params={**params, "after": after}, near=True)
            if start is not None and wire.parse_cursor(chunk["start"]) < start:
                # Another endpoint, which lacks changes that the feed will not bring any more.
                fresh = {**params, "consistency": "linearizable", "max_staleness": None}
                chunk = await self.request("GET", "bootstrap", params={**fresh, "after": after}, near=True)
            start = start or wire.parse_cursor(chunk["start"])
            yield chunk
            after = chunk["next"]

    async def changes(
        self,
        after: str,
        *,
        wanted: FeedFilter = ALL,
        widened_from: FeedFilter | None = None,
        heartbeat_s: float = 0.5,
    ) -> AsyncGenerator[Document, None]:
        """Changes behind the cursor `after` in order, each once, and heartbeats; goes on at another peer for ever.

        A message is {"type": "change", "cursor", ...change record}, {"type": "heartbeat", "cursor", "staleness_s"} or,
        of an image that has left the filter, {"type": "gone", "cursor", "number", "uuid", "version"}. Cursors never
        decrease; those of heartbeats move on past what is not wanted. While no peer answers nothing comes: watch the
        clock. Raises Compacted or WrongEpoch when the images must be read again by `bootstrap`, and definite refusals
        such as Forbidden.

        `widened_from` is the filter with which the consumer came to `after`, if it was another. Then the images that
        `wanted` has and it had not come first, as {"type": "image", "cursor", "image"}, and at their end {"type":
        "filled", "cursor"}, all with the cursor `after`. Merge by version whatever comes; until `filled`, note the
        old filter. What is not wanted any more the consumer drops itself (`FeedFilter.shows`).
        """
        if widened_from is not None:
            async with contextlib.aclosing(self._fill(after, wanted, widened_from)) as images:
                async for message in images:
                    yield message
        feed = _Position(wire.parse_cursor(after), wanted)
        pause = RETRY_MIN_S
        while True:
            endpoint = self.nearest()
            try:
                async with contextlib.aclosing(self._follow(endpoint, feed, heartbeat_s)) as messages:
                    async for message in messages:
                        pause = RETRY_MIN_S
                        yield message
                        if message["type"] == "heartbeat" and self.nearest() is not endpoint:
                            break
                    else:
                        self.endpoints.avoid(endpoint)
            except (errors.Unavailable, errors.TooManyRequests, errors.Indefinite):
                self.endpoints.avoid(endpoint)
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                self.endpoints.avoid(endpoint)
            await asyncio.sleep(random.uniform(0, pause))
            pause = min(pause * 2, RETRY_MAX_S)

    async def _fill(self, after: str, wanted: FeedFilter, known: FeedFilter) -> AsyncGenerator[Document, None]:
        """What a wider filter has and the one before had not: the images as they are now, from the start if need be."""
        pause = RETRY_MIN_S
        while True:
            try:
                # A linearizable read is of a state at or behind the cursor: what changes later comes by the feed.
                async with contextlib.aclosing(self.bootstrap(wanted=wanted, known=known)) as chunks:
                    async for chunk in chunks:
                        pause = RETRY_MIN_S
                        for image in chunk["images"]:
                            yield {"type": "image", "cursor": after, "image": image}
                yield {"type": "filled", "cursor": after}
                return
            except (errors.Unavailable, errors.TooManyRequests, errors.Indefinite):
                await asyncio.sleep(random.uniform(0, pause))
                pause = min(pause * 2, RETRY_MAX_S)

    async def _follow(self, endpoint: Endpoint, feed: _Position, heartbeat_s: float) -> AsyncGenerator[Document, None]:
        """Messages of one connection, from where the feed stands."""
        params = query_of({"after": str(feed.cursor), "heartbeat_s": heartbeat_s, **feed.wanted.to_query()})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s, sock_read=FEED_SILENCE_S)
        async with self.http().get(
            f"{endpoint.url}{wire.PREFIX}/changes", params=params, headers=self.headers, timeout=timeout
        ) as answer:
            if answer.status != 200:
                raise error_of(answer, await answer.read())
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

    def __init__(self, cursor: wire.Cursor, wanted: FeedFilter) -> None:
        self.cursor, self.wanted = cursor, wanted
        self._behind_since: float | None = None

    def advance(self, message: Document) -> bool:
        """Whether the message is news (a heartbeat at the position counts); moves on to its cursor."""
        cursor = wire.parse_cursor(message["cursor"])
        repeated = message["type"] != "heartbeat" and cursor == self.cursor
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
