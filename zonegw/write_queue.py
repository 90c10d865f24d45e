"""Write-ahead queue: what the zone has acknowledged and the registry has not yet.

Properties of the queue:
- durable: a write is in it once its transaction is committed;
- first in, first out: the registry gets the writes in the order in which the zone acknowledged them;
- reading does not remove; only `ack` and `park` do, in the transaction that records the registry's verdict;
- positions only rise: the highest ever enqueued survives restarts, also of an empty queue;
- a write gets its session sequence, its final payload and its previous hash in the transaction that marks it as sent;
  from then on they never change, so that a retry is byte for byte what the registry may already have applied;
- a parked write takes the later writes of its image that were never sent with it; nothing is ever dropped;
- what the registry gave its verdict on is kept for `queue_retain_h`: acked writes, to be offered again to a restored
  registry (`rewind`), and of refused ones that they were.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from uuid import UUID

from zonegw.errors import StorageFull
from zonegw.limits import Limits
from zonegw.store import Txn, pack, u64, unpack

INITIAL_HASH = bytes(16)
PRUNED = b"retained.pruned"
PARKED_BEHIND = {"code": "parked_behind", "message": "an earlier write of the image is parked"}


def chain_hash(previous: bytes, payload: bytes) -> bytes:
    """The session's running hash after `payload`; the registry computes the same."""
    return blake2b(previous + payload, digest_size=16).digest()


@dataclass(slots=True)
class PendingWrite:
    """A queued write: `command` as acknowledged, and once sent also what exactly was sent.

    `epoch` is the one that the command's base version (of the payload's, once sent) was read in, 0 before the first
    bootstrap. `reoffered`: an epoch that was lost had it already.
    """

    position: int
    uuid: str
    command: dict[str, Any]
    enqueued_us: int
    create_position: int | None = None
    sequence: int | None = None
    payload: bytes | None = None
    previous_hash: bytes | None = None
    epoch: int = 0
    reoffered: bool = False


@dataclass(slots=True)
class Session:
    """The queue's side of a gateway session; the epoch is that of the last handshake, 0 before the first one."""

    uuid: str
    ordinal: int
    highest_sequence: int = 0
    highest_hash: bytes = INITIAL_HASH
    acked_sequence: int = 0
    acked_hash: bytes = INITIAL_HASH
    token: int | None = None
    epoch: int = 0
    epoch_revision: int = 0
    epoch_began: int = 0


def _fields(record: PendingWrite | Session) -> dict[str, Any]:
    """By name, as stored; not copied."""
    return {name: getattr(record, name) for name in record.__slots__}


class WriteQueue:
    """The queue's operations; each runs inside the caller's transaction."""

    def __init__(
        self, limits: Limits, *, now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._limits = limits
        self._now_us = now_us
        self._clock = clock
        self._age: tuple[int, float] | None = None
        self.depth_max = limits.queue_depth_max

    # Enqueue and read.

    def append(
        self, txn: Txn, uuid: str, command: dict[str, Any], create_position: int | None = None, *, epoch: int = 0
    ) -> int:
        """Queue `command` about image `uuid`; `create_position` is its create, where that is still pending."""
        if txn.count("queue") >= self.depth_max:
            raise StorageFull("the write-ahead queue is full (limits.queue_depth_max) until the registry is back")
        position = self.highest_position(txn) + 1
        txn.put("meta", b"queue.highest", u64(position))
        write = PendingWrite(position, uuid, command, self._now_us(), create_position, epoch=epoch)
        txn.put_row("queue", u64(position), _fields(write))
        return position

    def put_back(self, txn: Txn, write: PendingWrite) -> None:
        """A write that was acked by an epoch that was lost is pending again, at its old position."""
        write.sequence = write.payload = write.previous_hash = None
        write.reoffered = True
        txn.put_row("queue", u64(write.position), _fields(write))

    def highest_position(self, txn: Txn) -> int:
        """The highest position ever enqueued."""
        return int.from_bytes(txn.get("meta", b"queue.highest") or b"", "big")

    def depth(self, txn: Txn) -> int:
        return txn.count("queue")

    def get(self, txn: Txn, position: int) -> PendingWrite | None:
        data = txn.get("queue", u64(position))
        return None if data is None else PendingWrite(**unpack(data))

    def pending(self, txn: Txn, after: int = 0) -> Iterator[PendingWrite]:
        """Pending writes in order."""
        for _, data in txn.scan("queue", u64(after + 1)):
            yield PendingWrite(**unpack(data))

    def oldest_us(self, txn: Txn) -> int | None:
        """When the oldest pending write was acknowledged."""
        return next((write.enqueued_us for write in self.pending(txn)), None)

    # Session.

    def session(self, txn: Txn) -> Session | None:
        row = txn.row("meta", b"session")
        return None if row is None else Session(**row)

    def save_session(self, txn: Txn, session: Session) -> None:
        txn.put_row("meta", b"session", _fields(session))

    def mark_sent(self, txn: Txn, session: Session, write: PendingWrite, command: dict[str, Any]) -> None:
        """Fix sequence, payload and previous hash of `write`; `command` is its final form."""
        write.sequence = session.highest_sequence + 1
        write.payload = pack(command)
        write.previous_hash = session.highest_hash
        write.epoch = session.epoch
        session.highest_sequence = write.sequence
        session.highest_hash = chain_hash(write.previous_hash, write.payload)
        txn.put_row("queue", u64(write.position), _fields(write))

    def go_back(self, txn: Txn, session: Session, last: int, last_hash: bytes) -> None:
        """The registry's session ends with operation `last`: what was sent behind it gets new sequences."""
        self._unsend(txn, 0)
        session.acked_sequence = session.highest_sequence = last
        session.acked_hash = session.highest_hash = last_hash
        self.save_session(txn, session)

    def _unsend(self, txn: Txn, behind: int) -> None:
        """Sent writes behind a position surely reached nobody: they are as if they had not been sent."""
        sent = []
        for write in self.pending(txn, behind):
            if write.sequence is None:
                break
            sent.append(write)
        for write in sent:
            if write.payload is not None and "base_version" in write.command:
                base = unpack(write.payload).get("base_version", write.command["base_version"])
                write.command["base_version"] = base
            write.sequence = write.payload = write.previous_hash = None
            txn.put_row("queue", u64(write.position), _fields(write))

    # Verdicts.

    def ack(self, txn: Txn, session: Session, write: PendingWrite, result: dict[str, Any]) -> None:
        """The registry applied `write`: it leaves the queue and is retained."""
        self._consume(txn, session, write, result)

    def park(
        self, txn: Txn, session: Session, write: PendingWrite, reason: dict[str, Any], behind: int | None = None
    ) -> None:
        """The registry refused `write`: it is parked, where its image's create is parked too `behind` that."""
        self._consume(txn, session, write)
        self._move_to_parked(txn, write, reason, behind, session.uuid)

    def park_behind(self, txn: Txn, head: int, positions: Iterable[int]) -> list[PendingWrite]:
        """Park those writes of an image, at `positions`, that were never sent: they were to follow a parked one."""
        found = (self.get(txn, position) for position in positions)
        chain = [write for write in found if write is not None and write.sequence is None]
        for write in chain:
            self._move_to_parked(txn, write, PARKED_BEHIND, head, None)
        return chain

    def park_lost(self, txn: Txn, write: PendingWrite, reason: dict[str, Any]) -> int:
        """Park a write whose session was lost, as `reason` tells under "session": behind what was parked of its image
        for the same reason. Returns the position of the first one."""
        last = next(self._parked_of(txn, write.uuid, reverse=True), None)
        first = None if last is None else self.parked_at(txn, last["behind"] or last["write"]["position"])
        same = first is not None and first["reason"].get("session") == reason["session"]
        head: int | None = first["write"]["position"] if first is not None and same else None
        self._move_to_parked(txn, write, reason, head, reason["session"])
        return head or write.position

    def _move_to_parked(
        self, txn: Txn, write: PendingWrite, reason: dict[str, Any], behind: int | None, session: str | None
    ) -> None:
        txn.delete("queue", u64(write.position))
        self._put_parked(txn, write, reason, behind, session)

    def refuse(self, txn: Txn, session: Session, write: PendingWrite) -> None:
        """The registry refused a write that nobody was told is done: its client hears it, nothing is kept."""
        self._consume(txn, session, write)

    def retract(self, txn: Txn, session: Session, write: PendingWrite, reason: dict[str, Any]) -> None:
        """The registry surely took neither `write` nor what came behind: park it, give the others new sequences."""
        self._unsend(txn, write.position)
        session.highest_sequence, session.highest_hash = session.acked_sequence, session.acked_hash
        self.save_session(txn, session)
        self._move_to_parked(txn, write, reason, None, session.uuid)

    def park_new(self, txn: Txn, uuid: str, command: dict[str, Any], behind: int) -> int:
        """Park a write about a parked image at once: it follows its chain."""
        position = self.highest_position(txn) + 1
        txn.put("meta", b"queue.highest", u64(position))
        write = PendingWrite(position, uuid, command, self._now_us())
        self._put_parked(txn, write, PARKED_BEHIND, behind, None)
        return position

    def _consume(self, txn: Txn, session: Session, write: PendingWrite, result: dict[str, Any] | None = None) -> None:
        """`result` is the ack; of a refused write only sequence and hash are retained."""
        if write.payload is None or write.previous_hash is None or write.sequence != session.acked_sequence + 1:
            raise AssertionError(f"verdict on position {write.position} out of order")
        session.acked_sequence += 1
        session.acked_hash = chain_hash(write.previous_hash, write.payload)
        txn.delete("queue", u64(write.position))
        self.save_session(txn, session)
        row = {
            "session": session.uuid, "ordinal": session.ordinal, "sequence": session.acked_sequence,
            "hash": session.acked_hash, "acked_us": self._age_us(txn), "result": result,
            "write": None if result is None else _fields(write),
        }  # fmt: skip
        txn.put_row("retained", u64(write.position), row)

    def _put_parked(
        self, txn: Txn, write: PendingWrite, reason: dict[str, Any], behind: int | None, session: str | None
    ) -> None:
        row = {
            "write": _fields(write), "reason": reason, "behind": behind, "parked_us": self._now_us(),
            "session": session,
        }  # fmt: skip
        txn.put_row("parked", u64(write.position), row)
        txn.put("parked_images", UUID(write.uuid).bytes + u64(write.position), b"")

    def parked(self, txn: Txn, after: int = 0) -> Iterator[dict[str, Any]]:
        """Parked writes in order: {"write", "reason", "behind", "parked_us", "session"}; the session is the one in
        which the write was refused, where it was sent."""
        for _, data in txn.scan("parked", u64(after + 1)):
            yield unpack(data)

    def parked_at(self, txn: Txn, position: int) -> dict[str, Any] | None:
        row: dict[str, Any] | None = txn.row("parked", u64(position))
        return row

    def chain(self, txn: Txn, head: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The parked write `head` and those that follow it, in order."""
        yield head
        first = head["write"]["position"] if head["behind"] is None else head["behind"]
        for row in self._parked_of(txn, head["write"]["uuid"], head["write"]["position"]):
            if row["behind"] == first:
                yield row

    def _parked_of(self, txn: Txn, uuid: str, after: int = 0, *, reverse: bool = False) -> Iterator[dict[str, Any]]:
        """Parked writes of an image, in order or backwards."""
        key = UUID(uuid).bytes
        for found, _ in txn.scan("parked_images", key + u64(after + 1), key + u64(2**64 - 1), reverse=reverse):
            yield txn.row("parked", found[16:])

    def unpark(self, txn: Txn, write: PendingWrite) -> None:
        """`write` is not parked any more."""
        txn.delete("parked", u64(write.position))
        txn.delete("parked_images", UUID(write.uuid).bytes + u64(write.position))

    def parked_count(self, txn: Txn) -> int:
        return txn.count("parked")

    def index_parked(self, txn: Txn) -> None:
        """Index what a release without this index has parked."""
        if txn.count("parked") != txn.count("parked_images"):
            for row in self.parked(txn):
                write = row["write"]
                txn.put("parked_images", UUID(write["uuid"]).bytes + u64(write["position"]), b"")

    # Retention.

    def _age_us(self, txn: Txn) -> int:
        """The time by which retained writes age: it goes on from the last one of them while the process runs, so that
        no step of the wall clock takes away what a restored registry will lack."""
        if self._age is None:
            newest = next(txn.scan("retained", reverse=True), None)
            self._age = self._now_us() if newest is None else unpack(newest[1])["acked_us"], self._clock()
        began_us, began = self._age
        return began_us + int((self._clock() - began) * 1e6)

    def prunable(self, txn: Txn, *, under_pressure: bool = False) -> list[bytes]:
        """Retained writes that are too old or too many, a bounded number of them."""
        oldest_us = self._age_us(txn) - int(self._limits.queue_retain_h * 3_600_000_000)
        surplus = txn.count("retained") - self._limits.queue_retain_max_writes
        doomed: list[bytes] = []
        for key, data in txn.scan("retained"):
            due = under_pressure or surplus > len(doomed) or unpack(data)["acked_us"] < oldest_us
            if not due or len(doomed) >= self._limits.prune_batch_max:
                break
            doomed.append(key)
        return doomed

    def prune(self, txn: Txn, *, under_pressure: bool = False) -> int:
        """Forget what is `prunable`; returns how many."""
        doomed = self.prunable(txn, under_pressure=under_pressure)
        if doomed:
            last = txn.row("retained", doomed[-1])
            txn.put_row("meta", PRUNED, {name: last[name] for name in ("session", "ordinal", "sequence")})
        for key in doomed:
            txn.delete("retained", key)
        return len(doomed)
