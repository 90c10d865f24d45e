"""Requests that arrive at a pace of their own, whatever the answers take: nobody waits for the one before."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

# More at once would measure the client; what comes then waits, and its wait is not counted.
_UNDER_WAY_MAX = 64


@dataclass(frozen=True)
class Pace:
    """So many a second, until a moment of the monotonic clock: evenly, or with `chance` as those of many independent
    clients come (Poisson). What comes evenly keeps step with what the request before it has set off."""

    per_s: float
    ends: float
    chance: random.Random | None = None

    def gap(self) -> float:
        """Seconds from one request to the next."""
        return 1 / self.per_s if self.chance is None else self.chance.expovariate(self.per_s)


async def pace(wanted: Pace, ask: Callable[[int], Awaitable[None]]) -> int:
    """Begin `ask(number)` at this pace, or as fast as answers come; returns how many were begun, once all have ended.
    Raises what one raised."""
    room = asyncio.Semaphore(_UNDER_WAY_MAX)
    due, number = time.monotonic(), 0

    async def one(number: int) -> None:
        try:
            await ask(number)
        finally:
            room.release()

    async with asyncio.TaskGroup() as tasks:
        while max(due, time.monotonic()) < wanted.ends:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await room.acquire()
            tasks.create_task(one(number))
            number += 1
            due += wanted.gap()
    return number
