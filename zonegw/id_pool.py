"""Image numbers on hand: blocks granted by the registry, handed out in rising order, each number once.

`take` is part of the create's transaction: a number is used up exactly when its create is acknowledged. Blocks are
asked for before the runway gets short; their size follows the rate. A block is never used again after it was sealed:
by a changed store identity, a lost session or another epoch.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zonegw.config import Limits
from zonegw.store import Txn

NUMBER_MAX = 2**53 - 1
_KEY = b"ids"


@dataclass(frozen=True, slots=True)
class Runway:
    """How long the IDs on hand last: `seconds` is None before anything was taken."""

    numbers: int
    rate_per_s: float
    seconds: float | None


class IdPool:
    """The pool's operations; each runs inside the caller's transaction. The rate lives in memory alone."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._taken = 0.0
        self._taken_at = clock()

    def take(self, txn: Txn) -> int | None:
        """The next number, or None when no live block has one: the registry then issues it on drain."""
        state = self._state(txn)
        for block in state["blocks"]:
            if not block["sealed"] and block["next"] <= block["last"]:
                number: int = block["next"]
                block["next"] += 1
                state["highest"] = max(state["highest"], number)
                self._drop_used(state)
                txn.put_row("meta", _KEY, state)
                self._count_take()
                return number
        self._count_take()
        return None

    def add(self, txn: Txn, first: int, last: int, token: int) -> None:
        """Put a granted block on hand; one that overlaps what was ever handed out is a registry's error and refused."""
        state = self._state(txn)
        if not 1 <= first <= last <= NUMBER_MAX:
            raise ValueError(f"the registry granted the impossible block {first}..{last}")
        if any(first <= b["last"] and b["first"] <= last for b in state["blocks"]):
            raise ValueError(f"the registry granted {first}..{last}, which overlaps a block on hand")
        if first <= state["highest"]:
            raise ValueError(f"the registry granted {first}..{last}, but {state['highest']} was handed out already")
        state["blocks"].append({"first": first, "last": last, "next": first, "token": token, "sealed": None})
        state["blocks"].sort(key=lambda b: b["first"])
        txn.put_row("meta", _KEY, state)

    def seal(self, txn: Txn, reason: str) -> int:
        """Never hand out from the present blocks again; returns how many numbers that gives up."""
        state = self._state(txn)
        lost = 0
        for block in state["blocks"]:
            if not block["sealed"]:
                lost += block["last"] - block["next"] + 1
                block["sealed"] = reason
                state["highest"] = max(state["highest"], block["last"])
        state["blocks"] = state["blocks"][-self._limits.id_blocks_max :]
        txn.put_row("meta", _KEY, state)
        return lost

    def highest(self, txn: Txn) -> int:
        """The highest number of which this gateway knows that it was issued; 0 when there is none."""
        state = self._state(txn)
        return max(int(state["highest"]), *(int(block["last"]) for block in state["blocks"]), 0)

    def on_hand(self, txn: Txn) -> int:
        return sum(b["last"] - b["next"] + 1 for b in self._state(txn)["blocks"] if not b["sealed"])

    def covers(self, txn: Txn, number: int) -> bool:
        """Whether `number` is of a block that is on hand."""
        return any(not b["sealed"] and b["first"] <= number <= b["last"] for b in self._state(txn)["blocks"])

    def blocks(self, txn: Txn) -> list[dict[str, Any]]:
        """The blocks, oldest first: first, last, next, token, sealed (reason or None)."""
        blocks: list[dict[str, Any]] = self._state(txn)["blocks"]
        return blocks

    def wanted(self, txn: Txn) -> int | None:
        """Size of the block to ask for now, or None while more than half of the runway is on hand."""
        target = self._target()
        on_hand = self.on_hand(txn)
        live = sum(1 for b in self._state(txn)["blocks"] if not b["sealed"])
        if on_hand > target // 2 or live >= self._limits.id_blocks_max:
            return None
        return max(1, min(self._limits.id_block_max, target - on_hand))

    def runway(self, txn: Txn) -> Runway:
        numbers, rate = self.on_hand(txn), self.rate_per_s()
        return Runway(numbers, rate, numbers / rate if rate > 0 else None)

    def rate_per_s(self) -> float:
        """Creates per second, averaged over about `id_rate_window_s`."""
        age = self._clock() - self._taken_at
        return self._taken * math.exp(-age / self._limits.id_rate_window_s) / self._limits.id_rate_window_s

    def _target(self) -> int:
        wanted = math.ceil(self.rate_per_s() * self._limits.runway_h * 3600)
        return max(self._limits.id_block_min, min(self._limits.id_block_max * self._limits.id_blocks_max, wanted))

    def _count_take(self) -> None:
        now = self._clock()
        self._taken = self._taken * math.exp(-(now - self._taken_at) / self._limits.id_rate_window_s) + 1
        self._taken_at = now

    @staticmethod
    def _state(txn: Txn) -> dict[str, Any]:
        state: dict[str, Any] = txn.row("meta", _KEY) or {"highest": 0, "blocks": []}
        return state

    @staticmethod
    def _drop_used(state: dict[str, Any]) -> None:
        state["blocks"] = [b for b in state["blocks"] if b["sealed"] or b["next"] <= b["last"]]
