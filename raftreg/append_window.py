"""How much of the log is on its way to each peer: a peer that is behind gets it in bounded pieces.

Without a bound, a leader hands all that a peer lacks to its link at once: above the link's limit the link breaks, and
below it the peer applies everything in one turn, in which it answers nobody until its links, or its process, end.
"""

from __future__ import annotations

from collections import defaultdict, deque

from raftreg.store import LogEntry


class AppendWindow:
    """Entries sent to each peer that it has not answered for yet, by their last index and bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._under_way: dict[str, deque[tuple[int, int]]] = defaultdict(deque)
        self._bytes: dict[str, int] = defaultdict(int)

    def cut(self, peer: str, entries: list[LogEntry]) -> list[LogEntry]:
        """The first of the entries, as many as there is room for; at least one, for entries have their own limit."""
        room = self._bytes_max - self._bytes[peer]
        for count, entry in enumerate(entries):
            room -= len(entry[0])
            if room < 0:
                return entries[: max(count, 1)]
        return entries

    def sent(self, peer: str, entries: list[LogEntry]) -> None:
        size = sum(len(entry[0]) for entry in entries)
        self._under_way[peer].append((entries[-1][1], size))
        self._bytes[peer] += size

    def is_full(self, peer: str) -> bool:
        return self._bytes[peer] >= self._bytes_max

    def answered(self, peer: str, index: int) -> None:
        """A peer's log agrees up to `index`."""
        under_way = self._under_way[peer]
        while under_way and under_way[0][0] <= index:
            self._bytes[peer] -= under_way.popleft()[1]

    def forget(self, peer: str) -> None:
        """What was under way is gone, or begins anew."""
        self._under_way.pop(peer, None)
        self._bytes.pop(peer, None)

    def forget_all(self) -> None:
        self._under_way.clear()
        self._bytes.clear()
