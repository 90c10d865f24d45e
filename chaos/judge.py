"""The judge of a run: every check that there is, on the history and on what was read after it.

python -m chaos.judge DIRECTORY      judges again what a run left there (history.jsonl, evidence.json)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos import checker, models, validate
from chaos.checker import UNKNOWN, VIOLATION, Linearizability
from chaos.history import BadHistory, Operation, read
from chaos.lives import lives as lives_of
from chaos.validators.feeds import judge_feeds
from chaos.validators.offline import judge_cut_off
from chaos.validators.peers import judge_digests
from chaos.validators.privacy import judge_privacy
from chaos.validators.retries import judge_applied_once, judge_retries, merged
from chaos.validators.sessions import judge_monotonic, judge_own_writes
from chaos.validators.staleness import judge_staleness
from chaos.verdict import FAIL, Breach, Check, Image, Verdict, overall

EVIDENCE_FILE, HISTORY_FILE = "evidence.json", "history.jsonl"


@dataclass
class Evidence:
    """What was read when all faults were healed and all queues drained. Lists of it are of plain JSON documents.

    `changes`: all changes of images of the feed, empty where it was not read. `digests`: process -> index -> digest, of
    the `processes` that hold the registry's state. `parked`: UUIDs of images with parked writes. `troubles`: sentences
    on what did not come back; each is a breach.
    """

    registry: list[Image] = field(default_factory=list)
    zones: dict[str, list[Image]] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)
    parked: list[str] = field(default_factory=list)
    changes: list[Mapping[str, Any]] = field(default_factory=list)
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    processes: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def save(self, directory: Path) -> None:
        (directory / EVIDENCE_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Evidence:
        """Raises OSError, ValueError or TypeError."""
        return cls(**json.loads((directory / EVIDENCE_FILE).read_text(encoding="utf-8")))


def judge(operations: Sequence[Operation], evidence: Evidence) -> list[Check]:
    """All checks, in the order in which a reader wants them."""
    once = merged(operations)
    lives = lives_of(once)
    final = validate.judge(once, evidence.registry, evidence.zones, known=evidence.known, parked=evidence.parked)
    checks = [
        _recovered(evidence),
        _linearizable("registers are linearizable", once, models.Register(), _register),
        _linearizable("images at the registry are linearizable", once, models.ImageLife(), _image),
        _linearizable("IDs are allocated in order", once, models.IdAllocation(), _allocation, promise="P3"),
        *_final(final),
        judge_retries(operations),
        judge_own_writes(lives, evidence.parked),
        judge_monotonic(operations),
        judge_privacy(lives),
        judge_cut_off(operations),
        judge_staleness(operations),
        judge_feeds(operations, evidence.changes),
        judge_digests(evidence.digests, evidence.processes),
    ]
    if evidence.changes:
        checks.append(judge_applied_once(lives, evidence.changes))
    return checks


def _register(operation: Operation) -> str | None:
    return operation.asked.get("uuid") if operation.kind in ("write", "cas", "read") else None


def _image(operation: Operation) -> str | None:
    """Images that are written at the registry itself, and read there linearizably."""
    if operation.kind not in ("create", "update", "delete", "get") or "gateway" in operation.asked:
        return None
    return operation.asked.get("uuid") if operation.asked.get("consistency", "linearizable") == "linearizable" else None


def _allocation(operation: Operation) -> str | None:
    return "IDs" if operation.kind == "allocate" else None


def _linearizable(name: str, operations: Iterable[Operation], model: Any, key: Any, promise: str = "P2") -> Check:
    found: Linearizability = checker.check(operations, model, key)
    check = Check(name, promise, verified=sum(f.checked for f in found.having(checker.LINEARIZABLE)))
    for finding in found.having(VIOLATION):
        check.breach(finding.sentence(), *(operation.number for operation in finding.operations))
    check.unknown += [finding.sentence() for finding in found.having(UNKNOWN)]
    return check


def _recovered(evidence: Evidence) -> Check:
    check = Check("everything came back after healing", "P9")
    check.verify(not evidence.troubles, "not all came back")
    for trouble in evidence.troubles:
        check.breach(trouble)
    return check


# Count of validate.Verdict -> what it is about, and the promise.
_COUNTED = {
    "lost": ("no acknowledged write is lost", "P1, P5"),
    "missing_in_zones": ("zones list what was acknowledged", "P5"),
    "duplicate_numbers": ("image numbers are unique", "P3"),
    "duplicate_uuids": ("images exist once", "P4"),
    "out_of_order": ("numbers and versions rise", "P3"),
    "phantoms": ("nothing is there that nobody asked for", "P4"),
    "checksums_wrong": ("data are what was stored", "data"),
    "other": ("what was deleted or told stays so", "P1, P3"),
}


def _final(verdict: Verdict) -> list[Check]:
    """The verdict on the final state as checks."""
    checks = []
    for count, (name, promise) in _COUNTED.items():
        verified = verdict.checksums_verified if count == "checksums_wrong" else verdict.acknowledged
        check = Check(name, promise, verified=verified, breaches=getattr(verdict, count))
        check.shown = [Breach(sentence) for sentence in verdict.sentences.get(count, ())]
        checks.append(check)
    return checks


def main(arguments: Sequence[str]) -> int:
    """0 if all is well, 1 if a promise was broken or a check gave up, 2 if the files can't be read."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    directory = Path(arguments[0])
    try:
        checks = judge(read(directory / HISTORY_FILE), Evidence.load(directory))
    except (OSError, ValueError, TypeError, BadHistory) as error:
        print(f"can't judge {directory}: {error}", file=sys.stderr)
        return 2
    for check in checks:
        print(f"{check.result:<17} {check.promise:<7} {check.name}: {check.verified} verified, {check.breaches} broken")
        for sentence in [*(breach.sentence for breach in check.shown), *check.unknown]:
            print(f"    {sentence}")
    print(f"verdict: {overall(checks)}")
    return int(overall(checks) in (FAIL, "unknown"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
