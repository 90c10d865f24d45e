"""Making a backup of a peer, which may be running, and reading one through; `raftreg.backup_file` has its format.

It is made beside its final name and renamed when all of it is on disk, so a file with that name is whole.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from raftreg.backup_file import VERSION, Backup, BackupError, BackupWriter, Label, Progress, no_progress
from raftreg.config import MIB, Limits, PeerConfig
from raftreg.records import DamagedRecord
from raftreg.snapshot_file import write_snapshot
from raftreg.state_scrub import checked_rows
from raftreg.store import Store, sync_directory
from raftreg.stored_peer import opened_at
from raftreg.tables import read_head

__all__ = ["Backup", "BackupError", "Label", "NoRoom", "NothingYet", "create", "create_at", "partial_of", "verify"]

# Pages of the database become at least so many times smaller; images of users compress ten times and more (half-full
# pages count too). What turns out larger is stopped by the same reserve while it is written.
_SHRINKS_AT_LEAST = 4
# Between two looks at the disk's room: far below any reserve, and one system call for many blocks.
_ROOM_CHECK_BYTES = 8 * MIB


class NoRoom(BackupError):
    """The target disk has too little room; nothing is left on it."""


def create(settings: PeerConfig, file: Path, *, now_us: int | None = None, progress: Progress = no_progress) -> Label:
    """Copy the state of a peer, which may be running, into `file`. Its reader pins pages of the database for no longer
    than `snapshot_reader_max_s`. `progress` is told rows.

    Raises BackupError, StoreError, OSError (TimeoutError among them); no file is left.
    """
    return create_at(settings.data_dir, settings.name, settings.limits, file, now_us=now_us, progress=progress)


def create_at(
    data_dir: Path,
    name: str,
    limits: Limits,
    file: Path,
    *,
    now_us: int | None = None,
    progress: Progress = no_progress,
    go_on: Callable[[], bool] = lambda: True,
) -> Label:
    """`create` for whoever has no configuration at hand. When `go_on` says no, it raises InterruptedError."""
    if file.exists():
        raise BackupError(f"{file} is there already; a backup is never overwritten")
    if not file.parent.is_dir():
        raise BackupError(f"{file.parent} is no directory; make it, or name another place")
    partial = partial_of(file)
    room = _Room(partial.parent, limits.disk_reserve_bytes)
    watch = _Watch(limits.snapshot_reader_max_s, go_on)
    try:
        with opened_at(data_dir, name, limits.map_size_bytes) as store:
            label = _label(name, store, now_us if now_us is not None else time.time_ns() // 1000)
            room.expect(store.used_bytes() // _SHRINKS_AT_LEAST)
            _write(partial, store, label, limits.snapshot_chunk_bytes, room, watch, progress)
        partial.replace(file)
        sync_directory(file.parent)
    except DamagedRecord as damage:
        raise BackupError(f"{name} is damaged ({damage}): take the backup from another peer") from damage
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
    return label


def partial_of(file: Path) -> Path:
    """Where a backup is made that will be `file`."""
    return file.with_name(f".{file.name}.partial")


class NothingYet(BackupError):
    """The peer has applied nothing so far."""


class _Room:
    """What is free on a disk, of which `reserve` bytes are to stay free: a peer may live there."""

    def __init__(self, directory: Path, reserve: int) -> None:
        self._directory, self._reserve = directory, reserve
        self._checked_at = 0

    def expect(self, size: int) -> None:
        """Raises NoRoom unless so many bytes fit."""
        free = shutil.disk_usage(self._directory).free
        if free < size + self._reserve:
            raise NoRoom(
                f"{self._directory} has {free} bytes free; a backup takes about {size}, and {self._reserve} are kept "
                "free (limits.disk_reserve_bytes): make room, or name another disk"
            )

    def follow(self, written: int) -> None:
        """So many bytes are written, and more are to come. Raises NoRoom."""
        if written - self._checked_at >= _ROOM_CHECK_BYTES:
            self._checked_at = written
            self.expect(_ROOM_CHECK_BYTES)


class _Watch:
    """Ends what pins a reader for too long, or for nobody."""

    def __init__(self, reader_max_s: float, go_on: Callable[[], bool]) -> None:
        self._reader_max_s, self._go_on = reader_max_s, go_on
        self._deadline = time.monotonic() + reader_max_s

    def check(self) -> None:
        if time.monotonic() > self._deadline:
            raise TimeoutError(
                f"the backup took more than {self._reader_max_s} s, so long it may pin pages of the database; take a "
                "faster disk, or raise limits.snapshot_reader_max_s"
            )
        if not self._go_on():
            raise InterruptedError("nobody waits for this backup any more")


def _label(name: str, store: Store, now_us: int) -> Label:
    identity, head = store.identity, read_head(store.view())
    if head.applied < 2:
        raise NothingYet(f"{name} has applied nothing yet: there is nothing to back up")
    last = store.last_log_entry()
    assert last is not None
    return Label(
        version=VERSION,
        cluster_id=identity.cluster_id,
        epoch=identity.epoch,
        generation=identity.membership_generation,
        voters=identity.peers,
        peer=identity.peer,
        release=importlib.metadata.version("raftreg"),
        created_us=now_us,
        log_index=head.applied,
        log_last=last[1],
        revision=head.revision,
        next_id=head.next_id,
        images=head.images,
    )


def _write(
    partial: Path, store: Store, label: Label, chunk_bytes: int, room: _Room, watch: _Watch, progress: Progress
) -> None:
    total = store.state_rows()
    collects = gc.isenabled()
    gc.disable()  # rows are many and hold no cycles
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            writer = BackupWriter(file, chunk_bytes)

            def after_log_chunk() -> None:
                room.follow(file.tell())
                watch.check()

            def after_chunk(rows: int) -> None:
                after_log_chunk()
                progress(rows, total)

            write_snapshot(store.begin_read(), label.log_index, writer, after_chunk, checked_rows)
            writer.write_log(store.log_after(label.log_index), after_log_chunk)
            writer.finish(label)
    finally:
        if collects:
            gc.enable()


def verify(path: Path, progress: Progress = no_progress) -> tuple[Label, int]:
    """Read all of a backup; its label and how many rows it has. `progress` is told bytes.

    Raises BackupError, OSError.
    """
    with Backup(path, progress) as backup:
        rows = sum(len(chunk) for chunk in backup.rows())
        for _ in backup.log():
            pass
        return backup.label, rows
