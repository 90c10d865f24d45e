"""The changefeed: every consumer re-reads the changes from its own revision when it is woken.

A wake-up is one slot per consumer (an event), so apply never waits for anyone and nothing queues up for a slow
consumer: what bounds its memory is its socket buffer. Each change is encoded once per encoding and kept for a while
for the consumers that follow closely. Reads are short chunks of the owner's open transaction, never across an await.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from raftreg import errors, queries, wire
from raftreg.config import Limits
from raftreg.tables import View
from raftreg.wire import Cursor


class FeedReads(Protocol):
    """What the feed needs of the consensus service `Reads`."""

    def view(self) -> View: ...

    def freshness(self) -> dict[str, Any]: ...


Write = Callable[[bytes], Awaitable[None]]


class _Encoded:
    """The last encoded changes by revision, at most `bytes_max` of them; the oldest go first."""

    def __init__(self, bytes_max: int) -> None:
        self._rows: OrderedDict[int, bytes] = OrderedDict()
        self._bytes_max, self._bytes = bytes_max, 0

    def get(self, revision: int) -> bytes | None:
        return self._rows.get(revision)

    def put(self, revision: int, row: bytes) -> None:
        if revision in self._rows:
            return
        self._rows[revision] = row
        self._bytes += len(row)
        while self._bytes > self._bytes_max:
            self._bytes -= len(self._rows.popitem(last=False)[1])


class Feed:
    """All feed consumers of one peer. `notify` is called after every turn in which something was applied."""

    def __init__(self, reads: FeedReads, *, epoch: int, limits: Limits) -> None:
        self._reads, self._epoch, self._limits = reads, epoch, limits
        self._wakeups: set[asyncio.Event] = set()
        self._encoded = {as_msgpack: _Encoded(limits.feed_encoded_max_bytes // 2) for as_msgpack in (False, True)}
        self._closing = False

    @property
    def consumers(self) -> int:
        """How many follow right now."""
        return len(self._wakeups)

    def notify(self, _revision: int = 0) -> None:
        """Something was applied. Cheap: the consumers read later, each at its own pace."""
        for wakeup in self._wakeups:
            wakeup.set()

    def close(self) -> None:
        """End all consumers, so that they go on at another peer."""
        self._closing = True
        self.notify()

    def check(self, after: Cursor) -> None:
        """Raise WrongEpoch or Compacted when the changes after this cursor are not here any more."""
        view = self._reads.view()
        floor, here = queries.compaction_floor(view), Cursor(self._epoch, queries.revision(view))
        details: dict[str, Any] = {"floor": floor, "epoch": self._epoch, "cursor": str(here)}
        if after.epoch != self._epoch:
            raise errors.WrongEpoch(
                f"cursor {after} is of epoch {after.epoch}, this cluster lives in epoch {self._epoch}; bootstrap again",
                **details,
            )
        if after.revision + 1 < floor:
            raise errors.Compacted(
                f"changes up to {self._epoch}.{floor - 1} were compacted; bootstrap again", **details
            )

    def admit(self) -> None:
        """Raise TooManyRequests when as many follow as may."""
        if self.consumers >= self._limits.feed_consumers_max:
            raise errors.TooManyRequests(f"{self.consumers} consumers follow this peer already; ask another one")

    async def follow(self, after: Cursor, write: Write, *, as_msgpack: bool, heartbeat_s: float) -> None:
        """Write changes and heartbeats until `close`; `write` waits while the consumer's buffer is full.

        Raises TooManyRequests, and what `write` raises. When compaction overtakes the consumer, the last message is
        {"type": "error", "error": {...}}.
        """
        self.admit()
        wakeup = asyncio.Event()
        self._wakeups.add(wakeup)
        try:
            await _Consumer(self, after.revision, wakeup, as_msgpack).run(write, heartbeat_s)
        except errors.Gone as gone:
            await write(_encode({"type": "error", **gone.to_wire()}, as_msgpack))
        finally:
            self._wakeups.discard(wakeup)

    @property
    def closing(self) -> bool:
        return self._closing

    def chunk(self, after: int, *, as_msgpack: bool) -> tuple[bytes, int]:
        """Encoded changes behind `after` and the revision that they reach; nothing and `after` when there are none.

        Raises Compacted.
        """
        cache = self._encoded[as_msgpack]
        newest = queries.revision(self._reads.view())
        rows: list[bytes] = []
        size, revision = 0, after
        while revision < newest and len(rows) < self._limits.feed_chunk_rows and size < self._limits.feed_chunk_bytes:
            row = cache.get(revision + 1)
            if row is None:
                break
            rows.append(row)
            size, revision = size + len(row), revision + 1
        if rows or revision >= newest:
            return b"".join(rows), revision
        return self._read(after, as_msgpack)

    def _read(self, after: int, as_msgpack: bool) -> tuple[bytes, int]:
        self.check(Cursor(self._epoch, after))
        changes = queries.changes_since(
            self._reads.view(), after, self._limits.feed_chunk_rows, self._limits.feed_chunk_bytes
        )
        rows = []
        for change in changes:
            revision = change["revision"]
            row = _encode({"type": "change", "cursor": f"{self._epoch}.{revision}", **change}, as_msgpack)
            self._encoded[as_msgpack].put(revision, row)
            rows.append(row)
        return b"".join(rows), changes[-1]["revision"] if changes else max(after, queries.revision(self._reads.view()))

    def heartbeat(self, revision: int, *, as_msgpack: bool) -> bytes:
        """How far a consumer at `revision` has got here, and how old the leader's last confirmation of that is.

        The age is null while the consumer is still behind what this peer has; the cursor is below the consumer's own
        when this peer is the one that is behind.
        """
        newest = queries.revision(self._reads.view())
        staleness = self._reads.freshness()["staleness_s"] if revision >= newest else None
        cursor = f"{self._epoch}.{min(revision, newest)}"
        return _encode({"type": "heartbeat", "cursor": cursor, "staleness_s": staleness}, as_msgpack)


class _Consumer:
    """One connection that follows the feed."""

    def __init__(self, feed: Feed, revision: int, wakeup: asyncio.Event, as_msgpack: bool) -> None:
        self._feed, self._revision, self._wakeup, self._as_msgpack = feed, revision, wakeup, as_msgpack

    async def run(self, write: Write, heartbeat_s: float) -> None:
        """Catch up, say where that is, wait; a heartbeat at least every `heartbeat_s`, even while catching up."""
        behind = True
        heartbeat_due = 0.0
        while not self._feed.closing:
            self._wakeup.clear()
            data, self._revision = self._feed.chunk(self._revision, as_msgpack=self._as_msgpack)
            if data:
                await write(data)
                # Others get the loop, also when the socket takes everything at once.
                await asyncio.sleep(0)
            caught_up = not data
            now = time.monotonic()
            if (caught_up and behind) or now >= heartbeat_due:
                await write(self._feed.heartbeat(self._revision, as_msgpack=self._as_msgpack))
                heartbeat_due = now + heartbeat_s
                behind = not caught_up
            if caught_up:
                await self._wait(heartbeat_due - time.monotonic())

    async def _wait(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._wakeup.wait()
        except TimeoutError:
            pass


def _encode(message: dict[str, Any], as_msgpack: bool) -> bytes:
    return wire.pack(message) if as_msgpack else wire.to_json(message) + b"\n"
