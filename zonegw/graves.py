"""Graves: deleted images whose bytes this zone keeps for a while, so that an operator can undelete them."""

from collections.abc import Iterator
from itertools import islice
from typing import Any
from uuid import UUID

from zonegw.deletion_rules import DeletionRules
from zonegw.running_clock import RunningClock
from zonegw.store import Txn, u64, unpack

HOUR_MS = 3_600_000
Image = dict[str, Any]
Grave = dict[str, Any]


class Graves:
    """`graves` by UUID: {"image", "locations": own ones, "since_us", "due_ms"}; `graves_due` in the order of due_ms."""

    def __init__(self, clock: RunningClock, rules: DeletionRules) -> None:
        self.clock = clock
        self._delay_ms = int(rules.delay_h * HOUR_MS)

    def keep(self, txn: Txn, image: Image, own: list[dict[str, Any]], now_us: int) -> bool:
        """Whether the bytes are kept for a while. A delete may be told of several times; the first counts."""
        key = UUID(image["uuid"]).bytes
        grave = txn.row("graves", key)
        if grave is None and not self._delay_ms:
            return False
        if grave is None:
            due_ms = self.clock.now_ms() + self._delay_ms
            grave = {"image": image, "locations": own, "since_us": now_us, "due_ms": due_ms}
            txn.put("graves_due", _due_key(grave), b"")
            self.clock.save(txn)
        # What was deleted before the registry numbered it may have its number by now.
        grave["image"]["number"] = image["number"] or grave["image"]["number"]
        txn.put_row("graves", key, grave)
        return True

    def get(self, txn: Txn, uuid: str) -> Grave | None:
        grave: Grave | None = txn.row("graves", UUID(uuid).bytes)
        return grave

    def all(self, txn: Txn) -> Iterator[Grave]:
        """Those first that are due first."""
        for key, _ in txn.scan("graves_due"):
            yield unpack(txn.get("graves", key[8:]) or b"")

    def take(self, txn: Txn, grave: Grave) -> None:
        """The grave is no more."""
        txn.delete("graves", UUID(grave["image"]["uuid"]).bytes)
        txn.delete("graves_due", _due_key(grave))

    def expired(self, txn: Txn, most: int) -> list[Grave]:
        """Graves that are due, at most so many."""
        due = txn.scan("graves_due", b"", u64(self.clock.now_ms() + 1))
        return [unpack(txn.get("graves", key[8:]) or b"") for key, _ in islice(due, most)]

    def left_s(self, grave: Grave) -> float:
        """How long the bytes are still kept, while the gateway runs."""
        left_ms: int = grave["due_ms"] - self.clock.now_ms()
        return max(0, left_ms) / 1000


def _due_key(grave: Grave) -> bytes:
    return u64(grave["due_ms"]) + UUID(grave["image"]["uuid"]).bytes
