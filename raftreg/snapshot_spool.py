"""The spool: the one snapshot file that a leader has, from the first need of it until nobody was served for a while.

It is copied beside the peer (`snapshot_copy`), and read from its first chunk on while the copy still goes on.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from raftreg.config import Limits
from raftreg.engine import now
from raftreg.records import DamagedRecord
from raftreg.snapshot_copy import CopyProcess
from raftreg.snapshot_file import (
    CheckedRows,
    Chunk,
    Content,
    Malformed,
    check,
    copy_to_spool,
    frame_end,
    read_chunk,
    unchecked_rows,
)
from raftreg.store import Store
from raftreg.tables import View

logger = logging.getLogger(__name__)


@dataclass
class Spool:
    """One snapshot as a file. `index` is 0 until its header is there; what is written may be sent before `complete`."""

    path: Path
    since: float
    copy: CopyProcess | None = None
    used_at: float = 0.0
    index: int = 0
    snapshot_id: bytes = b""
    complete: bool = False
    failed: bool = False
    offsets: list[int] = field(default_factory=list)  # where chunks begin, as far as somebody was sent them

    @property
    def copying(self) -> bool:
        return not self.complete and not self.failed

    def read_header(self) -> None:
        """Learn what is being copied, as soon as it can be read. Raises Malformed, OSError."""
        if self.index or not self.path.exists():
            return
        with self.path.open("rb") as file:
            if frame_end(file, self.path.stat().st_size) is None:
                return
            first = read_chunk(file)
        assert first is not None
        content = Content(first)
        self.index, self.snapshot_id = content.index, content.snapshot_id

    def remove(self) -> None:
        if self.copy is not None:
            self.copy.end()
        self.path.unlink(missing_ok=True)


class SpoolReader:
    """A place in a spool, from which chunks are taken one after the other."""

    def __init__(self, spool: Spool, sequence: int = 0) -> None:
        """Begins at a chunk that somebody was sent before, or at the first one."""
        self.spool = spool
        self._file: BinaryIO = spool.path.open("rb")
        if 0 < sequence < len(spool.offsets):
            self._file.seek(spool.offsets[sequence])

    def take(self) -> tuple[Chunk, bool] | None:
        """The next chunk, and whether it is the last; None: it is not written yet. Raises Malformed, OSError.

        While the copy goes on there is always more to come, so the newest chunk is kept back until there is.
        """
        complete = self.spool.complete
        offset, written = self._file.tell(), os.fstat(self._file.fileno()).st_size
        end = frame_end(self._file, written)
        if end is None or (end == written and not complete):
            if complete:
                raise Malformed("the file ends before its trailer")
            return None
        chunk = read_chunk(self._file)
        assert chunk is not None
        check(chunk)  # a file that the disk spoilt would be refused, and asked for again, for ever
        if chunk[1] == len(self.spool.offsets):
            self.spool.offsets.append(offset)
        return chunk, end == written

    def close(self) -> None:
        self._file.close()


class SpoolKeeper:
    """Has a copy made when one is wanted, and says what became of it.

    `damage` says what a copy has found to be wrong with this peer's own data.
    `applied_index(view)` tells the log index that a state has applied. `threaded=False` copies within `after_commit`
    (for simulation). `on_end` is called when the spool is no more, before its file goes.
    """

    def __init__(
        self,
        store: Store,
        limits: Limits,
        *,
        applied_index: Callable[[View], int],
        on_end: Callable[[], None],
        threaded: bool,
        checked_rows: CheckedRows = unchecked_rows,
    ) -> None:
        self._store, self._limits = store, limits
        self._applied_index, self._on_end, self._threaded = applied_index, on_end, threaded
        self._directory = store.data_dir / "spool"
        self._spool: Spool | None = None
        self._wanted = False
        self._not_before = float("-inf")
        self._removal: threading.Thread | None = None
        self._checked_rows = checked_rows
        self.trouble: str | None = None
        self.damage: str | None = None
        self._directory.mkdir(exist_ok=True)
        for leftover in self._directory.iterdir():
            leftover.unlink()

    def ready(self, first_index: int) -> Spool | None:
        """A spool to read from, behind which the log goes on. None: it is wanted from now on."""
        spool = self._spool
        if spool is not None and not spool.failed:
            if spool.index == 0:
                return None
            if spool.index >= first_index:
                return spool
        # None yet, failed, or so old that its reader would need another snapshot at once.
        if now() >= self._not_before:
            self._wanted = self._store.want_commit = True
        return None

    def after_commit(self) -> None:
        """Start a copy that is wanted. Right after a commit, so that state and log agree."""
        if not self._wanted:
            return
        self._wanted = False
        index = self._applied_index(self._store.view())
        if index < 2:
            return
        self.drop()
        missing = self._store.used_bytes() + self._limits.disk_reserve_bytes - self._store.free_disk_bytes()
        if missing > 0:
            self.fail(f"the disk lacks {missing} bytes for the copy of a snapshot that a peer waits for")
            return
        spool = self._spool = Spool(self._directory / f"{index}-{random.randbytes(4).hex()}", now())
        if self._threaded:
            self._copy_beside(spool)
        else:
            self._copy_here(spool, index)

    def _copy_beside(self, spool: Spool) -> None:
        try:
            spool.copy = CopyProcess(
                self._store.data_dir,
                spool.path,
                chunk_bytes=self._limits.snapshot_chunk_bytes,
                reader_max_s=self._limits.snapshot_reader_max_s,
            )
        except OSError as error:
            self.fail(f"no process can be started that copies a snapshot: {error}")

    def _copy_here(self, spool: Spool, index: int) -> None:
        limits, reader = self._limits, self._store.begin_read()
        try:
            copy_to_spool(
                reader,
                index,
                spool.path,
                limits.snapshot_chunk_bytes,
                limits.snapshot_reader_max_s,
                checked_rows=self._checked_rows,
            )
            spool.read_header()
            self._copied(spool)
        except DamagedRecord as error:
            self._found_damage(str(error))
        except Exception as error:
            self.fail(f"copying a snapshot failed: {error!r}")
        finally:
            reader.close()

    def follow(self, in_use: bool) -> None:
        """Once a turn: how far the copy is, and whether the spool is of use any more."""
        spool = self._spool
        if spool is None:
            return
        if spool.copy is not None:
            self._follow_copy(spool, spool.copy)
        elif in_use:
            spool.used_at = now()
        elif now() - spool.used_at > self._limits.snapshot_resume_s:
            self.drop()

    def _follow_copy(self, spool: Spool, copy: CopyProcess) -> None:
        succeeded = copy.succeeded()
        try:
            if copy.damaged:
                self._found_damage("the rows are not what was written")
                return
            if succeeded is False:
                raise OSError("the process that copies ended early; its messages stand above")
            spool.read_header()
        except (Malformed, OSError) as error:
            self.fail(f"copying a snapshot failed: {error}")
            return
        if succeeded:
            self._copied(spool)

    def _copied(self, spool: Spool) -> None:
        spool.copy, spool.complete, spool.used_at = None, True, now()
        self.trouble = None
        logger.info("copied a snapshot of index %d in %.1f s", spool.index, now() - spool.since)

    def fail(self, why: str) -> None:
        """Only this copy is lost: the peer that waits for it asks again, and there is another try after a while."""
        logger.error("%s", why)
        self.trouble = why
        self._not_before = now() + self._limits.snapshot_retry_s
        self.drop()

    def _found_damage(self, what: str) -> None:
        """A damaged state is not handed on; whoever waits for it gets it from another leader."""
        self.damage = f"a copy of it for another peer failed: {what}"
        self.fail(self.damage)

    def reader_age_s(self) -> float:
        """How long the copy under way has pinned pages of the database; 0 when there is none."""
        return now() - self._spool.since if self._spool is not None and self._spool.copying else 0.0

    def drop(self) -> None:
        """End a copy that is under way, and remove the file."""
        spool, self._spool = self._spool, None
        if spool is None:
            return
        self._on_end()
        if self._threaded:
            # Freeing the blocks of gigabytes takes the file system long.
            self._removal = threading.Thread(target=spool.remove, name="remove-snapshot")
            self._removal.start()
        else:
            spool.remove()

    def close(self) -> None:
        """Drop the spool, and wait until it is gone."""
        self.drop()
        if self._removal is not None:
            self._removal.join()
