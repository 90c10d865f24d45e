"""P8, between tenants: who an image is not shared with does not find it; who it is shared with does, in that zone.

share, unshare  uuid, tenant            by the owner
spy             uuid, tenant -> found   by the tenant
"""

from __future__ import annotations

from collections.abc import Mapping

from chaos.history import Operation
from chaos.lives import Life
from chaos.verdict import Check


def judge_privacy(lives: Mapping[str, Life]) -> Check:
    """Every look of another tenant's, against what its owner had shared by then."""
    check = Check("other tenants see what is shared, and no more", "P8")
    for life in lives.values():
        for look in life.acknowledged("spy"):
            _judge_look(check, life, look)
    return check


def _judge_look(check: Check, life: Life, look: Operation) -> None:
    tenant, found = look.asked["tenant"], look.answered.get("found")
    shares = [share for share in life.possible("share") if share.asked["tenant"] == tenant]
    ends = [end for end in life.possible("unshare") if end.asked["tenant"] == tenant] + life.possible("delete")
    if found:
        check.verify(
            _may_see(shares, ends, look),
            f"image {life.uuid} is not shared with {tenant}, and {look.value('gateway')} shows it",
            *(one.number for one in (*shares[-1:], *ends[-1:], look)),
        )
    elif _must_see(shares, ends, look):
        check.breach(
            f"image {life.uuid} was shared with {tenant}, and {look.value('gateway')} does not show it",
            shares[-1].number,
            look.number,
        )
    else:
        check.verified += 1


def _may_see(shares: list[Operation], ends: list[Operation], look: Operation) -> bool:
    """Whether it may have been shared when the look was answered: asked for by then, and not surely ended since."""
    here = [end for end in ends if end.acknowledged and end.value("gateway") == look.value("gateway")]
    over = [end for end in here if end.precedes(look)]
    return any(share.invoked < look.completed and not any(share.precedes(end) for end in over) for share in shares)


def _must_see(shares: list[Operation], ends: list[Operation], look: Operation) -> bool:
    """Whether it was surely shared through this gateway, and nobody can have ended that."""
    here = [s for s in shares if s.acknowledged and s.value("gateway") == look.value("gateway") and s.precedes(look)]
    return bool(here) and not any(end.invoked < look.completed for end in ends)
