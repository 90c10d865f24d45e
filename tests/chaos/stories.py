"""Histories in the making, for tests of the judge: an operation takes one second, and they follow each other."""

from __future__ import annotations

from typing import Any

from chaos.history import INFO, OK, Operation

FOREVER = float("inf")


class Story:
    """Operations in order of invocation; `at` is when one begins, `took` how long it is under way."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def add(
        self,
        kind: str,
        outcome: str = OK,
        *,
        at: float | None = None,
        took: float = 1.0,
        by: str = "client",
        answered: dict[str, Any] | None = None,
        **asked: Any,
    ) -> Story:
        number = len(self.operations) + 1
        invoked = 2.0 * number if at is None else at
        completed = FOREVER if outcome == INFO else invoked + took
        self.operations.append(Operation(number, by, kind, invoked, asked, outcome, completed, answered or {}))
        return self

    def write(self, value: Any, version: int | None = None, outcome: str = OK, **more: Any) -> Story:
        return self.add("write", outcome, value=value, answered=_known(version=version), **more)

    def cas(self, base: int, value: Any, version: int | None = None, outcome: str = OK, **more: Any) -> Story:
        return self.add("cas", outcome, base=base, value=value, answered=_known(version=version), **more)

    def read(self, version: int, value: Any, **more: Any) -> Story:
        return self.add("read", answered={"version": version, "value": value}, **more)


def _known(**answered: Any) -> dict[str, Any]:
    return {name: value for name, value in answered.items() if value is not None}
