"""Snapshots: how a peer that lags behind the log gets the state (replaces pysyncobj's Serializer).

Sending: one committed moment of the state is copied to a spool file by a process of its own (`snapshot_copy`), at disk
speed, so that the reader which pins pages lives briefly; every lagging peer is then served from that file in numbered,
checksummed chunks (`snapshot_file`). Until a served peer has caught up, the log is kept from where it will need it. A
peer whose link broke says how far it got, and is sent the rest.

Receiving: rows go straight into the next generation of the state, committed every few megabytes; the last chunk is
checked against the whole and one small change makes the generation current. Nothing is ever dumped for a restart, and
nothing forks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pysyncobj.config import SERIALIZER_STATE

from raftreg.config import Limits
from raftreg.engine import now
from raftreg.journal import Journal
from raftreg.snapshot_file import CheckedRows, Chunk, Content, Malformed, copy_to_spool, is_first, unchecked_rows
from raftreg.snapshot_spool import Spool, SpoolKeeper, SpoolReader
from raftreg.store import LogEntry, Store
from raftreg.tables import View

__all__ = ["Fatal", "Held", "Snapshots", "copy_to_spool", "unchecked_rows"]

logger = logging.getLogger(__name__)

_ABANDONED_MAX = 4  # half-installed snapshots waiting for their deletion; more would use up the named databases
_CHUNKS_PER_TURN = 8  # per peer; a turn with more would keep commits and heartbeats waiting
_TRIM_PERIOD_S = 1.0  # while a served peer holds the log back, looking for what can go costs more than it frees
T = TypeVar("T")
Transmission = tuple[Chunk, bool, bool]
Held = tuple[bytes, int]
"""What a peer has of a snapshot: its ID, and the sequence of the chunk that comes next."""


class Fatal(Protocol):
    def __call__(self, reason: str) -> None: ...


@dataclass
class _Sender:
    """One peer's place in the spool."""

    reader: SpoolReader
    chunks_left: int = _CHUNKS_PER_TURN


@dataclass
class _Served:
    """A peer from its first need of a snapshot until it has caught up; the log is kept from `needs` on."""

    needs: int
    lost_at: float | None = None
    sent: bytes = b""  # ID of the snapshot of which everything has left, on the present link


class Snapshots:
    """The six methods that pysyncobj calls on its serializer, and what the loop turn tells of links and commits.

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
        self._store, self._journal, self._limits = store, journal, limits
        self._applied_index, self._buffered, self._fatal = applied_index, buffered, fatal
        self.spool = SpoolKeeper(
            store,
            limits,
            applied_index=applied_index,
            on_end=self._close_senders,
            threaded=threaded,
            checked_rows=checked_rows,
        )
        self._senders: dict[str, _Sender] = {}
        self._served: dict[str, _Served] = {}
        self._heard: dict[str, Held | None] = {}
        self._incoming: Content | None = None
        self._chunk_came_at = 0.0
        self._uncommitted_bytes = 0
        self._trim_to: int | None = None
        self._trimmed_at = float("-inf")
        self.installed = 0
        self.sent = 0
        self._trouble: str | None = None

    @property
    def damage(self) -> str | None:
        """What a copy has found to be wrong with this peer's own data."""
        return self.spool.damage

    @property
    def trouble(self) -> str | None:
        """Why a peer that needs a snapshot does not get it, for people; None while all is well."""
        return self.spool.trouble or self._trouble

    # -- log compaction -------------------------------------------------------------------------------------------

    def compaction_due(self) -> bool:
        """Whether the log is twice as long, in entries or bytes, as what is kept for peers that lag."""
        too_long = (
            len(self._journal) > 2 * self._limits.log_keep_entries
            or self._journal.bytes > 2 * self._limits.log_keep_bytes
        )
        if not too_long or self._needed_from() is None:
            return too_long
        return now() - self._trimmed_at >= _TRIM_PERIOD_S

    def serialize(self, _data: object, id_: int) -> None:
        """pysyncobj asks for a dump up to log index `id_`; the state is durable already, so only trimming is due."""
        self._trimmed_at = now()
        kept = self._oldest_to_keep(id_)
        needed = self._needed_from()
        self._trim_to = max(kept if needed is None else min(kept, needed), self._journal.first_index)

    def _oldest_to_keep(self, newest: int) -> int:
        """The oldest entry kept for whoever may come, by number and by bytes; at most `newest`."""
        journal = self._journal
        index = max(min(newest, journal.last_index - self._limits.log_keep_entries), journal.first_index)
        sizes = [len(entry[0]) for entry in journal[index - journal.first_index :]]
        kept_bytes = sum(sizes)
        for size in sizes:
            if index >= newest or kept_bytes <= self._limits.log_keep_bytes:
                break
            kept_bytes -= size
            index += 1
        return index

    def _needed_from(self) -> int | None:
        """The oldest entry that a served peer still needs, or None. A log that grows out of bounds serves nobody."""
        at = now()
        for peer, served in list(self._served.items()):
            if served.lost_at is not None and at - served.lost_at > self._limits.snapshot_resume_s:
                del self._served[peer]
        if self._served and self._journal.bytes > self._limits.log_serving_bytes_max:
            self._give_up_serving()
        return min((served.needs for served in self._served.values()), default=None)

    def _give_up_serving(self) -> None:
        """What is under way ends where the log no longer begins: without it, everything starts again."""
        self._trouble = (
            f"{', '.join(sorted(self._served))} took so long over a snapshot that the log grew above "
            f"limits.log_serving_bytes_max ({self._limits.log_serving_bytes_max}); it starts again. Let writers wait, "
            "or raise the limit"
        )
        logger.error("%s", self._trouble)
        self._served.clear()
        self.spool.drop()

    def checkSerializing(self) -> tuple[int, int | None]:
        """(SUCCESS, log index to trim to) once after `serialize`."""
        if self._trim_to is None:
            return SERIALIZER_STATE.NOT_SERIALIZING, None
        index, self._trim_to = self._trim_to, None
        return SERIALIZER_STATE.SUCCESS, index

    # -- peers ----------------------------------------------------------------------------------------------------

    def heard(self, peer: str, held: Held | None, matches: int | None) -> None:
        """A follower has answered on its present link: what it holds of a snapshot, and how far its log agrees."""
        self._heard[peer] = held
        served = self._served.get(peer)
        if served is None or matches is None:
            return
        served.needs = max(served.needs, matches)
        if self._is_close(matches):
            self._close_sender(peer)  # a recovering voter's success does not come to the transport
            del self._served[peer]
            self._trouble = None

    def _is_close(self, index: int) -> bool:
        """Whether a peer that has caught up to `index` needs no more of the log than half of what is kept anyway."""
        behind = self._journal.last_index - index
        behind_bytes = behind * self._journal.bytes // len(self._journal)
        return 2 * behind <= self._limits.log_keep_entries and 2 * behind_bytes <= self._limits.log_keep_bytes

    def peer_lost(self, peer: str) -> None:
        """The link to a peer broke. For a while it may come back and take the rest."""
        self._heard.pop(peer, None)
        if peer in self._served:
            self._served[peer].lost_at, self._served[peer].sent = now(), b""

    def stop_serving(self) -> None:
        """Leadership is lost or gained. Spool and log stay for a while: whoever leads again has them ready."""
        self._close_senders()
        for peer in list(self._served):
            self.peer_lost(peer)
        self._heard.clear()

    # -- sending --------------------------------------------------------------------------------------------------

    def getTransmissionData(self, node: Any) -> Transmission | None:
        """The next chunk for a peer, or None: not ready yet, or the link is full."""
        try:
            sender = self._senders.get(node.id) or self._begin_sending(node.id)
            if sender is None or sender.chunks_left == 0:
                return None
            if self._buffered(node.id) > self._limits.snapshot_send_buffer_max_bytes:
                return None
            following = sender.reader.take()
        except (Malformed, OSError) as error:
            self.spool.fail(f"the spool of a snapshot cannot be read: {error!r}")
            return None
        if following is None:
            return None
        sender.chunks_left -= 1
        chunk, last = following
        if last:
            self._close_sender(node.id)
            self._served[node.id].sent = chunk[0]
            self.sent += 1
        return chunk, is_first(chunk), last

    def _begin_sending(self, peer: str) -> _Sender | None:
        served = self._served.setdefault(peer, _Served(self._applied_index(self._store.view())))
        served.lost_at = None
        spool = self.spool.ready(self._journal.first_index)
        if spool is None or peer not in self._heard:
            return None  # it has not said yet, on this link, what it holds
        held = self._heard[peer]
        begun = held is not None and held[0] == spool.snapshot_id
        if begun and self._is_under_way(served, spool):
            return None
        served.needs, served.sent = spool.index, b""
        sequence = held[1] if held is not None and begun else 0
        self._senders[peer] = sender = _Sender(SpoolReader(spool, sequence))
        return sender

    def _is_under_way(self, served: _Served, spool: Spool) -> bool:
        """Whether the peer only has not come to the last chunk yet. Its resets from before that mean nothing."""
        return served.sent == spool.snapshot_id

    def begin_turn(self) -> None:
        """A new turn of the loop may send a bounded number of chunks again."""
        for sender in self._senders.values():
            sender.chunks_left = _CHUNKS_PER_TURN
        self.spool.follow(in_use=bool(self._served))
        self._forget_unfinished()

    def cancelTransmisstion(self, node: Any) -> None:
        """The link to a peer broke, or it needs no snapshot."""
        self._close_sender(node.id)

    def _close_sender(self, peer: str) -> None:
        sender = self._senders.pop(peer, None)
        if sender is not None:
            sender.reader.close()

    def _close_senders(self) -> None:
        for peer in list(self._senders):
            self._close_sender(peer)

    def after_commit(self) -> None:
        """What was received is durable; a copy that a lagging peer waits for may start."""
        self._uncommitted_bytes = 0
        self.spool.after_commit()

    def close(self) -> None:
        """End a copy that is under way and remove the spool."""
        self.stop_serving()
        self.spool.close()

    # -- receiving ------------------------------------------------------------------------------------------------

    @property
    def receiving(self) -> bool:
        """Whether a part of a snapshot has arrived and the rest is due."""
        return self._incoming is not None

    def held(self) -> Held | None:
        """What this peer has of a snapshot that is not complete."""
        incoming = self._incoming
        return None if incoming is None else (incoming.snapshot_id, incoming.next_sequence)

    def _forget_unfinished(self) -> None:
        """A snapshot of which nothing came for long is given up, and what is there of it deleted step by step."""
        if self._incoming is not None and now() - self._chunk_came_at > self._limits.snapshot_resume_s:
            self._forget_incoming()

    def _forget_incoming(self) -> None:
        self._incoming = None
        self._store.abandon_install()

    def setTransmissionData(self, data: Any) -> bool:
        """Take one chunk; True when the whole snapshot has arrived intact and `deserialize` may install it.

        A hole, a wrong checksum, a snapshot that is not newer than what is applied: the rest is ignored, and the
        leader starts again when the next `append_entries` does not fit.
        """
        if not data:
            return False
        chunk: Chunk = tuple(data[0])
        self._chunk_came_at = now()
        try:
            if is_first(chunk):
                return self._start(Content(chunk))
            return self._incoming is not None and self._take(self._incoming, chunk)
        except Malformed as error:
            return self._refuse(str(error))

    def _start(self, content: Content) -> bool:
        self._forget_incoming()
        if self._store.abandoned_generations > _ABANDONED_MAX:
            return self._refuse("earlier ones that broke off are still being deleted")
        if self._is_newer(content.index):
            self._incoming = content
            self._guarded(self._store.begin_install)
        return False

    def _is_newer(self, index: int) -> bool:
        """Whether a snapshot that ends at `index` has something that is not applied here yet."""
        return index > self._applied_index(self._store.view())

    def _take(self, incoming: Content, chunk: Chunk) -> bool:
        rows = incoming.take(chunk)
        if rows is None:
            return self._is_complete(incoming)
        self._guarded(lambda: self._store.install_rows(rows))
        self._uncommitted_bytes += incoming.content_bytes
        if self._uncommitted_bytes >= self._limits.snapshot_commit_bytes:
            self._store.want_commit = True
        return False

    def _is_complete(self, incoming: Content) -> bool:
        if not self._is_newer(incoming.index):
            return self._refuse(f"it ends at {incoming.index}, which is applied already")
        installed = self._guarded(lambda: self._applied_index(self._store.installing_view()))
        if installed > incoming.index:
            return self._refuse(f"its rows say index {installed}, its header {incoming.index}")
        return True

    def _refuse(self, why: str) -> bool:
        logger.warning("snapshot refused: %s", why)
        self._forget_incoming()
        return False

    def _guarded(self, step: Callable[[], T]) -> T:
        try:
            return step()
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
        return None, *incoming.entries, set()
