"""When the Raft node's turns run: after all I/O that is ready was read, and at least once a tick.

How requests are gathered decides the size of a batch, and a batch shares one fsync. A poke therefore lets the event
loop poll once more before the turn runs: every request that is readable now joins it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from raftreg.raft import RaftNode
from raftreg.snapshots import Fatal

logger = logging.getLogger(__name__)

_WATCHDOG_PERIODS = 4


class Turns:
    """Runs turns on the running event loop. `after_turn` runs after each, `each_tick` once per tick after that.

    `watched` runs the watchdog thread beside them.
    """

    def __init__(
        self,
        raft: RaftNode,
        *,
        tick_s: float,
        turn_max_s: float,
        fatal: Fatal,
        each_tick: Callable[[], None] = lambda: None,
        after_turn: Callable[[float], None] = lambda _seconds: None,
        watched: bool = True,
    ) -> None:
        self._raft, self._tick_s, self._turn_max_s = raft, tick_s, turn_max_s
        self._fatal, self._each_tick, self._after_turn = fatal, each_tick, after_turn
        self._loop = asyncio.get_running_loop()
        self._due = False
        self._tick_due = False
        self._stopped = False
        self._turn_started: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watched = watched

    def start(self) -> None:
        if self._watched:
            threading.Thread(target=self._watch, name="turn-watchdog", daemon=True).start()
        self._tick()

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def poke(self) -> None:
        """A turn is due; many pokes before it make one turn."""
        if not self._due and not self._stopped:
            self._due = True
            self._loop.call_soon(self._gather)

    def _gather(self) -> None:
        self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._due = False
        if self._stopped:
            return
        started = self._turn_started = time.monotonic()
        try:
            again = self._raft.turn()
        except Exception as error:
            logger.exception("a turn failed")
            self._fatal(f"a turn failed: {error!r}")
            raise
        self._turn_started = None
        self._after_turn(time.monotonic() - started)
        if self._tick_due:
            self._tick_due = False
            self._each_tick()
        if again:
            self.poke()

    def _tick(self) -> None:
        if self._stopped:
            return
        self._timer = self._loop.call_later(self._tick_s, self._tick)
        # Not at once: after a pause of the loop, what the others sent meanwhile must be read before anyone is judged
        # silent, be it a leader by its followers or a quorum by its leader.
        self._tick_due = True
        self.poke()

    def _watch(self) -> None:
        """A peer whose disk hangs must not stay leader in name: end the process, the others elect."""
        wake = threading.Event()
        while not self._stopped:
            wake.wait(self._turn_max_s / _WATCHDOG_PERIODS)
            started = self._turn_started
            if started is not None and time.monotonic() - started > self._turn_max_s:
                self._fatal(f"a turn has taken more than {self._turn_max_s} s; the disk does not answer")
                return
