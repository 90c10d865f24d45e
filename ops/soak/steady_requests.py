"""Requests that arrive at a steady pace, whatever the answers take: nobody waits for the one before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

# More at once would measure the client; what comes then waits, and its wait is not counted.
_UNDER_WAY_MAX = 64


@dataclass(frozen=True)
class Pace:
    """So many a second, until a moment of the monotonic clock."""

    per_s: float
    ends: float


async def pace(wanted: Pace, ask: Callable[[int], Awaitable[None]]) -> int:
    """Begin `ask(number)` at this pace; returns how many were begun, once all have ended. Raises what one raised."""
    room = asyncio.Semaphore(_UNDER_WAY_MAX)
    began, number = time.monotonic(), 0

    async def one(number: int) -> None:
        try:
            await ask(number)
        finally:
            room.release()

    async with asyncio.TaskGroup() as tasks:
        while (due := began + number / wanted.per_s) < wanted.ends:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await room.acquire()
            tasks.create_task(one(number))
            number += 1
    return number
