"""The gateway's state for people and machines: status document, metrics, health, answer headers."""

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from zonegw.catalogue import Catalogue
from zonegw.config import Config
from zonegw.data_cache import DataCache
from zonegw.data_stores.filesystem import FilesystemStore
from zonegw.errors import BadRequest, Unavailable
from zonegw.feed_consumer import FeedConsumer
from zonegw.id_pool import IdPool
from zonegw.rewind import Rewind
from zonegw.store import Store
from zonegw.write_queue import WriteQueue

# A link that came up counts as online once the catalogue is current and what was pending then is drained.
ONLINE, CATCHING_UP, DEGRADED = "online", "catching-up", "degraded"


class Link(Protocol):
    @property
    def up(self) -> bool: ...

    last_error: str | None


class Draining(Protocol):
    last_error: str | None
    rewind: Rewind

    @property
    def grant_error(self) -> str | None: ...


@dataclass(slots=True)
class Status:
    """Reads the parts; holds nothing but how far catching up has come."""

    config: Config
    store: Store
    queue: WriteQueue
    ids: IdPool
    catalogue: Catalogue
    feed: FeedConsumer
    link: Link
    drainer: Draining
    data: FilesystemStore
    cache: DataCache
    started: float = field(default_factory=time.monotonic)
    _drain_to: int = 0
    _drained: bool = False

    # State.

    @property
    def state(self) -> str:
        if not self.link.up:
            return DEGRADED
        return ONLINE if self.feed.current and self._drained else CATCHING_UP

    def link_changed(self, up: bool) -> None:
        """What is pending now has to be drained before the zone is online."""
        read = self.store.read()
        self._drain_to = self.queue.highest_position(read)
        self._drained = False

    def drain_moved(self) -> None:
        if not self._drained:
            oldest = next(self.queue.pending(self.store.read()), None)
            self._drained = oldest is None or oldest.position > self._drain_to

    def staleness_s(self) -> float | None:
        return self.feed.staleness_s()

    def cursor(self) -> str:
        """Where in the feed clients read."""
        position = self.catalogue.position(self.store.committed())
        return "none" if position is None else f"{position[0]}.{position[1]}"

    async def reached(self, cursor: str) -> None:
        """Wait until the catalogue is as new as `cursor`, seen elsewhere. Raises BadRequest, Unavailable."""
        match = re.fullmatch(r"([0-9]{1,18})\.([0-9]{1,18})", cursor)
        if match is None:
            raise BadRequest(f"X-Zonegw-Revision must be as an answer gave it, like 1.4711, not {cursor[:60]!r}")
        try:
            async with asyncio.timeout(self.config.limits.revision_wait_max_s):
                await self.feed.reached((int(match[1]), int(match[2])))
        except TimeoutError:
            raise Unavailable(
                f"this gateway is at revision {self.cursor()}, behind {cursor}", retry_after_s=1
            ) from None

    # Documents.

    def document(self) -> dict[str, Any]:
        """The status as JSON."""
        read = self.store.read()
        runway = self.ids.runway(read)
        live = next((b for b in self.ids.blocks(read) if not b["sealed"]), None)
        session = self.queue.session(read)
        losses = read.row("meta", b"losses") or []
        return {
            "zone": self.config.zone, "gateway": self.config.gateway, "state": self.state,
            "staleness_s": self.staleness_s(), "feed_position": self.cursor(), "feed_resyncs": self.feed.resyncs,
            "catalogue_images": self.catalogue.count(read), "queue_depth": self.queue.depth(read),
            "queue_oldest_s": self._oldest_s(), "parked": self.queue.parked_count(read),
            "ids_low": self.ids.low(read),
            "ids_on_hand": runway.numbers, "runway_s": runway.seconds, "id_rate_per_s": runway.rate_per_s,
            "block": {name: live[name] for name in ("first", "last", "next")} if live else None,
            "sealed_blocks": sum(1 for b in self.ids.blocks(read) if b["sealed"]),
            "session": session.uuid if session else None, "acked_sequence": session.acked_sequence if session else 0,
            "sessions_lost": losses, "reoffers": self.drainer.rewind.reoffers(read),
            "store_used_bytes": self.store.used_bytes(),
            "data_used_bytes": self.data.used_bytes,
            "cache_used_bytes": self.cache.used_bytes, "cache_pinned_bytes": self.cache.pinned_bytes,
            "staged_images": read.count("staged"),
            "deposits": read.count("deposits"), "far_garbage": read.count("far_garbage"),
            "unseen_images": read.count("unseen"), "deletions_to_confirm": read.count("confirmations"),
            "deleted_images_kept": read.count("graves"),
            "uptime_s": time.monotonic() - self.started,
            "errors": {
                name: error
                for name, error in (
                    ("uplink", self.link.last_error), ("drain", self.drainer.last_error),
                    ("feed", self.feed.last_error), ("ids", self.drainer.grant_error),
                )
                if error
            },
        }  # fmt: skip

    def _oldest_s(self) -> float | None:
        oldest = self.queue.oldest_us(self.store.read())
        return None if oldest is None else max(0.0, time.time() - oldest / 1e6)

    def gauges(self) -> dict[str, Any]:
        """Values of the metrics' gauges."""
        document = self.document()
        position = self.catalogue.position(self.store.read())
        return document | {
            "online": int(document["state"] == ONLINE), "staleness_seconds": document["staleness_s"],
            "queue_oldest_seconds": document["queue_oldest_s"] or 0, "runway_seconds": document["runway_s"],
            "feed_revision": position[1] if position else 0, "sessions_lost": len(document["sessions_lost"]),
            "reoffered": sum(reoffer["writes"] for reoffer in document["reoffers"]),
            "reoffers_missing": sum(reoffer["missing"] for reoffer in document["reoffers"]),
        }  # fmt: skip
