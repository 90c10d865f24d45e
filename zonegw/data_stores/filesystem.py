"""Data store on a file system: one file per opaque key.

A key is readable under its name only when its bytes are complete and on the disk: written to a temporary file, fsynced,
renamed, directory fsynced. What a crash leaves in `incoming` is removed at start. Nothing is deleted but by `delete`.
"""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

from zonegw.data_stores.interface import DEFAULT_STORE, Digests, Stored, gather, is_key
from zonegw.errors import NotFound, StorageFull
from zonegw.store import free_bytes


class FilesystemStore:
    """Files under `directory`, at most `max_bytes` of them together."""

    kind = "file"

    def __init__(
        self, directory: Path, *, max_bytes: int, disk_reserve_bytes: int, chunk_bytes: int, name: str = DEFAULT_STORE
    ) -> None:
        self.name = name
        self.directory = directory
        self._incoming = directory / "incoming"
        self._max_bytes = max_bytes
        self._disk_reserve_bytes = disk_reserve_bytes
        self._chunk_bytes = chunk_bytes
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
        """Store what `body` yields under `key`; whatever ends it early leaves nothing behind. Raises StorageFull."""
        writer = _Writer(self._incoming / key, self.path(key))
        taken = 0
        try:
            async for chunk in gather(body, self._chunk_bytes):
                self._check_room(len(chunk))
                taken += len(chunk)
                self.used_bytes += len(chunk)
                await asyncio.to_thread(writer.write, chunk)
            await asyncio.to_thread(writer.finish)
        except BaseException as error:
            self.used_bytes -= taken
            await asyncio.shield(asyncio.to_thread(writer.discard))
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull("the data store's disk is full; nothing was kept of this upload") from error
            raise
        return writer.digests.stored(key, self.name)

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
    """A temporary file and the digests of what went into it; called from worker threads, one call at a time."""

    def __init__(self, path: Path, target: Path) -> None:
        self._path = path
        self._target = target
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - lives as long as the upload
        # A cancelled upload discards while the last call may still run in its thread.
        self._lock = threading.Lock()
        self._discarded = False
        self.digests = Digests()

    def write(self, chunk: bytes) -> None:
        with self._lock:
            if self._discarded:
                return
            view = memoryview(chunk)
            while view:
                view = view[self._file.write(view) :]
            self.digests.add(chunk)

    def finish(self) -> None:
        """Make the bytes durable, then give them their name, then make the name durable."""
        with self._lock:
            if self._discarded:
                return
            os.fsync(self._file.fileno())
            self._file.close()
            self._target.parent.mkdir(exist_ok=True)
            self._path.rename(self._target)
            fsync_directory(self._target.parent)
            # Always: whoever made the directory may not have come to this, and a clean one costs next to nothing.
            fsync_directory(self._target.parent.parent)

    def discard(self) -> None:
        with self._lock:
            self._discarded = True
            self._file.close()
            for path in (self._path, self._target):
                path.unlink(missing_ok=True)


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
