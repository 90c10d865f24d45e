"""A new epoch in apply: the first command after `raftreg recover`, before anything else of that life.

What the life before had beyond this state is not known here. So:
- numbers go on far above all that it can have issued, blocks included: none of these is ever issued again, and only a
  gateway that brings an image back with such a number may bind it (`state_numbers`);
- live blocks that are known here stay live, and sessions stay open. A gateway goes on only through the handshake, which
  compares its account with ours. What we lack of it is no contradiction in a new epoch: the gateway rewinds to what we
  have and offers the rest again (`state_sessions`). Sealing or fencing would park writes that nobody lost;
- an image's first change in the epoch notes the version that the image had before (`state_images`): what a gateway
  saw of an image in the life before is known to be no more than that.
"""

from __future__ import annotations

from raftreg.commands import EPOCH_IDS_SKIPPED, NUMBER_MAX
from raftreg.state_context import Command, Context, Ok, Refused
from raftreg.state_numbers import skip_to
from raftreg.tables import epoch_key, pack


def begin_epoch(ctx: Context, command: Command) -> Ok:
    """Record the epoch and skip numbers: to `id_floor`, or EPOCH_IDS_SKIPPED ahead if that is further."""
    current: int = ctx.epoch()["epoch"]
    if command["epoch"] <= current:
        raise Refused("epoch_passed", f"the state lives in epoch {current} already", epoch=current)
    unknown = ctx.head.next_id
    wanted = max(unknown + EPOCH_IDS_SKIPPED, command.get("id_floor") or 0)
    skip_to(ctx, min(wanted, NUMBER_MAX + 1))
    revision = ctx.next_revision()
    told = {"epoch": command["epoch"], "next_id": ctx.head.next_id}
    row = {**told, "skipped_from": unknown, "revision": revision, "time": ctx.time_us}
    ctx.insert(epoch_key(command["epoch"]), pack(row))
    ctx.enter_epoch(row)
    ctx.record("epoch", command, told)
    return {**told, "revision": revision}
