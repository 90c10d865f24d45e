"""Rules of the consensus that can be switched off, to see that schedules notice when one is missing.

A random test that passes without a rule says nothing about that rule. Those that random schedules find too rarely have
directed schedules in `tests/cluster`; the table there says which.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from raftreg import engine
from raftreg.journal import Journal
from raftreg.read_rounds import ReadRounds
from raftreg.reads import Reads
from raftreg.snapshots import Snapshots
from raftreg.store import Store
from raftreg.transport import RaftTransport

Patches = list[tuple[Any, str, Any]]


def _forget_the_hidden_tail(journal: Journal) -> None:
    journal._forget(journal._stash)
    journal._stash = []


async def _no_barrier(_reads: Reads, *_: object) -> None:
    return None


def _confirm_at_once(rounds: ReadRounds, own: int, _recovering: object) -> list[Any]:
    completions = [(read.complete, read.index) for read in rounds._sent]
    rounds._sent.clear()
    return completions


RULES: dict[str, Callable[[], Patches]] = {
    "votes-are-durable": lambda: [(Store, "put_hard_state", lambda *_: None)],
    "restart-resumes": lambda: [(engine.Core, "resume", lambda *_: None)],
    "truncation-is-tentative": lambda: [(Journal, "end_message", _forget_the_hidden_tail)],
    "older-snapshots-are-refused": lambda: [(Snapshots, "_is_newer", lambda *_: True)],
    "chunks-commit-nothing": lambda: [(RaftTransport, "without_unchecked_commit", lambda _, message: message)],
    "reads-have-a-barrier": lambda: [(Reads, "barrier", _no_barrier)],
    "reads-wait-for-a-majority": lambda: [(ReadRounds, "confirm", _confirm_at_once)],
}


@contextlib.contextmanager
def without(rule: str | None) -> Iterator[None]:
    """Switch one rule off for a while; None switches nothing off."""
    patches = RULES[rule]() if rule is not None else []
    saved = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for owner, name, replacement in patches:
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for owner, name, original in saved:
            setattr(owner, name, original)
