"""Staleness: no answer calls itself fresher than it is, by the monotonic clock of the history.

An answer that says `staleness_s` and `revision` knows every write that was acknowledged at the registry longer ago than
that. Acknowledged writes say the `committed` revision. Both are "EPOCH.REVISION".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from chaos import config
from chaos.history import Operation
from chaos.validators.sessions import Revision, revision_of
from chaos.verdict import Check


@dataclass
class _Commits:
    """Acknowledged writes in order of their completion: when, and the highest revision committed until then."""

    ends: list[float]
    highest: list[tuple[Revision, int]]

    def before(self, moment: float) -> tuple[Revision, int] | None:
        """The highest revision acknowledged before `moment`, and the operation that was told it."""
        position = bisect_left(self.ends, moment)
        return self.highest[position - 1] if position else None


def judge_staleness(operations: Iterable[Operation]) -> Check:
    """Every claim, against the writes that it must know."""
    check = Check("nothing is called fresher than it is", "P6")
    all_operations = list(operations)
    commits = _commits(all_operations)
    for operation in all_operations:
        claim, revision = operation.answered.get("staleness_s"), revision_of(operation.answered.get("revision"))
        if not operation.acknowledged or claim is None or revision is None:
            continue
        # The claim was made after the question was asked, so it is at least about that moment.
        must_know = commits.before(operation.invoked - float(claim) - config.CLAIM_ROUNDING_S)
        if must_know is None or revision >= must_know[0]:
            check.verified += 1
        else:
            check.breach(
                f"operation {operation.number} got revision {revision}, said to be {claim} s old, but {must_know[0]} "
                f"had been acknowledged before that",
                must_know[1],
                operation.number,
            )
    return check


def _commits(operations: Iterable[Operation]) -> _Commits:
    found = sorted(
        (operation.completed, revision, operation.number)
        for operation in operations
        if operation.acknowledged and (revision := revision_of(operation.answered.get("committed"))) is not None
    )
    ends: list[float] = []
    highest: list[tuple[Revision, int]] = []
    for end, revision, number in found:
        ends.append(end)
        highest.append(max((revision, number), highest[-1]) if highest else (revision, number))
    return _Commits(ends, highest)
