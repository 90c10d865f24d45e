"""An observer's Raft node: it follows, applies and asks for read indexes, and has no part in anything that is counted.

pysyncobj, without a node of its own, neither votes nor stands; here ends what `RaftNode` says beside it. A wiped
observer has forgotten no promise, since it made none: it gets the log or a snapshot like any other.
"""

from __future__ import annotations

from typing import Any

from raftreg.raft import RaftNode

FROM_VOTERS = frozenset({"append_entries", "read_index_reply", "digest_wanted", "digest_verdict", "damage_stop"})
"""What an observer heeds of a voter: log, snapshots, answers and comparisons; nothing of elections."""
_SAID = frozenset({"digest", "damage"})


class ObserverNode(RaftNode):
    """`others` are all the voters; the store's identity says that it is an observer's."""

    @property
    def role(self) -> str:
        return "observer"

    def link_down(self, peer: str) -> None:
        led_by = self.leader
        super().link_down(peer)
        if peer == led_by:
            self._forget_leader()

    def _seek_votes(self) -> None:
        """An observer never stands."""

    def _forget_leader(self) -> None:
        self.core.step_down()

    def _heeds(self, peer: str, kind: str) -> bool:
        return peer in self._nodes and kind in FROM_VOTERS

    def _say(self, peer: str, kind: str, **fields: Any) -> None:
        """What its state looks like; the rest of what voters say beside Raft concerns elections and promises."""
        if kind in _SAID:
            super()._say(peer, kind, **fields)

    def tell_storage(self, refusal: str | None) -> None:
        """Nobody's business: a full observer must not stop the writes of the group."""
