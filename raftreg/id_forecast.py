"""When the image numbers run out: how many were issued in the last day, as far as this process has seen it.

Numbers cut as blocks count as issued; those that a new epoch skipped do not.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from raftreg import queries
from raftreg.tables import NUMBER_MAX, View

LAST_NUMBERS = {"int32": 2**31 - 1, "int53": NUMBER_MAX}
"""The last number for clients that keep them in a signed 32-bit integer, and the last of all."""
WINDOW_S, SAMPLE_PERIOD_S = 86_400.0, 300.0
OBSERVED_MIN_S = 60.0
"""A rate over less time than this would say nothing."""
_DAY_S = 86_400.0


class IdForecast:
    """`sample` is called after every turn in which something was applied."""

    def __init__(self, view: Callable[[], View], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._view, self._clock = view, clock
        # (when, how many were issued by then), a window's worth and one before.
        self._samples: deque[tuple[float, int]] = deque(maxlen=int(WINDOW_S / SAMPLE_PERIOD_S) + 1)

    def sample(self) -> None:
        """Note how many numbers are issued, once in SAMPLE_PERIOD_S; else it costs a look at the clock."""
        now = self._clock()
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_PERIOD_S:
            self._samples.append((now, self._issued()))

    def status(self) -> dict[str, Any]:
        """{"next", "remaining", "per_day", "days"}; `remaining` and `days` by the names in LAST_NUMBERS.

        `per_day` is None until enough was seen, and `days` also while no number is issued.
        """
        first = queries.counts(self._view())["next_id"]
        remaining = {name: max(0, last - first + 1) for name, last in LAST_NUMBERS.items()}
        per_day = self._per_day()
        days = {name: round(left / per_day, 1) if per_day else None for name, left in remaining.items()}
        return {
            "next": first,
            "remaining": remaining,
            "per_day": None if per_day is None else round(per_day, 1),
            "days": days,
        }

    def _per_day(self) -> float | None:
        now = self._clock()
        # The newest sample that is as old as the window, or the oldest of all.
        while len(self._samples) > 1 and now - self._samples[1][0] >= WINDOW_S:
            self._samples.popleft()
        if not self._samples or now - self._samples[0][0] < OBSERVED_MIN_S:
            return None
        since, issued = self._samples[0]
        return (self._issued() - issued) / (now - since) * _DAY_S

    def _issued(self) -> int:
        view = self._view()
        return queries.counts(view)["next_id"] - queries.numbers_skipped(view)
