"""When old change records go: the leader proposes a higher compaction floor, in bounded steps.

Those beyond `changes_keep_rows` go, and those older than `changes_keep_s`; but a bootstrap that began
`bootstrap_max_s` ago must still find every change since its start. While the database is full only the last few are
kept. A consumer that is further behind resyncs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from raftreg import errors
from raftreg.peer import Peer
from raftreg.tables import View

logger = logging.getLogger(__name__)

_CHECK_PERIOD_S = 1.0
_PROPOSE_DEADLINE_S = 5.0


class ChangeCompactor:
    """`run` is a task of the process; only a leader proposes."""

    def __init__(
        self,
        peer: Peer,
        revision: Callable[[View], int],
        floor: Callable[[View], int],
        first_since: Callable[[View, int], int],
        *,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._peer, self._revision, self._floor, self._clock = peer, revision, floor, clock
        self._first_since, self._now_us = first_since, now_us
        self._limits = peer.config.limits
        self._seen: deque[tuple[float, int]] = deque()
        self._settled_revision = 0

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_PERIOD_S)
            try:
                await self.check()
            except errors.RegistryError as error:
                logger.info("compaction: %s; the next check tries again", error.message)

    async def check(self) -> None:
        """Propose the next step, if one is due."""
        view = self._peer.reads.view()
        revision, floor = self._revision(view), self._floor(view)
        settled = self._settled(revision)
        if not self._peer.raft.is_leader:
            return
        if self._peer.full() is not None:
            wanted = revision - self._limits.changes_keep_full_rows
        else:
            oldest_us = self._now_us() - int(self._limits.changes_keep_s * 1_000_000)
            wanted = max(revision - self._limits.changes_keep_rows, self._first_since(view, oldest_us))
            wanted = min(wanted, settled)
        while wanted > floor and self._peer.raft.is_leader:
            floor = min(wanted, floor + self._limits.compact_rows_max)
            command = {"op": "compact_changes", "actor": {}, "floor": floor}
            await self._peer.proposer.propose([command], deadline_s=_PROPOSE_DEADLINE_S)

    def _settled(self, revision: int) -> int:
        """The revision that was reached `bootstrap_max_s` ago, as far as this process remembers."""
        now = self._clock()
        self._seen.append((now, revision))
        while now - self._seen[0][0] > self._limits.bootstrap_max_s:
            self._settled_revision = self._seen.popleft()[1]
        return self._settled_revision
