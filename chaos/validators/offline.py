"""P6: a zone that is cut off goes on answering what it promises to answer, and not slowly.

Faults are in the history too: a `fault` is an operation that lasts from when it is in force until healing begins. It
names what it does: `cut` zones, and processes that are `down` (killed or stopped), and when it `began` to be made.
"""

from __future__ import annotations

from collections.abc import Iterable

from chaos import config
from chaos.history import Operation
from chaos.verdict import Check

FAULT = "fault"
# What a zone promises for images of its own while it is cut off.
PROMISED = ("create", "upload", "update", "delete", "get", "download", "list", "share")


def judge_cut_off(operations: Iterable[Operation]) -> Check:
    """Every promised request that a zone got while it was cut off, and its gateway ran, was answered, in time."""
    check = Check("a zone that is cut off answers", "P6")
    all_operations = list(operations)
    faults = [operation for operation in all_operations if operation.kind == FAULT]
    cuts = [fault for fault in faults if fault.asked.get("cut")]
    stops = [fault for fault in faults if fault.asked.get("down")]
    for operation in all_operations:
        if operation.kind in PROMISED and _is_cut_off(operation, cuts) and not _is_down(operation, stops):
            _judge_answer(check, operation)
    return check


def _is_cut_off(operation: Operation, cuts: Iterable[Operation]) -> bool:
    """Whether its zone's link was down from before it was asked until after it was answered."""
    zone = operation.value("zone")
    return any(
        zone in cut.asked["cut"] and cut.invoked < operation.invoked and _ended(operation) < cut.completed
        for cut in cuts
    )


def _is_down(operation: Operation, stops: Iterable[Operation]) -> bool:
    """Whether its gateway may have been away at any moment of it, or was still starting."""
    gateway = operation.value("gateway")
    return any(
        gateway in stop.asked["down"]
        and stop.asked.get("began", stop.invoked) <= _ended(operation)
        and operation.invoked <= stop.completed + config.START_MAX_S
        for stop in stops
    )


def _ended(operation: Operation) -> float:
    """When its client knew its outcome or gave up."""
    return float(operation.answered.get("gave_up", operation.completed))


def _judge_answer(check: Check, operation: Operation) -> None:
    said = f"{operation.kind} (operation {operation.number}) in {operation.value('zone')}, which was cut off"
    took = _ended(operation) - operation.invoked
    if not operation.acknowledged:
        refused = operation.answered.get("code", "no answer")
        # A refusal that is the client's own doing, such as a UUID that exists, is an answer.
        check.verify(refused in config.ANSWERS_OF_HEALTH, f"{said}: {refused}", operation.number)
    else:
        check.verify(took <= config.CUT_OFF_ANSWER_MAX_S, f"{said}: answered after {took:.1f} s", operation.number)
