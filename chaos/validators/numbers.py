"""P3: numbers are given once, stay with their image, and rise at each gateway."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from chaos.history import Operation
from chaos.lives import Life, number_of, uuid_of
from chaos.verdict import Image, Verdict


def judge_doubles(verdict: Verdict, operations: Sequence[Operation], registry: Sequence[Image]) -> None:
    """One number for one image, one row for one UUID, and one acknowledged create for one UUID."""
    owners: dict[int, set[str]] = defaultdict(set)
    for image in registry:
        if (number := number_of(image)) is not None:
            owners[number].add(uuid_of(image))
    for operation in operations:
        if operation.acknowledged and operation.kind == "create" and operation.value("number") is not None:
            owners[operation.value("number")].add(operation.value("uuid"))
    _add_allocated(verdict, owners, operations)
    for number, holders in owners.items():
        if len(holders) > 1:
            verdict.breach("duplicate_numbers", f"number {number} was given to {', '.join(sorted(holders))}")
    creates = (o.value("uuid") for o in operations if o.kind == "create" and o.acknowledged)
    for what, uuids in (("in the registry", map(uuid_of, registry)), ("acknowledged as created", creates)):
        for uuid, times in Counter(uuids).items():
            if times > 1:
                verdict.breach("duplicate_uuids", f"image {uuid} is {times} times {what}")


def _add_allocated(verdict: Verdict, owners: dict[int, set[str]], operations: Iterable[Operation]) -> None:
    """Enter ranges of bare numbers without unrolling them: sorted, each must end before the next begins."""
    ranges = sorted(
        (o.answered["first"], o.answered["last"], o.number)
        for o in operations
        if o.acknowledged and o.kind == "allocate"
    )
    for (_, last, one), (first, _, other) in pairwise(ranges):
        if first <= last:
            verdict.breach(
                "duplicate_numbers", f"numbers {first} to {last} were allocated by operations {one} and {other}"
            )
    numbers = sorted(owners)
    position = 0
    for first, last, operation in ranges:
        while position < len(numbers) and numbers[position] <= last:
            if numbers[position] >= first:
                owners[numbers[position]].add(f"the range of operation {operation}")
            position += 1


def judge_number(verdict: Verdict, life: Life, row: Image | None) -> None:
    """What a client was told is the image's number stays its number."""
    for create in life.acknowledged("create"):
        told = create.value("number")
        if row is not None and told is not None and number_of(row) != told:
            verdict.breach("other", f"image {life.uuid} was acknowledged as number {told}, and is now {number_of(row)}")


def judge_number_order(verdict: Verdict, operations: Iterable[Operation]) -> None:
    """Numbers from one gateway rise: an image asked for after another was acknowledged has a higher number."""
    by_gateway: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.acknowledged and operation.kind == "create" and operation.value("number") is not None:
            by_gateway[str(operation.value("gateway"))].append(operation)
    for gateway, creates in by_gateway.items():
        _judge_rising(verdict, gateway, creates)


def _judge_rising(verdict: Verdict, gateway: str, creates: list[Operation]) -> None:
    """In order of invocation, each number is above the highest of those that were acknowledged before."""
    by_completion = sorted(creates, key=lambda create: create.completed)
    position, highest = 0, 0
    for create in sorted(creates, key=lambda create: create.invoked):
        while position < len(by_completion) and by_completion[position].precedes(create):
            highest = max(highest, by_completion[position].value("number"))
            position += 1
        if create.value("number") <= highest:
            verdict.breach(
                "out_of_order",
                f"gateway {gateway}: image {create.value('uuid')} got number {create.value('number')} after {highest} "
                f"had been acknowledged",
            )
