"""Idempotency keys in apply: a repeated command gets the first result instead of happening twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftreg.commands import IDEMPOTENCY_PRUNE_MAX, IDEMPOTENCY_RETENTION_US, IDEMPOTENCY_ROWS_MAX
from raftreg.state_context import Command, Context, Ok, Refused, outcome
from raftreg.state_images import recalled, remembered
from raftreg.tables import KEYS, KEYS_BY_AGE, hash16, pack, prefix_end, u64

# Belongs to one attempt, not to what is asked.
_PER_ATTEMPT = frozenset(("actor", "key"))
# The API mints the UUIDs of a batch anew for each attempt; the first result names those that hold.
_PER_ATTEMPT_OF_A_BATCH = frozenset(("actor", "uuid"))


def once(ctx: Context, command: Command, action: Callable[[Context, Command], Ok]) -> dict[str, Any]:
    """The first result of this key while it is remembered, refusals included; otherwise the action's, remembered now.

    A key is scoped by user, project and gateway. The same key with other arguments is refused.
    """
    name, asked = _name(command), hash16(pack(_asked(command)))
    row = ctx.row(KEYS + name)
    if row is not None:
        if not _is_expired(ctx, row[0]):
            return _first(ctx, row, asked, command)
        _forget(ctx, row[0], name)
    _prune(ctx)
    if ctx.head.keys >= IDEMPOTENCY_ROWS_MAX:
        return Refused("too_many_keys", f"{ctx.head.keys} idempotency keys are remembered; try again later").result()
    result = outcome(action, ctx, command)
    ctx.insert(KEYS + name, pack([ctx.time_us, asked, remembered(result)]))
    ctx.put_derived(KEYS_BY_AGE + u64(ctx.time_us) + name)
    ctx.head.keys += 1
    return result


def _first(ctx: Context, row: list[Any], asked: bytes, command: Command) -> dict[str, Any]:
    if row[1] != asked:
        return Refused(
            "idempotency_mismatch",
            f"the idempotency key {command['key']} came first with other arguments; use a new key",
        ).result()
    result = recalled(ctx, row[2])
    (kind,) = result
    return {kind: {**result[kind], "replayed": True}}


def _name(command: Command) -> bytes:
    """Scope, then the key as it was sent: keys that rise are stored side by side, which saves a page write for each."""
    actor = command.get("actor") or {}
    scope = pack([actor.get("user"), actor.get("project"), actor.get("gateway")])
    key: str = command["key"]
    return hash16(scope) + key.encode()


def _asked(command: Command) -> list[Any]:
    """The arguments in one order, whatever order the client sent them in."""
    asked = {name: value for name, value in command.items() if name not in _PER_ATTEMPT}
    if "operations" in asked:
        asked["operations"] = [
            {name: value for name, value in operation.items() if name not in _PER_ATTEMPT_OF_A_BATCH}
            for operation in asked["operations"]
        ]
    return _ordered(asked)  # type: ignore[no-any-return]


def _ordered(value: Any) -> Any:
    if type(value) is dict:
        return [(name, _ordered(item)) for name, item in sorted(value.items())]
    if type(value) is list:
        return [_ordered(item) for item in value]
    return value


def _is_expired(ctx: Context, time_us: int) -> bool:
    return time_us + IDEMPOTENCY_RETENTION_US <= ctx.time_us


def _prune(ctx: Context) -> None:
    """Forget a few rows of the oldest that have expired: per command, so that the cut of entries plays no part."""
    expired: list[tuple[int, bytes]] = []
    for key, _ in ctx.view.scan(KEYS_BY_AGE, prefix_end(KEYS_BY_AGE)):
        time_us = int.from_bytes(key[1:9], "big")
        if len(expired) == IDEMPOTENCY_PRUNE_MAX or not _is_expired(ctx, time_us):
            break
        expired.append((time_us, key[9:]))
    for time_us, name in expired:
        _forget(ctx, time_us, name)


def _forget(ctx: Context, time_us: int, name: bytes) -> None:
    ctx.delete(KEYS + name)
    ctx.delete_derived(KEYS_BY_AGE + u64(time_us) + name)
    ctx.head.keys -= 1
