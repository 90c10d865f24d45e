"""A client that asks the registry for a number without pause, and so measures how long nobody gets an answer."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from chaos.history import History
from raftreg import errors
from raftreg.client import Client

# Short beside what is measured, long enough to leave the cores to others.
PAUSE_S = 0.01


class Probe:
    """Asks while the block runs; every answer is noted in the history."""

    def __init__(self, registry: Client, history: History) -> None:
        self._registry, self._history = registry, history
        self._task: asyncio.Task[None] | None = None
        self._answered = asyncio.Condition()
        self._last_asked = 0.0
        self.longest_gap_s = 0.0

    async def __aenter__(self) -> Probe:
        self._task = asyncio.create_task(self._ask())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._registry.close()

    async def answered_since(self, moment: float, timeout_s: float) -> None:
        """Wait for the answer to a question that was asked after `moment` (monotonic). Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._answered:
            await self._answered.wait_for(lambda: self._last_asked > moment)

    async def _ask(self) -> None:
        last = time.monotonic()
        while True:
            asked = time.monotonic()
            operation = self._history.invoke("probe", "allocate")
            try:
                first, end = await self._registry.allocate_ids(1)
            except errors.RegistryError as error:
                (self._history.fail if error.definite else self._history.info)(operation, code=error.code)
            else:
                self._history.ok(operation, first=first, last=end)
                self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - last)
                last = time.monotonic()
                async with self._answered:
                    self._last_asked = asked
                    self._answered.notify_all()
            await asyncio.sleep(PAUSE_S)
