"""Recovery of a voter that may have forgotten acknowledged entries or votes: it neither votes nor stands until it has
all that it can ever have promised, which its leader tells it. Here are both sides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from raftreg.damage import Say
from raftreg.store import Store
from raftreg.transport import Message, RaftTransport

logger = logging.getLogger(__name__)


class RecoveringNode(Protocol):
    """What is needed of the Raft node."""

    store: Store
    others: tuple[str, ...]

    @property
    def term(self) -> int: ...

    @property
    def applied(self) -> int: ...

    @property
    def leader(self) -> str | None: ...


class VoterRecovery:
    """`recovering`: this voter. `peers`: those that a leader counts as recovering. `goals`, of a leader: by peer, the
    round that all others must have answered first, and the index with which it has then caught up."""

    def __init__(self, node: RecoveringNode, transport: RaftTransport, say: Say) -> None:
        self._node, self._transport, self._say = node, transport, say
        self.recovering = transport.recovering = node.store.recovering()
        self.peers: set[str] = set()
        self.goals: dict[str, tuple[int, int]] = {}
        self._goal: tuple[int, int, str] | None = None

    # -- the voter ------------------------------------------------------------------------------------------------

    def begin(self, why: str) -> None:
        """From now on; the caller makes it durable before anybody hears of it."""
        logger.error("this peer must recover before it votes again: %s", why)
        self.recovering = self._transport.recovering = True
        self._node.store.put_recovering(True)

    def on_caught_up(self, peer: str, message: Message) -> None:
        """The leader names the index with which this voter has caught up."""
        if self.recovering and message["term"] == self._node.term and peer == self._node.leader:
            self._goal = (message["term"], message["index"], peer)

    def caught_up_with(self) -> str | None:
        """The leader whose goal is reached, in its term; None as long as there is none."""
        if self._goal is None or not self.recovering:
            return None
        term, index, leader = self._goal
        if term != self._node.term or leader != self._node.leader:
            self._goal = None
            return None
        return leader if self._node.applied >= index else None

    def end(self) -> None:
        """It votes again, with the commit of this turn."""
        node = self._node
        logger.warning("caught up at index %d: this peer votes again", node.applied)
        self._goal = None
        self.recovering = self._transport.recovering = False
        node.store.put_recovered(node.term, node.applied)
        node.store.put_recovering(False)

    # -- its leader -----------------------------------------------------------------------------------------------

    def set_goals(self, connected: Iterable[str], number: int, index: int) -> None:
        """For recovering voters that have none: round `number`, then `index`."""
        for peer in connected:
            if peer in self.peers:
                self.goals.setdefault(peer, (number, index))

    def tell_goals(self, echoed: Callable[[str], int]) -> None:
        """Tell a recovering voter where it has caught up, once every other voter has confirmed this leader since.

        None of them can then be a candidate or leader of a higher term that holds a vote, or counts on an
        acknowledgement, which the recovering voter has forgotten; so this leader has everything that it ever promised.
        """
        for peer, (number, index) in list(self.goals.items()):
            if all(echoed(other) >= number for other in self._node.others if other != peer):
                del self.goals[peer]
                self._say(peer, "caught_up", term=self._node.term, index=index)
