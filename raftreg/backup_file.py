"""The format of a backup: one committed moment of the replicated state, compressed, with what a new epoch needs of it.

    file      magic, block..., label, footer
    magic     "raftreg-backup", 0, version of this format                                              16 bytes
    block     crc32 of length and data (4 bytes), length of the data (4), the data: up to BLOCK_BYTES, deflated (zlib)
    label     msgpack map, the fields of `Label`
    footer    magic (16 bytes), offset of the label (8), crc32 of the label and of both before (4)

All integers are big-endian. What the blocks hold, one after the other, is a snapshot as `raftreg.snapshot_file` has it
(header with the last two log entries, rows in key order, trailer with count and checksum; each chunk with its own
crc32), then the log behind it: frames of length (4 bytes), msgpack of [crc32, entry]. The state on disk is up to a
second older than what was acknowledged, the log is not.

Every byte is under a checksum, and blocks, chunks and entries are counted, so that none can be lost or swapped. zlib's
fastest level: of 100,000 images (188 MB) it leaves 29 MB at 138 MB/s; level 6 saves a tenth more at a third of the
speed, lzma a quarter at a seventh; and while it is compressed, a read transaction pins pages of the database.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from raftreg import config
from raftreg.config import MIB
from raftreg.store import LogEntry, StoreError
from raftreg.tables import (
    DIGEST_MODULUS,
    DIGESTED,
    HEAD,
    DamagedHead,
    Head,
    UnknownLevel,
    decode_head,
    row_hash,
    unpack,
)

VERSION = 2
BLOCK_BYTES = 1 * MIB
_MAGIC_START = b"raftreg-backup\0"
_MAGIC = b"%s%c" % (_MAGIC_START, VERSION)
_FOOTER = struct.Struct(">16sQI")
_FOOTER_FACTS = struct.Struct(">16sQ")
_BLOCK_HEAD = struct.Struct(">II")
_LENGTH = struct.Struct(">I")
_COMPRESSION_LEVEL = 1
# What zlib makes of a block that cannot be compressed is hardly larger than the block.
_DEFLATED_BYTES_MAX = BLOCK_BYTES + 4096
_LABEL_BYTES_MAX = 1 * MIB
_FRAME_BYTES_MAX = 2 * config.Limits.frame_bytes_max  # far above what any configuration can have written

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


class BackupWriter:
    """Compresses what is written to it, block by block, into a file that is open for writing and empty.

    `before_write` is called with the bytes that are about to be written; what it raises ends the backup.
    """

    def __init__(self, file: BinaryIO, before_write: Callable[[int], None]) -> None:
        self._file, self._before_write = file, before_write
        self._block = bytearray()
        file.write(_MAGIC)

    def write(self, data: bytes, /) -> int:
        self._block += data
        while len(self._block) >= BLOCK_BYTES:
            self._write_block(bytes(memoryview(self._block)[:BLOCK_BYTES]))
            del self._block[:BLOCK_BYTES]
        return len(data)

    def flush(self) -> None:
        """Hand whole blocks to the operating system; one that is not full stays."""
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def write_entry(self, entry: LogEntry) -> None:
        """A log entry behind the snapshot."""
        body = msgpack.packb(entry)
        frame = msgpack.packb((zlib.crc32(body), body))
        self.write(_LENGTH.pack(len(frame)) + frame)

    def finish(self, label: Label) -> None:
        """The last block, label and footer; all of it is on disk then."""
        if self._block:
            self._write_block(bytes(self._block))
        packed = msgpack.packb(vars(label))
        facts = _FOOTER_FACTS.pack(_MAGIC, self._file.tell())
        self._file.write(packed + facts + _LENGTH.pack(zlib.crc32(packed + facts)))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write_block(self, content: bytes) -> None:
        data = zlib.compress(content, _COMPRESSION_LEVEL)
        self._before_write(_BLOCK_HEAD.size + len(data))
        length = _LENGTH.pack(len(data))
        self._file.write(_LENGTH.pack(zlib.crc32(data, zlib.crc32(length))) + length + data)


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


class _Blocks:
    """The content of a file's blocks as one stream; one block is in memory at a time."""

    def __init__(self, path: Path, file: BinaryIO, end: int) -> None:
        self._path, self._file, self._end = path, file, end
        self._block, self._taken = b"", 0

    @property
    def ended(self) -> bool:
        return self._taken == len(self._block) and self._file.tell() >= self._end

    def read(self, length: int) -> bytes:
        """Exactly so many bytes. Raises BackupError where the blocks end before."""
        parts = []
        while length:
            if self._taken == len(self._block):
                self._block, self._taken = self._next_block(), 0
            part = self._block[self._taken : self._taken + length]
            parts.append(part)
            self._taken += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def damaged(self, why: object) -> BackupError:
        return BackupError(f"{self._path} is damaged before byte {self._file.tell()}: {why}; take another backup")

    def _next_block(self) -> bytes:
        start, file = self._file.tell(), self._file
        if start + _BLOCK_HEAD.size > self._end:
            raise self.damaged("its blocks end too early")
        head = file.read(_BLOCK_HEAD.size)
        crc, length = _BLOCK_HEAD.unpack(head)
        if not 0 < length <= min(_DEFLATED_BYTES_MAX, self._end - file.tell()):
            raise self.damaged("a block has no possible length")
        data = file.read(length)
        if zlib.crc32(data, zlib.crc32(head[_LENGTH.size :])) != crc:
            raise self.damaged("the checksum of a block does not match")
        inflating = zlib.decompressobj()
        try:
            content = inflating.decompress(data, BLOCK_BYTES + 1)
        except zlib.error as error:
            raise self.damaged(error) from None
        if not 0 < len(content) <= BLOCK_BYTES or not inflating.eof or inflating.unused_data:
            raise self.damaged("a block does not hold what it should")
        return content


class Backup:
    """A backup that is open for reading. First all of `rows`, then all of `log` is read, once; each fails at its end
    unless all of it fits. `progress` is told bytes of the file."""

    def __init__(self, path: Path, progress: Progress = no_progress) -> None:
        """Raises BackupError, OSError."""
        self._path, self._progress = path, progress
        self._file = path.open("rb")
        self._snapshot_id: bytes | None = None
        self._sequence = 0
        try:
            self.label, self._end = _read_label(path, self._file)
            self._file.seek(len(_MAGIC))
            self._blocks = _Blocks(path, self._file, self._end)
            kind, *entries = unpack(self._next_body())
            if kind != "header":
                raise self._blocks.damaged("it does not begin with a snapshot's header")
            self.last, self.previous = map(_entry, entries)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Backup:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _next_frame(self) -> Any:
        length = _LENGTH.unpack(self._blocks.read(_LENGTH.size))[0]
        if not 0 < length <= _FRAME_BYTES_MAX:
            raise self._blocks.damaged("a frame has no possible length")
        try:
            return msgpack.unpackb(self._blocks.read(length))
        except ValueError as error:
            raise self._blocks.damaged(error) from None

    def _next_body(self) -> bytes:
        try:
            snapshot_id, sequence, crc, body = self._next_frame()
        except (ValueError, TypeError) as error:
            raise self._blocks.damaged(error) from None
        self._snapshot_id = self._snapshot_id or snapshot_id
        if (snapshot_id, sequence, crc) != (self._snapshot_id, self._sequence, zlib.crc32(body)):
            raise self._blocks.damaged("a chunk is missing, or its checksum is wrong")
        self._sequence += 1
        self._progress(self._file.tell(), self._end)
        return bytes(body)

    def rows(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """The rows in key order, chunk by chunk."""
        checksum, count, rows_digest = blake2b(digest_size=16), 0, 0
        head: Head | None = None
        while True:
            body = self._next_body()
            kind, *content = unpack(body)
            if kind != "rows":
                break
            rows: list[tuple[bytes, bytes]] = [(key, value) for key, value in content[0]]
            checksum.update(body)
            count += len(rows)
            rows_digest += sum(row_hash(key, value) for key, value in rows if key[0] in DIGESTED)
            head = next((self._head(value) for key, value in rows if key == HEAD), head)
            yield rows
        if (kind, content) != ("trailer", [count, checksum.digest()]):
            raise self._blocks.damaged("row count or checksum of the whole does not match")
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
            raise self._blocks.damaged(f"the head of its state: {damage}") from None

    def log(self) -> Iterator[LogEntry]:
        """The log entries behind the state, in order."""
        expected = self.label.log_index
        while not self._blocks.ended:
            expected += 1
            try:
                crc, body = self._next_frame()
                entry = _entry(unpack(body))
            except (ValueError, TypeError) as error:
                raise self._blocks.damaged(error) from None
            if (crc, expected) != (zlib.crc32(body), entry[1]):
                raise self._blocks.damaged("its log has a hole or a wrong checksum")
            yield entry
        if expected != self.label.log_last:
            raise self._blocks.damaged(f"its log ends at {expected}, not at {self.label.log_last}")
        self._progress(self._end, self._end)


def _entry(fields: list[Any]) -> LogEntry:
    command, index, term = fields
    return command, index, term
