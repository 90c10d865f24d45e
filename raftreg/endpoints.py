"""Which endpoint of the registry a client asks: the leader for what only it can do, the nearest for everything else.

How near an endpoint is, is measured beside the requests, by the same small question for all: what a read of one
endpoint took says nothing about another one, and no read is spent on an endpoint that may be far or dead. One that
failed is asked only when no other is left, and is near again when a measurement of it succeeds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

UNHEALTHY_S = 1.0
"""How long an endpoint that failed is asked only when no other one is left."""
REST_MAX_S = 8.0
"""After a failure it is measured again when that time is over; the time doubles with each failure, up to this."""
MEASURED_S = 15.0
"""Age at which a round-trip time is measured again: networks change slowly, and a question is not free."""
RISE = 0.25
"""Share of a longer round-trip time that is believed at once: most are noise. A shorter one is always true."""
NEARER_S, NEARER_SHARE = 0.005, 0.8
"""Another endpoint is worth a change when it is nearer by so much, and nearer than this share of the present one."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """One URL, and what is known about it. `name` is the peer's own; `rtt_s` is None until it was measured, and again
    after a failure."""

    url: str
    name: str | None = None
    unhealthy_until: float = 0.0
    failures: int = 0
    measure_at: float = float("-inf")
    rtt_s: float | None = None


class Endpoints:
    """The endpoints of one registry. `clock` is monotonic, in seconds."""

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        if not urls:
            raise ValueError("a registry client needs at least one endpoint, like https://host:port")
        self._all = [Endpoint(url.rstrip("/")) for url in dict.fromkeys(urls)]
        self._clock = clock
        self.preferred = random.choice(self._all)
        self._near = random.choice(self._all)

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def leading(self, asked: Collection[str] = ()) -> Endpoint:
        """The presumed leader while it is healthy, then the healthy ones, then any that was not asked yet."""
        candidates = self._candidates(asked)
        return self.preferred if self.preferred in candidates else random.choice(candidates)

    def nearest(self, asked: Collection[str] = ()) -> Endpoint:
        """The nearest of the healthy endpoints, of those that were not asked yet. It stays the same for small gains."""
        candidates = self._candidates(asked)
        measured = [endpoint for endpoint in candidates if endpoint.rtt_s is not None]
        best = min(measured, key=_distance) if measured else random.choice(candidates)
        if self._near not in candidates or self._is_worth_a_change(best):
            self._near = best
        return self._near

    def _is_worth_a_change(self, best: Endpoint) -> bool:
        present, other = _distance(self._near), _distance(best)
        return other < present * NEARER_SHARE and other < present - NEARER_S

    def _candidates(self, asked: Collection[str]) -> list[Endpoint]:
        now = self._clock()
        candidates = [endpoint for endpoint in self._all if endpoint.url not in asked] or self._all
        return [endpoint for endpoint in candidates if endpoint.unhealthy_until <= now] or candidates

    def due(self) -> list[Endpoint]:
        """Those to be measured now."""
        now = self._clock()
        if len(self._all) == 1:
            return []
        return [endpoint for endpoint in self._all if endpoint.measure_at <= now]

    def measured(self, endpoint: Endpoint, rtt_s: float) -> None:
        """An endpoint has answered the small question in so long."""
        known = endpoint.rtt_s
        endpoint.rtt_s = rtt_s if known is None or rtt_s < known else known + (rtt_s - known) * RISE
        endpoint.failures, endpoint.measure_at = 0, self._clock() + MEASURED_S
        self.answered(endpoint)

    def answered(self, endpoint: Endpoint) -> None:
        """It is there."""
        endpoint.unhealthy_until = 0.0

    def avoid(self, endpoint: Endpoint) -> None:
        """It did not answer, or could not do what any peer can."""
        now = self._clock()
        rest_s = min(UNHEALTHY_S * 2**endpoint.failures, REST_MAX_S)
        endpoint.unhealthy_until, endpoint.measure_at = now + UNHEALTHY_S, now + rest_s
        endpoint.failures = min(endpoint.failures + 1, 16)
        endpoint.rtt_s = None
        if endpoint is self.preferred:
            others = [other for other in self._all if other is not endpoint]
            self.preferred = random.choice(others or self._all)

    def prefer(self, leader: str | None) -> None:
        """Somebody says that this peer leads."""
        for endpoint in self._all:
            if leader is not None and endpoint.name == leader and endpoint.unhealthy_until <= self._clock():
                self.preferred = endpoint


def _distance(endpoint: Endpoint) -> float:
    return float("inf") if endpoint.rtt_s is None else endpoint.rtt_s
