"""Feature levels in apply: a raise, with the migration that is part of it.

A level is what all members of a cluster understand: layout of rows, commands and their fields, bounds. It rises by one
when an operator says so, once every member supports it (`raftreg.levels`); until then a newer release works as the
older one does, and can be exchanged for it again. From the first step on, apply writes rows as the next level has them,
and a release that does not support it reads the state no more (`Head.format`); the steps bring the older rows. With the
last one the level is in force, and its commands pass.
"""

from __future__ import annotations

from collections.abc import Callable

from raftreg import tables
from raftreg.commands import MIGRATION_ROWS_MAX
from raftreg.state_context import Command, Context, Ok, Refused
from raftreg.tables import MIGRATION, UnknownLevel, pack

Migration = Callable[[Context, bytes, int], bytes | None]
"""Changes rows from a position on (empty at first), at most so many; the position to go on from, or None at the end."""

MIGRATIONS: dict[int, Migration] = {}
"""By the level that the rows have afterwards; a level without one changes no rows that are there."""


def raise_level(ctx: Context, command: Command) -> Ok:
    """One step to the next level: {"level": the one in force, "more": whether it must be repeated}."""
    wanted, head = command["level"], ctx.head
    if wanted <= head.level:
        return {"level": head.level, "more": False, "revision": head.revision}
    if wanted > head.level + 1:
        raise Refused(
            "level_skipped", f"level {head.level} is in force; the next one is {head.level + 1}, not {wanted}"
        )
    if wanted > tables.FEATURE_LEVEL:
        raise UnknownLevel(
            f"the entry raises the feature level to {wanted}, this release supports {tables.FEATURE_LEVEL}: start a "
            f"release that supports feature level {wanted}"
        )
    migration = MIGRATIONS.get(wanted)
    position = None if migration is None else migration(ctx, ctx.row(MIGRATION) or b"", MIGRATION_ROWS_MAX)
    if position is not None:
        head.raising = 1
        ctx.put(MIGRATION, pack(position))
        return {"level": head.level, "more": True, "revision": head.revision}
    ctx.delete(MIGRATION)
    head.level, head.raising = wanted, 0
    revision = ctx.next_revision()
    ctx.record("level", command, {"level": wanted})
    return {"level": wanted, "more": False, "revision": revision}
