"""Histories: what clients asked and what they were answered, one JSON object per line.

An operation is an `invoke` and, later, at most one completion:

- `ok`    it happened, with what the answer said
- `fail`  it surely did not happen (a definite refusal)
- `info`  nobody knows; an operation without completion counts as this

    {"type": "invoke", "operation": 7, "process": "ams-3", "kind": "create", "time": 1.25, "values": {"uuid": "..."}}
    {"type": "ok", "operation": 7, "time": 1.31, "values": {"number": 12}}

Times are seconds of one monotonic clock, so a history is written by one process. Kinds and values are the workload's
business; those that `validate` understands are listed there.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos import config

INVOKE, OK, FAIL, INFO = "invoke", "ok", "fail", "info"
COMPLETIONS = (OK, FAIL, INFO)


class BadHistory(Exception):
    """A history which can't be read or contradicts itself. The message names the line."""


@dataclass
class Operation:
    """One operation: who asked for what and when, how it ended and what was answered."""

    number: int
    process: str
    kind: str
    invoked: float
    asked: dict[str, Any]
    outcome: str = INFO
    completed: float = float("inf")
    answered: dict[str, Any] = field(default_factory=dict)

    @property
    def acknowledged(self) -> bool:
        return self.outcome == OK

    @property
    def possible(self) -> bool:
        """Whether it happened or may have happened."""
        return self.outcome != FAIL

    def precedes(self, other: Operation) -> bool:
        """Whether it had surely completed before the other was asked."""
        return self.completed < other.invoked

    def value(self, name: str) -> Any:
        """A value from the answer, else from the question."""
        return self.answered.get(name, self.asked.get(name))


class History:
    """A history being written. Events reach the file as they happen, so it survives the death of its writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()
        self._events = 0
        self._last = 0
        self._open: set[int] = set()

    def invoke(self, process: str, kind: str, **values: Any) -> int:
        """Note that an operation begins now; returns its number, for the completion."""
        with self._lock:
            self._last += 1
            self._open.add(self._last)
            self._write({"type": INVOKE, "operation": self._last, "process": process, "kind": kind, "values": values})
            return self._last

    def ok(self, operation: int, **values: Any) -> None:
        """Note that it was acknowledged, before anybody relies on it."""
        self._complete(OK, operation, values)

    def fail(self, operation: int, **values: Any) -> None:
        """Note that it was refused definitely."""
        self._complete(FAIL, operation, values)

    def info(self, operation: int, **values: Any) -> None:
        """Note that its outcome is unknown."""
        self._complete(INFO, operation, values)

    def close(self) -> None:
        """Sync and close; operations still open stay unknown."""
        with self._lock:
            os.fsync(self._file.fileno())
            self._file.close()

    def _complete(self, kind: str, operation: int, values: dict[str, Any]) -> None:
        with self._lock:
            if operation not in self._open:
                raise BadHistory(f"operation {operation} was never invoked, or completed already")
            self._open.remove(operation)
            self._write({"type": kind, "operation": operation, "values": values})

    def _write(self, event: dict[str, Any]) -> None:
        self._events += 1
        if self._events > config.HISTORY_EVENTS_MAX:
            raise BadHistory(f"{self.path} has {config.HISTORY_EVENTS_MAX} events, which is the limit; start another")
        self._file.write(json.dumps(event | {"time": time.monotonic()}).encode() + b"\n")


def read(path: Path) -> list[Operation]:
    """The operations of a history file, in order of invocation. Raises BadHistory.

    A last line without end is what a killed writer leaves; it is passed over.
    """
    with path.open("rb") as file:
        return parse(line for line in file if line.endswith(b"\n"))


def parse(lines: Iterable[bytes]) -> list[Operation]:
    """The operations of the given lines. Raises BadHistory."""
    operations: dict[int, Operation] = {}
    done: set[int] = set()
    for number, line in enumerate(lines, 1):
        if number > config.HISTORY_EVENTS_MAX or len(line) > config.HISTORY_LINE_BYTES_MAX:
            raise BadHistory(f"line {number}: more events, or a longer line, than chaos.config allows")
        try:
            _take(json.loads(line), operations, done)
        except (ValueError, KeyError, TypeError, AttributeError, BadHistory) as error:
            raise BadHistory(f"line {number}: {error!r}") from error
    return list(operations.values())


def _take(event: dict[str, Any], operations: dict[int, Operation], done: set[int]) -> None:
    number, kind, values = event["operation"], event["type"], dict(event["values"])
    if kind == INVOKE:
        if number in operations:
            raise BadHistory(f"operation {number} is invoked twice")
        operations[number] = Operation(number, str(event["process"]), event["kind"], float(event["time"]), values)
        return
    if kind not in COMPLETIONS:
        raise BadHistory(f"type {kind!r} is not one of {(INVOKE, *COMPLETIONS)}")
    if number not in operations or number in done:
        raise BadHistory(f"operation {number} completes without having been invoked, or twice")
    done.add(number)
    operation = operations[number]
    operation.outcome, operation.answered = kind, values
    if kind != INFO:
        operation.completed = float(event["time"])
