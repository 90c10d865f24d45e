"""The changefeed: every consumer re-reads the changes from its own revision when it is woken.

A wake-up is one slot per consumer (an event), so apply never waits for anyone and nothing queues up for a slow
consumer: what bounds its memory is its socket buffer. Each change is encoded once per encoding and kept for a while
for the consumers that follow closely, beside the few facts that filters ask for: a filter decodes nothing. Reads are
short chunks of the owner's open transaction, never across an await.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from raftreg import errors, queries, wire
from raftreg.config import Limits
from raftreg.feed_filter import ALL, FeedFilter
from raftreg.tables import Row, View, audience
from raftreg.wire import Cursor


class FeedReads(Protocol):
    """What the feed needs of the consensus service `Reads`."""

    def view(self) -> View: ...

    def freshness(self) -> dict[str, Any]: ...


Write = Callable[[bytes], Awaitable[None]]

# A step takes a millisecond or two, so that a request or a frame between peers waits no longer than that.
_WOKEN_AT_ONCE = 32
# How late a heartbeat may be.
_TICK_S = 0.1
_LATEST_BYTES_MAX = 16_384


@dataclass(frozen=True, slots=True)
class _Change:
    """One change as it is sent, and what filters ask: who saw the image before and sees it after (None: nobody).

    `gone` is sent instead to whom the image has left.
    """

    whole: bytes
    kind: str
    gone: bytes = b""
    project: str = ""
    before: Row | None = None
    after: Row | None = None

    @property
    def size(self) -> int:
        return len(self.whole) + len(self.gone) + sum(map(len, self.before["members"] if self.before else ()))

    def part(self, wanted: FeedFilter) -> bytes:
        """What a consumer gets of it; often nothing."""
        if not wanted.wants(self.kind):
            return b""
        if self.kind == "project":
            return self.whole if wanted.shows_project(self.project) else b""
        if self.kind != "image" or not wanted.images_are_narrowed:
            return self.whole
        if self.after is not None and wanted.shows(self.after):
            return self.whole
        if self.before is None or not wanted.shows(self.before):
            return b""
        return self.whole if self.after is None else self.gone


class _Encoded:
    """The last encoded changes by revision, at most `bytes_max` of them; the oldest go first."""

    def __init__(self, bytes_max: int) -> None:
        self._changes: OrderedDict[int, _Change] = OrderedDict()
        self._bytes_max, self._bytes = bytes_max, 0

    def get(self, revision: int) -> _Change | None:
        return self._changes.get(revision)

    def put(self, revision: int, change: _Change) -> None:
        if revision in self._changes:
            return
        self._changes[revision] = change
        self._bytes += change.size
        while self._bytes > self._bytes_max:
            self._bytes -= self._changes.popitem(last=False)[1].size


class Feed:
    """All feed consumers of one peer. `notify` is called after every turn in which something was applied."""

    def __init__(self, reads: FeedReads, *, epoch: int, limits: Limits) -> None:
        self._reads, self._epoch, self._limits = reads, epoch, limits
        self._consumers: set[_Consumer] = set()
        self._encoded = {as_msgpack: _Encoded(limits.feed_encoded_max_bytes // 2) for as_msgpack in (False, True)}
        self._newest: int | None = None
        # The last chunk that each kind of consumer was sent: those that follow closely all get the same.
        self._latest: dict[tuple[bool, FeedFilter], tuple[int, bytes, int]] = {}
        self._news = False
        self._waking: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._closing = False

    @property
    def consumers(self) -> int:
        """How many follow right now."""
        return len(self._consumers)

    @property
    def newest(self) -> int:
        """The revision of the state here."""
        if self._newest is None:
            self._newest = queries.revision(self._reads.view())
        return self._newest

    def notify(self, _revision: int = 0) -> None:
        """Something was applied. Cheap: the consumers read later, each at its own pace."""
        self._newest = None
        self._latest.clear()
        self._news = True
        if self._waking is None and self._consumers:
            self._waking = asyncio.get_running_loop().create_task(self._wake())

    async def _wake(self) -> None:
        """Wake the consumers, some at a time and so many per second: of many, each gets several changes at once."""
        while self._news:
            self._news = False
            consumers = list(self._consumers)
            for first in range(0, len(consumers), _WOKEN_AT_ONCE):
                woken = consumers[first : first + _WOKEN_AT_ONCE]
                for consumer in woken:
                    consumer.wakeup.set()
                await asyncio.sleep(len(woken) / self._limits.feed_writes_per_s_max)
        self._waking = None

    def _tick(self) -> None:
        """Wake those whose heartbeat is due: one timer for all, for as long as there is anybody."""
        now = time.monotonic()
        for consumer in self._consumers:
            if consumer.heartbeat_due <= now:
                consumer.wakeup.set()
        self._ticker = asyncio.get_running_loop().call_later(_TICK_S, self._tick) if self._consumers else None

    def close(self) -> None:
        """End all consumers, so that they go on at another peer."""
        self._closing = True
        for consumer in self._consumers:
            consumer.wakeup.set()

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

    async def follow(
        self, after: Cursor, write: Write, *, as_msgpack: bool, heartbeat_s: float, wanted: FeedFilter = ALL
    ) -> None:
        """Write changes and heartbeats until `close`; `write` waits while the consumer's buffer is full.

        Of an image that leaves the filter {"type": "gone", "cursor", "number", "uuid", "version"}. Raises
        TooManyRequests, and what `write` raises. When compaction overtakes the consumer, the last message is
        {"type": "error", "error": {...}}.
        """
        self.admit()
        consumer = _Consumer(self, after.revision, as_msgpack, wanted)
        self._consumers.add(consumer)
        if self._ticker is None:
            self._tick()
        try:
            await consumer.run(write, heartbeat_s)
        except errors.Gone as gone:
            await write(_encode({"type": "error", **gone.to_wire()}, as_msgpack))
        finally:
            self._consumers.discard(consumer)

    @property
    def closing(self) -> bool:
        return self._closing

    def chunk(self, after: int, *, as_msgpack: bool, wanted: FeedFilter = ALL) -> tuple[bytes, int]:
        """Encoded changes behind `after` that are wanted, and the revision that was looked at: `after` at the end.

        Raises Compacted.
        """
        latest = self._latest.get((as_msgpack, wanted))
        if latest is not None and latest[0] == after:
            return latest[1], latest[2]
        data, revision = self._chunk(after, as_msgpack, wanted)
        if len(data) <= _LATEST_BYTES_MAX:
            self._latest[as_msgpack, wanted] = after, data, revision
        return data, revision

    def _chunk(self, after: int, as_msgpack: bool, wanted: FeedFilter) -> tuple[bytes, int]:
        cache, limits, newest = self._encoded[as_msgpack], self._limits, self.newest
        rows: list[bytes] = []
        size, revision, end = 0, after, min(newest, after + limits.feed_chunk_rows)
        while revision < end and size < limits.feed_chunk_bytes:
            change = cache.get(revision + 1)
            if change is None:
                self.check(Cursor(self._epoch, revision))
                left = end - revision, limits.feed_chunk_bytes - size
                changes = self._read(revision, *left, as_msgpack)
                rows += [change.part(wanted) for _, change in changes]
                revision = changes[-1][0] if changes else newest
                break
            rows.append(change.part(wanted))
            size, revision = size + len(rows[-1]), revision + 1
        return b"".join(rows), revision

    def _read(self, after: int, rows_max: int, bytes_max: int, as_msgpack: bool) -> list[tuple[int, _Change]]:
        """Changes from the state by revision, kept from now on."""
        changes = []
        for record in queries.changes_since(self._reads.view(), after, rows_max, bytes_max):
            changes.append((record["revision"], self._encode_change(record, as_msgpack)))
            self._encoded[as_msgpack].put(*changes[-1])
        return changes

    def _encode_change(self, record: Row, as_msgpack: bool) -> _Change:
        cursor, before = f"{self._epoch}.{record['revision']}", record.pop("before", None)
        whole = _encode({"type": "change", "cursor": cursor, **record}, as_msgpack)
        if record["kind"] == "project":
            return _Change(whole, "project", project=record["project"]["project"])
        if record["kind"] != "image":
            return _Change(whole, record["kind"])
        if "deleted" in record:
            return _Change(whole, "image", before=before)
        gone = b""
        if before is not None:
            named = {name: record[name] for name in ("number", "uuid", "version")}
            gone = _encode({"type": "gone", "cursor": cursor, **named}, as_msgpack)
        return _Change(whole, "image", gone=gone, before=before, after=audience(record["image"]))

    def heartbeat(self, revision: int, *, as_msgpack: bool) -> bytes:
        """How far a consumer at `revision` has got here, and how old the leader's last confirmation of that is.

        The age is null while the consumer is still behind what this peer has; the cursor is below the consumer's own
        when this peer is the one that is behind.
        """
        newest = self.newest
        staleness = self._reads.freshness()["staleness_s"] if revision >= newest else None
        cursor = f"{self._epoch}.{min(revision, newest)}"
        return _encode({"type": "heartbeat", "cursor": cursor, "staleness_s": staleness}, as_msgpack)


class _Consumer:
    """One connection that follows the feed. `wakeup` is set when there is something to look at."""

    def __init__(self, feed: Feed, revision: int, as_msgpack: bool, wanted: FeedFilter) -> None:
        self._feed, self._revision, self._as_msgpack, self._wanted = feed, revision, as_msgpack, wanted
        self.wakeup, self.heartbeat_due = asyncio.Event(), 0.0

    async def run(self, write: Write, heartbeat_s: float) -> None:
        """Catch up, say where that is, wait; a heartbeat at least every `heartbeat_s`, even while catching up."""
        feed, as_msgpack, behind = self._feed, self._as_msgpack, True
        while not feed.closing:
            self.wakeup.clear()
            data, self._revision = feed.chunk(self._revision, as_msgpack=as_msgpack, wanted=self._wanted)
            caught_up = self._revision >= feed.newest
            now = time.monotonic()
            # One that is due soon goes along with changes: a write costs more than the heartbeat.
            soon = heartbeat_s / 2 if data else 0.0
            if (caught_up and behind) or now >= self.heartbeat_due - soon:
                data += feed.heartbeat(self._revision, as_msgpack=as_msgpack)
                self.heartbeat_due, behind = now + heartbeat_s, not caught_up
            if data:
                await write(data)
            if caught_up:
                await self.wakeup.wait()
            else:
                # Others get the loop, also when the socket takes everything at once.
                await asyncio.sleep(0)


def _encode(message: dict[str, Any], as_msgpack: bool) -> bytes:
    return wire.pack(message) if as_msgpack else wire.to_json(message) + b"\n"
