"""What a capacity planner wants to know of a load: latencies by phase, and how queues, feed, disks and cores moved.

Everything here has a bound, however long the load runs: times are counted in buckets, and a series that gets long loses
every second sample and is sampled half as often from then on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from ops.dev.latencies import Latencies

QUIET, OUTAGE, AFTER = "quiet", "outage", "after"
PHASES = (QUIET, OUTAGE, AFTER)
KINDS = ("create", "upload", "delete")
SAMPLES_MAX = 500
REFUSALS_SHOWN_MAX = 20


class Series:
    """(seconds, value) over time, at most SAMPLES_MAX of them; the extremes are those of all that were seen."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self.least: float | None = None
        self.most: float | None = None
        self._every, self._seen = 1, 0

    def add(self, at_s: float, value: float | None) -> None:
        """Unknown values leave no trace."""
        if value is None:
            return
        self.least = value if self.least is None else min(self.least, value)
        self.most = value if self.most is None else max(self.most, value)
        if self._seen % self._every == 0:
            self.samples.append((round(at_s, 2), value))
        self._seen += 1
        if len(self.samples) >= SAMPLES_MAX:
            self.samples = self.samples[::2]
            self._every *= 2


@dataclass
class ZoneFigures:
    """One zone: requests by phase and kind, and its gateway over time."""

    took: dict[tuple[str, str], Latencies] = field(
        default_factory=lambda: {(phase, kind): Latencies() for phase in PHASES for kind in KINDS}
    )
    failures: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    queue_depth: Series = field(default_factory=Series)
    runway_s: Series = field(default_factory=Series)
    staleness_s: Series = field(default_factory=Series)
    behind_revisions: Series = field(default_factory=Series)
    store_bytes: Series = field(default_factory=Series)
    drains: list[dict[str, Any]] = field(default_factory=list)

    def failed(self, phase: str, kind: str, why: str) -> None:
        """Reasons are few; of odd ones the number is kept, not each."""
        known = (phase, kind, why) in self.failures or len(self.failures) < REFUSALS_SHOWN_MAX
        self.failures[phase, kind, why if known else "other"] += 1

    def document(self) -> dict[str, Any]:
        series = {name: getattr(self, name) for name in _SERIES}
        return {
            "requests": {f"{p}_{k}": took.figures_ms() for (p, k), took in self.took.items() if len(took)},
            "failures": [[*what, count] for what, count in self.failures.items()],
            "drains": self.drains,
            **{
                name: {"least": one.least, "most": one.most, "samples": one.samples} for name, one in series.items()
            },
        }  # fmt: skip


_SERIES = ("queue_depth", "runway_s", "staleness_s", "behind_revisions", "store_bytes")


@dataclass
class LoadFigures:
    """The whole load."""

    zones: dict[str, ZoneFigures]
    asked: int = 0
    created: int = 0
    late_most_s: float = 0.0
    seconds: float = 0.0
    registry: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return {
            "asked": self.asked, "created": self.created, "seconds": round(self.seconds, 1),
            "asked_per_s": _rate(self.asked, self.seconds), "created_per_s": _rate(self.created, self.seconds),
            "late_most_s": round(self.late_most_s, 3), "failures": self.failures, "registry": self.registry,
            "store_bytes_per_image": {name: self._per_image(zone) for name, zone in self.zones.items()},
            "zones": {name: zone.document() for name, zone in self.zones.items()},
        }  # fmt: skip

    @property
    def failures(self) -> int:
        return sum(sum(zone.failures.values()) for zone in self.zones.values())

    def _per_image(self, zone: ZoneFigures) -> int | None:
        """Growth of the gateway's metadata store for each image of all zones: each catalogue has them all."""
        samples = zone.store_bytes.samples
        return round((samples[-1][1] - samples[0][1]) / self.created) if self.created and samples else None

    def tables(self) -> list[Table]:
        return [self._latencies(), self._zones(), self._facts()]

    def _latencies(self) -> Table:
        table = Table("phase", "request", "count", "p50 ms", "p99 ms", "failed", title="Requests of all zones")
        for phase in PHASES:
            for kind in KINDS:
                took, failed = Latencies(), 0
                for zone in self.zones.values():
                    took.merge(zone.took[phase, kind].counts)
                    failed += sum(n for (p, k, _), n in zone.failures.items() if (p, k) == (phase, kind))
                if len(took) or failed:
                    shown = took.figures_ms()
                    table.add_row(phase, kind, *(_text(shown[n]) for n in ("count", "p50_ms", "p99_ms")), str(failed))
        return table

    def _zones(self) -> Table:
        table = Table(
            "zone", "queue, most", "runway, least", "stale, most", "behind, most", "store/image", "drained per s",
            title="Gateways",
        )  # fmt: skip
        for name, zone in self.zones.items():
            drained = ", ".join(_text(drain["per_s"]) for drain in zone.drains)
            table.add_row(
                name, _text(zone.queue_depth.most), _seconds(zone.runway_s.least), _seconds(zone.staleness_s.most),
                _text(zone.behind_revisions.most), _text(self._per_image(zone)), drained or "-",
            )  # fmt: skip
        return table

    def _facts(self) -> Table:
        table = Table("", "", title="Load and registry", show_header=False)
        rows = {
            "creates asked for, per second": _rate(self.asked, self.seconds),
            "creates served, per second": _rate(self.created, self.seconds),
            "a create began late by at most": _seconds(self.late_most_s),
            **{name.replace("_", " "): _value(value) for name, value in self.registry.items()},
        }
        for name, value in rows.items():
            table.add_row(name, _text(value))
        return table


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 2) if seconds else 0.0


def _value(value: Any) -> Any:
    return ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, Mapping) else value


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s"


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
