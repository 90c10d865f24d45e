"""The gateway's LMDB environment: one process, one writer, one open write transaction.

- Every use case runs in a child transaction: it happens as a whole or not at all.
- What was written during one turn of the loop is committed with one fsync at the end of that turn (group commit).
- Whoever acknowledges a write awaits `durable()` first, and clients read `committed()`: nothing that a crash could take
  back is ever shown or acknowledged.
- A failed commit stops the process at once: after a failed fsync nobody knows what the disk holds.
- Growth is refused before the quota is passed; deletes and acks go on from a reserve.
"""

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from zonegw.errors import ConfigError, StorageFull
from zonegw.limits import Limits

log = logging.getLogger(__name__)

FORMAT = 1
EXIT_STORAGE = 74
TABLES = (
    "meta", "catalogue", "numbers", "overlay", "listing", "queue", "retained", "parked", "uploads", "garbage", "cache",
    "far_garbage", "deposits", "staged", "imports", "deleted", "outside", "folded", "parked_images", "renumbered",
    "usage", "unseen", "confirmations", "graves", "graves_due", "undeleted",
)  # fmt: skip


def pack(value: Any) -> bytes:
    """The stored form of a row."""
    data: bytes = msgpack.packb(value, use_bin_type=True)
    return data


def unpack(data: bytes) -> Any:
    return msgpack.unpackb(data, raw=False, strict_map_key=False)


def u64(number: int) -> bytes:
    """A key that sorts as the number does."""
    return number.to_bytes(8, "big")


class Txn:
    """Reads and writes of one use case, over named tables; valid until its `with` ends, never across an await."""

    __slots__ = ("_dbs", "_txn")

    def __init__(self, txn: Any, dbs: dict[str, Any]) -> None:
        self._txn = txn
        self._dbs = dbs

    def end(self) -> None:
        """It is of no use any more, whoever still has it. LMDB has places for a few readers alone, and py-lmdb gives
        one back when nothing refers to its transaction."""
        self._txn.abort()
        self._txn = None

    def get(self, table: str, key: bytes) -> bytes | None:
        value: bytes | None = self._txn.get(key, db=self._dbs[table])
        return value

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._txn.put(key, value, db=self._dbs[table])

    def delete(self, table: str, key: bytes) -> bool:
        return bool(self._txn.delete(key, db=self._dbs[table]))

    def row(self, table: str, key: bytes) -> Any:
        """The decoded row, or None."""
        data = self.get(table, key)
        return None if data is None else unpack(data)

    def put_row(self, table: str, key: bytes, row: Any) -> None:
        self.put(table, key, pack(row))

    def scan(
        self, table: str, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end, in key order or backwards; don't write to the table meanwhile."""
        with self._txn.cursor(db=self._dbs[table]) as cursor:
            if reverse:
                yield from self._backwards(cursor, start, end)
            elif cursor.set_range(start):
                for key, value in cursor.iternext():
                    if end is not None and key >= end:
                        return
                    yield key, value

    @staticmethod
    def _backwards(cursor: Any, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        found = cursor.last() if end is None or not cursor.set_range(end) else cursor.prev()
        if not found:
            return
        for key, value in cursor.iterprev():
            if key < start:
                return
            yield key, value

    def count(self, table: str) -> int:
        return int(self._txn.stat(self._dbs[table])["entries"])


class Store:
    """Owner of the environment under `directory`; use it from the loop's thread alone.

    `sync=False` is for simulations alone: nothing reaches the disk by itself then.
    """

    def __init__(
        self, directory: Path, limits: Limits, *, on_commit: Callable[[float], None] | None = None, sync: bool = True
    ) -> None:
        self.directory = directory
        self.limits = limits
        self.on_commit = on_commit
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(directory)
        self.env = lmdb.open(
            str(directory), map_size=limits.store_map_size_bytes, max_dbs=len(TABLES), max_readers=16, mode=0o600,
            sync=sync,
        )  # fmt: skip
        self._dbs = {name: self.env.open_db(name.encode()) for name in TABLES}
        self._page = int(self.env.stat()["psize"])
        self._txn = self.env.begin(write=True)
        self._committed: Txn | None = None
        # Told of every commit, behind those who waited for it.
        self.on_durable: Callable[[], None] = lambda: None
        self._waiters: list[asyncio.Future[None]] = []
        self._dirty = False
        self._commit_due = False
        self._turns = self._postponed = 0
        self._closed = False
        self._check_format()

    def _check_format(self) -> None:
        txn = self.read()
        found = txn.row("meta", b"format")
        if found is None:
            txn.put_row("meta", b"format", FORMAT)
            self.commit()
        elif found > FORMAT:
            raise ConfigError(
                f"{self.directory} was written by a newer release (format {found}, this one reads {FORMAT}): "
                "run that release"
            )

    def read(self) -> Txn:
        """A view of everything written so far, for work that goes on from there; valid until the next await."""
        return Txn(self._txn, self._dbs)

    def committed(self) -> Txn:
        """A view of what is on the disk, for clients; valid until the next await. It waits for nobody's commit."""
        if self._committed is None:
            self._committed = Txn(self.env.begin(), self._dbs)
        return self._committed

    @contextmanager
    def transaction(self, *, grows: bool = False, reserved: bool = False) -> Iterator[Txn]:
        """One use case: all of it is kept, or nothing when it raises.

        `grows` asks the quota first; `reserved` is for what makes room in the end, and may use the reserve too.
        """
        if grows or reserved:
            self.check_room(self.limits.store_reserve_bytes if reserved else 0)
        child = self.env.begin(parent=self._txn, write=True)
        try:
            yield Txn(child, self._dbs)
        except lmdb.MapFullError as error:
            child.abort()
            raise StorageFull("the metadata store is full; delete images to make room") from error
        except BaseException:
            child.abort()
            raise
        child.commit()
        self._schedule()

    def _schedule(self) -> None:
        self._dirty = True
        if self._commit_due:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.commit()
            return
        self._commit_due = True
        # Behind every callback that is ready now: their writes ride on the same fsync.
        loop.call_soon(loop.call_soon, self._commit_unless_postponed)

    def _commit_unless_postponed(self) -> None:
        self._commit_due = False
        if self._turns and not self._waiters and self._postponed < self.limits.commit_postponed_turns_max:
            self._postponed += 1
        else:
            self.commit()

    async def turn(self) -> None:
        """Let others have theirs in the middle of long work. What it has written so far is committed now if one of them
        waits for that, else later with the rest: an fsync holds up everybody."""
        self._turns += 1
        try:
            await asyncio.sleep(0)
        finally:
            self._turns -= 1
            if self._dirty:
                self._schedule()

    def durable(self) -> asyncio.Future[None]:
        """Done once everything written so far is on the disk."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._dirty:
            self._waiters.append(future)
            self._schedule()
        else:
            future.set_result(None)
        return future

    def commit(self) -> None:
        """Write and fsync what is pending; the process ends if that fails."""
        if self._closed:
            return
        started = time.perf_counter()
        self._end_committed()
        try:
            self._txn.commit()
            self._txn = self.env.begin(write=True)
        except BaseException as error:
            log.critical("the metadata store could not be written: %s; stopping at once", error)
            logging.shutdown()
            os._exit(EXIT_STORAGE)
        self._dirty = False
        self._postponed = 0
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.on_durable()
        if self.on_commit is not None:
            self.on_commit(time.perf_counter() - started)

    def _end_committed(self) -> None:
        """The view is of the commit before; while it lasts, it keeps pages from being used again."""
        if self._committed is not None:
            self._committed.end()
            self._committed = None

    def used_bytes(self) -> int:
        """Bytes of the pages that hold rows; free pages inside the file don't count."""
        stats = (self._txn.stat(db) for db in self._dbs.values())
        return self._page * sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats)

    def check_room(self, reserve_bytes: int = 0) -> None:
        """Raise StorageFull when a write would pass the quota (and the reserve) or fill the disk."""
        if self.used_bytes() > self.limits.store_soft_limit_bytes + reserve_bytes:
            raise StorageFull("the gateway's metadata quota is used up (limits.store_soft_limit_bytes); delete images")
        if free_bytes(self.directory) < self.limits.disk_reserve_bytes // (4 if reserve_bytes else 1):
            raise StorageFull("the gateway's disk is nearly full; delete images, or free space")

    def close(self) -> None:
        """Commit and close; nothing may use the store afterwards."""
        self.commit()
        self._closed = True
        self._end_committed()
        self._txn.abort()
        self.env.close()
        os.close(self._lock)


def free_bytes(path: Path) -> int:
    """What an unprivileged writer may still use of the file system that holds `path`."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def _lock(directory: Path) -> int:
    """Hold the data directory for this process: a second gateway on it would hand out the same IDs."""
    handle = os.open(directory / "owner.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise ConfigError(f"another gateway runs on {directory}: stop it, or use another data_dir") from error
    return handle
