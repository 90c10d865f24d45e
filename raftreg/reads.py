"""Reads at three levels of consistency, all served from the owner's open transaction.

*linearizable*: sees every write acknowledged before the read was asked for (read index, confirmed by a quorum).
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
from raftreg.raft import RaftNode
from raftreg.tables import View

LEVELS = ("linearizable", "bounded", "stale")


class Reads:
    """After `barrier` returns, read synchronously from `view()`: the next await may change what is visible."""

    def __init__(self, raft: RaftNode, *, poke: Callable[[], None], waiting_max: int, deadline_s: float = 5.0) -> None:
        self._raft, self._poke = raft, poke
        self._waiting_max, self._deadline_s = waiting_max, deadline_s
        self._waiting = 0
        self._order = count()
        self._for_index: list[tuple[int, int, asyncio.Future[None]]] = []

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
            async with asyncio.timeout(self._deadline_s):
                index = await self._read_index()
                if index is None:
                    raise errors.NoQuorum("no leader could confirm the read; a majority of the peers is not reachable")
                await self._applied(index)
        except TimeoutError:
            raise errors.NoQuorum("no quorum confirmed the read in time") from None
        finally:
            self._waiting -= 1

    async def _read_index(self) -> int | None:
        confirmed: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

        def complete(index: int | None) -> None:
            if not confirmed.done():
                confirmed.set_result(index)

        self._raft.read_index(complete)
        self._poke()
        return await confirmed

    async def _applied(self, index: int) -> None:
        if self._raft.applied >= index:
            return
        if len(self._for_index) > 2 * self._waiting_max:
            self._for_index = [entry for entry in self._for_index if not entry[2].done()]  # timed-out ones
            heapq.heapify(self._for_index)
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._for_index, (index, next(self._order), reached))
        await reached

    def after_turn(self) -> None:
        """Wake the reads whose index is applied now."""
        while self._for_index and self._for_index[0][0] <= self._raft.applied:
            reached = heapq.heappop(self._for_index)[2]
            if not reached.done():
                reached.set_result(None)
