"""apply: what committed entries do to the state, and what becomes of each command.

Deterministic: it reads the state and the entry alone, so that all peers that applied the same entries hold the same
rows and the same digest, however the commands were cut into entries. A refusal is a result; an exception is a bug, a
broken disk or an entry of a newer release, and stops the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftreg.commands import COMPACT_ROWS_MAX, OPS, Invalid, validate
from raftreg.state_context import Command, Context, Ok, Refused, context, outcome
from raftreg.state_deletions import confirm_deletions
from raftreg.state_epochs import begin_epoch
from raftreg.state_images import create_image, delete_image, update_image
from raftreg.state_keys import once
from raftreg.state_levels import raise_level
from raftreg.state_numbers import allocate_ids, grant_block, seal_blocks
from raftreg.state_projects import set_quota
from raftreg.state_sessions import open_session, session_operation
from raftreg.state_validation import digest, recompute_digest, validate_state
from raftreg.state_zones import register_gateway, register_zone, set_zone_lease
from raftreg.tables import View, change_key, read_head, unpack

__all__ = ["UnknownEntry", "applied_index", "apply", "digest", "recompute_digest", "validate_state"]

ENTRY_VERSION = 1

Result = dict[str, Any]


class UnknownEntry(Exception):
    """A committed entry that this release cannot read. The peer stops: skipping it would part it from the others."""


# -- the entry ----------------------------------------------------------------------------------------------------


def apply(view: View, index: int, payload: bytes | None) -> list[Result]:
    """Apply one entry; one result per command. `payload` None is an entry without commands.

    `payload` is msgpack of [version, the leader's clock in microseconds, [command, ...]].
    """
    ctx = context(view)
    if index <= ctx.head.applied:
        raise ValueError(f"entry {index} was applied already; the state is at {ctx.head.applied}")
    results: list[Result] = []
    if payload is not None:
        now_us, commands = _decode(payload)
        if commands:
            ctx.advance_time(now_us)
        results = [run(ctx, command) for command in commands]
    ctx.close(index)
    return results


def _decode(payload: bytes) -> tuple[int, list[Command]]:
    try:
        version, now_us, commands = unpack(payload)
    except (ValueError, TypeError) as error:
        raise UnknownEntry(f"the entry cannot be decoded: {error}") from error
    if version != ENTRY_VERSION or type(now_us) is not int or type(commands) is not list:
        raise UnknownEntry(f"the entry has version {version!r}; this release reads {ENTRY_VERSION}; upgrade this peer")
    return now_us, commands


def applied_index(view: View) -> int:
    """Index of the last entry applied; 0 for an empty state."""
    return read_head(view).applied


# -- the command --------------------------------------------------------------------------------------------------


def run(ctx: Context, command: Command) -> Result:
    """The result of one command. Raises UnknownEntry for one that this release does not know."""
    try:
        validate(command, ctx.head.level)
    except Invalid as invalid:
        if type(command) is dict and command.get("op") not in OPS:
            raise UnknownEntry(
                f"the entry holds a command {command.get('op')!r}, which this release does not know; upgrade this peer"
            ) from None
        return Refused("invalid", str(invalid)).result()
    action = _OPS[command["op"]]
    if command.get("key") is not None:
        return once(ctx, command, action)
    return outcome(action, ctx, command)


def atomic(ctx: Context, command: Command) -> Ok:
    """All operations or none."""
    return ctx.attempt(lambda: {"results": _all(ctx, command), "revision": ctx.head.revision})


def _all(ctx: Context, command: Command) -> list[Result]:
    results: list[Result] = []
    for position, operation in enumerate(command["operations"]):
        try:
            results.append({"ok": _OPS[operation["op"]](ctx, operation)})
        except Refused as refused:
            raise Refused(
                "atomic_refused",
                f"nothing was done: operation {position} was refused: {refused.message}",
                failed=position,
                cause=refused.result()["error"],
            ) from None
    return results


def compact_changes(ctx: Context, command: Command) -> Ok:
    """Forget changes below `floor`, some per command: `more` says that it must be repeated."""
    wanted = min(command["floor"], ctx.head.revision + 1)
    floor = max(ctx.head.floor, min(wanted, ctx.head.floor + COMPACT_ROWS_MAX))
    for revision in range(ctx.head.floor, floor):
        ctx.delete(change_key(revision))
        ctx.head.changes -= 1
    ctx.head.floor = floor
    return {"floor": floor, "more": floor < wanted, "revision": ctx.head.revision}


_OPS: dict[str, Callable[[Context, Command], Ok]] = {
    "create_image": create_image,
    "update_image": update_image,
    "delete_image": delete_image,
    "confirm_deletions": confirm_deletions,
    "allocate_ids": allocate_ids,
    "open_session": open_session,
    "grant_block": grant_block,
    "seal_blocks": seal_blocks,
    "session_operation": session_operation,
    "register_zone": register_zone,
    "register_gateway": register_gateway,
    "set_zone_lease": set_zone_lease,
    "compact_changes": compact_changes,
    "set_quota": set_quota,
    "begin_epoch": begin_epoch,
    "raise_level": raise_level,
    "atomic": atomic,
}
