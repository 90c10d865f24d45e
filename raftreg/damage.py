"""What is known to be wrong with the data of this peer, and its orderly end: it hands over the lead, marks its store as
damaged and stops. A marked store is refused at every later start, until `raftreg rejoin` has replaced it.

The last good copies are never taken away: the leader lets a damaged voter stop only while the others, without it and
without those that are suspected or leaving themselves, make a majority of all voters which is connected and holds the
log. Until then there is an alarm and nobody stops. Observers don't count, so they may stop at any time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from raftreg.engine import now
from raftreg.store import Store
from raftreg.transport import Message

logger = logging.getLogger(__name__)

_ASK_PERIOD_S = 1.0  # between requests to be let go; what stands against it changes with links and logs


class Say(Protocol):
    """Puts a message into the outbox; it leaves with the end of the turn."""

    def __call__(self, peer: str, kind: str, **fields: Any) -> None: ...


class Voter(Protocol):
    """What is needed of the Raft node."""

    name: str
    others: tuple[str, ...]
    store: Store

    @property
    def is_leader(self) -> bool: ...

    @property
    def leader(self) -> str | None: ...

    @property
    def term(self) -> int: ...

    @property
    def applied(self) -> int: ...

    def holds(self, peer: str, index: int) -> bool:
        """Whether a leader knows that another voter is connected, has recovered and has the log up to `index`."""

    def transfer_leadership(self) -> bool: ...


class Damage:
    """`found_here` reports certain damage of this peer; `tick` runs in every turn, before its commit.

    `end` ends the process without releasing anything of the turn.
    """

    def __init__(self, voter: Voter, say: Say, *, end: Callable[[str], None], hand_over_max_s: float) -> None:
        self._voter, self._say, self._end, self._hand_over_max_s = voter, say, end, hand_over_max_s
        self.found: str | None = None
        self.alarms: dict[str, str] = {}
        self._suspects: frozenset[str] = frozenset()
        self._reported: dict[str, str] = {}
        self._leaving: set[str] = set()
        self._ask_at = float("-inf")
        self._let_go = False
        self._stopping_since: float | None = None

    @property
    def stopping(self) -> bool:
        """Whether this peer is about to end; it takes and serves nothing more."""
        return self._stopping_since is not None

    def errors(self) -> list[str]:
        """One sentence for everything that is known to be wrong, here and, as leader, elsewhere."""
        own = [f"{self.found}; it stops when the others can spare it, then run `raftreg rejoin`"] if self.found else []
        return [*own, *self.alarms.values(), *(f"peer {peer}: {why}" for peer, why in self._reported.items())]

    def found_here(self, reason: str) -> None:
        """This peer's own data are damaged, for certain."""
        if self.found is None:
            self.found = reason
            logger.critical("the data of this peer are damaged: %s", reason)

    def suspect(self, peers: Iterable[str]) -> None:
        """Voters that differ from a majority: while they have not stopped, they are not counted on."""
        self._suspects = frozenset(peers)

    def forget(self, peer: str) -> None:
        """A peer is back, maybe with another disk; while it was away it was not counted on anyway."""
        self._leaving.discard(peer)
        self._reported.pop(peer, None)
        self._suspects -= {peer}

    def reset(self) -> None:
        """Leadership has changed."""
        self._leaving.clear()
        self._reported.clear()
        self._suspects = frozenset()
        self._ask_at = float("-inf")

    # -- the end --------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        if self.found is None:
            return
        if self._stopping_since is not None:
            self._leave(self.found, self._stopping_since)
        elif self._let_go:
            self._stop(self.found)
        elif now() >= self._ask_at:
            self._ask_at = now() + _ASK_PERIOD_S
            self._ask(self.found)

    def _ask(self, reason: str) -> None:
        voter = self._voter
        if voter.is_leader:
            if self.may_stop(voter.name, voter.applied):
                self._stop(reason)
        elif voter.leader is not None:
            self._say(voter.leader, "damage", term=voter.term, index=voter.applied, reason=reason)

    def may_stop(self, peer: str, index: int) -> bool:
        """Whether the group can spare a peer that has applied up to `index`. Only a leader knows."""
        voter = self._voter
        if peer != voter.name and peer not in voter.others:
            return True
        away = self._leaving | self._suspects | {peer}
        good = [other for other in voter.others if other not in away and voter.holds(other, index)]
        own = voter.name not in away and self.found is None
        return len(good) + own > (len(voter.others) + 1) // 2

    def _stop(self, reason: str) -> None:
        """The mark is durable with this turn's commit; the end comes in the next one, when that has left too."""
        logger.critical("this peer stops for good; replace its disk or its data with `raftreg rejoin`: %s", reason)
        self._voter.store.put_damage(reason)
        self._stopping_since = now()

    def _leave(self, reason: str, since: float) -> None:
        voter = self._voter
        if voter.is_leader and now() - since < self._hand_over_max_s:
            voter.transfer_leadership()
        else:
            self._end(f"the data are damaged: {reason}. Move the data directory away and run `raftreg rejoin`")

    # -- messages -------------------------------------------------------------------------------------------------

    def on_damage(self, peer: str, message: Message) -> None:
        """A peer has found damage of its own and asks to be let go."""
        if not self._voter.is_leader or message["term"] != self._voter.term:
            return
        if self._reported.get(peer) != message["reason"]:
            logger.error("peer %s is damaged: %s", peer, message["reason"])
        self._reported[peer] = message["reason"]
        if self.may_stop(peer, message["index"]):
            self._leaving.add(peer)
            self._say(peer, "damage_stop", term=self._voter.term)

    def on_stop(self, peer: str, message: Message) -> None:
        """The leader can spare this peer."""
        voter = self._voter
        if self.found is not None and (peer, message["term"]) == (voter.leader, voter.term):
            self._let_go = True
