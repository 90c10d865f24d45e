"""What the other voters are known to hold durably, so that a wiped or rolled-back disk is noticed at its hello.

A position is (term, index, store ID) of the last entry that a voter acknowledged or said hello with. A log only ever
moves forward in (term, index), so a voter that comes back with less, or with another store, has forgotten promises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raftreg.store import Store

Position = tuple[int, int, str]


class Positions:
    """Kept in memory and, with the next commit after a change, in the store."""

    def __init__(self, store: Store, others: Sequence[str]) -> None:
        self._store, self._others = store, frozenset(others)
        self._known = store.positions()
        self._changed = False

    def greet(self, peer: str, store_id: str, position: tuple[int, int], recovering: bool) -> bool:
        """A voter says hello. False: it has forgotten something that it had acknowledged, and must recover.

        A recovering voter promises nothing any more; what is remembered of it starts anew with its hello.
        """
        known = self._known.get(peer)
        if not recovering and known is not None and (store_id != known[2] or position < known[:2]):
            return False
        self._known[peer] = (*position, store_id)
        self._changed = self._store.want_commit = True
        return True

    def acknowledged(self, peer: str, term: int, index: int) -> None:
        """A voter has acknowledged an entry."""
        known = self._known.get(peer)
        if known is not None and known[:2] < (term, index):
            self._known[peer] = (term, index, known[2])
            self._changed = True

    def merge(self, told: Mapping[str, Position]) -> None:
        """What the leader knows of the others; another store than the one known here is left for the hello."""
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
