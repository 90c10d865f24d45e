"""What one peer knows of the soundness of its data, and how it is asked to look again."""

from __future__ import annotations

from typing import Any

from raftreg.raft import RaftNode
from raftreg.scrub import Scrubber


class Integrity:
    """Digests, scrub and damage of one peer as plain values. `scrubber` is None for a state that has no digest."""

    def __init__(self, raft: RaftNode, scrubber: Scrubber | None) -> None:
        self._raft, self._scrubber = raft, scrubber

    def tick(self) -> None:
        """Between turns, at least once per tick of the loop."""
        if self._scrubber is not None:
            self._scrubber.tick()

    def status(self) -> dict[str, Any]:
        return {
            "digest": self._raft.digests.status(),
            "scrub": None if self._scrubber is None else self._scrubber.status(),
            "damage": self._raft.damage.found,
        }

    def errors(self) -> list[str]:
        return self._raft.damage.errors()

    def report(self, wanted: int | None = None) -> dict[str, Any]:
        """The digests on hand by index. An index to come is noted when it is reached; ask again for it."""
        digests = self._raft.digests
        if wanted is not None:
            digests.want(wanted)
        known = digests.noted()
        current = digests.now()
        if current is not None:
            known[self._raft.applied] = current
        return {
            "name": self._raft.name,
            "role": self._raft.role,
            "term": self._raft.term,
            "applied": self._raft.applied,
            "version": digests.version,
            "digests": {str(index): digest for index, digest in known.items()},
            "errors": self.errors(),
            **self.status(),
        }

    def scrub(self) -> int | None:
        """Begin to read all rows now; the number of the pass that `status` will show as finished."""
        return None if self._scrubber is None else self._scrubber.hurry()
