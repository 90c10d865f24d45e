"""Bandwidth: a bound on the bytes per second of all fetches together, those first that a client waits for."""

import asyncio
import time
from collections.abc import Awaitable, Callable

# How often somebody who gives way looks whether it is his turn.
LOOK_S = 0.05


class Bandwidth:
    """A bucket that holds one piece: whoever took bytes makes the next one wait as long as these may last."""

    def __init__(
        self,
        bytes_per_s: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()
        self._urgent = 0

    async def take(self, size: int, *, urgent: Callable[[], bool]) -> None:
        """Wait for the turn of `size` bytes. A client may come to wait for bytes that nobody had waited for before."""
        if not self._rate:
            return None
        while not urgent():
            if not self._urgent and self._left_s() <= 0:
                return self._charge(size)
            await self._sleep(max(LOOK_S, min(self._left_s(), 1)))
        self._urgent += 1
        try:
            while (left_s := self._left_s()) > 0:
                await self._sleep(left_s)
            return self._charge(size)
        finally:
            self._urgent -= 1

    def _left_s(self) -> float:
        return self._free_at - self._clock()

    def _charge(self, size: int) -> None:
        self._free_at = max(self._free_at, self._clock()) + size / self._rate
