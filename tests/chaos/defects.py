"""The product with one defect built in: `python -m tests.chaos.defects DEFECT MODULE ARGUMENT...`.

Each takes away one thing that a promise rests on, and nothing else; the suite must find every one.
"""

from __future__ import annotations

import asyncio
import itertools
import runpy
import sys
from collections.abc import Callable
from typing import Any

# How late what was acknowledged is committed, where it should have been committed before.
LATE_S = 2.0
# One change in so many is left out.
SKIPPED_EVERY = 40


def reads_without_read_index() -> None:
    """Linearizable reads of whatever this peer has, without asking who leads."""
    from raftreg import reads

    async def barrier(self: Any, consistency: str, max_staleness_s: float | None = None) -> None:
        return None

    reads.Reads.barrier = barrier  # type: ignore[method-assign]


def keys_forgotten() -> None:
    """A request that is sent again happens again."""
    from raftreg import state_machine
    from raftreg.state_context import outcome

    def once(ctx: Any, command: dict[str, Any], action: Callable[..., Any]) -> dict[str, Any]:
        return outcome(action, ctx, command)

    state_machine.once = once  # type: ignore[attr-defined]


def feed_skips() -> None:
    """Now and then a change does not reach a consumer."""
    from raftreg import changefeed

    genuine, count = changefeed._Change.part, itertools.count(1)

    def part(self: Any, wanted: Any) -> bytes:
        return b"" if next(count) % SKIPPED_EVERY == 0 else genuine(self, wanted)

    changefeed._Change.part = part  # type: ignore[method-assign]


def overlay_dropped_at_ack() -> None:
    """Once the registry has a write, the zone shows what its catalogue has, although the feed did not bring it yet."""
    from zonegw import overlay

    genuine = overlay.acknowledge

    def acknowledge(row: dict[str, Any], *arguments: Any) -> None:
        genuine(row, *arguments)
        row |= {"base": None, "acked": 0}

    overlay.acknowledge = acknowledge  # type: ignore[assignment]


def queue_not_synced() -> None:
    """A gateway acknowledges at once and commits later: a crash takes back what clients were told."""
    from zonegw.store import Store

    genuine = Store._schedule
    waiting: set[int] = set()

    def schedule(self: Any) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            genuine(self)
            return
        if id(self) not in waiting:
            waiting.add(id(self))
            loop.call_later(LATE_S, commit, self)

    def commit(self: Any) -> None:
        waiting.discard(id(self))
        self.commit()

    def durable(self: Any) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    Store._schedule, Store.durable = schedule, durable  # type: ignore[method-assign]


def blocks_not_fenced() -> None:
    """A gateway on another disk goes on with its block, a registry that finds it out seals none, and takes from a block
    that is not the sender's."""
    from raftreg import state_numbers, state_sessions
    from zonegw.id_pool import IdPool

    IdPool.seal = lambda self, txn, reason: 0  # type: ignore[method-assign]
    state_sessions.seal_all = lambda ctx, session: 0  # type: ignore[attr-defined]
    state_numbers._holds = lambda block, command, session: True


DEFECTS = {
    defect.__name__.replace("_", "-"): defect
    for defect in (
        reads_without_read_index,
        keys_forgotten,
        feed_skips,
        overlay_dropped_at_ack,
        queue_not_synced,
        blocks_not_fenced,
    )
}


if __name__ == "__main__":
    _, name, module, *arguments = sys.argv
    DEFECTS[name]()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
