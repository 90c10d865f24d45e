"""P4: what was asked several times with one key happened once, and every time got the first answer.

`changes` is the whole changefeed, read after the run: {"revision", "uuid", "version"} for each change of an image.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chaos.history import Operation
from chaos.lives import Life
from chaos.verdict import Check

Change = Mapping[str, Any]

WRITES = ("create", "update", "delete", "write", "cas")
# What a repeated answer must say again. The rest of it may describe the image as it is now.
TOLD = ("number", "first", "last", "version")


def judge_retries(operations: Iterable[Operation]) -> Check:
    """Operations with the same `key`: equal answers."""
    check = Check("retries get the first answer", "P4")
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.acknowledged and operation.asked.get("key"):
            by_key[operation.asked["key"]].append(operation)
    for key, (first, *others) in by_key.items():
        for other in others:
            said, again = _told(first), _told(other)
            check.verify(
                said == again,
                f"key {key}: operation {first.number} was answered {said}, its retry {again}",
                first.number,
                other.number,
            )
    return check


def _told(operation: Operation) -> dict[str, Any]:
    return {name: operation.answered[name] for name in TOLD if name in operation.answered}


def judge_applied_once(lives: Mapping[str, Life], changes: Sequence[Change]) -> Check:
    """An image has one change for each acknowledged write, at most one for each unknown one, and no other.

    `lives` are of operations that are `merged`. Images that a gateway wrote to are left out: it may do one request by
    several changes.
    """
    check = Check("writes apply exactly once", "P4")
    applied = Counter(change["uuid"] for change in changes)
    for life in lives.values():
        writes = [write for kind in WRITES for write in life.possible(kind)]
        if not writes or any("gateway" in write.asked for write in writes):
            continue
        least, most = sum(write.acknowledged for write in writes), len(writes)
        check.verify(
            least <= applied[life.uuid] <= most,
            f"image {life.uuid} changed {applied[life.uuid]} times, by {least} acknowledged and {most - least} unknown "
            f"writes",
            *(write.number for write in writes[:10]),
        )
    return check


def merged(operations: Iterable[Operation]) -> list[Operation]:
    """One operation for all tries with one key: from the first question to the first acknowledgement."""
    found: dict[Any, Operation] = {}
    for operation in operations:
        key = operation.asked.get("key") or operation.number
        first = found.setdefault(key, operation)
        if first is not operation:
            best = min(first, operation, key=lambda one: (not one.acknowledged, not one.possible, one.completed))
            found[key] = replace(best, number=first.number, invoked=min(first.invoked, operation.invoked))
    return list(found.values())
