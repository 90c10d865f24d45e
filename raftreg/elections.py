"""Pre-vote: before a real election, a voter asks whether it could be won. So one that was cut off deposes nobody.

And terms: whoever is in a lower one is told. pysyncobj ignores lower terms in silence, so that a peer with a longer log
but a lower term, or a leader whose follower is ahead in terms, would never be heard again.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any, Protocol

from raftreg.config import Timing
from raftreg.damage import Say
from raftreg.engine import now
from raftreg.journal import Journal
from raftreg.transport import Message
from raftreg.voter_set import VoterSet

_LEADER_HEARD_FRACTION = 0.9


class Candidate(Protocol):
    """What is needed of the Raft node; `core` is pysyncobj's class."""

    name: str
    others: tuple[str, ...]
    journal: Journal
    voters: VoterSet
    core: Any

    @property
    def term(self) -> int: ...

    @property
    def is_leader(self) -> bool: ...

    @property
    def recovering(self) -> bool: ...

    @property
    def leader_silence_s(self) -> float: ...

    @property
    def connected(self) -> Collection[str]: ...


class Elections:
    """`seek` runs in every turn, before pysyncobj's tick, which stands for election where `seek` has let it."""

    def __init__(self, node: Candidate, say: Say, timing: Timing) -> None:
        self._node, self._say, self._timing = node, say, timing
        self._granted: set[str] = set()
        self._term = 0
        self._may_stand = False

    def seek(self) -> None:
        """Ask for pre-votes when the leader was silent for an election timeout."""
        node, core = self._node, self._node.core
        may_stand, self._may_stand = self._may_stand, False
        if node.is_leader or may_stand or core.transfer_in_progress or core.election_deadline >= now():
            return
        if not node.others and not node.recovering:
            return
        core.election_deadline = now() + random.uniform(
            self._timing.raft_min_timeout_s, self._timing.raft_max_timeout_s
        )
        if node.voters.term_floor > node.term:
            core.adopt_term(node.voters.term_floor)
        if node.recovering or not node.voters.may_stand():
            return
        self._granted = {node.name}
        self._term = node.term + 1
        journal = node.journal
        for peer in node.connected:
            self._say(
                peer, "pre_vote", term=self._term, last_log_index=journal.last_index, last_log_term=journal.last_term
            )

    def on_pre_vote(self, peer: str, message: Message) -> None:
        """Grant it to whoever could win: nobody while a leader is heard."""
        node = self._node
        if message["term"] <= node.term:
            self._say(peer, "term", term=node.term)
            return
        heard = node.leader_silence_s < _LEADER_HEARD_FRACTION * self._timing.raft_min_timeout_s
        if node.recovering or node.is_leader or heard or not node.voters.may_elect(message):
            return
        own = (node.journal.last_term, node.journal.last_index)
        if (message["last_log_term"], message["last_log_index"]) >= own:
            self._say(peer, "pre_vote_granted", term=message["term"])

    def on_pre_vote_granted(self, peer: str, message: Message) -> None:
        """With a majority, the next tick stands for election."""
        node = self._node
        if node.is_leader or node.recovering or not message["term"] == self._term == node.term + 1:
            return
        self._granted.add(peer)
        if len(self._granted) * 2 > len(node.others) + 1:
            self._granted.clear()
            self._may_stand = True
            node.core.election_deadline = 0

    def on_term(self, message: Message) -> None:
        """Someone is in a higher term: adopt it."""
        if message["term"] > self._node.term:
            self._node.core.adopt_term(message["term"])
