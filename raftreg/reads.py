"""Reads at three levels of consistency, all served from the owner's open transaction.

*linearizable*: sees every write acknowledged before the read was asked for (read index, confirmed by a quorum). When
the leader changes meanwhile, a new read index is asked for; without one for `leader_wait_s` the read is refused.
*bounded*: at most `max_staleness_s` behind the moment a quorum last confirmed the leader, else it waits or refuses.
*stale*: whatever is applied here.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

from raftreg import errors
from raftreg.leadership import Leadership
from raftreg.raft import RaftNode
from raftreg.tables import View

LEVELS = ("linearizable", "bounded", "stale")
_BEHIND = "this peer is too far behind the leader to serve the read in time; ask the leader, or read stale"


class Reads:
    """After `barrier` returns, read synchronously from `view()`: the next await may change what is visible."""

    def __init__(
        self,
        raft: RaftNode,
        leadership: Leadership,
        *,
        poke: Callable[[], None],
        waiting_max: int,
        clock: Callable[[], float],
        deadline_s: float = 5.0,
    ) -> None:
        self._raft, self._leadership, self._poke, self._clock = raft, leadership, poke, clock
        self._waiting_max, self._deadline_s = waiting_max, deadline_s
        self._waiting = 0
        self._order = count()
        self._unconfirmed: list[tuple[float, asyncio.Future[int | None]]] = []
        self._for_index: list[tuple[int, int, float, asyncio.Future[None]]] = []

    def view(self) -> View:
        return self._raft.store.view()

    def freshness(self) -> dict[str, Any]:
        """Applied index, leader and staleness for the headers of an answer."""
        return {
            "applied": self._raft.applied,
            "leader": self._raft.leader,
            "staleness_s": self._raft.staleness_s(),
        }

    async def barrier(self, consistency: str, max_staleness_s: float | None = None) -> None:
        """Return when a read of `view()` meets the level. Raises NoQuorum (definite), Overloaded, BadRequest."""
        if consistency == "stale":
            return
        if consistency == "bounded":
            if max_staleness_s is None:
                raise errors.BadRequest("consistency=bounded needs max_staleness, in seconds")
            staleness = self._raft.staleness_s()
            if staleness is not None and staleness <= max_staleness_s:
                return
        elif consistency != "linearizable":
            raise errors.BadRequest(f"unknown consistency {consistency!r}; use one of {', '.join(LEVELS)}")
        await self._linearizable()

    async def _linearizable(self) -> None:
        if self._waiting >= self._waiting_max:
            raise errors.Overloaded(f"{self._waiting} reads wait already; try again later")
        self._waiting += 1
        try:
            deadline = self._clock() + self._deadline_s
            index = await self._confirmed(min(deadline, self._leadership.patience()))
            if self._raft.applied < index:
                await self._applied(index, deadline)
        finally:
            self._waiting -= 1

    async def _confirmed(self, until: float) -> int:
        """A read index of whoever leads. Raises NoQuorum when nobody could give one in time."""
        while True:
            version = self._leadership.version
            index = await self._read_index(until)
            if index is not None:
                return index
            if not await self._leadership.changed(version, until):
                raise self._leadership.no_quorum()

    async def _read_index(self, until: float) -> int | None:
        confirmed: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._unconfirmed.append((until, confirmed))

        def complete(index: int | None) -> None:
            if not confirmed.done():
                confirmed.set_result(index)

        self._raft.read_index(complete)
        self._poke()
        return await confirmed

    async def _applied(self, index: int, deadline: float) -> None:
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._for_index, (index, next(self._order), deadline, reached))
        await reached

    def after_turn(self) -> None:
        """Wake the reads whose index is applied now."""
        while self._for_index and self._for_index[0][0] <= self._raft.applied:
            reached = heapq.heappop(self._for_index)[3]
            if not reached.done():
                reached.set_result(None)

    def expire(self) -> None:
        """Answer those whose time is up; call every few ticks."""
        now = self._clock()
        for until, confirmed in self._unconfirmed:
            if until <= now and not confirmed.done():
                confirmed.set_result(None)
        self._unconfirmed = [read for read in self._unconfirmed if not read[1].done()]
        if self._for_index:
            self._expire_applied(now, self._leadership.lost_for_long())

    def _expire_applied(self, now: float, leaderless: bool) -> None:
        """A follower that is behind may take its time to catch up, but not without anybody to catch up with."""
        for _, _, deadline, reached in self._for_index:
            if (leaderless or deadline <= now) and not reached.done():
                reached.set_exception(self._leadership.no_quorum() if leaderless else errors.NoQuorum(_BEHIND))
        self._for_index = [read for read in self._for_index if not read[3].done()]
        heapq.heapify(self._for_index)
