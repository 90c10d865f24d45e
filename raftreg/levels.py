"""Which feature levels the members of a cluster support, and whether the one in force may rise.

Voters and observers say so in their hello, gateways with each heartbeat; only the leader hears of all. A gateway counts
while it is live: one that comes later and supports less is refused then, as a peer is at its hello.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raftreg import commands, errors, tables
from raftreg.leases import LeaseKeeper
from raftreg.peer import Peer
from raftreg.tables import View, read_head

Document = dict[str, Any]


def admit(view: View, proposed: Sequence[Document]) -> None:
    """Raises LevelNotInForce when a command belongs to a feature level that is not in force yet."""
    needed = max(map(commands.level_of, proposed), default=1)
    if needed > 1 and needed > (level := read_head(view).level):
        raise errors.LevelNotInForce(
            f"this needs feature level {needed}, and {level} is in force; `raftreg level show` says who holds it back",
            level=level,
        )


class Levels:
    """The members as one peer knows them."""

    def __init__(self, peer: Peer, leases: LeaseKeeper) -> None:
        self._peer, self._leases = peer, leases

    def status(self) -> Document:
        """{"in_force", "raising", "highest", "members": [{"kind", "name", "level"}]}, without gateways unless this peer
        leads. `level` is the highest that a member supports, None of one that is away; `highest` that of any voter."""
        head = read_head(self._peer.store.view())
        try:
            members = self._members(self._leases.levels())
        except errors.Unavailable:
            members = self._members({})
        told = {"in_force": head.level, "raising": bool(head.raising), "highest": _highest(members)}
        return {**told, "members": members}

    def trouble(self) -> str | None:
        """For people: what an operator has begun and not ended."""
        head = read_head(self._peer.store.view())
        if not head.raising:
            return None
        return f"the migration to feature level {head.format} is not complete: `raftreg level raise` goes on with it"

    def target(self, wanted: int | None) -> int:
        """The level to raise to: `wanted`, or the highest that any voter supports.

        Raises LevelHeldBack while a member does not support it, BadRequest for one below what was begun, NotLeader,
        NoQuorum.
        """
        head = read_head(self._peer.store.view())
        members = self._members(self._leases.levels())
        target = wanted if wanted is not None else max(_highest(members), head.format)
        if target < head.format:
            raise errors.BadRequest(f"feature level {head.format} was begun or is in force; levels never go back")
        behind = [member for member in members if (member["level"] or 0) < target]
        # Once it has begun, nobody who supports less can be a part of it any more.
        if target > head.format and behind:
            raise errors.LevelHeldBack(
                f"feature level {target} is held back by {', '.join(map(_described, behind))}", by=behind
            )
        return target

    def _members(self, gateways: dict[str, int | None]) -> list[Document]:
        voters = self._peer.store.identity.peers
        peers: dict[str, int | None] = {self._peer.config.name: tables.FEATURE_LEVEL, **self._peer.links.levels()}
        return [
            *(_member("voter", name, peers.get(name)) for name in voters),
            *(_member("observer", name, level) for name, level in sorted(peers.items()) if name not in voters),
            *(_member("gateway", name, level) for name, level in sorted(gateways.items())),
        ]


def _member(kind: str, name: str, level: int | None) -> Document:
    return {"kind": kind, "name": name, "level": level}


def _highest(members: Sequence[Document]) -> int:
    return max((member["level"] or 1 for member in members if member["kind"] == "voter"), default=1)


def _described(member: Document) -> str:
    name, level = f"{member['kind']} {member['name']}", member["level"]
    if level is not None:
        return f"{name} (supports {level})"
    return f"{name} (not heard since this peer leads)" if member["kind"] == "gateway" else f"{name} (away)"
