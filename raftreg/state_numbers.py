"""Image numbers: issued one by one or cut as blocks from one counter, so that no number is ever bound twice.

Numbers that an epoch skipped are a block of nobody: the life before may have issued them. They are never issued again,
but a gateway that brings back an image of that life binds its number; the first one to do so has it.
"""

from __future__ import annotations

from raftreg.commands import BLOCKS_PER_SESSION_MAX, FLOOR_RAISE_MAX
from raftreg.state_context import Command, Context, Ok, Refused, gateway_of
from raftreg.state_zones import gateway_row
from raftreg.tables import (
    BLOCKS,
    Row,
    block_key,
    image_key,
    pack,
    tombstone_key,
    unpack,
)


def allocate_ids(ctx: Context, command: Command) -> Ok:
    """Numbers for the caller, who may use them outside of the registry. They are no change: nothing can be read."""
    count = command["count"]
    first = ctx.issue(count)
    return {"first": first, "last": first + count - 1, "revision": ctx.head.revision}


def grant_block(ctx: Context, command: Command) -> Ok:
    """Numbers that this session alone may bind, until they are sealed."""
    session = live_session(ctx, command["session"], command["gateway"])
    if command["token"] != session["token"]:
        raise Refused(
            "session_fenced",
            f"token {command['token']} is not the session's ({session['token']}); open the session again",
            token=session["token"],
        )
    first = ctx.issue(command["size"])
    if len(session["blocks"]) >= BLOCKS_PER_SESSION_MAX:
        _seal(ctx, session["blocks"].pop(0))
    last = first + command["size"] - 1
    block = {
        "first": first, "last": last, "gateway": session["gateway"], "zone": session["zone"],
        "session": session["session"], "token": session["token"], "sealed": False,
    }  # fmt: skip
    session["blocks"].append(first)
    ctx.touch(session)
    ctx.head.blocks += 1
    packed = pack(block)
    ctx.insert(block_key(first), packed)
    revision = ctx.next_revision()
    ctx.record("block", command, {}, "block", packed)
    return {"first": first, "last": last, "token": session["token"], "revision": revision}


def seal_blocks(ctx: Context, command: Command) -> Ok:
    """Nobody binds a number of these blocks any more. Without a session: the gateway's session in force."""
    name = command.get("session") or (gateway_row(ctx, command["gateway"]) or {}).get("session")
    session = ctx.session(name) if name is not None else None
    if session is None or session["gateway"] != command["gateway"]:
        raise Refused("session_unknown", f"gateway {command['gateway']} has no such session")
    sealed = seal_all(ctx, session)
    revision = ctx.next_revision()
    ctx.record("block", command, {"gateway": session["gateway"], "session": session["session"], "sealed": sealed})
    return {"sealed": sealed, "revision": revision}


def seal_all(ctx: Context, session: Row) -> int:
    """Seal the live blocks of a session; how many there were."""
    blocks, session["blocks"] = session["blocks"], []
    for first in blocks:
        _seal(ctx, first)
    ctx.touch(session)
    return len(blocks)


def hand_over(ctx: Context, older: Row, session: str, token: int) -> list[int]:
    """Give the live blocks of a session to the one that follows; their first numbers."""
    blocks: list[int] = older["blocks"]
    older["blocks"] = []
    for first in blocks:
        old = ctx.get(block_key(first))
        assert old is not None, f"block {first} of a session is missing"
        ctx.replace(block_key(first), old, pack({**unpack(old), "session": session, "token": token}))
    ctx.touch(older)
    return blocks


def _seal(ctx: Context, first: int) -> None:
    key = block_key(first)
    old = ctx.get(key)
    assert old is not None, f"block {first} of a session is missing"
    ctx.replace(key, old, pack({**unpack(old), "sealed": True}))


def skip_to(ctx: Context, next_id: int) -> bytes | None:
    """Issue nothing below `next_id` any more; the row of the block of nobody, or None where nothing is skipped."""
    first = ctx.head.next_id
    if next_id <= first:
        return None
    block = {
        "first": first, "last": next_id - 1, "gateway": None, "zone": None, "session": None, "token": 0,
        "sealed": False,
    }  # fmt: skip
    packed = pack(block)
    ctx.insert(block_key(first), packed)
    ctx.head.blocks += 1
    ctx.head.next_id = next_id
    return packed


def check_floor(ctx: Context, highest: int) -> None:
    """Refuse a report that would use up too many numbers."""
    beyond = highest + 1 - ctx.head.next_id
    if beyond > FLOOR_RAISE_MAX:
        raise Refused(
            "id_floor_too_high",
            f"the gateway knows image number {highest}, {beyond} above what is issued next; at most {FLOOR_RAISE_MAX} "
            f"are skipped for a report: restore once more with --id-floor {highest + 1}, or give the gateway a new "
            "store if its own is damaged",
            number=highest, next_id=ctx.head.next_id,
        )  # fmt: skip


def raise_floor(ctx: Context, command: Command, highest: int) -> None:
    """The life before has issued `highest`: go on above it."""
    packed = skip_to(ctx, highest + 1)
    if packed is not None:
        ctx.next_revision()
        ctx.record("block", command, {}, "block", packed)


def live_session(ctx: Context, session: str, gateway: str) -> Row:
    """The session's head; refused when it is unknown, another gateway's, or fenced."""
    row = ctx.session(session)
    if row is None or row["gateway"] != gateway:
        raise Refused("session_unknown", f"gateway {gateway} has no session {session}; open it first")
    if row["fenced"]:
        raise Refused(
            "session_fenced",
            f"session {session} was fenced ({row['fenced']}); open a new one under a new UUID",
            token=row["token"],
        )
    return row


def claim(ctx: Context, command: Command, number: int, session: Row | None) -> None:
    """Check that `number` may be bound by this caller, and never was: it is in a live block of its own, or an epoch
    skipped it and the caller is a gateway's session."""
    block = _block_around(ctx, number)
    if block is None or block["sealed"] or not _holds(block, command, session):
        raise Refused(
            "block_not_held",
            f"image number {number} is not in a live block of the caller; leave it out and the registry issues one",
            number=number,
        )
    if ctx.get(image_key(number)) is not None or ctx.get(tombstone_key(number)) is not None:
        raise Refused("number_taken", f"image number {number} was used already", number=number)


def _holds(block: Row, command: Command, session: Row | None) -> bool:
    if session is not None:
        return block["session"] in (session["session"], None)
    return block["gateway"] is not None and bool(block["gateway"] == gateway_of(command))


def _block_around(ctx: Context, number: int) -> Row | None:
    for _, value in ctx.view.scan(BLOCKS, block_key(number + 1), reverse=True):
        block: Row = unpack(value)
        return block if block["last"] >= number else None
    return None
