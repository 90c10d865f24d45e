"""When a leader may say "up to this index you have seen everything": rounds of append_entries echoed by a majority.

Every turn of a leader numbers its append_entries; followers echo the number with their acknowledgement. A read that
was asked for before round r went out is confirmed once a majority has echoed r or more in this term. The same echoes
tell when a majority last confirmed the leader, which followers pass on as the age of their state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

ROUNDS_IN_FLIGHT_MAX = 2
FORWARDED_MAX = 4096
# Rounds of which the time is kept until they are confirmed; the oldest go first, which only makes a state look older.
SENT_MAX = 4096

# What a leader said that is not reached yet; a state that is further behind looks older by what did not fit.
ANNOUNCED_MAX = 256

Complete = Callable[[int | None], None]
Completion = tuple[Complete, int | None]


@dataclass
class _Read:
    complete: Complete
    asker: str | None = None
    round: int = 0
    index: int = 0


class ReadRounds:
    """The leader's side. `voters` is the size of the group, this leader included."""

    def __init__(self, voters: int) -> None:
        self._needed = voters // 2  # echoes beside the leader's own word
        self._waiting: list[_Read] = []
        self._sent: deque[_Read] = deque()
        self._sent_at: deque[tuple[int, float]] = deque(maxlen=SENT_MAX)
        self._echoed: dict[str, int] = {}
        self.confirmed_at: float | None = None

    @property
    def pending(self) -> bool:
        return bool(self._waiting)

    def reset(self) -> None:
        """A new term or role: no echo of before counts, and nothing is confirmed."""
        self._echoed.clear()
        self._sent_at.clear()
        self.confirmed_at = None

    def ask(self, complete: Complete, asker: str | None = None) -> None:
        """A read of this voter, or of another one, `asker`, that is answered over its link."""
        self._waiting.append(_Read(complete, asker))

    def open(self, number: int, index: int) -> bool:
        """Let the waiting reads go with round `number`, to be answered with `index`; whether there were any."""
        if not self._waiting or len({read.round for read in self._sent}) >= ROUNDS_IN_FLIGHT_MAX:
            return False
        for read in self._waiting:
            read.round, read.index = number, index
        self._sent.extend(self._waiting)
        self._waiting = []
        return True

    def sent(self, number: int, at: float) -> None:
        """append_entries of this round are about to leave."""
        self._sent_at.append((number, at))

    def echo(self, peer: str, number: int) -> None:
        """A voter acknowledged something of round `number` in the current term."""
        if number > self._echoed.get(peer, 0):
            self._echoed[peer] = number

    def echoed(self, peer: str) -> int:
        """The latest round of this term that a voter has acknowledged; 0 for none."""
        return self._echoed.get(peer, 0)

    def forget(self, peer: str) -> None:
        """The link to a voter broke. Its reads go too: a restarted process numbers its own from 1 again, and would
        take the answer to a read of its earlier life for one that was asked for later."""
        self._echoed.pop(peer, None)
        self._waiting = [read for read in self._waiting if read.asker != peer]
        self._sent = deque(read for read in self._sent if read.asker != peer)

    def confirm(self, own: int, recovering: Collection[str]) -> list[Completion]:
        """The reads that a majority has confirmed; recovering voters, who may have forgotten a vote, don't count."""
        echoes = sorted((n for peer, n in self._echoed.items() if peer not in recovering), reverse=True)
        confirmed = [own, *echoes, 0][self._needed] if len(echoes) >= self._needed else 0
        while self._sent_at and self._sent_at[0][0] <= confirmed:
            self.confirmed_at = self._sent_at.popleft()[1]
        completions: list[Completion] = []
        while self._sent and self._sent[0].round <= confirmed:
            read = self._sent.popleft()
            completions.append((read.complete, read.index))
        return completions

    def abandon(self) -> list[Completion]:
        """This peer does not lead (any more): nobody confirms these."""
        given_up: list[Completion] = [(read.complete, None) for read in (*self._waiting, *self._sent)]
        self._waiting = []
        self._sent.clear()
        return given_up


class ForwardedReads:
    """A follower's side: read indexes asked of the leader, by number."""

    def __init__(self) -> None:
        self._counter = 0
        self._asked: dict[int, tuple[str, Complete]] = {}

    def ask(self, leader: str, complete: Complete) -> int | None:
        """The number to ask the leader with, or None when too many are out."""
        if len(self._asked) >= FORWARDED_MAX:
            return None
        self._counter += 1
        self._asked[self._counter] = (leader, complete)
        return self._counter

    def answered(self, leader: str, number: int, index: int | None) -> list[Completion]:
        asked = self._asked.get(number)
        if asked is None or asked[0] != leader:
            return []
        del self._asked[number]
        return [(asked[1], index)]

    def lost(self, leader: str) -> list[Completion]:
        """The link to that leader broke."""
        numbers = [number for number, (name, _) in self._asked.items() if name == leader]
        return [(self._asked.pop(number)[1], None) for number in numbers]


class Freshness:
    """A follower's side: how old its state is, by the leader's word about its own confirmation."""

    def __init__(self) -> None:
        self._announced: deque[tuple[int, float]] = deque()
        self.fresh_at: float | None = None

    def announce(self, commit_index: int, confirmed_at: float) -> None:
        """The leader had committed up to `commit_index` when a quorum confirmed it at `confirmed_at` (our clock).

        All that waits is kept: with the newest alone, a state that is always a little behind would only grow older.
        """
        if len(self._announced) < ANNOUNCED_MAX:
            self._announced.append((commit_index, confirmed_at))

    def note(self, applied: int) -> None:
        while self._announced and applied >= self._announced[0][0]:
            self.fresh_at = max(self.fresh_at or 0.0, self._announced.popleft()[1])
