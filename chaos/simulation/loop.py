"""The event loop of one simulated process: callbacks, timers and connections on a clock that only the world moves.

It is driven from outside: `drain` runs what is ready now and returns. Nothing here waits, and no file descriptor is
touched, so the same seed gives the same run.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chaos.simulation.network import Network

# Callbacks run by one `drain`; a process that is never idle would hold up the simulation for ever.
CALLBACKS_MAX = 20_000


class LivelockError(Exception):
    """A process kept itself busy without any event from outside."""


class SimulatedLoop(asyncio.AbstractEventLoop):
    """What asyncio's tasks, futures and timeouts need of a loop, and connections through the simulated network."""

    def __init__(self, name: str, clock: Callable[[], float], network: Network, failures: list[BaseException]) -> None:
        self.name, self._clock, self._network, self._failures = name, clock, network, failures
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = 0
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._closed = False

    # -- driven by the world --------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """Code of this process runs: asyncio finds this loop."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def drain(self) -> None:
        """Run callbacks and due timers until none is left."""
        # Not `with self.running()`: this is entered ten thousand times in a schedule.
        asyncio._set_running_loop(self)
        try:
            self._drain()
        finally:
            asyncio._set_running_loop(None)

    def _drain(self) -> None:
        ran, ready = 0, self._ready
        while not self._closed:
            self._collect_timers()
            if not ready:
                return
            # Timers become due between callbacks only where a slow disk lets time pass; a few later is soon enough.
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
                    ran += 1
                if self._closed:
                    return
            if ran > CALLBACKS_MAX:
                raise LivelockError(f"{self.name} ran {ran} callbacks without an event from outside")

    def _collect_timers(self) -> None:
        if self._timers:
            now = self._clock()
            while self._timers and self._timers[0][0] <= now:
                self._ready.append(heapq.heappop(self._timers)[2])

    def is_due(self, now: float) -> bool:
        """Whether `drain` would run something at this time of its clock."""
        return bool(self._ready) or (bool(self._timers) and self._timers[0][0] <= now)

    def next_timer(self) -> float:
        """When the next timer is due by this process's clock; infinity when there is none."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else float("inf")

    def halt(self) -> None:
        """Run nothing more behind the callback that runs now; what it goes on to raise is nobody's failure."""
        self._closed = True

    def kill(self) -> None:
        """The process is gone: no callback runs any more. Its coroutines end where they wait, unheard."""
        self._closed = True
        self._ready.clear()
        self._timers.clear()
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _end(task.get_coro())

    # -- asyncio's interface --------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._clock()

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self._closed:
            self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._clock() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        if not self._closed:
            self._order += 1
            heapq.heappush(self._timers, (when, self._order, timer))
        return timer

    def _timer_handle_cancelled(self, _timer: asyncio.TimerHandle) -> None:
        """Cancelled timers are passed over when they are due."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._order += 1
        key = self._order
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._done(key, done))
        return task

    def _done(self, key: int, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """What nobody handles is a violation, though a process would only log it."""
        if not self._closed:
            self._failures.append(error)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._fail(context.get("exception") or RuntimeError(context.get("message")))

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, **_options: Any
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        return await self._network.dial(self.name, f"{host}:{port}", protocol_factory)

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, **_options: Any
    ) -> Any:
        return self._network.listen(self.name, f"{host}:{port}", protocol_factory)


def _end(coroutine: Any) -> None:
    try:
        coroutine.close()
    except Exception:
        return  # what a killed process would have said in its last moment is not said
