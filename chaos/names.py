"""Faults and workloads chosen by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UnknownName(ValueError):
    """No fault or workload has this name. The message lists those that there are."""


def chosen(what: str, known: Mapping[str, T], names: Iterable[str]) -> list[T]:
    """The named ones in the order of `known`, each once; all of them for no names.

    A name that is nobody's stands for all that begin with it and a dash. Raises UnknownName.
    """
    wanted: set[str] = set()
    for name in names:
        matching = {name} & known.keys() or {one for one in known if one.startswith(f"{name}-")}
        if not matching:
            raise UnknownName(f"there is no {what} {name!r}; there are: {', '.join(known)}")
        wanted |= matching
    return [one for name, one in known.items() if name in wanted or not wanted]
