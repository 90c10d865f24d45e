"""Data cache: bytes of other zones' images, kept on disk within a bound, least recently used out first.

One fetch serves any number of clients, who read along while it runs. The last chunk is held back until the whole
matches its sha512: a client can never take wrong bytes for a complete image. A broken connection is resumed where it
broke. A file is in the cache under its key only when it was verified and is on the disk; its mtime is its last use.
"""

import asyncio
import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from zonegw.config import Limits
from zonegw.data_stores.interface import is_key
from zonegw.errors import DataUnavailable
from zonegw.store import free_bytes

log = logging.getLogger(__name__)


class Origin(Protocol):
    """Where bytes of other zones come from."""

    def read(self, zone: str, key: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes from `offset` on. Raises DataUnavailable when the zone can't be reached."""
        ...


class Fetch:
    """One fetch under way; `available` bytes of `path` may be read, all of them only once they are verified."""

    def __init__(self, location: dict[str, Any], path: Path, hold_back: int) -> None:
        self.size: int = location["size"]
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
    """Files under `directory`, at most `data_cache_max_bytes` of them together."""

    def __init__(self, directory: Path, origin: Origin, limits: Limits) -> None:
        self._directory = directory
        self._incoming = directory / "incoming"
        self._origin = origin
        self._limits = limits
        self._fetches: dict[str, Fetch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._incoming.mkdir(parents=True, exist_ok=True)
        for leftover in self._incoming.iterdir():
            leftover.unlink()
        self._files = self._found()
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

    async def open(self, location: dict[str, Any]) -> Path | Fetch:
        """The complete file, or the fetch to read along with. Raises DataUnavailable if nothing can be had."""
        key = location["key"]
        if not is_key(key):
            raise DataUnavailable(f"zone {location['zone']} holds the data under a key that this gateway can't read")
        if location["size"] is None or location["sha512"] is None:
            raise DataUnavailable(f"nobody told size and sha512 of the data in zone {location['zone']}")
        if key in self._files and not (self._directory / key).is_file():
            self.evict(key)  # somebody made room by hand
        if key in self._files:
            self.hits += 1
            return self._use(key)
        fetch = self._fetches.get(key)
        if fetch is None:
            self.misses += 1
            fetch = self._start(location)
        if fetch.size == 0:
            await fetch.until_verified()
            return self._use(key)
        await fetch.until_available(0)
        return fetch

    def _use(self, key: str) -> Path:
        self._files.move_to_end(key)
        path = self._directory / key
        os.utime(path)
        return path

    def _start(self, location: dict[str, Any]) -> Fetch:
        self._make_room(location["size"])
        key = location["key"]
        fetch = Fetch(location, self._incoming / key, self._limits.data_chunk_bytes)
        self._fetches[key] = fetch
        task = asyncio.create_task(self._run(fetch, location), name=f"fetch {key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return fetch

    def _make_room(self, size: int) -> None:
        """Evict until `size` more fits."""
        bound = self._limits.data_cache_max_bytes
        if size > bound:
            raise DataUnavailable(f"the image is larger than the data cache (limits.data_cache_max_bytes = {bound})")
        while self._files and self.used_bytes + size > bound:
            self.evict(next(iter(self._files)))
        if self.used_bytes + size > bound:
            raise DataUnavailable("the data cache is full of fetches that are under way")
        if free_bytes(self._directory) - size < self._limits.disk_reserve_bytes:
            raise DataUnavailable("the disk of the data cache is nearly full")

    def evict(self, key: str) -> None:
        """Forget cached bytes; clients that read them keep their open file."""
        if self._files.pop(key, None) is not None:
            (self._directory / key).unlink(missing_ok=True)

    async def _run(self, fetch: Fetch, location: dict[str, Any]) -> None:
        key = location["key"]
        digest = hashlib.sha512()
        try:
            await self._receive(fetch, location, digest)
            self._verify(fetch, location, digest.hexdigest())
            await asyncio.to_thread(os.fsync, fetch.file.fileno())
            fetch.path.rename(self._directory / key)
            self._files[key] = fetch.size
            fetch.verified = True
        except BaseException as error:
            fetch.error = (
                error if isinstance(error, DataUnavailable) else DataUnavailable(f"the fetch broke off: {error}")
            )
            fetch.path.unlink(missing_ok=True)
            if not isinstance(error, Exception):
                raise
            log.warning("data %s of zone %s was not fetched: %s", key, location["zone"], error)
        finally:
            del self._fetches[key]
            fetch.moved()

    async def _receive(self, fetch: Fetch, location: dict[str, Any], digest: "hashlib._Hash") -> None:
        """Take all bytes, resuming a bounded number of times without progress."""
        failures = 0
        while fetch.received < fetch.size:
            before = fetch.received
            try:
                await self._take(fetch, self._origin.read(location["zone"], location["key"], before), digest)
                if fetch.received == before:
                    raise DataUnavailable(f"zone {location['zone']} sent fewer bytes than the image has")
            except (TimeoutError, DataUnavailable, OSError) as error:
                failures = 0 if fetch.received > before else failures + 1
                if failures >= self._limits.fetch_attempts_max or fetch.received == 0:
                    raise error if isinstance(error, DataUnavailable) else DataUnavailable(str(error)) from error

    @staticmethod
    async def _take(fetch: Fetch, body: AsyncIterator[bytes], digest: "hashlib._Hash") -> None:
        async for piece in body:
            if fetch.received + len(piece) > fetch.size:
                raise DataUnavailable("the other zone sent more bytes than the image has")
            await asyncio.to_thread(_write, fetch.file.fileno(), piece, fetch.received, digest)
            fetch.received += len(piece)
            fetch.moved()

    @staticmethod
    def _verify(fetch: Fetch, location: dict[str, Any], sha512: str) -> None:
        if sha512 != location["sha512"]:
            raise DataUnavailable(f"zone {location['zone']} sent bytes that do not match the image's sha512; dropped")

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _write(handle: int, piece: bytes, offset: int, digest: "hashlib._Hash") -> None:
    view = memoryview(piece)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
    digest.update(piece)
