"""The format of a backup: one committed moment of the replicated state, compressed, with what a new epoch needs of it.

    file      magic, frame..., label, footer
    magic     "raftreg-backup", 0, version of this format                                              16 bytes
    frame     as `raftreg.snapshot_file` has it: a snapshot's chunks, then chunks of the log behind it
    log       the body of such a chunk: ["log", compressed (zstd) log entries, one after the other]
    label     msgpack map, the fields of `Label`
    footer    magic (16 bytes), offset of the label (8), crc32 of the label and of both before (4)

Integers are big-endian. The state on disk is up to a second older than what was acknowledged, the log is not. Every
byte is under a checksum, and chunks and entries are counted, so that none can be lost or swapped.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgpack

from raftreg.config import MIB
from raftreg.snapshot_file import Chunk, ChunkWriter, Content, Malformed, Row, read_chunk
from raftreg.store import LogEntry, StoreError
from raftreg.tables import DIGEST_MODULUS, DIGESTED, HEAD, DamagedHead, Head, UnknownLevel, decode_head, row_hash

VERSION = 3
_MAGIC_START = b"raftreg-backup\0"
_MAGIC = b"%s%c" % (_MAGIC_START, VERSION)
_FOOTER = struct.Struct(">16sQI")
_FOOTER_FACTS = struct.Struct(">16sQ")
_CRC = struct.Struct(">I")
_LOG = "log"
_LABEL_BYTES_MAX = 1 * MIB

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Is told now and then how much is done, and of how much."""


def no_progress(_done: int, _total: int) -> None:
    """For work that nobody watches."""


class BackupError(StoreError):
    """The file is no whole backup, or none can be made; the message says what to do."""


@dataclass(frozen=True)
class Label:
    """What a backup is of. The state is that of `log_index`; entries up to `log_last` come with it."""

    version: int
    cluster_id: str
    epoch: int
    generation: int
    voters: tuple[str, ...]
    peer: str
    release: str
    created_us: int
    log_index: int
    log_last: int
    revision: int
    next_id: int
    images: int

    def age_s(self, now_us: int) -> float:
        return max(0.0, (now_us - self.created_us) / 1_000_000)


# -- writing ------------------------------------------------------------------------------------------------------


class BackupWriter(ChunkWriter):
    """Writes into a file that is open for writing and empty: `write_snapshot`, then the log, then the end."""

    def __init__(self, file: BinaryIO, chunk_bytes: int) -> None:
        super().__init__(file, chunk_bytes)
        self._file = file
        file.write(_MAGIC)

    def write_log(self, entries: Iterable[LogEntry], after_chunk: Callable[[], None]) -> None:
        """The log entries behind the snapshot, one chunk of them in memory at a time."""
        packed: list[bytes] = []
        size = 0
        for entry in entries:
            packed.append(msgpack.packb(entry))
            size += len(packed[-1])
            if size >= self.chunk_bytes:
                self.write_compressed(_LOG, b"".join(packed))
                packed, size = [], 0
                after_chunk()
        if packed:
            self.write_compressed(_LOG, b"".join(packed))

    def finish(self, label: Label) -> None:
        """Label and footer; all of the file is on disk then."""
        packed = msgpack.packb(vars(label))
        facts = _FOOTER_FACTS.pack(_MAGIC, self._file.tell())
        self._file.write(packed + facts + _CRC.pack(zlib.crc32(packed + facts)))
        self._file.flush()
        os.fsync(self._file.fileno())


# -- reading ------------------------------------------------------------------------------------------------------


def read_label(path: Path) -> Label:
    """What a file says of itself, without reading the rest. Raises BackupError, OSError."""
    with path.open("rb") as file:
        return _read_label(path, file)[0]


def _read_label(path: Path, file: BinaryIO) -> tuple[Label, int]:
    """The label, and where it begins."""
    size = file.seek(0, os.SEEK_END)
    if size < len(_MAGIC) + _FOOTER.size:
        raise BackupError(f"{path} is no backup, or was cut off: it has only {size} bytes")
    file.seek(0)
    _check_magic(path, file.read(len(_MAGIC)), "begin")
    file.seek(size - _FOOTER.size)
    footer = file.read(_FOOTER.size)
    magic, offset, crc = _FOOTER.unpack(footer)
    _check_magic(path, magic, "end")
    length = size - _FOOTER.size - offset
    if not 0 < length <= _LABEL_BYTES_MAX:
        raise BackupError(f"{path} is damaged: its label is not where the footer says; take another backup")
    file.seek(offset)
    packed = file.read(length)
    if zlib.crc32(packed + footer[: _FOOTER_FACTS.size]) != crc:
        raise BackupError(f"{path} is damaged: the checksum of label and footer does not match; take another backup")
    fields: dict[str, Any] = msgpack.unpackb(packed)
    # A later release may say more in the same format.
    known = {field.name: fields[field.name] for field in dataclasses.fields(Label)}
    return Label(**{**known, "voters": tuple(known["voters"])}), offset


def _check_magic(path: Path, magic: bytes, where: str) -> None:
    if magic == _MAGIC:
        return
    if magic[:-1] == _MAGIC_START:
        raise BackupError(
            f"{path} has format {magic[-1]}, this release reads format {VERSION}; verify and restore it with the "
            "release of raftreg that made it, then take a backup with this one"
        )
    raise BackupError(f"{path} is no backup, or was cut off: it does not {where} like one; take another backup")


class Backup:
    """A backup that is open for reading. First all of `rows`, then all of `log` is read, once; each fails at its end
    unless all of it fits. `progress` is told bytes of the file."""

    def __init__(self, path: Path, progress: Progress = no_progress) -> None:
        """Raises BackupError, OSError."""
        self._path, self._progress = path, progress
        self._file = path.open("rb")
        try:
            self.label, self._end = _read_label(path, self._file)
            self._file.seek(len(_MAGIC))
            self._content = self._checked(lambda: Content(self._next_chunk()))
            self.last, self.previous = self._content.entries
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Backup:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _next_chunk(self) -> Chunk:
        chunk = read_chunk(self._file)
        if chunk is None or self._file.tell() > self._end:
            raise Malformed("its chunks end too early")
        self._progress(self._file.tell(), self._end)
        return chunk

    def _checked(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except Malformed as error:
            raise self._damaged(error) from error

    def _damaged(self, why: object) -> BackupError:
        return BackupError(f"{self._path} is damaged before byte {self._file.tell()}: {why}; take another backup")

    def rows(self) -> Iterator[list[Row]]:
        """The rows in key order, chunk by chunk."""
        rows_digest = 0
        head: Head | None = None
        while (rows := self._checked(lambda: self._content.take(self._next_chunk()))) is not None:
            rows_digest += sum(row_hash(key, value) for key, value in rows if key[0] in DIGESTED)
            head = next((self._head(value) for key, value in rows if key == HEAD), head)
            yield rows
        if head is None or head.rows_digest != rows_digest % DIGEST_MODULUS:
            raise BackupError(
                f"{self._path}: the state's digest is not that of its rows: the peer it was taken from was damaged; "
                "take another backup from another peer"
            )

    def _head(self, row: bytes) -> Head:
        """The first row of all: nothing is used of a state that this release does not read."""
        try:
            return decode_head(row)
        except UnknownLevel as unknown:
            raise BackupError(f"{self._path} is of another release: {unknown}") from None
        except DamagedHead as damage:
            raise self._damaged(f"the head of its state: {damage}") from None

    def log(self) -> Iterator[LogEntry]:
        """The log entries behind the state, in order."""
        expected = self.label.log_index
        while self._file.tell() < self._end:
            for entry in self._checked(self._next_entries):
                expected += 1
                if entry[1] != expected:
                    raise self._damaged("its log has a hole")
                yield entry
        if expected != self.label.log_last:
            raise self._damaged(f"its log ends at {expected}, not at {self.label.log_last}")
        self._progress(self._end, self._end)

    def _next_entries(self) -> list[LogEntry]:
        kind, *parts = self._content.open(self._next_chunk())
        entries = self._content.lists(parts[0]) if kind == _LOG and len(parts) == 1 else []
        if not entries or any([type(part) for part in entry] != [bytes, int, int] for entry in entries):
            raise Malformed("what follows its rows is no log")
        return entries
