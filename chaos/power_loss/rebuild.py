"""The files that a power failure may leave, rebuilt from a record of writes and syncs.

The model: what was synced is there. Of what was written since, the disk may have kept anything, for the kernel writes
pages back when and in which order it likes, and a disk promises to store a sector of 512 bytes whole or not at all. So
each sector holds what the last sync left in it, or what any later write put there.
"""

from __future__ import annotations

import enum
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chaos import config

# struct note in recorder.c
_HEADER = struct.Struct("=c7xQQQ")
SECTOR_BYTES = 512
PAGE_BYTES = 4096


class BadRecord(Exception):
    """A record from which no file can be rebuilt. The message says why."""


class Kept(enum.StrEnum):
    """What the disk kept of the writes after the last sync."""

    NOTHING = "nothing"
    EVERYTHING = "everything"
    FIRST = "first"  # the first ones, in order
    WRITES = "writes"  # any of them, each whole
    PAGES = "pages"  # each page of 4 KiB in any of its versions
    SECTORS = "sectors"  # each sector of 512 bytes in any of its versions


@dataclass(frozen=True)
class Note:
    """One note of a record; see recorder.c for what the kinds mean."""

    kind: str
    sequence: int
    offset: int
    length: int
    data: bytes = b""


def notes(record: Path) -> Iterator[Note]:
    """The notes of a record file. A last one that was cut short by the death of the process is passed over."""
    with record.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            kind, sequence, offset, length = _HEADER.unpack(header)
            if kind == b"W" and length > config.RECORDED_WRITE_BYTES_MAX:
                raise BadRecord(f"{record}: a write of {length} bytes; the record is damaged")
            data = file.read(length) if kind == b"W" else b""
            if kind == b"W" and len(data) < length:
                return
            yield Note(kind.decode("ascii"), sequence, offset, length, data)


class Disk:
    """One file on a disk that may lose power: what is durable, and what was written to it since."""

    def __init__(self, base: bytes = b"") -> None:
        self._durable = bytearray(base)
        self._pending: list[Note] = []
        self.marks: list[int] = []

    def take(self, note: Note) -> None:
        """Let one note happen. Raises BadRecord for what can't be rebuilt."""
        match note.kind:
            case "W":
                self._pending.append(note)
            case "R":
                self._shorten(note)
            case "D":
                self._sync_write(note)
            case "S":
                self._sync()
            case "T":
                self._cut(note)
            case "N":
                self.marks.append(note.sequence)
            case "M":
                raise BadRecord("the file was mapped for writing (MDB_WRITEMAP); such writes can't be recorded")
            case _:
                raise BadRecord(f"unknown note {note.kind!r}; the record is damaged")

    @property
    def pending_writes(self) -> int:
        """How many writes the disk may still lose."""
        return len(self._pending)

    def after_power_loss(self, kept: Kept, chance: random.Random) -> bytes:
        """A file that may be found when power is back."""
        found = bytearray(self._durable)
        match kept:
            case Kept.NOTHING:
                pass
            case Kept.EVERYTHING:
                _apply(found, self._pending)
            case Kept.FIRST:
                _apply(found, self._pending[: chance.randint(0, len(self._pending))])
            case Kept.WRITES:
                _apply(found, [write for write in self._pending if chance.random() < 0.5])
            case Kept.PAGES | Kept.SECTORS:
                self._mix(found, PAGE_BYTES if kept is Kept.PAGES else SECTOR_BYTES, chance)
        return bytes(found)

    def _mix(self, found: bytearray, block_bytes: int, chance: random.Random) -> None:
        """Each block as the sync left it, or as it was after any one of the later writes that touched it."""
        blocks = sorted({block for write in self._pending for block in _blocks(write, block_bytes)})
        versions = dict.fromkeys(blocks, 0)
        for write in self._pending:
            for block in _blocks(write, block_bytes):
                versions[block] += 1
        chosen = {block: chance.randint(0, versions[block]) for block in blocks}
        seen = dict.fromkeys(blocks, 0)
        for write in self._pending:
            for block in _blocks(write, block_bytes):
                seen[block] += 1
                if seen[block] <= chosen[block]:
                    _apply(found, [_within(write, block * block_bytes, (block + 1) * block_bytes)])

    def _sync(self) -> None:
        _apply(self._durable, self._pending)
        self._pending.clear()

    def _sync_write(self, note: Note) -> None:
        """A synchronous write stores the pages that it touches, with all that was written to them before."""
        upto = next((rank for rank, write in enumerate(self._pending) if write.sequence == note.sequence), None)
        if upto is None:
            raise BadRecord(f"write {note.sequence} became durable without having happened; the record is damaged")
        stored = set(_blocks(self._pending[upto], PAGE_BYTES))
        rest = []
        for rank, write in enumerate(self._pending):
            for block in _blocks(write, PAGE_BYTES):
                part = _within(write, block * PAGE_BYTES, (block + 1) * PAGE_BYTES)
                if rank <= upto and block in stored:
                    _apply(self._durable, [part])
                else:
                    rest.append(part)
        self._pending = rest

    def _shorten(self, note: Note) -> None:
        self._pending = [
            _within(write, write.offset, write.offset + note.length) if write.sequence == note.sequence else write
            for write in self._pending
        ]

    def _cut(self, note: Note) -> None:
        """A change of length is taken as durable with all before it; LMDB only makes one outside of transactions."""
        self._sync()
        _reach(self._durable, note.length)
        del self._durable[note.length :]


def _blocks(write: Note, block_bytes: int) -> range:
    """Numbers of the blocks that a write touches."""
    end = write.offset + len(write.data)
    return range(write.offset // block_bytes, -(-end // block_bytes))


def _within(write: Note, start: int, end: int) -> Note:
    """The part of a write that lies in [start, end)."""
    first, last = max(start, write.offset), min(end, write.offset + len(write.data))
    data = write.data[first - write.offset : max(first, last) - write.offset]
    return Note("W", write.sequence, first, len(data), data)


def _apply(file: bytearray, writes: list[Note]) -> None:
    for write in writes:
        end = write.offset + len(write.data)
        _reach(file, end)
        file[write.offset : end] = write.data


def _reach(file: bytearray, length: int) -> None:
    """Make the file at least this long; a hole reads as zeros."""
    if length > config.RECORDED_FILE_BYTES_MAX:
        raise BadRecord(f"the file grows to {length} bytes, above chaos.config.RECORDED_FILE_BYTES_MAX")
    if length > len(file):
        file.extend(bytes(length - len(file)))


def disk_of(record: Path, base: bytes = b"") -> Disk:
    """The disk at the end of a record that began with the file `base`."""
    disk = Disk(base)
    for note in notes(record):
        disk.take(note)
    return disk


def rebuild(record: Path, base: bytes, file: Path, *, seed: int) -> str:
    """Put in place of `file` one that a power failure at the end of the record may have left.

    What the disk kept is drawn by `seed`. Returns a sentence that says what was drawn, for the log of a test.
    """
    chance = random.Random(seed)
    disk = disk_of(record, base)
    kept = chance.choice(list(Kept))
    data = disk.after_power_loss(kept, chance)
    file.write_bytes(data)
    return f"{file}: {len(data)} bytes, {disk.pending_writes} writes since the last sync, kept: {kept} (seed {seed})"
