"""Feed consumer: keeps the catalogue a copy of the registry's metadata, and knows how old that copy is.

Staleness is counted from the question whose answer the catalogue has caught up with, on the monotonic clock, plus what
the registry said of its own: an answer that was long on its way makes it too high, never too low.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import count
from typing import Any, Protocol

from zonegw.catalogue import Catalogue, Position
from zonegw.errors import Degraded, FeedGone, RegistryAway, RegistryRefused, StorageFull
from zonegw.limits import Limits
from zonegw.store import Store, Txn
from zonegw.tenant_set import Tenants, TenantSet

log = logging.getLogger(__name__)


class Source(Protocol):
    """The registry's feed."""

    def bootstrap(self) -> AsyncIterator[dict[str, Any]]: ...

    def changes(self, position: Position, widened_from: Tenants | None) -> AsyncIterator[dict[str, Any]]: ...


class FeedConsumer:
    """Bootstraps, follows, resyncs; `on_deleted` gets every image that a tombstone removed."""

    def __init__(
        self, store: Store, catalogue: Catalogue, source: Source, limits: Limits, tenants: TenantSet,
        *, on_deleted: Callable[[dict[str, Any]], None], clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._store = store
        self._catalogue = catalogue
        self._source = source
        self._limits = limits
        self._tenants = tenants
        self._on_deleted = on_deleted
        self._clock = clock
        self._complete_to: float | None = None
        self._confirmations: deque[tuple[Position, float]] = deque()
        self._resync = False
        self._taken = False  # something that is not on the disk yet, and so not seen by readers
        self.current = False
        self.last_error: str | None = None
        self.resyncs = 0
        self._moved = asyncio.Event()
        self.on_current: Callable[[], None] = lambda: None
        # Gets an image that a change of the feed left behind.
        self.on_image_changed: Callable[[dict[str, Any]], None] = lambda image: None
        self.on_zone_changed: Callable[[], None] = lambda: None
        # Gets the locations that a change took from an image, in the transaction of the change.
        self.on_removed: Callable[[Txn, list[dict[str, Any]]], None] = lambda txn, locations: None
        # Gets an image that is forgotten, since the registry or the tenant set has it no more, in that transaction.
        self.on_unseen: Callable[[Txn, dict[str, Any]], None] = lambda txn, image: None
        self.on_bootstrapped: Callable[[], None] = lambda: None
        # What an epoch lost is laid over the catalogue before its bootstrap takes it from there.
        self.may_enter: Callable[[int], bool] = lambda _epoch: True

    def staleness_s(self) -> float | None:
        """Age of the catalogue in seconds, or more than that; None when no source has said yet."""
        return None if self._complete_to is None else self._clock() - self._complete_to

    def confirm(self, position: Position, complete_to: float) -> None:
        """The registry had everything up to the monotonic time `complete_to` when it was at `position`; so has the
        catalogue once it is there. Told by answers, whose question is older than what they say: what the feed says may
        have been on its way for any time."""
        if len(self._confirmations) < self._limits.confirmations_max:
            self._confirmations.append((position, complete_to))
        self._settle_confirmations()

    def _settle_confirmations(self) -> None:
        if not self._confirmations:
            return
        position = self._catalogue.position(self._store.committed()) or (0, 0)
        while self._confirmations and self._confirmations[0][0] <= position:
            _, complete_to = self._confirmations.popleft()
            self._complete_to = max(complete_to, self._complete_to or complete_to)
            self._wake_waiting()

    async def reached(self, position: Position) -> None:
        """Wait until readers see everything up to `position`."""
        while (self._catalogue.position(self._store.committed()) or (0, 0)) < position:
            await self._moved.wait()

    async def confirmed(self) -> None:
        """Wait until the catalogue contains all that the registry had when this was asked. Raises Degraded where the
        feed does not say so in time."""
        asked = self._clock()
        try:
            async with asyncio.timeout(self._limits.feed_silence_max_s):
                while self._complete_to is None or self._complete_to < asked:
                    await self._moved.wait()
        except TimeoutError:
            raise Degraded("what the registry has can't be known while it is away: try again when it is back") from None

    def durable(self) -> None:
        """What was taken so far is on the disk."""
        if self._taken:
            self._taken = False
            self._wake_waiting()
            self._settle_confirmations()

    def _wake_waiting(self) -> None:
        """The catalogue has moved, or is known to be newer."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """For ever."""
        delay = self._limits.retry_delay_min_s
        while True:
            try:
                await self._consume()
                delay = self._limits.retry_delay_min_s
            except FeedGone as error:
                log.warning("feed: resync, for %s", error)
                self._resync = True
                self.resyncs += 1
            except (RegistryAway, RegistryRefused, StorageFull, TimeoutError) as error:
                self.last_error = str(error) or "the feed fell silent"
            self.current = False
            await asyncio.sleep(delay)
            delay = min(delay * 2, self._limits.retry_delay_max_s)

    async def _consume(self) -> None:
        read = self._store.read()
        if self._resync or self._catalogue.position(read) is None or self._tenants.needs_bootstrap(read):
            await self._bootstrap()
            self._resync = False
            self.on_zone_changed()  # if one did, its change record is not among what will be read
        position = self._catalogue.position(self._store.read())
        if position is None:
            raise AssertionError("a bootstrap leaves a position")
        widened_from = self._begin_fill()
        messages = self._source.changes(position, widened_from)
        filling = widened_from is not None
        for number in count(1):
            if number % self._limits.turn_rows_max == 0:
                await self._store.turn()  # many may have come at once
            # The registry may look through many images for the next one of a back-fill; each request has its deadline.
            async with asyncio.timeout(None if filling else self._limits.feed_silence_max_s):
                message = await anext(messages, None)
            if message is None:
                return
            if filling:
                filling = self._fill(message)
            else:
                self._take(message)

    def _begin_fill(self) -> Tenants | None:
        """The tenant set that the catalogue holds, where more is to be filled in."""
        widened_from = self._tenants.widened_from(self._store.read())
        if widened_from is not None:
            with self._store.transaction(reserved=True) as txn:
                self._tenants.begin(txn)
        return widened_from

    def _fill(self, message: dict[str, Any]) -> bool:
        """Take one image that the tenant set has and had not; whether more come."""
        with self._store.transaction(reserved=True) as txn:
            if message["type"] == "image":
                self._catalogue.put_bootstrapped(txn, message["image"])
                return True
            self._tenants.done(txn)
        log.info("the catalogue holds the tenant set that is configured")
        return False

    def _take(self, message: dict[str, Any]) -> None:
        """Apply one message of the feed in one transaction with the position."""
        position = self._catalogue.position(self._store.read())
        if position is not None and message["position"][0] != position[0]:
            raise FeedGone(f"epoch {message['position'][0]} instead of {position[0]}")
        if position is None or message["position"] > position:
            with self._store.transaction(reserved=True) as txn:
                deleted = self._apply(txn, message)
                self._catalogue.advance(txn, message["position"])
                self._drop_outside(txn, message)
                self._taken = True
            if message.get("kind") == "zone":
                self.on_zone_changed()
            if deleted is not None:
                self._on_deleted(deleted)
            elif message.get("kind") == "image" and "image" in message:
                self.on_image_changed(message["image"])
        if message["type"] == "heartbeat":
            self._heard(message)

    def _apply(self, txn: Txn, message: dict[str, Any]) -> dict[str, Any] | None:
        if message["type"] != "change" or message.get("kind") != "image":
            return None
        removed = self._catalogue.removed_locations(txn, message)
        if removed:
            self.on_removed(txn, removed)
        if message.get("deleted"):
            self._catalogue.remember_deleted(txn, message["uuid"], self._limits.deleted_uuids_max)
        return self._catalogue.apply_change(txn, message)

    def _drop_outside(self, txn: Txn, message: dict[str, Any]) -> None:
        """Images that left the tenant set: by this message, or as soon as their last own write had come round."""
        revision = message["position"][1]
        left = self._catalogue.leave(txn, message["uuid"], revision) if message["type"] == "gone" else []
        for image in left + self._catalogue.leave_outside(txn, revision, self._limits.list_chunk_rows):
            self.on_unseen(txn, image)

    def _heard(self, message: dict[str, Any]) -> None:
        self.last_error = None
        if not self.current:
            self.current = True
            self.on_current()

    async def _bootstrap(self) -> None:
        """Copy every image, merged by version; then forget what the registry no longer has."""
        with self._store.transaction() as txn:
            self._catalogue.begin_bootstrap(txn)
            self._tenants.begin(txn)
        start: Position | None = None
        async for chunk in self._source.bootstrap():
            if start is None:
                start = chunk["start"]
                await self._check_epoch(start)
            self._check_start(start)
            with self._store.transaction(reserved=True) as txn:
                for image in chunk["images"]:
                    self._take_bootstrapped(txn, image)
            await self._store.durable()
        if start is None:
            raise RegistryAway("the bootstrap gave nothing, not even its start")
        await self._piecewise(self._forget_unseen)
        await self._piecewise(self._miss_acked)
        await self._piecewise(partial(self._catalogue.settle_overlay, revision=start[1]))
        with self._store.transaction() as txn:
            self._catalogue.begin_epoch(txn, start)
            self._catalogue.advance(txn, start)
            self._tenants.done(txn)
        await self._store.durable()
        self._wake_waiting()
        self._settle_confirmations()
        self.on_bootstrapped()
        log.info("bootstrapped up to %s", start)

    def _take_bootstrapped(self, txn: Txn, image: dict[str, Any]) -> None:
        removed = self._catalogue.removed_locations(
            txn, {"uuid": image["uuid"], "image": image, "changed": ["locations"]}
        )
        if removed:
            self.on_removed(txn, removed)
        self._catalogue.put_bootstrapped(txn, image)

    async def _check_epoch(self, start: Position) -> None:
        if not self.may_enter(start[0]):
            raise RegistryAway(f"the source lives in epoch {start[0]}, the session has no handshake there yet")
        epoch = self._catalogue.epoch(self._store.read())
        if epoch not in (0, start[0]):
            log.warning("the registry lives in epoch %d, this catalogue is of epoch %d", start[0], epoch)
            await self._piecewise(self._catalogue.forget_epoch)

    def _check_start(self, start: Position) -> None:
        position = self._catalogue.position(self._store.read())
        if position is not None and position[0] == start[0] and start < position:
            raise RegistryAway(f"the source is at {start}, behind this catalogue's {position}")

    def _forget_unseen(self, txn: Txn, after: bytes, rows: int) -> bytes | None:
        doomed, on = self._catalogue.unseen(txn, after, rows)
        for key in doomed:
            for forgotten in self._catalogue.forget(txn, key):
                self.on_unseen(txn, forgotten)
        return on

    def _miss_acked(self, txn: Txn, after: bytes, rows: int) -> bytes | None:
        missed, on = self._catalogue.acked_only(txn, after, rows)
        for image in missed:
            self.on_unseen(txn, image)
        return on

    async def _piecewise(self, work: Callable[..., bytes | None]) -> None:
        """Work through a table some rows at a time, with turns of the loop in between."""
        after: bytes | None = b""
        while after is not None:
            with self._store.transaction(reserved=True) as txn:
                after = work(txn, after=after, rows=self._limits.list_chunk_rows)
            await self._store.durable()
