"""Data cache: bytes of other zones' images, kept on disk within a bound, least recently used out first.

One fetch serves any number of clients, who read along while it runs. The last chunk is held back until the whole
matches its sha512: a client can never take wrong bytes for a complete image. A broken connection is resumed where it
broke, from another zone if there is one (`receiving`). A file is in the cache under its key only when it was verified
and is on the disk; its mtime is its last use.
"""

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator
from pathlib import Path

from zonegw.bandwidth import Bandwidth
from zonegw.cached_images import CachedImages
from zonegw.data_stores.interface import is_key
from zonegw.errors import Conflict, DataUnavailable
from zonegw.limits import Limits
from zonegw.receiving import Location, Origin, Receiver
from zonegw.store import free_bytes

log = logging.getLogger(__name__)


class Fetch:
    """One fetch under way; `available` bytes of `path` may be read, all of them only once they are verified."""

    def __init__(self, uuid: str, location: Location, path: Path, hold_back: int, pinned: bool) -> None:
        self.uuid = uuid
        self.size: int = location["size"]
        self.pinned = pinned
        # Whether a client waits for it.
        self.wanted = False
        self.path = path
        self.file = open(path, "xb+", buffering=0)  # noqa: SIM115 - closed with the fetch
        self.received = 0
        self.verified = False
        self.error: Exception | None = None
        self._hold_back = hold_back
        self._moved = asyncio.Event()

    @property
    def available(self) -> int:
        return self.size if self.verified else max(0, min(self.received, self.size - self._hold_back))

    def handle(self) -> int:
        """Of the file that the bytes go to."""
        return self.file.fileno()

    def moved(self) -> None:
        """Something changed: wake the readers."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def until_available(self, offset: int) -> None:
        """Wait until there is something to read at `offset`, or raise what ended the fetch."""
        while self.available <= offset:
            if self.error is not None:
                raise self.error
            await self._moved.wait()

    async def until_verified(self) -> None:
        while not self.verified:
            if self.error is not None:
                raise self.error
            await self._moved.wait()

    async def read(self, start: int, end: int, chunk_bytes: int) -> AsyncGenerator[bytes]:
        """The bytes from `start` up to `end`, as they come."""
        handle = os.dup(self.file.fileno())
        try:
            while start < end:
                await self.until_available(start)
                size = min(chunk_bytes, end - start, self.available - start)
                yield await asyncio.to_thread(os.pread, handle, size, start)
                start += size
        finally:
            os.close(handle)


class DataCache:
    """Files under `directory`: at most `data_cache_max_bytes` of them together, and as many as `data_pinned_max_bytes`
    of pinned images, which make no room for others."""

    def __init__(
        self, directory: Path, origin: Origin, images: CachedImages, bandwidth: Bandwidth, limits: Limits
    ) -> None:
        self._directory = directory
        self._incoming = directory / "incoming"
        self._images = images
        self._receiver = Receiver(origin, bandwidth, limits)
        self._limits = limits
        self._fetches: dict[str, Fetch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._incoming.mkdir(parents=True, exist_ok=True)
        for leftover in self._incoming.iterdir():
            leftover.unlink()
        self._files = self._found()
        images.found(self._files.keys())
        self.hits = 0
        self.misses = 0

    def _found(self) -> OrderedDict[str, int]:
        """Sizes by key, least recently used first."""
        entries = [
            (p.stat().st_mtime_ns, p.name, p.stat().st_size) for p in self._directory.iterdir() if is_key(p.name)
        ]
        return OrderedDict((name, size) for _, name, size in sorted(entries))

    @property
    def used_bytes(self) -> int:
        return sum(self._files.values()) + sum(f.size for f in self._fetches.values())

    @property
    def pinned_bytes(self) -> int:
        """Of all pins, also of those whose bytes are still to come."""
        return self._images.pinned_bytes

    @property
    def _passing_bytes(self) -> int:
        """Of what is not pinned."""
        kept = sum(size for key, size in self._files.items() if not self._is_pinned(key))
        return kept + sum(fetch.size for fetch in self._fetches.values() if not fetch.pinned)

    def _is_pinned(self, key: str) -> bool:
        image = self._images.of(key)
        return image is not None and image.pinned is not None

    def files(self) -> dict[str, int]:
        """Sizes of the cached files by key."""
        return dict(self._files)

    def last_used_us(self, key: str) -> int:
        return (self._directory / key).stat().st_mtime_ns // 1000

    def fetching(self) -> dict[str, Fetch]:
        """What is under way, by key."""
        return dict(self._fetches)

    def has(self, locations: list[Location]) -> bool:
        """Whether the bytes of one of these locations are here."""
        return any(location["key"] in self._files for location in locations)

    async def open(self, uuid: str, locations: list[Location], *, wanted: bool = True) -> Path | Fetch:
        """The complete file of one of an image's locations, or the fetch to read along with. What is `wanted` a client
        waits for. Raises DataUnavailable if nothing can be had."""
        locations = _readable(locations)
        for key in (location["key"] for location in locations):
            if (path := self._cached(key)) is not None:
                self.hits += 1
                return path
        fetch = self._under_way(locations)
        if fetch is None:
            self.misses += 1
            fetch = self._start(uuid, self._receiver.reachable(locations))
        fetch.wanted = fetch.wanted or wanted
        if fetch.size == 0:
            await fetch.until_verified()
            return self._use(fetch.path.name)
        await fetch.until_available(0)
        return fetch

    def _cached(self, key: str) -> Path | None:
        if key in self._files and not (self._directory / key).is_file():
            self.evict(key)  # somebody made room by hand
        return self._use(key) if key in self._files else None

    def _under_way(self, locations: list[Location]) -> Fetch | None:
        return next((self._fetches[at["key"]] for at in locations if at["key"] in self._fetches), None)

    def _use(self, key: str) -> Path:
        self._files.move_to_end(key)
        path = self._directory / key
        os.utime(path)
        return path

    def _start(self, uuid: str, locations: list[Location]) -> Fetch:
        pinned = self._images.is_pinned(uuid)
        self._make_room(locations[0]["size"], pinned)
        key = locations[0]["key"]
        fetch = Fetch(uuid, locations[0], self._incoming / key, self._limits.data_chunk_bytes, pinned)
        self._fetches[key] = fetch
        task = asyncio.create_task(self._run(fetch, uuid, locations), name=f"fetch {key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return fetch

    def _make_room(self, size: int, pinned: bool) -> None:
        """Evict until `size` more fits."""
        if not pinned:
            self._evict_down_to(size)
        if free_bytes(self._directory) - size < self._limits.disk_reserve_bytes:
            raise DataUnavailable("the disk of the data cache is nearly full")

    def _evict_down_to(self, size: int) -> None:
        bound = self._limits.data_cache_max_bytes
        if size > bound:
            raise DataUnavailable(f"the image is larger than the data cache (limits.data_cache_max_bytes = {bound})")
        surplus = self._passing_bytes + size - bound
        for key in [key for key in self._files if not self._is_pinned(key)]:
            if surplus <= 0:
                return
            surplus -= self._files[key]
            self.evict(key)
        if surplus > 0:
            raise DataUnavailable("the data cache is full of fetches that are under way")

    def has_room(self, size: int) -> bool:
        """Whether `size` more fits without evicting anything."""
        free = free_bytes(self._directory) - size >= self._limits.disk_reserve_bytes
        return free and self._passing_bytes + size <= self._limits.data_cache_max_bytes

    def evict(self, key: str) -> None:
        """Forget cached bytes; clients that read them keep their open file."""
        if self._files.pop(key, None) is not None:
            (self._directory / key).unlink(missing_ok=True)
            self._images.evicted(key)

    def pin(self, uuid: str, size: int, by: str) -> None:
        """Keep the image's bytes from now on, those that come too. Raises Conflict where the pins would be too many."""
        bound = self._limits.data_pinned_max_bytes
        held = 0 if self._images.is_pinned(uuid) else self._images.pinned_bytes + size
        if held > bound:
            raise Conflict(f"pinned images would have {held} bytes, more than limits.data_pinned_max_bytes = {bound}")
        self._images.pin(uuid, size, by)

    def unpin(self, uuid: str) -> None:
        """The image's bytes are like any others again, and make room where there are too many."""
        self._images.unpin(uuid)
        self._evict_down_to(0)

    def forget(self, uuid: str, locations: list[Location]) -> None:
        """The image is deleted: its bytes go, and a pin of it."""
        for location in locations:
            self.evict(location["key"])
        self._images.forget(uuid)

    async def _run(self, fetch: Fetch, uuid: str, locations: list[Location]) -> None:
        key = locations[0]["key"]
        try:
            self._verify(await self._receiver.receive(fetch, locations), locations[0])
            await asyncio.to_thread(os.fsync, fetch.file.fileno())
            fetch.path.rename(self._directory / key)
            self._files[key] = fetch.size
            self._images.fetched(uuid, key, fetch.size)
            fetch.verified = True
        except BaseException as error:
            fetch.error = (
                error if isinstance(error, DataUnavailable) else DataUnavailable(f"the fetch broke off: {error}")
            )
            fetch.path.unlink(missing_ok=True)
            if not isinstance(error, Exception):
                raise
            log.warning("data %s of image %s were not fetched: %s", key, uuid, error)
        finally:
            del self._fetches[key]
            fetch.moved()

    @staticmethod
    def _verify(sha512: str, location: Location) -> None:
        if sha512 != location["sha512"]:
            raise DataUnavailable(f"zone {location['zone']} sent bytes that do not match the image's sha512; dropped")

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _readable(locations: list[Location]) -> list[Location]:
    """Locations of which enough is told to fetch and verify the bytes. Raises DataUnavailable for none of them."""
    problem = "the image's data are not to be found"
    found: list[Location] = []
    for location in locations:
        if not is_key(location["key"]):
            problem = f"zone {location['zone']} holds the data under a key that this gateway can't read"
        elif location["size"] is None or location["sha512"] is None:
            problem = f"nobody told size and sha512 of the data in zone {location['zone']}"
        elif not found or location["sha512"] == found[0]["sha512"]:
            found.append(location)
    if not found:
        raise DataUnavailable(problem)
    return found
