"""Deletions in apply: which zones may still hold bytes of an image that is gone, and their word that they don't.

A tombstone lists its `holders`, the zones of the image's locations at the delete. A zone's gateway takes its zone off
the list once the bytes are gone. That is no change of the catalogue, so it has no revision and is not in the feed.
"""

from __future__ import annotations

from raftreg.state_context import Command, Context, Ok
from raftreg.tables import Row, pack, tombstone_key, unpack


def holders(image: Row) -> list[str]:
    """Zones that hold bytes of the image, or may."""
    return sorted({location["zone"] for location in image["locations"] if location["zone"] is not None})


def confirm_deletions(ctx: Context, command: Command) -> Ok:
    """The zone holds no bytes of these images any more. What is no tombstone, or is confirmed already, is no error: the
    same may be said twice, and an epoch that was lost may have had the delete."""
    confirmed = sum(_confirm(ctx, number, command["zone"]) for number in command["numbers"])
    return {"confirmed": confirmed, "revision": ctx.head.revision}


def _confirm(ctx: Context, number: int, zone: str) -> bool:
    key = tombstone_key(number)
    packed = ctx.get(key)
    if packed is None:
        return False
    tombstone: Row = unpack(packed)
    if zone not in tombstone["holders"]:
        return False
    tombstone["holders"].remove(zone)
    ctx.replace(key, packed, pack(tombstone))
    return True
