"""The bound on fetched bytes per second: in any window of time, and who comes first. On a clock of its own."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import accumulate

import pytest

from zonegw import cache_rules
from zonegw.bandwidth import Bandwidth
from zonegw.errors import ConfigError

RATE, PIECE = 1000, 100


class Hours:
    """A clock that goes on as soon as everybody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleeping: list[tuple[float, int, asyncio.Event]] = []
        self._count = 0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        done = asyncio.Event()
        self._count += 1
        heapq.heappush(self._sleeping, (self.now + seconds, self._count, done))
        await done.wait()

    async def run(self, over: Callable[[], bool]) -> None:
        while not over():
            for _ in range(20):
                await asyncio.sleep(0)
            if self._sleeping:
                self.now, _, done = heapq.heappop(self._sleeping)
                done.set()


async def test_no_window_of_time_has_more_than_the_rate_and_one_piece() -> None:
    hours = Hours()
    bandwidth = Bandwidth(RATE, clock=hours, sleep=hours.sleep)
    taken: list[float] = []

    async def fetch(urgent: bool) -> None:
        for _ in range(25):
            await bandwidth.take(PIECE, urgent=lambda: urgent)
            taken.append(hours.now)

    fetches = asyncio.gather(*(fetch(urgent) for urgent in (True, True, False, False)))
    await hours.run(fetches.done)
    assert len(taken) == 100
    sums = list(accumulate(PIECE for _ in taken))
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            passed = sums[last] - sums[first] + PIECE
            assert passed <= RATE * (taken[last] - taken[first]) + PIECE + 1e-6
    # Nor much less while there is somebody who waits: the pauses of those that give way are counted in.
    assert sums[-1] >= 0.6 * RATE * hours.now


async def test_what_a_client_waits_for_comes_first() -> None:
    hours = Hours()
    bandwidth = Bandwidth(RATE, clock=hours, sleep=hours.sleep)
    order: list[str] = []
    wanted = False

    async def fetch(name: str, urgent: Callable[[], bool]) -> None:
        for _ in range(10):
            await bandwidth.take(PIECE, urgent=urgent)
            order.append(name)

    ahead = asyncio.gather(*(fetch(name, lambda: False) for name in ("a", "b")))
    await hours.run(lambda: len(order) >= 4)
    client = asyncio.gather(fetch("client", lambda: True))
    begun = len(order)
    await hours.run(client.done)
    assert order[begun:].count("client") == 10
    assert len(order) - begun <= 12
    joined = asyncio.gather(fetch("joined", lambda: wanted))
    wanted = True
    await hours.run(lambda: joined.done() and ahead.done())
    assert order.index("joined") < len(order) - 1 - order[::-1].index("a")


async def test_without_a_bound_nobody_waits() -> None:
    bandwidth = Bandwidth(0)
    for _ in range(1000):
        await bandwidth.take(1 << 40, urgent=lambda: False)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"bandwith": 1}, "unknown key cache.bandwith"),
        ({"bandwidth_max_bytes_per_s": 1}, "at least 65536"),
        ({"bandwidth_max_bytes_per_s": "1"}, "bandwidth_max_bytes_per_s"),
        ({"prefetch": True}, "must be a table"),
        ({"prefetch": {"visibility": ["private"]}}, "some of public, community"),
        ({"prefetch": {"pin": 1}}, "true or false"),
        ({"prefetch": {"max_image_bytes": -1}}, "max_image_bytes"),
    ],
)
def test_what_is_configured_wrongly_is_named(table: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cache_rules.parse(table)


def test_what_is_configured_is_taken() -> None:
    rules = cache_rules.parse({"bandwidth_max_bytes_per_s": 1 << 20, "prefetch": {"max_image_bytes": 5}})
    assert rules.bandwidth_max_bytes_per_s == 1 << 20
    assert rules.prefetch is not None
    assert rules.prefetch.match({"visibility": "public", "size": 5})
    assert not rules.prefetch.match({"visibility": "public", "size": 6})
    assert not rules.prefetch.match({"visibility": "community", "size": 5})
    assert cache_rules.parse({}).prefetch is None
