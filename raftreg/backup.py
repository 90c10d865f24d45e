"""A backup: one committed moment of the replicated state in a file, with what is needed to begin a new epoch from it.

The file is a snapshot as `raftreg.snapshots` spools it (header with the last two log entries, rows in key order,
trailer with count and checksum; each chunk with its own crc32), then the log behind it (frames of [crc32, entry]: the
state on disk is up to a second older than what was acknowledged, the log is not), then the label (msgpack map), then
the footer: magic with the version of this format, offset of the label (8 bytes, big-endian), crc32 of the label (4
bytes). It is made beside its final name and renamed when all of it is on disk, so a file with a footer is whole.
"""

from __future__ import annotations

import importlib.metadata
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgpack

from raftreg import config, stored_peer
from raftreg.config import PeerConfig
from raftreg.snapshots import copy_to_spool
from raftreg.store import LogEntry, Store, StoreError, sync_directory
from raftreg.tables import DIGEST_MODULUS, DIGESTED, HEAD, decode_head, read_head, row_hash, unpack

VERSION = 1
_MAGIC = b"raftreg-backup\0%c" % VERSION
_FOOTER = struct.Struct(">16sQI")
_LENGTH = struct.Struct(">I")
_LABEL_BYTES_MAX = 1 << 20
_CHUNK_BYTES_MAX = 2 * config.Limits.frame_bytes_max  # far above what any configuration can have written


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


# -- making -------------------------------------------------------------------------------------------------------


def create(settings: PeerConfig, file: Path, *, now_us: int | None = None) -> Label:
    """Copy the state of a peer, which may be running, into `file`. Its reader pins pages of the database for no longer
    than `snapshot_reader_max_s`. Raises BackupError, StoreError, OSError (TimeoutError among them); no file is left.
    """
    if file.exists():
        raise BackupError(f"{file} is there already; a backup is never overwritten")
    partial = file.with_name(f".{file.name}.partial")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        with stored_peer.opened(settings) as store:
            label = _label(settings, store, now_us if now_us is not None else time.time_ns() // 1000)
            limits = settings.limits
            copy_to_spool(
                store.begin_read(), label.log_index, partial, limits.snapshot_chunk_bytes, limits.snapshot_reader_max_s
            )
            _append_log(partial, store, label.log_index)
        _finish(partial, label)
        partial.replace(file)
        sync_directory(file.parent)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
    return label


def _label(settings: PeerConfig, store: Store, now_us: int) -> Label:
    identity, head = store.identity, read_head(store.view())
    if head.applied < 2:
        raise BackupError(f"{settings.name} has applied nothing yet: there is nothing to back up")
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


def _append_log(partial: Path, store: Store, index: int) -> None:
    with partial.open("ab") as file:
        for entry in store.log_after(index):
            body = msgpack.packb(entry)
            frame = msgpack.packb((zlib.crc32(body), body))
            file.write(_LENGTH.pack(len(frame)) + frame)


def _finish(partial: Path, label: Label) -> None:
    """Append label and footer, and have all of it on disk."""
    with partial.open("ab") as file:
        offset = file.tell()
        packed = msgpack.packb(vars(label))
        file.write(packed + _FOOTER.pack(_MAGIC, offset, zlib.crc32(packed)))
        file.flush()
        os.fsync(file.fileno())


# -- reading ------------------------------------------------------------------------------------------------------


class Backup:
    """A backup that is open for reading. First all of `rows`, then all of `log` is read, once; each fails at its end
    unless all of it fits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._snapshot_id: bytes | None = None
        self._sequence = 0
        try:
            self.label, self._end = self._read_label()
            header = unpack(self._next_body())
            if header[0] != "header":
                raise BackupError(f"{path} does not begin with a snapshot's header")
            self.last, self.previous = _entry(header[1]), _entry(header[2])
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Backup:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read_label(self) -> tuple[Label, int]:
        file = self._file
        size = file.seek(0, os.SEEK_END)
        if size < _FOOTER.size:
            raise BackupError(f"{self._path} is no backup, or was cut off")
        file.seek(size - _FOOTER.size)
        magic, offset, crc = _FOOTER.unpack(file.read(_FOOTER.size))
        if magic[:-1] != _MAGIC[:-1]:
            raise BackupError(f"{self._path} is no backup, or was cut off")
        if magic != _MAGIC:
            raise BackupError(f"{self._path} has format {magic[-1]}, this release reads {VERSION}; use that release")
        length = size - _FOOTER.size - offset
        if not 0 < length <= _LABEL_BYTES_MAX:
            raise BackupError(f"{self._path} is damaged: its label is not where the footer says")
        file.seek(offset)
        packed = file.read(length)
        if zlib.crc32(packed) != crc:
            raise BackupError(f"{self._path} is damaged: the checksum of its label does not match")
        fields: dict[str, Any] = msgpack.unpackb(packed)
        file.seek(0)
        return Label(**{**fields, "voters": tuple(fields["voters"])}), offset

    def _next_frame(self) -> tuple[int, Any]:
        start = self._file.tell()
        head = self._file.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        if not 0 < length <= _CHUNK_BYTES_MAX or start + _LENGTH.size + length > self._end:
            raise BackupError(f"{self._path} is damaged at byte {start}")
        try:
            return start, msgpack.unpackb(self._file.read(length))
        except ValueError as error:
            raise BackupError(f"{self._path} is damaged at byte {start}: {error}") from None

    def _next_body(self) -> bytes:
        start, frame = self._next_frame()
        try:
            snapshot_id, sequence, crc, body = frame
        except (ValueError, TypeError) as error:
            raise BackupError(f"{self._path} is damaged at byte {start}: {error}") from None
        self._snapshot_id = self._snapshot_id or snapshot_id
        if (snapshot_id, sequence, crc) != (self._snapshot_id, self._sequence, zlib.crc32(body)):
            raise BackupError(f"{self._path} is damaged at byte {start}: a chunk is missing, or its checksum is wrong")
        self._sequence += 1
        return bytes(body)

    def rows(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """The rows in key order, chunk by chunk."""
        checksum, count, rows_digest, head = blake2b(digest_size=16), 0, 0, None
        while True:
            body = self._next_body()
            kind, *content = unpack(body)
            if kind != "rows":
                break
            rows: list[tuple[bytes, bytes]] = [(key, value) for key, value in content[0]]
            checksum.update(body)
            count += len(rows)
            rows_digest += sum(row_hash(key, value) for key, value in rows if key[0] in DIGESTED)
            head = next((value for key, value in rows if key == HEAD), head)
            yield rows
        if (kind, content) != ("trailer", [count, checksum.digest()]):
            raise BackupError(f"{self._path} is damaged: row count or checksum of the whole does not match")
        if head is None or decode_head(head).rows_digest != rows_digest % DIGEST_MODULUS:
            raise BackupError(f"{self._path}: the state's digest is not that of its rows; take another backup")

    def log(self) -> Iterator[LogEntry]:
        """The log entries behind the state, in order."""
        expected = self.label.log_index
        while self._file.tell() < self._end:
            start, frame = self._next_frame()
            expected += 1
            try:
                crc, body = frame
                entry = _entry(unpack(body))
            except (ValueError, TypeError) as error:
                raise BackupError(f"{self._path} is damaged at byte {start}: {error}") from None
            if (crc, expected) != (zlib.crc32(body), entry[1]):
                raise BackupError(f"{self._path} is damaged at byte {start}: its log has a hole or a wrong checksum")
            yield entry
        if expected != self.label.log_last:
            raise BackupError(f"{self._path} is damaged: its log ends at {expected}, not at {self.label.log_last}")


def _entry(fields: list[Any]) -> LogEntry:
    command, index, term = fields
    return command, index, term


def verify(path: Path) -> tuple[Label, int]:
    """Read all of a backup; its label and how many rows it has. Raises BackupError, OSError."""
    with Backup(path) as backup:
        rows = sum(len(chunk) for chunk in backup.rows())
        for _ in backup.log():
            pass
        return backup.label, rows
