"""A new epoch in apply: the first command after `raftreg recover`, before anything else of that life.

What the life before had beyond this state is not known here. So:
- numbers go on far above all that it can have issued, blocks included: none of these is ever issued again;
- live blocks that are known here stay live, and sessions stay open. A gateway goes on only through the handshake, which
  compares its account with ours: if we lack what it was acknowledged, its session is fenced as diverged, and with that
  its blocks are sealed. If the accounts agree, nothing of it was lost, and its queue drains exactly once, with the
  numbers that its zone has already given out. Sealing or fencing all of them would park writes that nobody lost.
"""

from __future__ import annotations

from raftreg.commands import EPOCH_IDS_SKIPPED, NUMBER_MAX
from raftreg.state_context import Command, Context, Ok, Refused
from raftreg.tables import EPOCHS, epoch_key, pack, prefix_end, unpack

FIRST_EPOCH = 1


def current_epoch(ctx: Context) -> int:
    """The newest epoch that the state knows."""
    for _, value in ctx.view.scan(EPOCHS, prefix_end(EPOCHS), reverse=True):
        epoch: int = unpack(value)["epoch"]
        return epoch
    return FIRST_EPOCH


def begin_epoch(ctx: Context, command: Command) -> Ok:
    """Record the epoch and skip numbers: to `id_floor`, or EPOCH_IDS_SKIPPED ahead if that is further."""
    current = current_epoch(ctx)
    if command["epoch"] <= current:
        raise Refused("epoch_passed", f"the state lives in epoch {current} already", epoch=current)
    unknown = ctx.head.next_id
    wanted = max(unknown + EPOCH_IDS_SKIPPED, command.get("id_floor") or 0)
    ctx.head.next_id = min(wanted, NUMBER_MAX + 1)
    revision = ctx.next_revision()
    told = {"epoch": command["epoch"], "next_id": ctx.head.next_id}
    row = {**told, "skipped_from": unknown, "revision": revision, "time": ctx.time_us}
    ctx.insert(epoch_key(command["epoch"]), pack(row))
    ctx.record("epoch", command, told)
    return {**told, "revision": revision}
