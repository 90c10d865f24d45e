"""Figures of a run for its report, of a size that does not grow with the history: buckets of time, pauses, faults."""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from chaos import config
from chaos.history import FAIL, INFO, OK, Operation
from chaos.validators.offline import FAULT

OUTCOMES = (OK, FAIL, INFO)
HEALING = "healing"


def is_request(operation: Operation) -> bool:
    """Whether a client asked it: not a fault, nor what a consumer of the feed has read."""
    return operation.kind not in (FAULT, HEALING, "feed")


def ended(operation: Operation) -> float:
    """When its client knew its outcome, or gave up; when it was asked if neither is known."""
    if operation.outcome == INFO:
        return float(operation.answered.get("gave_up", operation.invoked))
    return operation.completed


def target(operation: Operation) -> str:
    """Whom it was asked."""
    return str(operation.asked.get("gateway", "registry"))


@dataclass
class Bucket:
    """What ended in one stretch of time."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    latencies: list[float] = field(default_factory=list)

    def quantile(self, part: float) -> float | None:
        """Of the acknowledged operations' times; None without any."""
        found = sorted(self.latencies)
        return found[min(len(found) - 1, int(part * len(found)))] if found else None


@dataclass(frozen=True)
class Span:
    """The time of a run on the history's clock, in equal buckets."""

    start: float
    end: float
    buckets: int

    @property
    def width(self) -> float:
        return max(self.end - self.start, 1e-3) / self.buckets

    def bucket(self, moment: float) -> int:
        return min(self.buckets - 1, max(0, int((moment - self.start) / self.width)))


def span(operations: Sequence[Operation]) -> Span:
    """From the first question to the last end, in buckets of a tenth of a second at least."""
    start = min((operation.invoked for operation in operations), default=0.0)
    end = max((ended(operation) for operation in operations if is_request(operation)), default=start + 1.0)
    wanted = int((end - start) / config.REPORT_BUCKET_MIN_S)
    return Span(start, end, min(config.REPORT_BUCKETS_MAX, max(1, wanted)))


def buckets(operations: Iterable[Operation], over: Span) -> list[Bucket]:
    """All requests by the time at which they ended."""
    found = [Bucket() for _ in range(over.buckets)]
    for operation in filter(is_request, operations):
        bucket = found[over.bucket(ended(operation))]
        bucket.counts[operation.outcome] += 1
        if operation.acknowledged:
            bucket.latencies.append(operation.completed - operation.invoked)
    return found


def by_client(operations: Iterable[Operation], over: Span) -> dict[str, list[str | None]]:
    """Client -> what happened to it in each bucket, the worst of it: info, fail, ok, or None for nothing.

    Beyond the clients that fit, the rest is one row.
    """
    rows: dict[str, list[str | None]] = {}
    for operation in filter(is_request, operations):
        name = operation.process
        if name not in rows and len(rows) >= config.REPORT_CLIENTS_MAX:
            name = "(others)"
        row = rows.setdefault(name, [None] * over.buckets)
        for position in range(over.bucket(operation.invoked), over.bucket(ended(operation)) + 1):
            row[position] = _worse(row[position], operation.outcome)
    return rows


def _worse(one: str | None, other: str) -> str:
    return other if one is None else max(one, other, key=OUTCOMES.index)


@dataclass(frozen=True)
class FaultFigures:
    """One fault: when it was in force, what requests ended meanwhile, and the longest pauses by target, in seconds.

    A pause is a time without any acknowledged request, of those that overlap the fault. `recovery`: from the beginning
    of healing to the next acknowledged request that was asked after it, of the target that took longest.
    """

    name: str
    detail: str
    began: float
    ended: float
    counts: dict[str, int]
    pauses: dict[str, float]
    recovery: float | None


def faults(operations: Sequence[Operation]) -> list[FaultFigures]:
    """All faults of a history in order."""
    requests = [operation for operation in operations if is_request(operation)]
    last = max((ended(operation) for operation in requests), default=0.0)
    acknowledged: dict[str, list[Operation]] = defaultdict(list)
    for request in requests:
        if request.acknowledged:
            acknowledged[target(request)].append(request)
    for found in acknowledged.values():
        found.sort(key=lambda operation: operation.completed)
    shown = [operation for operation in operations if operation.kind == FAULT][: config.REPORT_FAULTS_MAX]
    return [_fault(fault, requests, acknowledged, last) for fault in shown]


def _fault(
    fault: Operation, requests: Sequence[Operation], acknowledged: dict[str, list[Operation]], last: float
) -> FaultFigures:
    began, until = float(fault.asked.get("began", fault.invoked)), min(fault.completed, last)
    counts = dict.fromkeys(OUTCOMES, 0)
    for request in requests:
        if began <= ended(request) <= until:
            counts[request.outcome] += 1
    pauses = {name: _longest_pause([o.completed for o in found], began, until) for name, found in acknowledged.items()}
    recoveries = [_recovery(found, until) for found in acknowledged.values()]
    known = [one for one in recoveries if one is not None]
    return FaultFigures(
        str(fault.asked.get("name", "fault")), str(fault.asked.get("detail", "")), began, until, counts, pauses,
        max(known) if known else None,
    )  # fmt: skip


def _longest_pause(moments: Sequence[float], began: float, until: float) -> float:
    """The longest time between two neighbours of which some lies between `began` and `until`."""
    first, past = max(0, bisect_left(moments, began) - 1), bisect_right(moments, until) + 1
    within = moments[first:past]
    return max((later - earlier for earlier, later in pairwise(within)), default=0.0)


def _recovery(found: Sequence[Operation], healed: float) -> float | None:
    return next((o.completed - healed for o in found if o.invoked >= healed), None)


def totals(operations: Iterable[Operation]) -> dict[str, dict[str, int]]:
    """Kind of request -> outcome -> how many."""
    counts: dict[str, dict[str, int]] = {}
    for operation in filter(is_request, operations):
        counts.setdefault(operation.kind, dict.fromkeys(OUTCOMES, 0))[operation.outcome] += 1
    return counts


def median_ms(operations: Iterable[Operation], kind: str) -> float | None:
    """The median time of a kind's acknowledged requests, in milliseconds."""
    took = [o.completed - o.invoked for o in operations if o.kind == kind and o.acknowledged]
    return statistics.median(took) * 1000 if took else None
