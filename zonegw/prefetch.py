"""Prefetch: bytes of other zones' images come here before a client asks: pinned ones, and what [cache.prefetch] says.

What is to be fetched is found in the catalogue, at start, when something changed, and now and then, so that nothing is
lost by a crash. A zone that fails is left alone until the next look, which comes later after each failure.
"""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

from zonegw import listing
from zonegw.cached_images import POLICY, CachedImage, CachedImages
from zonegw.catalogue import Catalogue
from zonegw.config import Config
from zonegw.data_cache import DataCache, Fetch
from zonegw.errors import Conflict, DataUnavailable, StorageFull, Unavailable
from zonegw.store import Store

log = logging.getLogger(__name__)

Image = dict[str, Any]
SCOPES = {"public": listing.PUBLIC, "community": listing.COMMUNITY}


class Prefetch:
    """`failed` counts images that could not be fetched at the last look, `refused` those that no pin had room for."""

    def __init__(
        self, store: Store, catalogue: Catalogue, cache: DataCache, cached: CachedImages, config: Config
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._cache = cache
        self._cached = cached
        self._zone = config.zone
        self._rules = config.cache.prefetch
        self._limits = config.limits
        self._queue: asyncio.Queue[str] = asyncio.Queue(config.limits.prefetch_queue_max)
        self._asked: set[str] = set()
        self._away: set[str] = set()
        self._look = asyncio.Event()
        self.failed = self.refused = 0

    # What is to come.

    def want(self, uuid: str) -> None:
        """An operator wants the image's bytes here. Raises Unavailable where too many wait."""
        if self._queue.full():
            raise Unavailable("too many images wait to be fetched (limits.prefetch_queue_max)")
        self._asked.add(uuid)
        self._away.clear()
        self._queue.put_nowait(uuid)

    def look(self) -> None:
        """There may be more to fetch."""
        self._look.set()

    def changed(self, image: Image) -> None:
        """The feed told of an image."""
        if not self._is_wanted(image):
            return
        if self._queue.full():
            self.look()
        else:
            self._queue.put_nowait(image["uuid"])

    def _is_wanted(self, image: Image) -> bool:
        if image["uuid"] in self._asked:
            return True
        known = self._cached.get(image["uuid"])
        return self._is_far(image) and (self._is_missed(image, known) or self._by_policy(image, known))

    def _is_far(self, image: Image) -> bool:
        zones = [location["zone"] for location in image["locations"]]
        return bool(zones) and self._zone not in zones and image["status"] == "active"

    def _is_missed(self, image: Image, known: CachedImage | None) -> bool:
        return known is not None and known.pinned is not None and not self._cache.has(image["locations"])

    def _by_policy(self, image: Image, known: CachedImage | None) -> bool:
        rules = self._rules
        if rules is None or not rules.match(image):
            return False
        return known is None or not known.prefetched or (rules.again and not self._cache.has(image["locations"]))

    # The work.

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._find())
            for _ in range(self._limits.prefetch_running_max):
                group.create_task(self._work())

    async def _find(self) -> None:
        retry_s = self._limits.prefetch_retry_min_s
        while True:
            self._look.clear()
            self._away.clear()
            self.failed = self.refused = 0
            await self._find_all()
            await self._queue.join()
            retry_s = (
                min(retry_s * 2, self._limits.prefetch_scan_s) if self.failed else self._limits.prefetch_retry_min_s
            )
            await self._idle(retry_s if self.failed else self._limits.prefetch_scan_s)

    async def _idle(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._look.wait()
        except TimeoutError:
            pass

    async def _find_all(self) -> None:
        for known in self._cached.all():
            self._settle_pin(known)
        pinned = [known.uuid for known in self._cached.all() if known.pinned is not None]
        for uuid in [*self._asked, *pinned]:
            await self._find_one(uuid)
        for visibility in self._rules.visibility if self._rules else ():
            await self._find_in(SCOPES[visibility])

    def _settle_pin(self, known: CachedImage) -> None:
        """What the policy pinned and does not have any more is like any other image."""
        if known.pinned != POLICY:
            return
        image = self._catalogue.get(self._store.read(), known.uuid)
        if image is None or self._rules is None or not (self._rules.pin and self._rules.match(image)):
            self._cache.unpin(known.uuid)

    async def _find_in(self, scope: bytes) -> None:
        """A bounded number of rows per turn."""
        after: bytes | None = None
        while chunk := list(self._chunk(scope, after)):
            after = chunk[-1][0]
            for _, uuid in chunk:
                await self._find_one(uuid)
            await asyncio.sleep(0)

    def _chunk(self, scope: bytes, after: bytes | None) -> Iterator[tuple[bytes, str]]:
        walker = listing.walk(self._store.read(), [scope], "created_at", reverse=False, after=after)
        return (row for row, _ in zip(walker, range(self._limits.list_chunk_rows), strict=False))

    async def _find_one(self, uuid: str) -> None:
        image = self._catalogue.get(self._store.read(), uuid)
        if image is not None and self._is_wanted(image):
            await self._queue.put(uuid)

    async def _work(self) -> None:
        while True:
            uuid = await self._queue.get()
            try:
                await self._bring(uuid)
                self._asked.discard(uuid)
            except (Unavailable, StorageFull, OSError) as error:
                self.failed += 1
                log.info("image %s is not fetched ahead yet: %s", uuid, error)
            except Conflict as error:
                self.refused += 1
                log.warning("image %s is not fetched ahead: %s", uuid, error.message)
            finally:
                self._queue.task_done()

    async def _bring(self, uuid: str) -> None:
        image = self._catalogue.get(self._store.read(), uuid)
        if image is None or not self._is_wanted(image):
            return
        known, asked = self._cached.get(uuid), uuid in self._asked
        by_policy = self._by_policy(image, known)
        if by_policy and self._rules is not None and self._rules.pin:
            if known is None or known.pinned is None:
                self._cache.pin(uuid, image["size"], POLICY)
        elif by_policy and not asked and not self._cache.has_room(image["size"]):
            raise Conflict("the cache has no room for it beside what clients use (limits.data_cache_max_bytes)")
        await self._fetch(uuid, image["locations"])
        if by_policy:
            self._cached.mark_prefetched(uuid, image["size"])

    async def _fetch(self, uuid: str, locations: list[dict[str, Any]]) -> None:
        zones = {location["zone"] for location in locations}
        if zones <= self._away:
            raise DataUnavailable(f"zone {' and zone '.join(sorted(zones))} could not be reached at this look")
        try:
            found = await self._cache.open(uuid, locations, wanted=False)
            if isinstance(found, Fetch):
                await found.until_verified()
        except DataUnavailable:
            self._away |= zones
            raise
