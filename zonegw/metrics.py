"""Prometheus metrics of a gateway; gauges are set from the status when they are asked for."""

import re
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_GAUGES = {
    "online": "1 while the registry answers",
    "staleness_seconds": "Age of the catalogue; -1 when unknown",
    "queue_depth": "Pending writes",
    "queue_oldest_seconds": "Age of the oldest pending write",
    "parked": "Parked writes",
    "ids_on_hand": "Image numbers on hand",
    "ids_low": "1 while the image numbers on hand are few for the rate at which they are taken",
    "runway_seconds": "How long the image numbers last at the current rate; -1 when nothing was taken",
    "feed_revision": "Revision that the catalogue has reached",
    "catalogue_images": "Images in the catalogue",
    "store_used_bytes": "Used bytes of the metadata store",
    "data_used_bytes": "Bytes of image data held for this zone",
    "cache_used_bytes": "Bytes of other zones' image data",
    "cache_pinned_bytes": "Of these, and of those to come, bytes that are pinned",
    "staged_images": "Images with data that wait for their import",
    "deposits": "Data that other zones put here and no image owns yet",
    "far_garbage": "Data without an owner that other zones are still to be asked to remove",
    "unseen_images": "Images with data here that a resync did not find, and of which no delete is known",
    "deletions_to_confirm": "Deletions that the registry is still to be told are done here",
    "deleted_images_kept": "Deleted images whose data are kept for a while",
    "sessions_lost": "Sessions that the registry fenced or found diverged",
    "reoffered": "Drained writes that a new epoch of the registry lacked and that were offered again",
    "reoffers_missing": "Operations at most that a new epoch lacked and that were not retained any more",
}


# The name of a client's program, at the beginning of its User-Agent.
_PRODUCT = re.compile(r"[A-Za-z0-9._-]{1,40}")


class GatewayMetrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
        self._user_agents: set[str] = set()
        self._registry = own = CollectorRegistry()
        self.requests = Counter("zonegw_requests", "Requests by route and status", ["route", "status"], registry=own)
        self.v1_requests = Counter(
            "zonegw_images_v1_requests", "Requests to the Images API v1 by client program", ["user_agent"], registry=own
        )
        self.commits = Histogram(
            "zonegw_commit_seconds", "Time of a durable commit", registry=own,
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
        )  # fmt: skip
        self.drained = Counter("zonegw_drained", "Pending writes by the registry's verdict", ["verdict"], registry=own)
        self._gauges = {name: Gauge(f"zonegw_{name}", text, registry=own) for name, text in _GAUGES.items()}

    def count_v1(self, user_agent: str, programs_max: int) -> None:
        """A request to the Images API v1, by the client's program, of which `programs_max` are told apart."""
        product = _PRODUCT.match(user_agent)
        name = product[0] if product else "unknown"
        if name not in self._user_agents and len(self._user_agents) >= programs_max:
            name = "other"
        self._user_agents.add(name)
        self.v1_requests.labels(name).inc()

    def render(self, values: Mapping[str, Any]) -> bytes:
        """The text format; `values` by the names above."""
        for name, gauge in self._gauges.items():
            value = values.get(name)
            gauge.set(-1 if value is None else value)
        return generate_latest(self._registry)
