"""The changefeed: in order, complete, each change once, resumable, and filtered as asked.

A consumer's history is operations of kind `feed`, one for each stretch that it read:

    feed  consumer, after: cursor, wanted: owner or None -> until: cursor, changes: [{revision, uuid, version, owner}]

`after` is where it asked to go on, `until` how far it came by the feed's own word. `changes` of the judge are all of
them, read in one go after the run; `gone` stands in a change for an image that left the filter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chaos.history import Operation
from chaos.validators.sessions import revision_of
from chaos.verdict import Check

Change = Mapping[str, Any]


def judge_feeds(operations: Iterable[Operation], changes: Sequence[Change]) -> Check:
    """Every stretch of every consumer, against all changes."""
    check = Check("changes come in order, all and once", "feed")
    by_consumer: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind == "feed" and operation.acknowledged:
            by_consumer[operation.asked["consumer"]].append(operation)
    _rising(check, "the feed read after the run", changes, 0, ())
    ordered = sorted(changes, key=_revision)
    for consumer, stretches in by_consumer.items():
        _judge_consumer(check, consumer, stretches, ordered)
    return check


def _judge_consumer(check: Check, consumer: str, stretches: list[Operation], ordered: Sequence[Change]) -> None:
    came: int | None = None
    for stretch in stretches:
        after, until = _position(stretch.asked["after"]), _position(stretch.answered["until"])
        if came is not None and after != came:
            check.breach(f"{consumer} went on at {after}, but had come to {came}", stretch.number)
        got = stretch.answered["changes"]
        _rising(check, consumer, got, after, (stretch.number,))
        first, end = (bisect_right(ordered, position, key=_revision) for position in (after, until))
        _judge_complete(check, stretch, ordered[first:end])
        came = until


def _rising(check: Check, whose: str, changes: Sequence[Change], after: int, operations: Sequence[int]) -> None:
    last = after
    for change in changes:
        if change["revision"] <= last:
            check.breach(f"{whose}: revision {change['revision']} came behind {last}", *operations)
        last = max(last, change["revision"])


def _judge_complete(check: Check, stretch: Operation, passed: Iterable[Change]) -> None:
    """Exactly the wanted ones of what happened in the stretch, with the same content."""
    wanted = stretch.asked.get("wanted")
    expected = {c["revision"]: _content(c) for c in passed if wanted in (None, c.get("owner"))}
    got = {c["revision"]: _content(c) for c in stretch.answered["changes"]}
    consumer = stretch.asked["consumer"]
    for revision in expected.keys() - got.keys():
        check.breach(f"{consumer} never got revision {revision}", stretch.number)
    for revision in got.keys() - expected.keys():
        check.breach(f"{consumer} got revision {revision}, which it does not want or nobody made", stretch.number)
    for revision in expected.keys() & got.keys():
        check.verify(
            expected[revision] == got[revision],
            f"{consumer} got revision {revision} as {got[revision]} instead of {expected[revision]}",
            stretch.number,
        )


def _revision(change: Change) -> int:
    revision: int = change["revision"]
    return revision


def _content(change: Change) -> tuple[Any, Any]:
    return change.get("uuid"), change.get("version")


def _position(cursor: str) -> int:
    position = revision_of(cursor)
    return position[1] if position else 0
