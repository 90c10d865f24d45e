"""When a voter of a changed voter set may elect: once it has met a majority of the set before.

A stop-the-world change (`raftreg.voter_change`) rewrites one directory after the other from the old set O, generation
g - 1, to the new set N, generation g. It may stop half-way: some peers start in O and some in N. Peers of different
generations never link. Two things must hold all the same: no two leaders commit side by side, and what O has
committed is in the log of every leader of N.

The rule: a voter of generation g casts no vote, stands in no election and grants no pre-vote until it has heard
hellos, its own disk included, of a majority M of O in generation g, none of them recovering (such a disk may have
forgotten). It then remembers durably the highest term T and the most advanced log (last term, last index) P of M,
and gives its vote, also to itself, only in terms above T and to logs at least as advanced as P. A change whose O and N
share no majority of O is refused: M could never be met, and `raftreg recover` is for that.

Why this is enough:
- No two groups. A leader of N exists only after some M changed its disks, and a disk never goes back a generation.
  What is left in O is a minority of O, so that it elects and commits nothing from then on. With |N| >= |O| and voters
  of N that all come from O this would hold without the rule: a majority of N is then more than half of O, and two such
  sets share a peer. When shrinking it would not: of 5 -> 3 changed on two machines, two of three elect in N and three
  of five in O.
- Nothing committed is lost. What O committed is on a majority of O, so on a disk of M; the most advanced log of a
  majority contains all that is committed, and so does every log that is at least as advanced. This needs more than
  the rule of Raft: of 5 -> 3 two who lag are a majority of N although the third alone has what O committed with the
  removed ones.
- No term has two leaders. A leader that O elected had the votes of a majority of O, of which one is in M and was in
  that term or a later one: its term is at most T. Without this, an entry of a leader of O that reached one peer only,
  and an entry of the first leader of N, could have the same index and term and different content.

All of this holds whether the peers that are new in N count at once or not. As a replaced disk does, they start as
recovering where the others are a majority of N. Where they are not (1 -> 3), nobody could be elected so: then the new
ones vote at once, under the rule, since a store that was just made has promised nothing yet.

A voter that follows a leader of generation g and has applied an entry of that leader's term holds all that O committed,
and leads or elects by the rule of Raft from then on; so does one that has left recovery.
"""

from __future__ import annotations

from typing import NamedTuple

from raftreg.journal import Journal
from raftreg.positions import Hello
from raftreg.store import Identity, Store
from raftreg.transport import Message


class Standing(NamedTuple):
    """What a disk may have promised: its current term, and the last term and index of its log."""

    term: int
    log_term: int
    log_index: int


class VoterSet:
    """The rule of one voter. Its methods are called from the Raft node's thread; what changes rides on the next commit,
    which comes before any vote leaves."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store, self._journal = store, journal
        self._previous = frozenset(store.identity.previous_peers)
        self._met: dict[str, Standing] = {}
        remembered = store.voters_met()
        # Without a set before, the rule of Raft is enough.
        self.floor = Standing(*remembered) if remembered else None if self._previous else Standing(0, 0, 0)
        self._settle_if_met()

    @property
    def settled(self) -> bool:
        """Whether a majority of the set before is known to be in this generation."""
        return self.floor is not None

    def waits_for(self) -> str | None:
        """For people: why this voter does not elect yet; None when it does."""
        if self.settled:
            return None
        identity = self._store.identity
        met = ", ".join(sorted(self._standings())) or "none"
        return (
            f"{identity.peer} elects nobody before it has met a majority of the voters before "
            f"({', '.join(identity.previous_peers)}) in generation {identity.membership_generation}; met: {met}. "
            "Run `raftreg peer replace` on the others too, and start them"
        )

    def meet(self, peer: str, hello: Hello) -> None:
        """A voter of this generation says hello, and has forgotten nothing that is known."""
        if self.settled or peer not in self._previous:
            return
        if hello.recovering:
            self._met.pop(peer, None)
        else:
            self._met[peer] = Standing(hello.term, hello.last_log_term, hello.last_index)
        self._settle_if_met()

    def _standings(self) -> dict[str, Standing]:
        name = self._store.identity.peer
        if name not in self._previous or self._store.recovering():
            return self._met
        journal = self._journal
        return {**self._met, name: Standing(journal.getCurrentTerm(), journal.last_term, journal.last_index)}

    def _settle_if_met(self) -> None:
        standings = self._standings().values()
        if self.settled or 2 * len(standings) <= len(self._previous):
            return
        term = max(standing.term for standing in standings)
        self._settle(Standing(term, *max(standing[1:] for standing in standings)))

    def _settle(self, floor: Standing) -> None:
        self.floor = floor
        self._met.clear()
        self._store.put_voters_met(*floor)

    def settle_on_own_log(self) -> None:
        """This voter has everything from a leader of this generation."""
        if not self.settled:
            self._settle(Standing(0, 0, 0))

    def followed(self, leader: str | None, term: int, applied: int) -> None:
        """Note in every turn whom this voter follows in `term`, and the index that it has applied."""
        if self.settled or leader is None:
            return
        entry = self._journal.entry(applied)
        if entry is not None and entry[2] == term:
            self.settle_on_own_log()

    @property
    def term_floor(self) -> int:
        """The term that this voter must be in before it stands."""
        return self.floor.term if self.floor is not None else 0

    def may_stand(self) -> bool:
        return self.admits(self._journal.getCurrentTerm() + 1, self._journal.last_term, self._journal.last_index)

    def may_elect(self, message: Message) -> bool:
        """Whether the rule lets this voter answer a request for a vote or a pre-vote."""
        return self.admits(message["term"], message["last_log_term"], message["last_log_index"])

    def admits(self, term: int, log_term: int, log_index: int) -> bool:
        """Whether a candidate in `term` with that log has all that the set before has committed."""
        floor = self.floor
        return floor is not None and term > floor.term and (log_term, log_index) >= floor[1:]


def objection(identity: Identity, hello: Message) -> str | None:
    """Why a voter that says this hello has another voter set than ours; None when it is the same."""
    generation, ours = hello.get("membership_generation"), identity.membership_generation
    if generation != ours:
        return f"its voter set is generation {generation}, ours is {ours}; see `raftreg peer list` on both machines"
    for name, mine in (("voters", identity.peers), ("previous_voters", identity.previous_peers)):
        if hello.get(name) != list(mine):
            return f"its {name} of generation {generation} are {hello.get(name)}, ours are {', '.join(mine) or 'none'}"
    return None


def announcement(identity: Identity) -> Message:
    """What a hello says of the voter set."""
    return {
        "membership_generation": identity.membership_generation,
        "voters": list(identity.peers),
        "previous_voters": list(identity.previous_peers),
    }
