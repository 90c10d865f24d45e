"""What the other voters are known to hold durably, so that a wiped or rolled-back disk is noticed at its hello.

A position is (term, index, store ID): the latest term that a voter is known to have been in, and the highest index that
it has acknowledged to that term's leader. Within one term neither its term nor such an index ever goes back, whatever
tail of older terms is being replaced; a voter that says hello with less, or with another store, has forgotten promises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raftreg.store import Store

Position = tuple[int, int, str]


@dataclass(frozen=True)
class Hello:
    """What a voter says of its disk when a link opens: current term, last log index, and where it last recovered."""

    store_id: str
    term: int
    last_index: int
    recovering: bool = False
    recovered: tuple[int, int] | None = None
    last_log_term: int = 0


def has_forgotten(known: Position | None, hello: Hello) -> bool:
    """Whether a voter of which `known` is remembered has forgotten some of that by its own word."""
    if known is None or hello.recovering:
        return False
    if hello.store_id == known[2]:
        return (hello.term, hello.last_index) < known[:2]
    recovered = hello.recovered
    return recovered is None or recovered < known[:2] or (hello.term, hello.last_index) < recovered


class Positions:
    """Kept in memory and, with the next commit after a change, in the store."""

    def __init__(self, store: Store, others: Sequence[str]) -> None:
        self._store, self._others = store, frozenset(others)
        self._known = store.positions()
        self._changed = False

    def greet(self, peer: str, hello: Hello) -> bool:
        """False: the hello says less than the voter is known to have acknowledged, so there is no link with it.

        Either the voter has forgotten that and must recover, or word of it came by the leader before the hello did.
        Only the voter can tell, by applying `has_forgotten` to what its disk holds when it gets the answer.

        A recovering voter promises nothing any more; what is remembered of it starts anew with its hello.
        """
        known = self._known.get(peer)
        if known is None or hello.recovering:
            self._remember(peer, (hello.term, 0, hello.store_id))
            return True
        if has_forgotten(known, hello):
            return False
        if hello.recovered is not None and hello.store_id != known[2]:
            known = (*hello.recovered, hello.store_id)
            self._remember(peer, known)
        if hello.term > known[0]:
            # Its last index says nothing yet: an old tail may still be cut by the leader of the new term.
            self._remember(peer, (hello.term, 0, known[2]))
        return True

    def _remember(self, peer: str, position: Position) -> None:
        self._known[peer] = position
        self._changed = self._store.want_commit = True

    def acknowledged(self, peer: str, term: int, index: int) -> None:
        """A voter has acknowledged the log up to `index` to the leader of `term`."""
        known = self._known.get(peer)
        if known is not None and known[:2] < (term, index):
            self._known[peer] = (term, index, known[2])
            self._changed = True

    def merge(self, told: Mapping[str, Position]) -> None:
        """What the leader knows; another store than the one known here is left for the hello."""
        for peer, (term, index, store_id) in told.items():
            if peer in self._others and peer in self._known and self._known[peer][2] == store_id:
                self.acknowledged(peer, term, index)

    def shared(self) -> dict[str, Position]:
        """For the other voters."""
        return dict(self._known)

    def flush(self) -> None:
        """Write what changed; right before a commit."""
        if self._changed:
            self._store.put_positions(self._known)
            self._changed = False
