"""Sequential specifications: what one image, or the counter of IDs, answers when nothing happens at the same time.

A model is pure. Its states are hashable values, so that the checker can tell which it has seen. Kinds of operation,
with what is read of question and answer (answers may lack any of it, then it is not checked):

    Register       write  value -> version                  create the register, or change it whatever it holds
                   cas    base, value -> version            change it if it is at version `base`
                   read   -> version, value                 version 0: there is none yet
    ImageLife      create -> version, number
                   update set: {...}, base -> version       `base`: refused unless the image is at that version
                   delete
                   get    -> found, version, number, attributes: {...}
    IdAllocation   allocate -> first, last                  also a granted block: IDs that nobody else ever gets
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from chaos.history import INFO, Operation

State = Hashable


class Model(Protocol):
    """One sequential specification. The real thing may at any time be in one of its states, and in no other."""

    def initial(self) -> State:
        """The state before anything has happened."""
        ...

    def step(self, state: Any, operation: Operation) -> State | None:
        """The state after this operation with this answer; None if it can't give this answer here."""
        ...

    def hopeless(self, state: Any, operation: Operation) -> bool:
        """Whether it can't give this answer here nor in any state that may follow. False when in doubt."""
        ...

    def reads(self, operation: Operation) -> bool:
        """Whether it never changes the state."""
        ...

    def learn(self, operations: Sequence[Operation]) -> list[Operation]:
        """The same operations, with what reads tell of those whose outcome is unknown.

        A write that was seen at a version happened there if anywhere; of writes that nobody ever saw, what was written
        does not matter: they get one value, so that the checker takes them for each other's equal.
        """
        ...


UNSEEN = "(unseen)"
"""What writes of unknown outcome wrote if nobody ever saw it."""


class Value(NamedTuple):
    """A register: how often it was written, and what it holds."""

    version: int
    value: Any


class Register:
    """Values are best unique: then a read tells which write it saw."""

    def initial(self) -> Value:
        return Value(0, None)

    def reads(self, operation: Operation) -> bool:
        return operation.kind == "read"

    def step(self, state: Value, operation: Operation) -> Value | None:
        version, value = operation.answered.get("version"), operation.asked.get("value")
        if operation.kind == "read":
            same = version in (None, state.version) and operation.answered.get("value", state.value) == state.value
            return state if same else None
        if operation.kind == "cas" and operation.asked["base"] != state.version:
            return None
        return Value(state.version + 1, value) if version in (None, state.version + 1) else None

    def hopeless(self, state: Value, operation: Operation) -> bool:
        version = operation.answered.get("version")
        if operation.kind == "read":
            return version is not None and version < state.version
        based = operation.kind == "cas" and operation.asked["base"] < state.version
        return based or (version is not None and version <= state.version)

    def learn(self, operations: Sequence[Operation]) -> list[Operation]:
        writers = Counter(o.asked.get("value") for o in operations if o.kind != "read")
        seen: dict[Any, int | None] = {}
        for read in operations:
            if read.kind == "read" and read.acknowledged:
                seen[read.answered.get("value")] = read.answered.get("version")
        return [
            self._learnt(o, seen) if o.outcome == INFO and writers[o.asked.get("value")] == 1 else o for o in operations
        ]

    @staticmethod
    def _learnt(write: Operation, seen: Mapping[Any, int | None]) -> Operation:
        value = write.asked.get("value")
        if value not in seen:
            return replace(write, asked=write.asked | {"value": UNSEEN})
        return write if seen[value] is None else replace(write, answered={"version": seen[value]})


class Image(NamedTuple):
    """An image: `phase` is absent, present or deleted; attributes are those that somebody has set, as sorted pairs."""

    phase: str = "absent"
    version: int = 0
    number: int | None = None
    attributes: tuple[tuple[str, Any], ...] = ()


class ImageLife:
    """Created once, changed, deleted for ever. The version is 1 at first and rises by one with each change."""

    def initial(self) -> Image:
        return Image()

    def reads(self, operation: Operation) -> bool:
        return operation.kind == "get"

    def step(self, state: Image, operation: Operation) -> Image | None:
        answered = operation.answered
        if operation.kind == "get":
            return state if _shows(state, answered) else None
        if operation.kind == "create":
            if state.phase != "absent" or answered.get("version") not in (None, 1):
                return None
            attributes = _merged((), operation.asked.get("attributes") or {})
            return Image("present", 1, answered.get("number"), attributes)
        if state.phase != "present" or operation.asked.get("base") not in (None, state.version):
            return None
        if operation.kind == "delete":
            return Image("deleted", state.version + 1, state.number)
        if answered.get("version") not in (None, state.version + 1):
            return None
        return state._replace(
            version=state.version + 1, attributes=_merged(state.attributes, operation.asked.get("set") or {})
        )

    def hopeless(self, state: Image, operation: Operation) -> bool:
        version, base = operation.answered.get("version"), operation.asked.get("base")
        if operation.kind == "get":
            return _never_again(state, operation.answered)
        if operation.kind == "create":
            return state.phase != "absent"
        if state.phase == "deleted" or (base is not None and base < state.version):
            return True
        return version is not None and version <= state.version

    def learn(self, operations: Sequence[Operation]) -> list[Operation]:
        seen = set(_values(o.answered.get("attributes") for o in operations))
        return [_blurred(o, seen) if o.outcome == INFO and o.kind == "update" else o for o in operations]


def _values(attributes: Iterable[Mapping[str, Any] | None]) -> Iterable[tuple[str, Any]]:
    for one in attributes:
        yield from _merged((), one or {})


def _blurred(update: Operation, seen: set[tuple[str, Any]]) -> Operation:
    """An update with UNSEEN for every value that nobody saw."""
    changes = _merged((), update.asked.get("set") or {})
    blurred = {name: value if (name, value) in seen else UNSEEN for name, value in changes}
    return replace(update, asked=update.asked | {"set": blurred})


def _shows(state: Image, answered: Mapping[str, Any]) -> bool:
    if not answered.get("found", True):
        return state.phase != "present"
    if state.phase != "present" or answered.get("version", state.version) != state.version:
        return False
    number = answered.get("number")
    if number is not None and state.number is not None and number != state.number:
        return False
    seen, held = answered.get("attributes") or {}, dict(state.attributes)
    return all(name not in held or held[name] == value for name, value in seen.items())


def _never_again(state: Image, answered: Mapping[str, Any]) -> bool:
    if not answered.get("found", True):
        return False
    return state.phase == "deleted" or answered.get("version", state.version) < state.version


def _merged(attributes: tuple[tuple[str, Any], ...], changes: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    fresh = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    return tuple(sorted((dict(attributes) | fresh).items()))


class IdAllocation:
    """The registry's counter: every allocation lies above all that were made before it; gaps are allowed."""

    def initial(self) -> int:
        return 0

    def reads(self, operation: Operation) -> bool:
        # One whose answer never came may have left a gap, which is as good as nothing.
        return not operation.acknowledged

    def step(self, state: int, operation: Operation) -> int | None:
        first, last = operation.answered["first"], operation.answered["last"]
        return int(last) if state < first <= last else None

    def hopeless(self, state: int, operation: Operation) -> bool:
        return bool(operation.answered["first"] <= state)

    def learn(self, operations: Sequence[Operation]) -> list[Operation]:
        return list(operations)
