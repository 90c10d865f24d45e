"""Copies of the state: every peer and observer has the same digest at the same applied index."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from chaos.verdict import Check


def judge_digests(told: Mapping[str, Mapping[str, str]], expected: Iterable[str]) -> Check:
    """`told`: process -> applied index (as text) -> digest. Each `expected` one must share an index with another."""
    check = Check("all copies of the state are equal", "P1")
    at: dict[str, dict[str, str]] = defaultdict(dict)
    for name, digests in told.items():
        for index, digest in digests.items():
            at[index][name] = digest
    compared: set[str] = set()
    for index, digests in at.items():
        if len(digests) > 1:
            compared |= digests.keys()
            said = ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(digests.items()))
            check.verify(len(set(digests.values())) == 1, f"digests differ at index {index}: {said}")
    names = set(expected)
    if missing := sorted(names - compared) if len(names) > 1 else []:
        check.unknown.append(f"no digest to compare of {', '.join(missing)}")
    return check
