"""Image numbers on hand: blocks granted by the registry, handed out in rising order, each number once.

`take` is part of the create's transaction: a number is used up exactly when its create is acknowledged. Blocks are
asked for long before the last one ends; their size follows the rate. When the numbers get few all the same, as in a
zone that is cut off, that is said in the log, the status and the metrics. A block is never used again after it was
sealed: by a changed store identity, a lost session or another epoch.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zonegw.limits import Limits
from zonegw.store import Txn

log = logging.getLogger(__name__)

NUMBER_MAX = 2**53 - 1
_KEY = b"ids"


@dataclass(frozen=True, slots=True)
class Runway:
    """How long the IDs on hand last: `seconds` is None before anything was taken."""

    numbers: int
    rate_per_s: float
    seconds: float | None


class Rate:
    """Events per second, averaged over about `window_s`; older ones fade."""

    def __init__(self, window_s: float, clock: Callable[[], float]) -> None:
        self._window_s = window_s
        self._clock = clock
        self._count = 0.0
        self._at = clock()

    def count(self) -> None:
        now = self._clock()
        self._count = self._count * math.exp(-(now - self._at) / self._window_s) + 1
        self._at = now

    def per_s(self) -> float:
        return self._count * math.exp(-(self._clock() - self._at) / self._window_s) / self._window_s


class IdPool:
    """The pool's operations; each runs inside the caller's transaction. The rate lives in memory alone."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._hour = Rate(limits.id_rate_window_s, clock)
        self._minute = Rate(limits.id_burst_window_s, clock)
        self._warned = False

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
                self._warn(_left(state))
                return number
        self._count_take()
        self._warn(0)
        return None

    def _warn(self, left: int) -> None:
        """Once each time that the numbers get few."""
        low = self._is_low(left)
        if low and not self._warned:
            log.warning(
                "%d image numbers are left, for %.1f hours at this rate: without the registry creates get none then",
                left, left / max(self.rate_per_s(), 1e-9) / 3600,
            )  # fmt: skip
        self._warned = low

    def _is_low(self, left: int) -> bool:
        by_rate = self.rate_per_s() * self._limits.runway_warning_h * 3600
        return left < max(self._limits.id_block_min * self._limits.id_low_share, by_rate)

    def low(self, txn: Txn) -> bool:
        """Whether the numbers on hand are so few that somebody should know."""
        return self._is_low(self.on_hand(txn))

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
        return _left(self._state(txn))

    def covers(self, txn: Txn, number: int) -> bool:
        """Whether `number` is of a block that is on hand."""
        return any(not b["sealed"] and b["first"] <= number <= b["last"] for b in self._state(txn)["blocks"])

    def blocks(self, txn: Txn) -> list[dict[str, Any]]:
        """The blocks, oldest first: first, last, next, token, sealed (reason or None)."""
        blocks: list[dict[str, Any]] = self._state(txn)["blocks"]
        return blocks

    def wanted(self, txn: Txn) -> int | None:
        """Size of the block to ask for now, or None while more than half of the target is on hand."""
        target = self.target()
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
        return self._hour.per_s()

    def target(self) -> int:
        """How many numbers should be on hand: for the runway at the average rate, or for `id_burst_s` of a burst, of
        which half must last until more are there."""
        runway = self.rate_per_s() * self._limits.runway_h * 3600
        burst = self._minute.per_s() * self._limits.id_burst_s
        most = self._limits.id_block_max * self._limits.id_blocks_max
        return max(self._limits.id_block_min, min(most, math.ceil(max(runway, burst))))

    def _count_take(self) -> None:
        self._hour.count()
        self._minute.count()

    @staticmethod
    def _state(txn: Txn) -> dict[str, Any]:
        state: dict[str, Any] = txn.row("meta", _KEY) or {"highest": 0, "blocks": []}
        return state

    @staticmethod
    def _drop_used(state: dict[str, Any]) -> None:
        state["blocks"] = [b for b in state["blocks"] if b["sealed"] or b["next"] <= b["last"]]


def _left(state: dict[str, Any]) -> int:
    """How many numbers are on hand."""
    return sum(b["last"] - b["next"] + 1 for b in state["blocks"] if not b["sealed"])
