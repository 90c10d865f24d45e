"""P7: through a gateway everybody sees what was written through it, and nothing that was seen goes back.

Operations name their `gateway`; answers say its `revision`, as the header does: "EPOCH.REVISION".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from chaos.history import Operation
from chaos.lives import Life
from chaos.verdict import Check

Revision = tuple[int, int]


def revision_of(said: Any) -> Revision | None:
    """(epoch, revision) of a cursor; None while a gateway has none."""
    epoch, dot, revision = str(said).partition(".")
    return (int(epoch), int(revision)) if dot and epoch.isdecimal() and revision.isdecimal() else None


def judge_monotonic(operations: Iterable[Operation]) -> Check:
    """The revisions of a gateway's answers never decrease, nor below what a client sent with its request (`after`)."""
    check = Check("reads of a gateway never go back", "P7")
    by_gateway: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        revision = revision_of(operation.answered.get("revision"))
        gateway = operation.value("gateway")
        if not operation.acknowledged or revision is None or gateway is None:
            continue
        by_gateway[gateway].append(operation)
        after = revision_of(operation.asked.get("after"))
        if after is not None and revision < after:
            check.breach(
                f"operation {operation.number} asked for revision {after} or later, and got {revision}",
                operation.number,
            )
    for gateway, found in by_gateway.items():
        rising(check, found, _revision, f"gateway {gateway} answered revision")
    return check


def _revision(operation: Operation) -> Revision:
    return revision_of(operation.answered["revision"]) or (0, 0)


def rising(check: Check, operations: list[Operation], value: Callable[[Operation], Any], what: str) -> None:
    """In order of invocation, each value is at least the highest that had been answered before."""
    by_end = sorted(operations, key=lambda operation: operation.completed)
    position, highest = 0, None
    for operation in sorted(operations, key=lambda operation: operation.invoked):
        while position < len(by_end) and by_end[position].precedes(operation):
            if highest is None or value(by_end[position]) > value(highest):
                highest = by_end[position]
            position += 1
        if highest is None or value(operation) >= value(highest):
            check.verified += 1
        else:
            check.breach(
                f"{what} {value(operation)} after it had answered {value(highest)}", highest.number, operation.number
            )


def judge_own_writes(lives: Mapping[str, Life], parked: Collection[str] = ()) -> Check:
    """A read through a gateway finds what an acknowledged write through it made, unless another write came between.

    What images with `parked` writes hold is open: a write that another one was refused before waits with it.
    """
    check = Check("own writes are seen at once", "P7")
    for life in lives.values():
        for read in life.acknowledged("get"):
            if read.value("gateway") is not None:
                _judge_found(check, life, read)
                if life.uuid not in parked:
                    _judge_attributes(check, life, read)
    return check


def _judge_found(check: Check, life: Life, read: Operation) -> None:
    gateway, found = read.value("gateway"), read.answered.get("found", True)
    created = _own(life, "create", read)
    deleted = _own(life, "delete", read)
    maybe_deleted = any(not read.precedes(delete) for delete in life.possible("delete"))
    if created and not deleted and not maybe_deleted:
        check.verify(
            found, f"image {life.uuid} was created through {gateway}, and {gateway} does not show it",
            created[-1].number, read.number,
        )  # fmt: skip
    if deleted:
        check.verify(
            not found, f"image {life.uuid} was deleted through {gateway}, and {gateway} still shows it",
            deleted[-1].number, read.number,
        )  # fmt: skip


def _judge_attributes(check: Check, life: Life, read: Operation) -> None:
    seen = read.answered.get("attributes") or {}
    own = _own(life, "update", read)
    for name, value in seen.items():
        writes = [u for u in own if name in (u.asked.get("set") or {})]
        if not writes:
            continue
        last = [u for u in writes if not any(u.precedes(later) for later in writes)]
        others = [u for u in life.possible("update") if u not in writes and not read.precedes(u)]
        allowed = [u.asked["set"][name] for u in last + others if name in (u.asked.get("set") or {})]
        check.verify(
            value in allowed,
            f"image {life.uuid}: {read.value('gateway')} shows {name} {value!r} after {allowed} was written through it",
            last[-1].number,
            read.number,
        )


def _own(life: Life, kind: str, read: Operation) -> list[Operation]:
    """Writes through the read's gateway that were acknowledged before it was asked."""
    gateway = read.value("gateway")
    return [write for write in life.acknowledged(kind) if write.value("gateway") == gateway and write.precedes(read)]
