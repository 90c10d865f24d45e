"""What a registry peer counts, in one registry of its own. Rendered by GET /metrics.

The hot path adds to plain integers (`count_request`) or observes once per turn; gauges are filled when somebody looks:
put a function into `before_render`.
"""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from raftreg.backup_run import REASONS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_DAY_S = 86_400
# From a fast NVMe drive's sync to a disk on which the peer should not lead.
_SYNC_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class _Requests(Collector):
    """Answers by route and status; plain integers, since this is counted for every request."""

    def __init__(self) -> None:
        self.tally: Tally[tuple[str, int]] = Tally()

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "raftreg_http_requests", "Answers by route and HTTP status.", labels=["route", "status"]
        )
        for (route, status), count in self.tally.items():
            family.add_metric([route, str(status)], count)
        yield family


class _Integrity:
    """What comparing digests and reading all rows again has shown."""

    def __init__(self, gauge: Callable[[str, str], Gauge]) -> None:
        self._mismatches = gauge("digest_mismatches", "Comparisons since the start in which digests differed.")
        self._compared_index = gauge("digest_compared_index", "Log index at which this peer last agreed.")
        self._compared_age_s = gauge("digest_compared_age_seconds", "Age of that agreement; NaN: none since the start.")
        self._progress = gauge("scrub_progress_ratio", "How far the scrub under way has read; 1 when none is.")
        self._passes = gauge("scrub_passes", "Scrubs finished since the start.")
        self._pass_age_s = gauge("scrub_pass_age_seconds", "Age of the last finished scrub; NaN: none since the start.")
        self._damage = gauge("damage_found", "1 when data of this peer are known to be damaged.")

    def fill(self, integrity: dict[str, Any]) -> None:
        digests, scrub = integrity["digest"], integrity["scrub"]
        self._mismatches.set(digests["mismatches"])
        self._compared_index.set(digests["compared_index"])
        self._compared_age_s.set(_or_nan(digests["compared_age_s"]))
        self._damage.set(integrity["damage"] is not None)
        if scrub is not None:
            self._progress.set(min(1.0, scrub["rows"] / max(1, scrub["rows_total"])) if scrub["running"] else 1.0)
            self._passes.set(scrub["finished"])
            self._pass_age_s.set(_or_nan(scrub["finished_age_s"]))


class _Backups:
    """Scheduled backups; all is NaN or 0 while there is no schedule."""

    def __init__(self, gauge: Callable[[str, str], Gauge], registry: CollectorRegistry) -> None:
        text = "When the state of the newest backup was of, by its label; NaN: none is known."
        self._last_time_s = gauge("backup_last_success_timestamp_seconds", text)
        self._last_bytes = gauge("backup_last_size_bytes", "Size of that file.")
        self._last_took_s = gauge("backup_last_duration_seconds", "How long it took; NaN: made before this start.")
        self._failing = gauge("backup_failing", "1 when the last attempt failed; status says why.")
        self._failures = Counter(
            "raftreg_backup_failures", "Scheduled backups that failed, by reason.", ["reason"], registry=registry
        )
        for reason in REASONS:
            self._failures.labels(reason)

    def failed(self, reason: str) -> None:
        self._failures.labels(reason).inc()

    def fill(self, backup: dict[str, Any] | None) -> None:
        last = None if backup is None else backup["last"]
        self._last_time_s.set(math.nan if last is None else last["created_us"] / 1e6)
        self._last_bytes.set(math.nan if last is None else last["bytes"])
        self._last_took_s.set(math.nan if last is None else _or_nan(last["seconds"]))
        self._failing.set(backup is not None and backup["trouble"] is not None)


class _Ids:
    """Image numbers: what is left, for how long; `predict_linear` on `remaining` tells it by another window."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._next = Gauge("raftreg_ids_next", "The next image number to be issued.", registry=registry)
        self._remaining = Gauge(
            "raftreg_ids_remaining",
            "Numbers left up to 2^31-1, the last that old clients can hold (int32), and to 2^53-1, the last (int53).",
            ["limit"],
            registry=registry,
        )
        self._runway_s = Gauge(
            "raftreg_ids_runway_seconds",
            "How long these last at the rate of the last day, as far as this process saw it; NaN: not known yet.",
            ["limit"],
            registry=registry,
        )

    def fill(self, ids: dict[str, Any]) -> None:
        self._next.set(ids["next"])
        for limit, left in ids["remaining"].items():
            self._remaining.labels(limit).set(left)
            per_day = ids["per_day"]
            runway_s = math.nan if per_day is None else left / per_day * _DAY_S if per_day else math.inf
            self._runway_s.labels(limit).set(runway_s)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


class PeerMetrics:
    """One attribute per metric; names carry their unit."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.before_render: list[Callable[[], None]] = []
        self._requests = _Requests()
        registry.register(self._requests)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"raftreg_{name}", text, registry=registry)

        self.has_leader = gauge("has_leader", "1 while this peer knows a leader.")
        self.is_leader = gauge("is_leader", "1 while this peer leads.")
        self.term = gauge("term", "Raft term.")
        self.commit_index = gauge("commit_index", "Highest log index known to be committed.")
        self.applied_index = gauge("applied_index", "Highest log index applied to the state.")
        self.revision = gauge("revision", "Registry-wide revision of the state here.")
        self.staleness_s = gauge("staleness_seconds", "Age of the last confirmation of the leader by a quorum.")
        self.proposals_pending = gauge("proposals_pending", "Commands accepted and not yet answered.")
        self.observers = gauge("observers", "Observers that are linked to this peer.")
        self.log_entries = gauge("log_entries", "Entries in the log.")
        self.log_bytes = gauge("log_bytes", "Bytes of the entries in the log.")
        self.db_used_bytes = gauge("db_used_bytes", "Live pages of the database; db_soft_limit_bytes is their bound.")
        self.db_file_bytes = gauge("db_file_bytes", "Size of the database file; it never shrinks.")
        self.oldest_reader_s = gauge("oldest_reader_seconds", "Age of the oldest read transaction.")
        self.feed_consumers = gauge("feed_consumers", "Connected feed consumers.")
        self.requests_running = gauge("http_requests_running", "Requests that are being answered.")
        self.integrity = _Integrity(gauge)
        self.backups = _Backups(gauge, registry)
        self.ids = _Ids(registry)
        self.proposals = Counter(
            "raftreg_proposals", "Commands offered to the log by outcome.", ["outcome"], registry=registry
        )
        self.feed_cut_off = Counter(
            "raftreg_feed_cut_off", "Feed consumers cut off because they read too slowly.", registry=registry
        )
        self.fsync_s = Histogram(
            "raftreg_fsync_seconds", "Duration of a durable commit.", buckets=_SYNC_BUCKETS_S, registry=registry
        )
        self.turn_s = Histogram(
            "raftreg_turn_seconds", "Duration of a turn of the loop.", buckets=_SYNC_BUCKETS_S, registry=registry
        )

    def count_request(self, route: str, status: int) -> None:
        """One answered request; `route` is the pattern, never the path, so that the number of series is bounded."""
        self._requests.tally[route, status] += 1

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        for fill in self.before_render:
            fill()
        return generate_latest(self.registry)
