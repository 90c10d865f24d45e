"""Many times in little memory: counts by size, each bucket a fixed share wider than the one before."""

from __future__ import annotations

import math
from collections.abc import Iterable

LEAST_S, MOST_S, STEP = 0.0001, 600.0, 1.03
"""From a tenth of a millisecond to ten minutes; a quantile is right to within the step."""
_BUCKETS = math.ceil(math.log(MOST_S / LEAST_S) / math.log(STEP)) + 1


class Latencies:
    """Times in seconds, of which quantiles can be told; what lies outside counts as the least or the most."""

    def __init__(self, counts: Iterable[int] = ()) -> None:
        self.counts = list(counts) or [0] * _BUCKETS

    def __len__(self) -> int:
        return sum(self.counts)

    def add(self, seconds: float) -> None:
        place = math.ceil(math.log(max(seconds, LEAST_S) / LEAST_S) / math.log(STEP))
        self.counts[min(place, _BUCKETS - 1)] += 1

    def merge(self, counts: Iterable[int]) -> None:
        """Add what another one counted."""
        self.counts = [one + other for one, other in zip(self.counts, counts, strict=True)]

    def quantile(self, share: float) -> float | None:
        """The time that this share of them did not exceed; None where there are none."""
        wanted, seen = max(1, math.ceil(share * len(self))), 0
        for place, count in enumerate(self.counts):
            seen += count
            if seen >= wanted:
                return LEAST_S * float(STEP**place)
        return None

    def figures_ms(self) -> dict[str, float | int | None]:
        """Count, median and p99, in milliseconds."""
        p50, p99 = (self.quantile(share) for share in (0.5, 0.99))
        return {"count": len(self), "p50_ms": _ms(p50), "p99_ms": _ms(p99)}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds * 1000:.3g}")
