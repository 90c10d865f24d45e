"""Digests of the state, compared between all peers on a schedule: who differs from a majority of voters is damaged.

Every peer notes (index, digest) while it applies, at every index that is a multiple of `digest_every_entries`; that
costs an integer test per entry. Once per period the leader names an index that it has noted, or the one that it has
applied; the others answer with what they have noted there, now or when they get there. The leader tells all what it was
answered, and each judges by itself:

- a digest that a majority of *all* voters shares is right; a peer with another one is damaged (`raftreg.damage`);
- different digests without such a majority are an alarm, and nobody stops;
- recovering voters and observers are judged, but never part of a majority.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from raftreg.config import Limits
from raftreg.damage import Damage, Say, Voter
from raftreg.engine import now
from raftreg.snapshot_file import CheckedRows
from raftreg.tables import RowWatch, View
from raftreg.transport import Message

logger = logging.getLogger(__name__)

_WANTED_MAX = 16
_ALARM = "digests"
_SHORT = 8
NEVER = -1


class Pass(Protocol):
    """One run through all rows of the state in bounded steps; see `raftreg.state_scrub`."""

    watch: RowWatch
    rows: int
    findings: list[str]

    def step(self, view: View, rows_max: int, bytes_max: int) -> bool: ...


@dataclass(frozen=True)
class StateChecks:
    """What consensus is handed to verify a state that it knows nothing of.

    `digest(view)` is that of the applied state, equal on all peers at the same index and `version`. `checked_rows`
    (see `snapshot_file.CheckedRows`) raises DamagedRecord when the rows contradict the digest.
    """

    version: int
    digest: Callable[[View], str]
    begin_pass: Callable[[], Pass]
    checked_rows: CheckedRows


def majority_digest(digests: Mapping[str, str], voters: int) -> str | None:
    """The digest that more than half of all voters, also of those that were not heard, have given."""
    for digest, count in Counter(digests.values()).items():
        if count * 2 > voters:
            return digest
    return None


@dataclass
class _Checkpoint:
    """What the leader was answered for one index. `counting` is of voters that are not recovering."""

    index: int
    counting: dict[str, str]
    others: dict[str, str] = field(default_factory=dict)
    deviating: frozenset[str] = frozenset()
    announced: bool = False


class Digests:
    """Notes digests, answers for them, and as leader compares. `checks` None: a state without digest, nothing is done.

    `note_at` is the next index whose digest is due; whoever applies calls `note` there. `linked` names the peers that
    a message can be sent to.
    """

    def __init__(
        self,
        voter: Voter,
        say: Say,
        damage: Damage,
        *,
        checks: StateChecks | None,
        linked: Callable[[], list[str]],
        limits: Limits,
        period_s: float,
    ) -> None:
        self._voter, self._say, self._damage = voter, say, damage
        self._checks, self._linked, self._period_s = checks, linked, period_s
        self._every, self._kept_max = limits.digest_every_entries, limits.digests_kept_max
        self._noted: dict[int, str] = {}
        self._wanted: set[int] = set()
        self._asked: tuple[str, int, int] | None = None
        self._generation = voter.store.generation
        self._checkpoint: _Checkpoint | None = None
        self._begin_at = now() + period_s
        self._compared_at: float | None = None
        self.compared_index = 0
        self.mismatches = 0
        self.note_at = NEVER

    def begin(self) -> None:
        """Once the node knows what it has applied."""
        self._plan(self._voter.applied)

    # -- noting ---------------------------------------------------------------------------------------------------

    def note(self, index: int) -> None:
        """Entry `index` has just been applied, and nothing after it."""
        assert self._checks is not None
        self._noted[index] = self._checks.digest(self._voter.store.view())
        if len(self._noted) > self._kept_max:
            del self._noted[next(iter(self._noted))]
        self._plan(index)
        if self._asked is not None and self._asked[1] == index:
            self._answer(*self._asked)

    def _plan(self, applied: int) -> None:
        if self._checks is not None:
            self._wanted = {index for index in self._wanted if index > applied}
            self.note_at = min([(applied // self._every + 1) * self._every, *self._wanted])

    def want(self, index: int) -> None:
        """Note the digest at this index too, if it has not been passed."""
        applied = self._voter.applied
        if self._checks is None or index in self._noted:
            return
        if index == applied:
            self.note(index)
        elif index > applied and len(self._wanted) < _WANTED_MAX:
            self._wanted.add(index)
            self._plan(applied)

    def noted(self) -> dict[int, str]:
        """The digests on hand by index, in order of the index."""
        return dict(sorted(self._noted.items()))

    def now(self) -> str | None:
        """The digest of what is applied."""
        return None if self._checks is None else self._checks.digest(self._voter.store.view())

    @property
    def version(self) -> int | None:
        return None if self._checks is None else self._checks.version

    def compared_age_s(self) -> float | None:
        """Seconds since this peer last agreed with a majority; None: never since its start."""
        return None if self._compared_at is None else now() - self._compared_at

    # -- every turn -----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        if self._checks is None:
            return
        if self._voter.store.generation != self._generation:
            # A snapshot has replaced the state: what was noted of the old one says nothing about this peer any more.
            self._generation = self._voter.store.generation
            self._noted.clear()
            self._asked = None
            self._plan(self._voter.applied)
        if self._voter.is_leader and now() >= self._begin_at:
            self._begin_at = now() + self._period_s
            self._conclude()
            if self._voter.others or self._linked():
                self._open()

    def reset(self) -> None:
        """Leadership has changed: who asked, or was asked, no longer matters."""
        self._checkpoint = self._asked = None

    def _open(self) -> None:
        index = self._due_index()
        self.want(index)
        self._checkpoint = _Checkpoint(index, {self._voter.name: self._noted[index]})
        for peer in self._linked():
            self._say(peer, "digest_wanted", term=self._voter.term, index=index, version=self.version)

    def _due_index(self) -> int:
        """The last multiple, which busy peers have noted too; while little is written, what is applied."""
        due = self._voter.applied // self._every * self._every
        return due if due in self._noted and due > self.compared_index else self._voter.applied

    def _conclude(self) -> None:
        """The period of a checkpoint is over: whoever has not answered is not waited for."""
        checkpoint = self._checkpoint
        if checkpoint is None or checkpoint.announced:
            return
        agreed = majority_digest(checkpoint.counting, self._voters) is not None
        if agreed or len(set(checkpoint.counting.values())) > 1:
            self._announce(checkpoint)

    @property
    def _voters(self) -> int:
        """How many voters there are; an observer is none of them."""
        return len(self._voter.store.identity.peers)

    # -- messages -------------------------------------------------------------------------------------------------

    def _is_from_leader(self, peer: str, message: Message) -> bool:
        term, version = message["term"], message["version"]
        return (peer, term, version) == (self._voter.leader, self._voter.term, self.version)

    def on_wanted(self, peer: str, message: Message) -> None:
        """The leader compares at an index: answer, at once or when it is reached."""
        if not self._is_from_leader(peer, message):
            return
        self._asked = (peer, message["index"], message["term"])
        if message["index"] in self._noted:
            self._answer(*self._asked)
        else:
            self.want(message["index"])

    def _answer(self, leader: str, index: int, term: int) -> None:
        self._asked = None
        self._say(leader, "digest", term=term, index=index, version=self.version, digest=self._noted[index])

    def on_digest(self, peer: str, message: Message, *, counts: bool) -> None:
        """An answer; `counts` when it is of a voter that is not recovering."""
        checkpoint, voter = self._checkpoint, self._voter
        if checkpoint is None or not voter.is_leader or message["term"] != voter.term:
            return
        if (message["index"], message["version"]) != (checkpoint.index, self.version):
            return
        (checkpoint.counting if counts else checkpoint.others)[peer] = message["digest"]
        self._examine(checkpoint)

    def _examine(self, checkpoint: _Checkpoint) -> None:
        right = majority_digest(checkpoint.counting, self._voters)
        answers = {**checkpoint.counting, **checkpoint.others}
        deviating = frozenset(peer for peer, digest in answers.items() if right is not None and digest != right)
        news = deviating - checkpoint.deviating
        if right is not None:
            checkpoint.deviating = deviating
            self._damage.suspect(deviating)
        if news or (len(checkpoint.counting) == self._voters and not checkpoint.announced):
            self._announce(checkpoint)

    def _announce(self, checkpoint: _Checkpoint) -> None:
        checkpoint.announced = True
        if checkpoint.deviating:
            logger.error("at index %d %s", checkpoint.index, _differing(checkpoint.deviating))
        verdict = {"index": checkpoint.index, "version": self.version, "digests": checkpoint.counting}
        for peer in self._linked():
            self._say(peer, "digest_verdict", term=self._voter.term, **verdict)
        self._judge(checkpoint.index, checkpoint.counting)
        if checkpoint.deviating:
            self.mismatches += self._voter.name not in checkpoint.deviating

    def on_verdict(self, peer: str, message: Message) -> None:
        """What the leader was answered; this peer judges by itself."""
        digests = message["digests"]
        voters = {self._voter.name, *self._voter.others}
        if not all(name in voters and isinstance(digest, str) for name, digest in digests.items()):
            logger.warning("malformed digests from %s ignored", peer)
        elif self._is_from_leader(peer, message):
            self._judge(message["index"], digests)

    def _judge(self, index: int, digests: Mapping[str, str]) -> None:
        right, own = majority_digest(digests, self._voters), self._noted.get(index)
        if right is None:
            self.mismatches += 1
            self._damage.alarms[_ALARM] = _disagreement(index, digests)
            logger.error("%s", self._damage.alarms[_ALARM])
        elif own is not None and own != right:
            self.mismatches += 1
            self._damage.found_here(
                f"its state at index {index} has digest {own[:_SHORT]}, a majority of the voters has {right[:_SHORT]}"
            )
        elif own is not None:
            self._damage.alarms.pop(_ALARM, None)
            self.compared_index, self._compared_at = max(index, self.compared_index), now()

    # -- figures --------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return {
            "mismatches": self.mismatches,
            "compared_index": self.compared_index,
            "compared_age_s": self.compared_age_s(),
        }


def _differing(peers: Iterable[str]) -> str:
    return f"the states of {', '.join(sorted(peers))} differ from that of a majority"


def _disagreement(index: int, digests: Mapping[str, str]) -> str:
    said = ", ".join(f"{peer}={digest[:_SHORT]}" for peer, digest in sorted(digests.items()))
    return (
        f"the digests at index {index} differ and no majority of the voters agrees ({said}): nobody stops; bring all "
        "peers up and run `raftreg verify --scrub`"
    )
