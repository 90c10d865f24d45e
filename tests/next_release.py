"""A release after this one, for tests: it supports feature level 2, with a command, a field and a migration of its own.

In this process, `pretend(patch)` makes the product that release until the patch is undone; `python -m
tests.next_release` is its `raftreg` command.

Level 2 gives every image a mark. The migration sets it to 0, `mark_image` counts it up, and `allocate_ids` may say why.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

from raftreg import commands, state_levels, state_machine, tables
from raftreg.state_context import Command, Context, Ok
from raftreg.tables import IMAGES, image_key, pack, prefix_end, unpack

LEVEL = 2
ROWS_PER_STEP = 2
NEWER = {"mark_image": LEVEL, "allocate_ids.reason": LEVEL}


def mark_image(ctx: Context, command: Command) -> Ok:
    old = ctx.get(image_key(command["number"]))
    assert old is not None
    image = unpack(old)
    image["mark"] += 1
    ctx.replace(image_key(command["number"]), old, pack(image))
    return {"mark": image["mark"]}


def mark_all(ctx: Context, position: bytes, rows_max: int) -> bytes | None:
    """The migration: images in the order of their numbers."""
    rows: list[tuple[bytes, bytes]] = []
    for row in ctx.view.scan(position or IMAGES, prefix_end(IMAGES)):
        if len(rows) == rows_max:
            break
        rows.append(row)
    for key, value in rows:
        ctx.replace(key, value, pack({**unpack(value), "mark": 0}))
    return rows[-1][0] + b"\x00" if len(rows) == rows_max else None


def pretend(patch: pytest.MonkeyPatch) -> None:
    number, text = commands._integer(1), commands._text(commands.NAME_CHARS_MAX)
    allocate, required = commands._OPS["allocate_ids"]
    known: dict[str, Any] = {
        **commands._OPS,
        "mark_image": ({"number": number}, ("number",)),
        "allocate_ids": ({**allocate, "reason": text}, required),
    }
    patch.setattr(tables, "FEATURE_LEVEL", LEVEL)
    patch.setattr(commands, "_OPS", known)
    patch.setattr(commands, "NEWER", NEWER)
    for module in (commands, state_machine):
        patch.setattr(module, "OPS", frozenset(known))
    patch.setattr(state_machine, "_OPS", {**state_machine._OPS, "mark_image": mark_image})
    patch.setattr(state_levels, "MIGRATIONS", {LEVEL: mark_all})
    patch.setattr(state_levels, "MIGRATION_ROWS_MAX", ROWS_PER_STEP)


if __name__ == "__main__":
    pretend(pytest.MonkeyPatch())
    from raftreg import cli

    sys.exit(cli.main())
