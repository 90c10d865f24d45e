"""Verdicts: what was checked, and a sentence for every broken promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos import config

Image = Mapping[str, Any]


@dataclass
class Verdict:
    """The counts, and a sentence for every breach of a promise. Counts are of images unless they say otherwise."""

    acknowledged: int = 0
    unknown: int = 0
    in_registry: int = 0
    parked: int = 0
    lost: int = 0
    duplicate_numbers: int = 0
    duplicate_uuids: int = 0
    phantoms: int = 0
    out_of_order: int = 0
    checksums_verified: int = 0
    checksums_wrong: int = 0
    missing_in_zones: int = 0
    other: int = 0
    problems: list[str] = field(default_factory=list)
    sentences: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Nothing lost, doubled, made up, out of order or changed."""
        return not self.breaches

    @property
    def breaches(self) -> int:
        """How many promises were broken, however many of the sentences are kept."""
        return (
            self.lost + self.duplicate_numbers + self.duplicate_uuids + self.phantoms + self.out_of_order
            + self.checksums_wrong + self.missing_in_zones + self.other
        )  # fmt: skip

    def breach(self, count: str, sentence: str) -> None:
        """Count one breach and keep its sentence, if there is room."""
        setattr(self, count, getattr(self, count) + 1)
        if len(self.problems) < config.PROBLEMS_SHOWN_MAX:
            self.problems.append(sentence)
            self.sentences.setdefault(count, []).append(sentence)


PASS, FAIL, UNKNOWN, NOTHING = "pass", "FAIL", "unknown", "nothing to check"


@dataclass(frozen=True)
class Breach:
    """One broken promise: a sentence, and the numbers of the operations that show it."""

    sentence: str
    operations: Sequence[int] = ()


@dataclass
class Check:
    """One question to a run, with the promise that it is about.

    `verified` counts what could have gone wrong and did not: a check that verified nothing has not passed. `unknown`
    are sentences on what was given up.
    """

    name: str
    promise: str
    verified: int = 0
    breaches: int = 0
    shown: list[Breach] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def breach(self, sentence: str, *operations: int) -> None:
        """Count one breach and keep its sentence, if there is room."""
        self.breaches += 1
        if len(self.shown) < config.PROBLEMS_SHOWN_MAX:
            self.shown.append(Breach(sentence, operations))

    def verify(self, holds: bool, sentence: str, *operations: int) -> None:
        """Count what holds, or the breach. Sentences that take work to make belong behind an `if`."""
        if holds:
            self.verified += 1
        else:
            self.breach(sentence, *operations)

    @property
    def result(self) -> str:
        if self.breaches:
            return FAIL
        if self.unknown:
            return UNKNOWN
        return PASS if self.verified else NOTHING


def overall(checks: Sequence[Check]) -> str:
    """The worst result that counts. What had nothing to check is no fault, unless all had."""
    results = {check.result for check in checks}
    return next((result for result in (FAIL, UNKNOWN, PASS) if result in results), NOTHING)
