"""A snapshot as a file, and its chunks one by one: header, rows in key order, trailer.

    file     frame...                         frame   length (4 bytes, big-endian), msgpack of a chunk
    chunk    [snapshot ID, sequence, crc32 of the body, body]
    body     msgpack of ["header", log entry at the applied index, the entry before it]   sequence 0
                     or ["rows", content]
                     or ["trailer", number of rows, blake2b of all bodies with rows]
    content  compressed (zstd): msgpack of [[key, value]...], one list after the other

Keys of an index have much in common: compression leaves a tenth of a million images, on disk, on the link and in what
is encrypted, and costs less time than writing the rest would. Nothing here knows Raft or who reads the file: a peer
that lags gets the chunks, a backup has them in its file (`backup_file`).
"""

from __future__ import annotations

import gc
import os
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import zstandard

from raftreg import config
from raftreg.config import MIB
from raftreg.store import LogEntry, StateReader
from raftreg.tables import View

Row = tuple[bytes, bytes]
Chunk = tuple[bytes, int, int, bytes]

_LENGTH = struct.Struct(">I")
_HEADER, _ROWS, _TRAILER = "header", "rows", "trailer"
_ID_BYTES, _CHECKSUM_BYTES = 8, 16
# What may wait in the page cache: gigabytes of it, once written back, make every fsync of the peers wait for seconds.
_UNSYNCED_BYTES_MAX = 32 * MIB
_ROWS_AT_ONCE = 64
_COMPRESSION_LEVEL = 1
# Of a frame, and of what is compressed in one: far above what any configuration can have written.
_BYTES_MAX = 2 * config.Limits.frame_bytes_max

CheckedRows = Callable[[View, Iterator[list[Row]]], Iterator[list[Row]]]
"""Passes all rows of a view on, list by list in key order, and raises DamagedRecord where they are not what was
written."""


def unchecked_rows(_view: View, rows: Iterator[list[Row]]) -> Iterator[list[Row]]:
    """For a state that has no digest."""
    return rows


class Malformed(ValueError):
    """These are not the chunks of one intact snapshot; the message says what is wrong."""


# -- writing ------------------------------------------------------------------------------------------------------


def copy_to_spool(
    reader: StateReader,
    index: int,
    path: Path,
    chunk_bytes: int,
    reader_max_s: float,
    go_on: Callable[[], bool] = lambda: True,
    checked_rows: CheckedRows = unchecked_rows,
) -> None:
    """Write the state of one committed moment, which has applied `index`, to `path`.

    One chunk is in memory at a time. Raises TimeoutError past `reader_max_s`, InterruptedError when `go_on` says no.
    """
    deadline = time.monotonic() + reader_max_s

    def in_time(_rows: int) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"copying a snapshot took more than {reader_max_s} s; see snapshot_reader_max_s")
        if not go_on():
            raise InterruptedError("nobody waits for this snapshot any more")

    with path.open("wb") as file:
        write_snapshot(reader, index, ChunkWriter(file, chunk_bytes), in_time, checked_rows)


def write_snapshot(
    reader: StateReader,
    index: int,
    writer: ChunkWriter,
    after_chunk: Callable[[int], None],
    checked_rows: CheckedRows = unchecked_rows,
) -> None:
    """Write the state, which has applied `index`, one chunk in memory at a time.

    `after_chunk` is told after each one how many rows are written in all; what it raises ends the writing.
    """
    writer.write(_HEADER, reader.log_entry(index), reader.log_entry(index - 1))
    checksum, written = blake2b(digest_size=_CHECKSUM_BYTES), 0
    pieces = checked_rows(reader.view(), _pieces(reader.rows()))
    for count, content in _contents(pieces, writer.chunk_bytes):
        checksum.update(writer.write_compressed(_ROWS, content))
        written += count
        after_chunk(written)
    writer.write(_TRAILER, written, checksum.digest())


def _pieces(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Millions of rows pass: what is done for each of them would cost more than all the rest of the copy."""
    while piece := list(islice(rows, _ROWS_AT_ONCE)):
        yield piece


def _contents(pieces: Iterator[list[Row]], chunk_bytes: int) -> Iterator[tuple[int, bytes]]:
    """How many rows, and their encoding: of `chunk_bytes` together, or a little more."""
    packed: list[bytes] = []
    count = size = 0
    for piece in pieces:
        encoded = msgpack.packb(piece)
        parts = [(piece, encoded)] if len(encoded) <= chunk_bytes else [([row], msgpack.packb([row])) for row in piece]
        for rows, part in parts:
            packed.append(part)
            count, size = count + len(rows), size + len(part)
            if size >= chunk_bytes:
                yield count, b"".join(packed)
                packed, count, size = [], 0, 0
    if packed:
        yield count, b"".join(packed)


class ChunkWriter:
    """Numbers chunks and writes them to a file. What is compressed in one should hold about `chunk_bytes`."""

    def __init__(self, file: BinaryIO, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self._file = file
        self._id = random.randbytes(_ID_BYTES)
        self._sequence = self._unsynced = 0
        self._compressor = zstandard.ZstdCompressor(level=_COMPRESSION_LEVEL)

    def write_compressed(self, kind: str, content: bytes) -> bytes:
        """Write a chunk; its body."""
        return self.write(kind, self._compressor.compress(content))

    def write(self, *parts: Any) -> bytes:
        """Write a chunk; its body."""
        body: bytes = msgpack.packb(parts)
        frame = msgpack.packb((self._id, self._sequence, zlib.crc32(body), body))
        self._file.write(_LENGTH.pack(len(frame)))
        self._file.write(frame)
        self._sequence += 1
        self._unsynced += len(frame)
        if self._unsynced > _UNSYNCED_BYTES_MAX:
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self._unsynced = 0
        return body


# -- reading ------------------------------------------------------------------------------------------------------


def read_chunk(file: BinaryIO) -> Chunk | None:
    """The next chunk of a file, unchecked; None at its end. Raises Malformed when it is cut off."""
    prefix = file.read(_LENGTH.size)
    if not prefix:
        return None
    length = int.from_bytes(prefix, "big")
    if length > _BYTES_MAX:
        raise Malformed(f"a frame of {length} bytes")
    frame = file.read(length) if len(prefix) == _LENGTH.size else b""
    try:
        snapshot_id, sequence, crc, body = msgpack.unpackb(frame)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise Malformed(f"a frame cannot be read: {error}") from error
    return snapshot_id, sequence, crc, body


def frame_end(file: BinaryIO, written: int) -> int | None:
    """Where the next frame ends, of a file of which `written` bytes are there; None: it is not there as a whole.

    The position in the file stays.
    """
    offset = file.tell()
    if written - offset < _LENGTH.size:
        return None
    prefix = file.read(_LENGTH.size)
    file.seek(offset)
    end: int = offset + _LENGTH.size + _LENGTH.unpack(prefix)[0]
    return end if end <= written else None


def read_header(path: Path) -> tuple[LogEntry, LogEntry]:
    """The log entry at the applied index of a snapshot file, and the one before it. Raises Malformed, OSError."""
    with path.open("rb") as file:
        return _begin(file).entries


def read_rows(path: Path) -> Iterator[list[Row]]:
    """All rows of a snapshot file in key order, a chunk at a time.

    Raises Malformed, OSError; only when the iterator has ended by itself was the file whole.
    """
    with path.open("rb") as file:
        content = _begin(file)
        while (chunk := read_chunk(file)) is not None:
            rows = content.take(chunk)
            if rows is None:
                return
            yield rows
    raise Malformed("the file ends before its trailer")


def _begin(file: BinaryIO) -> Content:
    first = read_chunk(file)
    if first is None:
        raise Malformed("the file is empty")
    return Content(first)


def is_first(chunk: Chunk) -> bool:
    """Whether a snapshot begins with this chunk."""
    return chunk[1] == 0


class Content:
    """The chunks of one snapshot in their order, checked as they come. It begins with the first one."""

    def __init__(self, first: Chunk) -> None:
        """Raises Malformed."""
        kind, *parts = _open(first)
        if kind != _HEADER or not is_first(first):
            raise Malformed("a snapshot begins with its header")
        if len(parts) != 2 or not all(type(entry) is tuple and _kinds(entry) == [bytes, int, int] for entry in parts):
            raise Malformed("its header does not name two log entries")
        self.snapshot_id = first[0]
        self.entries: tuple[LogEntry, LogEntry] = (parts[0], parts[1])
        self.next_sequence = 1
        self.rows = 0
        self.content_bytes = 0
        """What the latest chunk held, decompressed."""
        self._checksum = blake2b(digest_size=_CHECKSUM_BYTES)
        self._decompressor = zstandard.ZstdDecompressor()

    @property
    def index(self) -> int:
        """The log index that the state has applied."""
        return self.entries[0][1]

    def open(self, chunk: Chunk) -> tuple[Any, ...]:
        """Kind and parts of the next chunk. Raises Malformed."""
        if chunk[0] != self.snapshot_id or chunk[1] != self.next_sequence:
            raise Malformed(f"chunk {chunk[1]} arrived where {self.next_sequence} was due")
        self.next_sequence += 1
        return _open(chunk)

    def take(self, chunk: Chunk) -> list[Row] | None:
        """The rows of the next chunk; None: it was the trailer, and all rows before it are intact. Raises Malformed."""
        kind, *parts = self.open(chunk)
        if kind == _ROWS and len(parts) == 1:
            self._checksum.update(chunk[3])
            rows: list[Row] = list(chain.from_iterable(self.lists(parts[0])))
            return self._checked(rows)
        if kind != _TRAILER or parts != [self.rows, self._checksum.digest()]:
            raise Malformed("row count or checksum of the whole does not match")
        return None

    def lists(self, compressed: Any) -> list[tuple[Any, ...]]:
        """The lists that are compressed in a chunk. Raises Malformed."""
        try:
            if zstandard.frame_content_size(compressed) > _BYTES_MAX:
                raise Malformed("a chunk holds more than any peer writes")
            content = self._decompressor.decompress(compressed, max_output_size=_BYTES_MAX)
        except (TypeError, zstandard.ZstdError) as error:
            raise Malformed(f"a chunk cannot be decompressed: {error}") from error
        self.content_bytes = len(content)
        unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=_BYTES_MAX)
        unpacker.feed(content)
        lists: list[tuple[Any, ...]] = _unpacked(lambda: list(unpacker))
        if unpacker.tell() != len(content) or not set(map(type, lists)) <= {tuple}:
            raise Malformed("what is compressed in a chunk is not lists")
        return lists

    def _checked(self, rows: list[Any]) -> list[Row]:
        # Sets of types and lengths: a loop over the rows would cost more than storing them.
        if not set(map(type, rows)) <= {tuple} or not set(map(len, rows)) <= {2}:
            raise Malformed("its rows are not pairs")
        if not set(map(type, chain.from_iterable(rows))) <= {bytes}:
            raise Malformed("its rows are not pairs of bytes")
        self.rows += len(rows)
        return rows


def _kinds(parts: tuple[Any, ...]) -> list[type]:
    return [type(part) for part in parts]


def check(chunk: Chunk) -> None:
    """Raises Malformed when a chunk is not what was written."""
    if zlib.crc32(chunk[3]) != chunk[2]:
        raise Malformed("checksum of a chunk does not match")


def _open(chunk: Chunk) -> tuple[Any, ...]:
    check(chunk)
    parts = _unpacked(lambda: msgpack.unpackb(chunk[3], use_list=False))
    if type(parts) is not tuple or not parts:
        raise Malformed("a chunk holds nothing that is known")
    return parts


def _unpacked(unpack: Callable[[], Any]) -> Any:
    collects = gc.isenabled()
    gc.disable()  # thousands of tuples without a cycle would set off collections that take as long as all the rest
    try:
        return unpack()
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise Malformed(f"a chunk cannot be read: {error}") from error
    finally:
        if collects:
            gc.enable()
