"""Creates at a steady rate beside whatever is measured, and how long each took."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field

from ops.soak.images import image
from raftreg import errors
from raftreg.client import Client

_WRITERS = 16


@dataclass
class Writes:
    """Creates at a steady rate by a few writers; (when it was asked for, seconds it took)."""

    rate: float
    done: list[tuple[float, float]] = field(default_factory=list)
    refused: int = 0
    stopped: bool = False
    _next: float = 0.0

    async def run(self, registry: Client) -> None:
        self._next = time.monotonic()
        await asyncio.gather(*(self._writer(registry) for _ in range(_WRITERS)))

    async def _writer(self, registry: Client) -> None:
        while not self.stopped:
            due = max(self._next, time.monotonic())
            self._next = due + 1 / self.rate
            await asyncio.sleep(due - time.monotonic())
            asked = time.monotonic()
            try:
                await registry.create_image(**image(len(self.done)))
            except errors.RegistryError:
                self.refused += 1
            else:
                self.done.append((asked, time.monotonic() - asked))

    def between(self, start: float, end: float) -> str:
        taken = [took for at, took in self.done if start <= at < end]
        if len(taken) < 2:
            return "no writes"
        cuts = statistics.quantiles(taken, n=100)
        return (
            f"{len(taken) / (end - start):.0f}/s, p50 {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms, "
            f"max {max(taken) * 1000:.0f} ms"
        )
