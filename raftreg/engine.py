"""pysyncobj's class, with our journal, snapshots, transport and apply in place of its own. Its camelCase and its
name-mangled state end in this module; its source is pinned by hash and the private names touched are asserted.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import pysyncobj.syncobj as engine
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
from pysyncobj.node import Node

from raftreg.config import APPEND_BATCH_BYTES, ENTRY_BYTES_MAX, Timing

_ENGINE_SHA256 = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"
_PRIVATE = "_SyncObj__"
_PRIVATE_METHODS = ("doApplyCommand", "setCurrentTerm", "setState")
_PRIVATE_FIELDS = (
    "raftLastApplied",
    "raftCommitIndex",
    "raftElectionDeadline",
    "newAppendEntriesTime",
    "raftNextIndex",
    "raftMatchIndex",
    "commandsQueue",
    "noopIDx",
    "transferInProgress",
    "votedForNodeId",
    "raftLeader",
    "lastResponseTime",
    "connectedNodes",
)
_REGULAR = b"\0"
_NEVER = 1 << 62
__all__ = [
    "APPEND_BATCH_BYTES", "ENTRY_BYTES_MAX", "Core", "Owner", "assert_engine", "build", "now", "regular_entry",
    "use_clock",
]  # fmt: skip


def regular_entry(payload: bytes) -> bytes:
    """A log entry as the core stores one that carries a command of ours."""
    return _REGULAR + payload


class Owner(Protocol):
    """What the core asks of the voter that it belongs to."""

    journal: Any
    snapshots: Any
    transport: Any

    def pump(self) -> None:
        """A leader may take new entries now."""

    def apply_entry(self, index: int, payload: bytes | None) -> Any:
        """Apply a committed entry; None is one without a command."""

    def on_state_changed(self, old: int, new: int) -> None:
        """Follower, candidate and leader are 0, 1 and 2."""


def now() -> float:
    """The monotonic clock of all consensus, in seconds; pysyncobj's own, see `use_clock`."""
    return float(engine.monotonicTime())


def use_clock(clock: Callable[[], float]) -> Callable[[], float]:
    """For simulations: the engine reads this clock from now on. Returns the one that it read before."""
    before: Callable[[], float] = engine.monotonicTime
    engine.monotonicTime = clock
    return before


def assert_engine() -> None:
    """Refuse to run on a pysyncobj whose source or private names are not those that were audited."""
    digest = hashlib.sha256(inspect.getsource(engine).encode()).hexdigest()
    if digest != _ENGINE_SHA256:
        raise RuntimeError(f"pysyncobj/syncobj.py has sha256 {digest}, not {_ENGINE_SHA256}: install pysyncobj==0.3.17")
    missing = [name for name in _PRIVATE_METHODS if not hasattr(SyncObj, _PRIVATE + name)]
    if missing:
        raise RuntimeError(f"pysyncobj lacks the private methods {', '.join(missing)}")


class Core(SyncObj):  # type: ignore[misc]
    """The Raft algorithm of one voter or, without a node of its own, of one observer; `build` makes it."""

    def __init__(self, owner: Owner, me: Node | None, others: Iterable[Node], conf: SyncObjConf) -> None:
        self._owner = owner
        super().__init__(me, others, conf, nodeClass=Node, transport=owner.transport)
        missing = [name for name in _PRIVATE_FIELDS if not hasattr(self, _PRIVATE + name)]
        if missing:
            raise RuntimeError(f"pysyncobj lacks the private fields {', '.join(missing)}")

    def _SyncObj__doApplyCommand(self, command: bytes) -> Any:
        # Only our own type carries a command; pysyncobj would unpickle the others.
        payload = command[1:] if command[:1] == _REGULAR else None
        return self._owner.apply_entry(self.raftLastApplied + 1, payload)

    def _checkCommandsToApply(self) -> None:
        if self._isLeader():
            self._owner.pump()
        super()._checkCommandsToApply()

    def private(self, name: str) -> Any:
        return getattr(self, _PRIVATE + name)

    def set_private(self, name: str, value: Any) -> None:
        setattr(self, _PRIVATE + name, value)

    def _call_private(self, name: str, *args: Any) -> None:
        getattr(self, _PRIVATE + name)(*args)

    # -- state ----------------------------------------------------------------------------------------------------

    def resume(self, applied: int) -> None:
        """Right after construction: the state has applied up to here, so nothing before it is applied again."""
        self.set_private("raftLastApplied", applied)
        self.set_private("raftCommitIndex", max(self.raftCommitIndex, applied))

    @property
    def election_deadline(self) -> float:
        return float(self.private("raftElectionDeadline"))

    @election_deadline.setter
    def election_deadline(self, deadline: float) -> None:
        self.set_private("raftElectionDeadline", deadline)

    @property
    def transfer_in_progress(self) -> bool:
        return bool(self.private("transferInProgress"))

    @property
    def noop_index(self) -> int:
        """Index of the entry with which this leader's term began; 0 before there was one."""
        return self.private("noopIDx") or 0

    def last_index(self) -> int:
        return int(self._owner.journal.last_index)

    def entry(self, index: int) -> Any:
        """(command, index, term) at a log index, or None when the log does not hold it."""
        return self._owner.journal.entry(index)

    def adopt_term(self, term: int) -> None:
        """Somebody is in a higher term: follow there, with a vote to give."""
        self._call_private("setCurrentTerm", term, None)
        self.step_down()

    def vote_for(self, name: str) -> None:
        """Give the vote of the current term to its known leader."""
        self._call_private("setCurrentTerm", self.raftCurrentTerm, name)

    def step_down(self) -> None:
        self.set_private("raftLeader", None)
        self._call_private("setState", engine._RAFT_STATE.FOLLOWER)

    # -- replication ----------------------------------------------------------------------------------------------

    def next_index(self, node: Node) -> int:
        return int(self.private("raftNextIndex").get(node, 0))

    def set_next_index(self, node: Node, index: int) -> None:
        if node in self.private("raftNextIndex"):
            self.private("raftNextIndex")[node] = index

    def match_index(self, node: Node) -> int:
        return int(self.private("raftMatchIndex").get(node, 0))

    def forget_match(self, node: Node) -> None:
        """A voter may have lost what it acknowledged to this leader; none of it counts any more."""
        if node in self.private("raftMatchIndex"):
            self.private("raftMatchIndex")[node] = 0

    def heard_from(self, node: Node) -> float:
        """When a voter last answered this leader, for its check of the quorum."""
        return float(self.private("lastResponseTime").get(node, 0.0))

    def set_heard_from(self, node: Node, at: float) -> None:
        self.private("lastResponseTime")[node] = at

    def forget_heard(self, node: Node) -> None:
        """An observer's link broke; pysyncobj forgets all of it but this."""
        self.private("lastResponseTime").pop(node, None)

    def set_connected(self, node: Node, connected: bool) -> None:
        """Whether pysyncobj sends anything to a node; it is told of links that open and break otherwise."""
        nodes = self.private("connectedNodes")
        (nodes.add if connected else nodes.discard)(node)

    def send_soon(self) -> None:
        """Send append_entries with the next tick instead of the next heartbeat."""
        self.set_private("newAppendEntriesTime", 0)

    def queue(self, payload: bytes, applied: Callable[[Any], None]) -> None:
        """Put one entry in line for the log; `applied(result)` when it was applied in the term it got there."""

        def done(result: Any, error: int) -> None:
            if error == FAIL_REASON.SUCCESS:
                applied(result)

        self.private("commandsQueue").put_nowait((regular_entry(payload), done))

    def hand_over(self, to: Node | None = None) -> bool:
        """Ask a voter, by default the furthest, to stand at once; False when it lacks part of the log."""
        outcome: list[int] = []
        self.transferLeadership(to, callback=lambda _result, error: outcome.append(error))
        return outcome == [FAIL_REASON.SUCCESS]


class _NoPoller:
    """pysyncobj polls its sockets at the end of a tick; we have none there."""

    def poll(self, _timeout: float) -> None:
        return


def build(owner: Owner, me: Node | None, others: list[Node], timing: Timing) -> Core:
    """Construct pysyncobj with our journal and snapshots in place of its own (module globals, restored at once).

    Without `me` it is an observer: pysyncobj then neither votes nor stands, and `others` are all the voters.
    """
    conf = SyncObjConf(
        autoTick=False,
        appendEntriesUseBatch=False,
        commandsWaitLeader=False,
        dynamicMembershipChange=False,
        fullDumpFile=None,
        journalFile=None,
        password=None,
        appendEntriesBatchSizeBytes=APPEND_BATCH_BYTES,
        logCompactionMinEntries=_NEVER,
        logCompactionMinTime=_NEVER,
        logCompactionSplit=False,
        pollerType="poll",
        raftMinTimeout=timing.raft_min_timeout_s,
        raftMaxTimeout=timing.raft_max_timeout_s,
        appendEntriesPeriod=timing.heartbeat_s,
        leaderFallbackTimeout=timing.leader_fallback_s,
        connectionTimeout=max(1.0, timing.raft_max_timeout_s),
        onStateChanged=owner.on_state_changed,
    )
    replaced = {
        "createJournal": lambda _file: owner.journal,
        "Serializer": lambda *_: owner.snapshots,
        "PIPE_NOTIFIER_ENABLED": False,
    }
    saved = {name: getattr(engine, name) for name in replaced}
    for name, value in replaced.items():
        setattr(engine, name, value)
    try:
        core = Core(owner, me, others, conf)
    finally:
        for name, value in saved.items():
            setattr(engine, name, value)
    core._poller = _NoPoller()
    owner.transport.core = core
    return core


class _FalseAlarms(logging.Filter):
    """pysyncobj warns of every overlap that it truncates; with tentative truncation nothing is lost by it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "truncating already-applied" not in record.getMessage()


logging.getLogger("pysyncobj.syncobj").addFilter(_FalseAlarms())
