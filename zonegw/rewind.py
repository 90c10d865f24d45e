"""Rewind: what a registry of a new epoch lacks is taken back into the queue and drained once more.

A restored registry knows a session up to some operation; everything that it acknowledged to this gateway behind that
is lost with its old epoch, and retained here. `begin` takes the session back to what the registry has, in the
transaction that enters the epoch; `step` moves retained writes back into the queue, the newest first, a bounded number
per transaction. Nothing is sent before the last one is there, and the catalogue stays in the old epoch until then: a
reader sees the same images before, meanwhile and afterwards, and a crash at any point changes nothing of the outcome.

A write comes back as it was acknowledged, with the number that its image got, and is given a new sequence. Its old
one can't be kept: writes that were refused since the backup have sequences too, and must not be offered again.
"""

import logging
import time
from typing import Any

from zonegw import overlay
from zonegw.catalogue import Catalogue
from zonegw.limits import Limits
from zonegw.store import Store, Txn, unpack
from zonegw.write_queue import PRUNED, PendingWrite, Session, WriteQueue

log = logging.getLogger(__name__)

# Rewinds remembered for people.
REOFFERS_MAX = 100
_STATE, _REOFFERS = b"rewind", b"reoffers"


class Contradiction(Exception):
    """The registry's session is not the one that this store remembers."""


class Rewind:
    """The rewind of one gateway's session."""

    def __init__(self, store: Store, queue: WriteQueue, catalogue: Catalogue, limits: Limits) -> None:
        self._store = store
        self._queue = queue
        self._catalogue = catalogue
        self._limits = limits

    def is_under_way(self, txn: Txn) -> bool:
        return txn.get("meta", _STATE) is not None

    def begin(self, txn: Txn, session: Session, answer: dict[str, Any]) -> None:
        """Take `session` back to where the handshake's `answer` has it; nothing where the registry lacks nothing."""
        last, follows = answer["last_sequence"], answer["follows"]
        unfinished = txn.row("meta", _STATE)
        state = {
            "epoch": answer["epoch"], "session": session.uuid, "ordinal": session.ordinal, "last": last,
            "last_hash": answer["last_hash"], "follows": follows, "known_from": self._known_from(txn, session, follows),
            "writes": unfinished["writes"] if unfinished else 0, "missing": 0,
        }  # fmt: skip
        state["missing"] = self._missing(txn, state)
        newest = next(txn.scan("retained", reverse=True), None)
        if last >= session.acked_sequence and (newest is None or not _lacks(state, unpack(newest[1]))):
            return
        self._queue.go_back(txn, session, last, answer["last_hash"])
        txn.put_row("meta", _STATE, state)

    def _known_from(self, txn: Txn, session: Session, follows: dict[str, Any] | None) -> int:
        """Ordinal of the session that the registry's one follows: what was acknowledged before that is in the backup.
        Where that session is not this store's, nothing can be said of older ones, and they are left alone."""
        if follows is None:
            return 0
        losses = txn.row("meta", b"losses") or []
        return next((loss["ordinal"] for loss in losses if loss["session"] == follows["session"]), session.ordinal)

    def _missing(self, txn: Txn, state: dict[str, Any]) -> int:
        """How many operations at most the registry lacks that are not retained any more."""
        pruned = txn.row("meta", PRUNED)
        if pruned is None or not _lacks(state, pruned):
            return 0
        return int(pruned["sequence"] - _known_up_to(state, pruned))

    def step(self) -> bool:
        """Move some writes back; whether there may be more. Raises Contradiction, and leaves the rewind ended then."""
        read = self._store.read()
        state = read.row("meta", _STATE)
        if state is None:
            return False
        lacking: list[tuple[bytes, dict[str, Any]]] = []
        behind: dict[str, Any] | None = None
        for key, data in read.scan("retained", reverse=True):
            row = unpack(data)
            if not _lacks(state, row):
                behind = row
                break
            lacking.append((key, row))
            if len(lacking) == self._limits.rewind_batch_max:
                break
        more = len(lacking) == self._limits.rewind_batch_max
        known = not more and behind is not None and behind["session"] == state["session"]
        contradicts = known and behind is not None and behind["hash"] != state["last_hash"]
        with self._store.transaction() as txn:
            for key, row in lacking:
                txn.delete("retained", key)
                if row["write"] is not None:
                    self._put_back(txn, row)
                    state["writes"] += 1
            if more:
                txn.put_row("meta", _STATE, state)
            else:
                self._end(txn, state, told=not contradicts)
        if contradicts:
            raise Contradiction(f"operation {state['last']} of the session is another one in the registry")
        return more

    def _put_back(self, txn: Txn, row: dict[str, Any]) -> None:
        write = PendingWrite(**row["write"])
        number, sent = row["result"]["number"], unpack(write.payload or b"")
        if write.command["op"] == "create_image":
            write.command["number"] = number
        else:
            write.command["image"] = {"number": number, "uuid": write.uuid}
        if "base_version" in sent:  # it had been moved over the zone's own changes
            write.command["base_version"] = sent["base_version"]
        self._queue.put_back(txn, write)
        self._catalogue.lay_again(txn, write.uuid, overlay.patch_of(write.position, write.enqueued_us, write.command))

    def _end(self, txn: Txn, state: dict[str, Any], *, told: bool) -> None:
        txn.delete("meta", _STATE)
        if not told:
            return
        done = {name: state[name] for name in ("epoch", "session", "writes", "missing")}
        listed = [*self.reoffers(txn), done | {"at_us": time.time_ns() // 1000}]
        txn.put_row("meta", _REOFFERS, listed[-REOFFERS_MAX:])
        log.warning("epoch %(epoch)d lacks %(writes)d writes that were drained before: they are offered again", state)
        if state["missing"]:
            log.error(
                "epoch %(epoch)d lacks up to %(missing)d more operations, which are not retained any more "
                "(limits.queue_retain_h): compare the registry's images with this zone's data", state,
            )  # fmt: skip

    @staticmethod
    def reoffers(txn: Txn) -> list[dict[str, Any]]:
        """The rewinds so far: {"epoch", "session", "writes", "missing", "at_us"}, the last REOFFERS_MAX of them."""
        return txn.row("meta", _REOFFERS) or []


def _lacks(state: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether the registry has not got the operation of a retained row."""
    return bool(row["ordinal"] >= state["known_from"] and row["sequence"] > _known_up_to(state, row))


def _known_up_to(state: dict[str, Any], row: dict[str, Any]) -> int:
    """How far the registry knows the session of a retained row."""
    for known in (state["follows"], {"session": state["session"], "last_sequence": state["last"]}):
        if known is not None and known["session"] == row["session"]:
            return int(known["last_sequence"])
    return 0
