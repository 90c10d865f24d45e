"""Data store on a file system: one file per opaque key.

A key is readable under its name only when its bytes are complete and on the disk: written to a temporary file, fsynced,
renamed, directory fsynced. What a crash leaves in `incoming` is removed at start. Nothing is deleted but by `delete`.
"""

import asyncio
import errno
import hashlib
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from zonegw.data_stores.interface import DEFAULT_STORE, Stored, is_key
from zonegw.errors import DataUnavailable, NotFound, StorageFull
from zonegw.store import free_bytes

log = logging.getLogger(__name__)

# Of one batch; a single call writes no more than 1024.
PIECES_MAX = 256
# Written and not on the disk yet, before it is sent there: a large upload has little to wait for at its end, and holds
# up what others sync meanwhile for a moment and not for seconds.
SYNC_BYTES = 32 * 1024 * 1024


class FilesystemStore:
    """Files under `directory`, at most `max_bytes` of them together."""

    kind = "file"

    def __init__(
        self, directory: Path, *, max_bytes: int, disk_reserve_bytes: int, chunk_bytes: int, batches_max: int = 4,
        name: str = DEFAULT_STORE,
    ) -> None:  # fmt: skip
        self.name = name
        self.directory = directory
        self._incoming = directory / "incoming"
        self._max_bytes = max_bytes
        self._disk_reserve_bytes = disk_reserve_bytes
        self._chunk_bytes = chunk_bytes
        self._batches_max = batches_max
        self._incoming.mkdir(parents=True, exist_ok=True)
        for leftover in self._incoming.iterdir():
            leftover.unlink()
        self.used_bytes = sum(f.stat().st_size for f in directory.glob("??/*") if f.is_file())

    def path(self, key: str) -> Path:
        if not is_key(key):
            raise ValueError(f"{key!r} is not a data key")
        return self.directory / key[:2] / key

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    async def size(self, key: str) -> int | None:
        try:
            return (await asyncio.to_thread(self.path(key).stat)).st_size
        except FileNotFoundError:
            return None

    async def read(self, key: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """The bytes from `start` up to `end`, or up to where the file ends. Raises NotFound."""
        try:
            handle = await asyncio.to_thread(os.open, self.path(key), os.O_RDONLY)
        except FileNotFoundError:
            raise NotFound("the image's data are gone") from None
        try:
            while piece := await asyncio.to_thread(os.pread, handle, min(self._chunk_bytes, end - start), start):
                start += len(piece)
                yield piece
        finally:
            os.close(handle)

    async def write(self, key: str, body: AsyncIterator[bytes], size: int | None = None) -> Stored:
        """Store what `body` yields under `key`; whatever ends it early leaves nothing behind. Raises StorageFull,
        DataUnavailable."""
        self._check_room(size or 0)
        with self._told():
            writer = _Writer(self._incoming / key, self.path(key), self._batches_max)
        taken = 0
        try:
            async for batch in batches(body, self._chunk_bytes):
                held = sum(map(len, batch))
                self._check_room(held)
                taken += held
                self.used_bytes += held
                with self._told():
                    await writer.take(batch)
            with self._told():
                await writer.finish()
        except BaseException:
            self.used_bytes -= taken
            await asyncio.shield(writer.discard())
            raise
        return Stored(key, taken, writer.md5.hexdigest(), writer.sha512.hexdigest(), self.name)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the client is told of a disk that fails."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageFull("the data store's disk is full; nothing was kept of this upload") from error
            log.error("an upload could not be brought to the disk of store %s: %s", self.name, error)
            said = f"the disk of data store {self.name} failed, nothing was kept of this upload; the log says how"
            raise DataUnavailable(said) from error

    def _check_room(self, size: int) -> None:
        if self.used_bytes + size > self._max_bytes:
            raise StorageFull("the data store's quota is used up (limits.data_store_max_bytes); delete images")
        if free_bytes(self.directory) - size < self._disk_reserve_bytes:
            raise StorageFull("the data store's disk is nearly full; delete images to make room")

    async def delete(self, key: str) -> None:
        """Remove the bytes; those that are gone already are no error."""
        freed = await asyncio.to_thread(_remove, self.path(key))
        self.used_bytes -= freed  # not around the await: what others take or free meanwhile would be forgotten

    async def reachable(self) -> bool:
        return await asyncio.to_thread(self.directory.is_dir)

    async def properties(self) -> dict[str, Any]:
        return {"data_dir": str(self.directory), "used_bytes": self.used_bytes}

    async def close(self) -> None:
        pass


class _Writer:
    """A temporary file and the digests of what goes into it.

    Each digest and the file have a thread of their own, in which batches are taken one after the other: digests cost as
    much as the disk, so they must not wait for it, nor for each other. What is on its way to them is bounded. One more
    thread has the kernel bring to the disk what is written, while more comes.
    """

    def __init__(self, path: Path, target: Path, batches_max: int) -> None:
        self._path = path
        self._target = target
        self._batches_max = batches_max
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.sha512 = hashlib.sha512()
        self._disk, self._sync, *digesting = (ThreadPoolExecutor(1, "image data") for _ in range(4))
        self._lanes: list[tuple[ThreadPoolExecutor, Callable[[list[bytes]], None]]] = [(self._disk, self._write)]
        self._lanes += zip(digesting, (partial(_digest, self.md5), partial(_digest, self.sha512)), strict=True)
        self._under_way: deque[asyncio.Future[Any]] = deque()
        self._syncing: asyncio.Future[None] | None = None
        self._unsynced_bytes = 0

    async def take(self, batch: list[bytes]) -> None:
        """Give a batch to all three; waits for an earlier one where too many are under way. Raises what that met."""
        if len(self._under_way) >= self._batches_max:
            await self._under_way.popleft()
        loop = asyncio.get_running_loop()
        self._under_way.append(asyncio.gather(*(loop.run_in_executor(lane, work, batch) for lane, work in self._lanes)))
        self._unsynced_bytes += sum(map(len, batch))
        if self._unsynced_bytes >= SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            await self._synced()
            self._syncing = loop.run_in_executor(self._sync, os.fdatasync, self._handle)
            self._unsynced_bytes = 0

    async def _synced(self) -> None:
        """Wait for the last sync and raise what it met: the kernel tells that once, so a later one knows nothing."""
        if self._syncing is not None:
            await self._syncing

    async def finish(self) -> None:
        """Make the bytes durable, then give them their name, then make the name durable."""
        while self._under_way:
            await self._under_way.popleft()
        await self._synced()
        await asyncio.get_running_loop().run_in_executor(self._disk, self._publish)
        self._end()

    def _write(self, batch: list[bytes]) -> None:
        written = os.writev(self._handle, batch)
        rest = memoryview(b"".join(batch))[written:] if written < sum(map(len, batch)) else memoryview(b"")
        while rest:
            rest = rest[os.write(self._handle, rest) :]

    def _publish(self) -> None:
        os.fsync(self._handle)
        self._target.parent.mkdir(exist_ok=True)
        self._path.rename(self._target)
        fsync_directory(self._target.parent)
        # Always: whoever made the directory may not have come to this, and a clean one costs next to nothing.
        fsync_directory(self._target.parent.parent)

    async def discard(self) -> None:
        """Leave nothing; behind what the file's thread is at, for that would otherwise write to another's file."""
        for batch in self._under_way:
            batch.cancel()
        await asyncio.gather(*self._under_way, self._synced(), return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._disk, self._remove)
        self._end()

    def _remove(self) -> None:
        for path in (self._path, self._target):
            path.unlink(missing_ok=True)

    def _end(self) -> None:
        for lane in (self._sync, *(lane for lane, _ in self._lanes)):
            lane.shutdown(wait=False)
        os.close(self._handle)


def _digest(digest: "hashlib._Hash", batch: list[bytes]) -> None:
    for piece in batch:
        digest.update(piece)


def fsync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> int:
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    fsync_directory(path.parent)
    return size


async def batches(body: AsyncIterator[bytes], size: int) -> AsyncIterator[list[bytes]]:
    """Pieces, uncopied, of about `size` together: few trips to the worker threads, bounded memory."""
    held: list[bytes] = []
    total = 0
    async for piece in body:
        held.append(piece)
        total += len(piece)
        if total >= size or len(held) >= PIECES_MAX:
            yield held
            held, total = [], 0
    if held:
        yield held
