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

    async def follow(
        self, after: Cursor, write: Write, *, as_msgpack: bool, heartbeat_s: float, wanted: FeedFilter = ALL
    ) -> None:
        """Write changes and heartbeats until `close`; `write` waits while the consumer's buffer is full.

        Of an image that leaves the filter {"type": "gone", "cursor", "number", "uuid", "version"}. Raises
        TooManyRequests, and what `write` raises. When compaction overtakes the consumer, the last message is
        {"type": "error", "error": {...}}.
        """
        self.admit()
        wakeup = asyncio.Event()
        self._wakeups.add(wakeup)
        try:
            await _Consumer(self, after.revision, wakeup, as_msgpack, wanted).run(write, heartbeat_s)
        except errors.Gone as gone:
            await write(_encode({"type": "error", **gone.to_wire()}, as_msgpack))
        finally:
            self._wakeups.discard(wakeup)

    @property
    def closing(self) -> bool:
        return self._closing

    def chunk(self, after: int, *, as_msgpack: bool, wanted: FeedFilter = ALL) -> tuple[bytes, int]:
        """Encoded changes behind `after` that are wanted, and the revision that was looked at: `after` at the end.

        Raises Compacted.
        """
        cache, limits = self._encoded[as_msgpack], self._limits
        newest = queries.revision(self._reads.view())
        rows: list[bytes] = []
        size, revision = 0, after
        while revision < min(newest, after + limits.feed_chunk_rows) and size < limits.feed_chunk_bytes:
            change = cache.get(revision + 1)
            if change is None:
                break
            rows.append(change.part(wanted))
            size, revision = size + len(rows[-1]), revision + 1
        if revision > after or revision >= newest:
            return b"".join(rows), revision
        return self._read(after, as_msgpack, wanted)

    def _read(self, after: int, as_msgpack: bool, wanted: FeedFilter) -> tuple[bytes, int]:
        self.check(Cursor(self._epoch, after))
        changes = queries.changes_since(
            self._reads.view(), after, self._limits.feed_chunk_rows, self._limits.feed_chunk_bytes
        )
        rows = []
        for record in changes:
            change = self._encode_change(record, as_msgpack)
            self._encoded[as_msgpack].put(record["revision"], change)
            rows.append(change.part(wanted))
        return b"".join(rows), changes[-1]["revision"] if changes else max(after, queries.revision(self._reads.view()))

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
        newest = queries.revision(self._reads.view())
        staleness = self._reads.freshness()["staleness_s"] if revision >= newest else None
        cursor = f"{self._epoch}.{min(revision, newest)}"
        return _encode({"type": "heartbeat", "cursor": cursor, "staleness_s": staleness}, as_msgpack)


class _Consumer:
    """One connection that follows the feed."""

    def __init__(self, feed: Feed, revision: int, wakeup: asyncio.Event, as_msgpack: bool, wanted: FeedFilter) -> None:
        self._feed, self._revision, self._wakeup = feed, revision, wakeup
        self._as_msgpack, self._wanted = as_msgpack, wanted

    async def run(self, write: Write, heartbeat_s: float) -> None:
        """Catch up, say where that is, wait; a heartbeat at least every `heartbeat_s`, even while catching up."""
        behind = True
        heartbeat_due = 0.0
        while not self._feed.closing:
            self._wakeup.clear()
            before = self._revision
            data, self._revision = self._feed.chunk(before, as_msgpack=self._as_msgpack, wanted=self._wanted)
            if data:
                await write(data)
            caught_up = self._revision == before
            if not caught_up:
                # Others get the loop, also when the socket takes everything at once.
                await asyncio.sleep(0)
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
