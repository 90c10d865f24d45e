"""Snapshots: how a peer that lags behind the log gets the state (replaces pysyncobj's Serializer).

Sending: one committed moment of the state is copied from a read transaction to a spool file, in a thread at disk
speed, so that the reader which pins pages lives briefly; every lagging peer is then served from that file in numbered,
checksummed chunks. Receiving: rows go straight into the next generation of the state, a bounded number per loop turn;
the last chunk is checked against the whole and one small change makes the generation current. Nothing is ever dumped
for a restart, and nothing forks.

A chunk is [snapshot ID, sequence, crc32, body]. Bodies: the header (sequence 0), lists of rows, the trailer.
"""

from __future__ import annotations

import logging
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgpack
from pysyncobj.config import SERIALIZER_STATE

from raftreg.config import Limits
from raftreg.journal import Journal
from raftreg.records import DamagedRecord
from raftreg.store import LogEntry, StateReader, Store
from raftreg.tables import View

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct(">I")
_HEADER, _ROWS, _TRAILER = "header", "rows", "trailer"
_SERVING_KEEP_FACTOR = 4  # how far a peer that receives a snapshot may hold back trimming, in `log_keep_bytes`
_ABANDONED_MAX = 4  # half-installed snapshots waiting for their deletion; more would use up the named databases
_CHUNKS_PER_TURN = 8  # per peer; a turn with more would keep commits and heartbeats waiting
Chunk = tuple[bytes, int, int, bytes]
Transmission = tuple[Chunk, bool, bool]
Rows = Iterator[tuple[bytes, bytes]]
CheckedRows = Callable[[View, Rows], Rows]


def unchecked_rows(_view: View, rows: Rows) -> Rows:
    """For a state that has no digest."""
    return rows


class Fatal(Protocol):
    def __call__(self, reason: str) -> None: ...


@dataclass
class _Spool:
    """One snapshot as a file. `index` is 0 until the copy is complete; `failed` ends it."""

    path: Path
    index: int = 0
    failed: bool = False
    thread: threading.Thread | None = None
    reading_since: float | None = None


@dataclass
class _Sender:
    file: BinaryIO
    spool: _Spool
    chunks_left: int


@dataclass
class _Incoming:
    snapshot_id: bytes
    last: LogEntry
    previous: LogEntry
    next_sequence: int = 1
    rows: int = 0
    checksum: Any = field(default_factory=lambda: blake2b(digest_size=16))


def copy_to_spool(
    reader: StateReader,
    index: int,
    path: Path,
    chunk_bytes: int,
    reader_max_s: float,
    checked_rows: CheckedRows = unchecked_rows,
) -> None:
    """Write header, rows and trailer of one committed moment to `path`.

    Raises TimeoutError past `reader_max_s`, DamagedRecord when what was read is not what was written: a damaged state
    must not be handed on.
    """
    deadline = time.monotonic() + reader_max_s
    snapshot_id = secrets.token_bytes(8)
    checksum = blake2b(digest_size=16)
    sequence = rows_written = 0
    with path.open("wb") as spool:

        def write(body: bytes) -> None:
            nonlocal sequence
            frame = msgpack.packb((snapshot_id, sequence, zlib.crc32(body), body))
            spool.write(_LENGTH.pack(len(frame)) + frame)
            sequence += 1

        write(msgpack.packb((_HEADER, reader.log_entry(index), reader.log_entry(index - 1))))
        batch: list[tuple[bytes, bytes]] = []
        size = 0
        for row in checked_rows(reader.view(), reader.rows()):
            batch.append(row)
            size += len(row[0]) + len(row[1])
            if size >= chunk_bytes:
                body = msgpack.packb((_ROWS, batch))
                checksum.update(body)
                write(body)
                rows_written += len(batch)
                batch, size = [], 0
                if time.monotonic() > deadline:
                    raise TimeoutError(f"snapshot copy took more than {reader_max_s} s")
        if batch:
            body = msgpack.packb((_ROWS, batch))
            checksum.update(body)
            write(body)
            rows_written += len(batch)
        write(msgpack.packb((_TRAILER, rows_written, checksum.digest())))


class Snapshots:
    """The six methods that pysyncobj calls on its serializer, and `after_commit` for the loop turn.

    `applied_index(view)` tells the log index that a state has applied; `buffered(peer)` the bytes waiting in the link
    to a peer; `fatal` ends the process: pysyncobj would swallow an exception here and acknowledge a snapshot that was
    never installed. `threaded=False` copies within `after_commit` (for simulation). `damage` says
    what a copy has found to be wrong with this peer's own data.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        limits: Limits,
        *,
        applied_index: Callable[[View], int],
        buffered: Callable[[str], int],
        fatal: Fatal,
        threaded: bool = True,
        checked_rows: CheckedRows = unchecked_rows,
    ) -> None:
        self.damage: str | None = None
        self._checked_rows = checked_rows
        self._store, self._journal, self._limits = store, journal, limits
        self._applied_index, self._buffered, self._fatal = applied_index, buffered, fatal
        self._threaded = threaded
        self._spool_dir = store.data_dir / "spool"
        self._spool: _Spool | None = None
        self._spool_wanted = False
        self._senders: dict[str, _Sender] = {}
        self._incoming: _Incoming | None = None
        self._trim_to: int | None = None
        self.installed = 0
        self.sent = 0
        self._clear_spool_directory()

    def _clear_spool_directory(self) -> None:
        self._spool_dir.mkdir(exist_ok=True)
        for leftover in self._spool_dir.iterdir():
            leftover.unlink()

    # -- log compaction -------------------------------------------------------------------------------------------

    def compaction_due(self) -> bool:
        """Whether the log is twice as long, in entries or bytes, as what is kept for peers that lag."""
        return (
            len(self._journal) > 2 * self._limits.log_keep_entries
            or self._journal.bytes > 2 * self._limits.log_keep_bytes
        )

    def serialize(self, _data: object, id_: int) -> None:
        """pysyncobj asks for a dump up to log index `id_`; the state is durable already, so only trimming is due."""
        self._trim_to = self._oldest_to_keep(id_)

    def _oldest_to_keep(self, newest: int) -> int:
        """The oldest entry kept for laggards, by number and by bytes; at most `newest`."""
        journal = self._journal
        index = max(min(newest, journal.last_index - self._limits.log_keep_entries), journal.first_index)
        sizes = [len(entry[0]) for entry in journal[index - journal.first_index :]]
        kept_bytes = sum(sizes)
        for size in sizes:
            if index >= newest or kept_bytes <= self._limits.log_keep_bytes:
                break
            kept_bytes -= size
            index += 1
        serving = [sender.spool.index for sender in self._senders.values()]
        if journal.bytes > _SERVING_KEEP_FACTOR * self._limits.log_keep_bytes:
            serving = []  # a peer this slow gets another snapshot rather than an unbounded log here
        return max(min([index, *serving]), journal.first_index)

    def checkSerializing(self) -> tuple[int, int | None]:
        """(SUCCESS, log index to trim to) once after `serialize`."""
        if self._trim_to is None:
            return SERIALIZER_STATE.NOT_SERIALIZING, None
        index, self._trim_to = self._trim_to, None
        return SERIALIZER_STATE.SUCCESS, index

    # -- sending --------------------------------------------------------------------------------------------------

    def getTransmissionData(self, node: Any) -> Transmission | None:
        """The next chunk for a peer, or None: not ready yet, or the link is full."""
        sender = self._senders.get(node.id)
        if sender is None:
            spool = self._ready_spool()
            if spool is None:
                return None
            sender = self._senders[node.id] = _Sender(spool.path.open("rb"), spool, _CHUNKS_PER_TURN)
        if sender.chunks_left == 0 or self._buffered(node.id) > self._limits.snapshot_send_buffer_max_bytes:
            return None
        sender.chunks_left -= 1
        chunk = _read_chunk(sender.file)
        following = sender.file.peek(1)  # type: ignore[attr-defined]
        last = not following
        if last:
            self.cancelTransmisstion(node)
            self.sent += 1
        return chunk, chunk[1] == 0, last

    def begin_turn(self) -> None:
        """A new turn of the loop may send a bounded number of chunks again."""
        for sender in self._senders.values():
            sender.chunks_left = _CHUNKS_PER_TURN

    def _ready_spool(self) -> _Spool | None:
        spool = self._spool
        if spool is not None and not spool.failed:
            if spool.index == 0:
                return None
            if spool.index > self._journal.first_index:
                return spool
        # None yet, failed, or so old that its reader would need another snapshot at once.
        self._spool_wanted = True
        self._store.want_commit = True
        return None

    def cancelTransmisstion(self, node: Any) -> None:
        """The link to a peer broke, or the last chunk left: a later transmission starts from chunk 0."""
        sender = self._senders.pop(node.id, None)
        if sender is not None:
            sender.file.close()

    def after_commit(self) -> None:
        """Start the copy that a lagging peer waits for. Right after a commit, so that state and log agree."""
        if not self._spool_wanted:
            return
        self._spool_wanted = False
        index = self._applied_index(self._store.view())
        if index < 2:
            return
        self._drop_spool()
        spool = self._spool = _Spool(self._spool_dir / f"{index}-{secrets.token_hex(4)}")
        reader = self._store.begin_read()
        spool.reading_since = time.monotonic()
        if self._threaded:
            spool.thread = threading.Thread(target=self._copy, args=(spool, reader, index), name="snapshot-copy")
            spool.thread.start()
        else:
            self._copy(spool, reader, index)

    def reader_age_s(self) -> float:
        """How long the copy under way has pinned pages of the database; 0 when there is none."""
        since = self._spool.reading_since if self._spool is not None else None
        return 0.0 if since is None else time.monotonic() - since

    def _drop_spool(self) -> None:
        if self._spool is not None:
            self._spool.path.unlink(missing_ok=True)  # peers being served keep their open file
            self._spool = None

    def _copy(self, spool: _Spool, reader: StateReader, index: int) -> None:
        try:
            copy_to_spool(
                reader,
                index,
                spool.path,
                self._limits.snapshot_chunk_bytes,
                self._limits.snapshot_reader_max_s,
                self._checked_rows,
            )
            spool.index = index
        except DamagedRecord as error:
            self.damage = f"a copy of it for another peer failed: {error}"
            spool.failed = True
            spool.path.unlink(missing_ok=True)
        except Exception:
            # Only this copy is lost: the peer that waits for it asks again with the next heartbeat.
            logger.exception("copying a snapshot to %s failed", spool.path)
            spool.failed = True
            spool.path.unlink(missing_ok=True)
        finally:
            reader.close()
            spool.reading_since = None

    def close(self) -> None:
        """Wait for a running copy (bounded by `reader_max_s`) and remove the spool."""
        if self._spool is not None and self._spool.thread is not None:
            self._spool.thread.join()
        for sender in self._senders.values():
            sender.file.close()
        self._senders.clear()
        self._drop_spool()

    # -- receiving ------------------------------------------------------------------------------------------------

    @property
    def receiving(self) -> bool:
        """Whether a part of a snapshot has arrived and the rest is due."""
        return self._incoming is not None

    def sender_lost(self) -> None:
        """The link to the leader broke: what it had sent of a snapshot is given up, and deleted step by step."""
        if self._incoming is not None:
            self._incoming = None
            self._store.abandon_install()

    def setTransmissionData(self, data: Any) -> bool:
        """Take one chunk; True when the whole snapshot has arrived intact and `deserialize` may install it.

        A hole, a wrong checksum, a snapshot that is not newer than what is applied: the rest is ignored, and the
        leader starts again when the next `append_entries` does not fit.
        """
        if not data:
            return False
        snapshot_id, sequence, crc, body = data[0]
        if zlib.crc32(body) != crc:
            return self._refuse("checksum of a chunk does not match")
        try:
            return self._take(snapshot_id, sequence, body)
        except (ValueError, TypeError, IndexError, msgpack.exceptions.UnpackException) as error:
            return self._refuse(f"a chunk cannot be read: {error}")

    def _take(self, snapshot_id: bytes, sequence: int, body: bytes) -> bool:
        kind, *content = msgpack.unpackb(body)
        if kind == _HEADER and sequence == 0:
            return self._start(snapshot_id, *content)
        incoming = self._incoming
        if incoming is None:
            return False
        if snapshot_id != incoming.snapshot_id or sequence != incoming.next_sequence:
            return self._refuse(f"chunk {sequence} arrived where {incoming.next_sequence} was due")
        incoming.next_sequence += 1
        if kind == _ROWS:
            self._take_rows(incoming, content[0], body)
            return False
        return self._finish(incoming, *content)

    def _start(self, snapshot_id: bytes, last: list[Any], previous: list[Any]) -> bool:
        self._incoming = None
        self._store.abandon_install()
        if not all([type(part) for part in entry] == [bytes, int, int] for entry in (last, previous)):
            raise ValueError("its header does not name two log entries")
        if self._store.abandoned_generations > _ABANDONED_MAX:
            return self._refuse("earlier ones that broke off are still being deleted")
        if self._is_newer(last[1]):
            self._incoming = _Incoming(
                snapshot_id, (last[0], last[1], last[2]), (previous[0], previous[1], previous[2])
            )
            self._guarded(self._store.begin_install)
        return False

    def _is_newer(self, index: int) -> bool:
        """Whether a snapshot that ends at `index` has something that is not applied here yet."""
        return index > self._applied_index(self._store.view())

    def _take_rows(self, incoming: _Incoming, rows: list[tuple[bytes, bytes]], body: bytes) -> None:
        if not all([type(part) for part in row] == [bytes, bytes] for row in rows):
            raise ValueError("its rows are not pairs of bytes")
        incoming.rows += len(rows)
        incoming.checksum.update(body)
        self._guarded(lambda: self._store.install_rows(rows))

    def _finish(self, incoming: _Incoming, rows: int, checksum: bytes) -> bool:
        if (incoming.rows, incoming.checksum.digest()) != (rows, checksum):
            return self._refuse("row count or checksum of the whole does not match")
        if not self._is_newer(incoming.last[1]):
            return self._refuse(f"it ends at {incoming.last[1]}, which is applied already")
        installed = self._applied_index(self._store.installing_view())
        if installed > incoming.last[1]:
            return self._refuse(f"its rows say index {installed}, its header {incoming.last[1]}")
        return True

    def _refuse(self, why: str) -> bool:
        logger.warning("snapshot refused: %s", why)
        self._incoming = None
        self._store.abandon_install()
        return False

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            self._fatal(f"installing a snapshot failed: {error!r}")
            raise

    def deserialize(self) -> tuple[None, LogEntry, LogEntry, set[Any]]:
        """Make the received generation current; pysyncobj then rebases the log on the two entries returned."""
        incoming = self._incoming
        if incoming is None:
            self._fatal("a snapshot was to be installed that has not arrived")
            raise RuntimeError("no snapshot")
        self._guarded(self._store.flip_generation)
        self._incoming = None
        self.installed += 1
        return None, incoming.last, incoming.previous, set()


def _read_chunk(spool: BinaryIO) -> Chunk:
    (length,) = _LENGTH.unpack(spool.read(_LENGTH.size))
    snapshot_id, sequence, crc, body = msgpack.unpackb(spool.read(length))
    return snapshot_id, sequence, crc, body
