"""One Raft voter: pysyncobj's algorithm behind our journal, transport rules and snapshots. No socket, no asyncio.

The owner calls `turn()` whenever frames, proposals or reads wait, and at least every tick. One turn is:

    deliver all frames -> pre-vote -> pysyncobj's tick -> a leader's append_entries leave
    -> one durable commit, if log, term or vote changed -> release messages -> complete proposals and reads

so nothing that promises durability (acknowledgement, vote, answer to a client) leaves before its transaction. Any
exception on the way is fatal: the process stops rather than go on with a log that may differ from its disk.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import pysyncobj.syncobj as engine
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
from pysyncobj.node import Node

from raftreg.config import Limits, Timing
from raftreg.journal import Journal
from raftreg.snapshots import Fatal, Snapshots
from raftreg.store import Store
from raftreg.tables import View
from raftreg.transport import CONFIRMED_AGE, RECOVERING, ROUND, TERM, Message, RaftTransport, is_well_formed

logger = logging.getLogger(__name__)

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
)
_REGULAR = b"\0"
_APPEND_BATCH_BYTES = 8 << 20
_ENTRY_BYTES_MAX = _APPEND_BATCH_BYTES // 4  # from a quarter on, pysyncobj would split the entry, which it does wrong
_ROUNDS_IN_FLIGHT_MAX = 2
_POSITIONS_PERIOD_S = 1.0
_LEADER_HEARD_FRACTION = 0.9
_IDLE_COMMIT_S = 1.0


class Apply(Protocol):
    """Applies one committed entry to the state; None is an entry without a command (it only advances the index)."""

    def __call__(self, view: View, index: int, payload: bytes | None) -> Any: ...


class Network(Protocol):
    """Links to the other voters, by name. `send` never blocks; `buffered` is what has not left yet, in bytes."""

    def send(self, peer: str, message: Message) -> None: ...

    def buffered(self, peer: str) -> int: ...


@dataclass
class _Read:
    """A read index asked for: in which round it goes out, the index noted, who waits."""

    complete: Callable[[int | None], None]
    round: int = 0
    index: int = 0


def assert_engine() -> None:
    """Refuse to run on a pysyncobj whose source or private names are not those that were audited."""
    digest = hashlib.sha256(inspect.getsource(engine).encode()).hexdigest()
    if digest != _ENGINE_SHA256:
        raise RuntimeError(f"pysyncobj/syncobj.py has sha256 {digest}, not {_ENGINE_SHA256}: install pysyncobj==0.3.17")
    missing = [name for name in _PRIVATE_METHODS if not hasattr(SyncObj, _PRIVATE + name)]
    if missing:
        raise RuntimeError(f"pysyncobj lacks the private methods {', '.join(missing)}")


class _Core(SyncObj):  # type: ignore[misc]
    """pysyncobj's class with apply and pump handed in. Its camelCase and its name-mangled state end in this module."""

    def __init__(self, node: RaftNode, me: Node, others: Iterable[Node], conf: SyncObjConf) -> None:
        self._raft_node = node
        super().__init__(me, others, conf, nodeClass=Node, transport=node.transport)
        missing = [name for name in _PRIVATE_FIELDS if not hasattr(self, _PRIVATE + name)]
        if missing:
            raise RuntimeError(f"pysyncobj lacks the private fields {', '.join(missing)}")

    def _SyncObj__doApplyCommand(self, command: bytes) -> Any:
        return self._raft_node.apply_entry(self.raftLastApplied + 1, command)

    def _checkCommandsToApply(self) -> None:
        if self._isLeader():
            self._raft_node.pump()
        super()._checkCommandsToApply()

    def private(self, name: str) -> Any:
        return getattr(self, _PRIVATE + name)

    def set_private(self, name: str, value: Any) -> None:
        setattr(self, _PRIVATE + name, value)

    def call_private(self, name: str, *args: Any) -> None:
        getattr(self, _PRIVATE + name)(*args)

    def next_index(self, node: Node) -> int:
        return int(self.private("raftNextIndex").get(node, 0))

    def set_next_index(self, node: Node, index: int) -> None:
        if node in self.private("raftNextIndex"):
            self.private("raftNextIndex")[node] = index

    def last_index(self) -> int:
        return self._raft_node.journal.last_index

    def send_soon(self) -> None:
        """Send append_entries with the next tick instead of the next heartbeat."""
        self.set_private("newAppendEntriesTime", 0)


class _NoPoller:
    """pysyncobj polls its sockets at the end of a tick; we have none there."""

    def poll(self, _timeout: float) -> None:
        return


def _build_core(node: RaftNode, me: Node, others: list[Node], timing: Timing, journal: Any, snapshots: Any) -> _Core:
    """Construct pysyncobj with our journal and snapshots in place of its own (module globals, restored at once)."""
    conf = SyncObjConf(
        autoTick=False,
        appendEntriesUseBatch=False,
        commandsWaitLeader=False,
        dynamicMembershipChange=False,
        fullDumpFile=None,
        journalFile=None,
        password=None,
        appendEntriesBatchSizeBytes=_APPEND_BATCH_BYTES,
        logCompactionMinEntries=1 << 62,
        logCompactionMinTime=1 << 62,
        logCompactionSplit=False,
        pollerType="poll",
        raftMinTimeout=timing.raft_min_timeout_s,
        raftMaxTimeout=timing.raft_max_timeout_s,
        appendEntriesPeriod=timing.heartbeat_s,
        leaderFallbackTimeout=timing.leader_fallback_s,
        connectionTimeout=max(1.0, timing.raft_max_timeout_s),
        onStateChanged=node.on_state_changed,
    )
    replaced = {
        "createJournal": lambda _file: journal,
        "Serializer": lambda *_: snapshots,
        "PIPE_NOTIFIER_ENABLED": False,
    }
    saved = {name: getattr(engine, name) for name in replaced}
    for name, value in replaced.items():
        setattr(engine, name, value)
    try:
        core = _Core(node, me, others, conf)
    finally:
        for name, value in saved.items():
            setattr(engine, name, value)
    core._poller = _NoPoller()
    return core


class _FalseAlarms(logging.Filter):
    """pysyncobj warns of every overlap that it truncates; with tentative truncation nothing is lost by it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "truncating already-applied" not in record.getMessage()


logging.getLogger("pysyncobj.syncobj").addFilter(_FalseAlarms())


class RaftNode:
    """A voter of a static group. All methods are called from one thread; callbacks must only enqueue.

    `apply` is called once per committed entry, in order. `on_pump` is called in a leader's turn, when new entries may
    be appended with `append`. `on_leadership(bool)` tells of gaining and losing it, after the turn's commit.
    """

    def __init__(
        self,
        store: Store,
        *,
        apply: Apply,
        applied_index: Callable[[View], int],
        network: Network,
        limits: Limits,
        timing: Timing,
        fatal: Fatal,
        threaded_snapshots: bool = True,
    ) -> None:
        assert_engine()
        self.store = store
        self.name = store.identity.peer
        self.others = tuple(peer for peer in store.identity.peers if peer != self.name)
        self._apply, self._network, self._timing, self._end_process = apply, network, timing, fatal
        self._failed: str | None = None
        self._reclaim_rows_max = limits.reclaim_rows_max
        self._nodes = {peer: Node(peer) for peer in store.identity.peers}
        self.journal = Journal(store)
        self.snapshots = Snapshots(
            store,
            self.journal,
            limits,
            applied_index=applied_index,
            buffered=network.buffered,
            fatal=self._fatal,
            threaded=threaded_snapshots,
        )
        self.transport = RaftTransport(self.snapshots.cancelTransmisstion)
        self.recovering = self.transport.recovering = store.recovering()
        self._inbox: list[tuple[str, Message]] = []
        self._was_leader = False
        self._up: set[str] = set()
        self.on_pump: Callable[[], None] = lambda: None
        self.on_leadership: Callable[[bool], None] = lambda _leader: None
        self.on_commit: Callable[[float], None] = lambda _seconds: None
        self._completions: list[tuple[Callable[[Any], None], Any]] = []
        self._reads_new: list[_Read] = []
        self._reads_sent: deque[_Read] = deque()
        self._reads_forwarded: dict[int, tuple[str, Callable[[int | None], None]]] = {}
        self._read_counter = 0
        self._rounds_sent: deque[tuple[int, float]] = deque()
        self._round_confirmed = 0
        self._round_of: dict[str, int] = {}
        self._recovering_peers: set[str] = set()
        self._confirmed_at: float | None = None
        self._announced: tuple[int, float] | None = None
        self._fresh_at: float | None = None
        self._leader_heard = float("-inf")
        self._pre_votes: set[str] = set()
        self._pre_vote_term = 0
        self._may_campaign = False
        self._positions = store.positions()
        self._positions_sent_at = float("-inf")
        self._positions_changed = False
        self._full_peers: dict[str, str] = {}
        self._told_full = False
        self._recovery_goal: tuple[int, int, str] | None = None
        self.core = _build_core(
            self,
            self._nodes[self.name],
            [self._nodes[peer] for peer in self.others],
            timing,
            self.journal,
            self.snapshots,
        )
        self.transport.core = self.core
        applied = max(applied_index(store.view()), 1)
        self.core.set_private("raftLastApplied", applied)
        self.core.set_private("raftCommitIndex", max(self.core.raftCommitIndex, applied))
        if not self.others and not self.recovering:
            self.core.set_private("raftElectionDeadline", 0)  # nobody else could be the leader
        self._commit()

    # -- what the owner sees --------------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        return bool(self.core._isLeader())

    @property
    def leader(self) -> str | None:
        """Name of the leader as far as this voter knows."""
        node = self.core._getLeader()
        return None if node is None else str(node.id)

    @property
    def role(self) -> str:
        if self.recovering:
            return "recovering"
        return "leader" if self.is_leader else "follower" if self.leader is not None else "candidate"

    @property
    def term(self) -> int:
        return int(self.core.raftCurrentTerm)

    @property
    def commit_index(self) -> int:
        return max(int(self.core.raftCommitIndex), int(self.core.raftLastApplied))

    @property
    def applied(self) -> int:
        return int(self.core.raftLastApplied)

    def match_index(self, peer: str) -> int | None:
        """How far a leader knows another voter's log to agree with its own; None when not leading."""
        if not self.is_leader:
            return None
        return int(self.core.private("raftMatchIndex").get(self._nodes[peer], 0))

    def is_connected(self, peer: str) -> bool:
        return peer in self._up

    def staleness_s(self) -> float | None:
        """Seconds since a quorum confirmed the leader whose commits up to then are applied here; None: never."""
        now = _now()
        if self.is_leader:
            return None if self._confirmed_at is None else max(0.0, now - self._confirmed_at)
        return None if self._fresh_at is None else max(0.0, now - self._fresh_at)

    def position(self) -> tuple[int, int]:
        """(term, index) of the last entry held durably; for the hello of a link."""
        return self.journal.last_term, self.journal.last_index

    # -- events ---------------------------------------------------------------------------------------------------

    def link_up(self, peer: str) -> None:
        """Both directions to a voter are open."""
        self._up.add(peer)
        self.transport.link_up(self._nodes[peer])

    def link_down(self, peer: str) -> None:
        """A direction broke, or the voter was silent too long. Frames of the old link are no longer delivered."""
        self._inbox = [item for item in self._inbox if item[0] != peer]
        self._round_of.pop(peer, None)
        self._fail_forwarded_reads(peer)
        if peer in self._up:
            self._up.discard(peer)
            self.transport.link_down(self._nodes[peer])

    def receive(self, peer: str, message: Message) -> None:
        """A decoded frame of the current inbound link; handled by the next turn."""
        self._inbox.append((peer, message))

    def has_work(self) -> bool:
        return bool(self._inbox or self._reads_new)

    # -- one turn -------------------------------------------------------------------------------------------------

    def turn(self) -> bool:
        """Run one turn. True when another should follow at once (a single voter commits in the turn after)."""
        inbox, self._inbox = self._inbox, []
        for peer, message in inbox:
            self._handle(peer, message)
        self._seek_votes()
        self._open_round()
        self.snapshots.begin_turn()
        self.core.doTick(0)
        self._compact()
        self._confirm_rounds()
        self._finish_recovery()
        self._share_positions()
        if self._failed is not None:
            raise RuntimeError(self._failed)  # pysyncobj may have swallowed the exception that came with it
        self._release_appends()
        appended = self.journal.dirty
        if appended or self.store.want_commit or self._applied_lags_on_disk():
            self._commit()
        self._release()
        self._complete()
        return appended and not self.others

    def _fatal(self, reason: str) -> None:
        """End the process. Should that return, as in a simulation, nothing is committed or released any more."""
        self._failed = reason
        self._end_process(reason)

    def _commit(self) -> None:
        started = time.perf_counter()
        if self._positions_changed:
            self.store.put_positions(self._positions)
            self._positions_changed = False
        self.journal.flush()
        self.store.commit()
        self._applied_on_disk, self._committed_at = self.applied, _now()
        self.on_commit(time.perf_counter() - started)
        self.snapshots.after_commit()

    def _applied_lags_on_disk(self) -> bool:
        """Applied state rides on the next durable transaction; with none in sight it is written once a second."""
        return self.applied > self._applied_on_disk and _now() - self._committed_at > _IDLE_COMMIT_S

    def _release_appends(self) -> None:
        """A leader's append_entries promise nothing about its own disk, so they need not wait for it: followers sync
        while it does. Their acknowledgements are counted in a later turn, when its own copy is durable."""
        if not self.is_leader:
            return
        kept: list[tuple[str, Message]] = []
        for peer, message in self.transport.outbox:
            if message["type"] != "append_entries":
                kept.append((peer, message))
            elif peer in self._up:
                self._network.send(peer, message)
        self.transport.outbox = kept

    def _release(self) -> None:
        outbox, self.transport.outbox = self.transport.outbox, []
        for peer, message in outbox:
            if peer in self._up:
                self._network.send(peer, message)

    def _complete(self) -> None:
        leader = self.is_leader
        if not leader:
            self._abandon_reads()
        completions, self._completions = self._completions, []
        for callback, value in completions:
            callback(value)
        if leader != self._was_leader:
            # After the completions: what was applied in this very turn has a known outcome.
            self._was_leader = leader
            self.on_leadership(leader)

    def _compact(self) -> None:
        if self.snapshots.compaction_due() and self.journal.first_index < self.applied - 1:
            self.core.forceLogCompaction()
        elif not self.snapshots.receiving:
            self.store.reclaim(self._reclaim_rows_max)

    # -- entries --------------------------------------------------------------------------------------------------

    def append(self, payload: bytes, done: Callable[[Any], None]) -> None:
        """Offer one entry; only from `on_pump`. `done(result)` after it was applied here in the term it was offered.

        An entry whose leader is deposed first is never completed: whoever waits learns it from `on_leadership`.
        """
        if len(payload) >= _ENTRY_BYTES_MAX:
            raise ValueError(f"an entry of {len(payload)} bytes; the limit is {_ENTRY_BYTES_MAX}")

        def applied(result: Any, error: int) -> None:
            if error == FAIL_REASON.SUCCESS:
                self._completions.append((done, result))

        self.core.private("commandsQueue").put_nowait((_REGULAR + payload, applied))

    def pump(self) -> None:
        self.on_pump()

    def apply_entry(self, index: int, command: bytes) -> Any:
        """Called by the core for every committed entry. Only our own type carries a command; the rest are no-ops."""
        try:
            return self._apply(self.store.view(), index, command[1:] if command[:1] == _REGULAR else None)
        except Exception as error:
            logger.exception("entry %d cannot be applied", index)
            self._fatal(f"entry {index} cannot be applied: {error!r}")
            raise

    def on_state_changed(self, _old: int, _new: int) -> None:
        self._round_of.clear()
        self._rounds_sent.clear()
        self._confirmed_at = None

    def transfer_leadership(self) -> bool:
        """Ask the voter that is furthest to take over; False when none has the whole log yet. Best effort."""
        outcome: list[int] = []
        self.core.transferLeadership(None, callback=lambda _r, error: outcome.append(error))
        return outcome == [FAIL_REASON.SUCCESS]

    # -- messages -------------------------------------------------------------------------------------------------

    def _handle(self, peer: str, message: Message) -> None:
        own = _OWN_MESSAGES.get(message.get("type", ""))
        if own is not None:
            own(self, peer, message)
            return
        if not is_well_formed(message):
            logger.warning("malformed %r message from %s ignored", message.get("type"), peer)
            return
        kind = message["type"]
        if kind == "next_node_idx":
            self._note_acknowledgement(peer, message)
        try:
            self.transport.deliver(self._nodes[peer], message)
        finally:
            self.journal.end_message()
        if kind == "append_entries":
            if message["term"] == self.term:
                self._note_leader(peer, message)
            else:
                self._say(peer, "term", term=self.term)

    def _note_leader(self, peer: str, message: Message) -> None:
        now = _now()
        self._leader_heard = now
        age = message.get(CONFIRMED_AGE)
        if age is not None and "prevLogIdx" in message:
            self._announced = (message["commit_index"], now - age)

    def _note_acknowledgement(self, peer: str, message: Message) -> None:
        if not self.is_leader or message[TERM] != self.term:
            return
        if message.get(RECOVERING):
            self._recovering_peers.add(peer)
            return
        self._recovering_peers.discard(peer)
        echoed = message.get(ROUND)
        if isinstance(echoed, int) and echoed > self._round_of.get(peer, 0):
            self._round_of[peer] = echoed
        if message["success"]:
            self._note_position(peer, message["next_node_idx"] - 1)

    # -- elections ------------------------------------------------------------------------------------------------

    def _seek_votes(self) -> None:
        """Before a real election, ask whether it could be won: a peer that was cut off then deposes nobody."""
        may_campaign, self._may_campaign = self._may_campaign, False
        if self.is_leader or may_campaign or self.core.private("transferInProgress"):
            return
        now = _now()
        if self.core.private("raftElectionDeadline") >= now:
            return
        if self.recovering or self.others:
            self.core.set_private("raftElectionDeadline", now + self._election_timeout())
        if self.recovering or not self.others:
            return
        self._pre_votes = {self.name}
        self._pre_vote_term = self.term + 1
        last_term, last_index = self.position()
        for peer in self._up:
            self._say(peer, "pre_vote", term=self._pre_vote_term, last_log_index=last_index, last_log_term=last_term)

    def _election_timeout(self) -> float:
        return random.uniform(self._timing.raft_min_timeout_s, self._timing.raft_max_timeout_s)

    def _on_pre_vote(self, peer: str, message: Message) -> None:
        if message["term"] <= self.term:
            self._say(peer, "term", term=self.term)
            return
        if self.recovering or self.is_leader:
            return
        if _now() - self._leader_heard < _LEADER_HEARD_FRACTION * self._timing.raft_min_timeout_s:
            return
        if (message["last_log_term"], message["last_log_index"]) >= self.position():
            self._say(peer, "pre_vote_granted", term=message["term"])

    def _on_pre_vote_granted(self, peer: str, message: Message) -> None:
        if self.is_leader or self.recovering or message["term"] != self._pre_vote_term:
            return
        self._pre_votes.add(peer)
        if self._is_majority(len(self._pre_votes)) and self._pre_vote_term == self.term + 1:
            self._pre_votes.clear()
            self._may_campaign = True
            self.core.set_private("raftElectionDeadline", 0)

    def _on_term(self, _peer: str, message: Message) -> None:
        """Someone is in a higher term: adopt it. Without this a peer with a longer log but a lower term, or a leader
        whose follower is ahead in terms, would never be heard again; pysyncobj ignores lower terms in silence."""
        if message["term"] <= self.term:
            return
        self.core.call_private("setCurrentTerm", message["term"], None)
        self.core.set_private("raftLeader", None)
        self.core.call_private("setState", engine._RAFT_STATE.FOLLOWER)

    def _is_majority(self, voters: int) -> bool:
        return voters * 2 > len(self._nodes)

    def _say(self, peer: str, kind: str, **fields: Any) -> None:
        self.transport.outbox.append((peer, {"type": kind, **fields}))

    # -- reads ----------------------------------------------------------------------------------------------------

    def read_index(self, complete: Callable[[int | None], None]) -> None:
        """Ask for a log index such that a state which has applied it is linearizable with this call.

        `complete(index)`, or `complete(None)` when there is no leader to confirm it (a definite "try again").
        """
        if self.is_leader:
            self._reads_new.append(_Read(complete))
            return
        leader = self.leader
        if leader is None or leader not in self._up or len(self._reads_forwarded) >= _FORWARDED_READS_MAX:
            complete(None)
            return
        self._read_counter += 1
        self._reads_forwarded[self._read_counter] = (leader, complete)
        self._network.send(leader, {"type": "read_index", "id": self._read_counter})

    def _open_round(self) -> None:
        """Number the append_entries of this turn; reads that wait go with them and force a heartbeat."""
        if not self.is_leader:
            return
        self.transport.round += 1
        now = _now()
        self.transport.confirmed_age = None if self._confirmed_at is None else now - self._confirmed_at
        if self._reads_new and len({read.round for read in self._reads_sent}) < _ROUNDS_IN_FLIGHT_MAX:
            index = max(self.commit_index, self.core.private("noopIDx") or 0)
            for read in self._reads_new:
                read.round, read.index = self.transport.round, index
            self._reads_sent.extend(self._reads_new)
            self._reads_new = []
            self.core.send_soon()

    def _confirm_rounds(self) -> None:
        if not self.is_leader:
            self._note_freshness()
            return
        if any(message["type"] == "append_entries" for _, message in self.transport.outbox) or not self.others:
            self._rounds_sent.append((self.transport.round, _now()))
        confirmed = self._confirmed_round(exclude=None)
        while self._rounds_sent and self._rounds_sent[0][0] <= confirmed:
            self._confirmed_at = self._rounds_sent.popleft()[1]
        while self._reads_sent and self._reads_sent[0].round <= confirmed:
            read = self._reads_sent.popleft()
            self._completions.append((read.complete, read.index))

    def _confirmed_round(self, exclude: str | None) -> int:
        """The highest round that a majority, this leader included, has answered in this term."""
        rounds = [self.transport.round]
        rounds += [self._round_of.get(p, 0) for p in self.others if p != exclude and p not in self._recovering_peers]
        rounds.sort(reverse=True)
        needed = len(self._nodes) // 2
        return rounds[needed] if needed < len(rounds) else 0

    def _note_freshness(self) -> None:
        if self._announced is not None and self.applied >= self._announced[0]:
            self._fresh_at = max(self._fresh_at or 0.0, self._announced[1])
            self._announced = None

    def _abandon_reads(self) -> None:
        waiting = [*self._reads_new, *self._reads_sent]
        self._reads_new = []
        self._reads_sent.clear()
        for read in waiting:
            self._completions.append((read.complete, None))

    def _fail_forwarded_reads(self, peer: str) -> None:
        for number in [n for n, (leader, _) in self._reads_forwarded.items() if leader == peer]:
            self._completions.append((self._reads_forwarded.pop(number)[1], None))

    def _on_read_index(self, peer: str, message: Message) -> None:
        number = message["id"]

        def answer(index: int | None) -> None:
            if peer in self._up:
                self._network.send(peer, {"type": "read_index_reply", "id": number, "index": index})

        if self.is_leader:
            self._reads_new.append(_Read(answer))
        else:
            answer(None)

    def _on_read_index_reply(self, peer: str, message: Message) -> None:
        waiting = self._reads_forwarded.get(message["id"])
        if waiting is not None and waiting[0] == peer:
            del self._reads_forwarded[message["id"]]
            self._completions.append((waiting[1], message["index"]))

    # -- what others are known to hold ----------------------------------------------------------------------------

    def greet(self, peer: str, store_id: str, position: tuple[int, int], recovering: bool) -> bool:
        """A voter says hello. False: it has forgotten something that it had acknowledged, and must recover.

        A recovering voter promises nothing any more; what is remembered of it starts anew with its hello.
        """
        known = self._positions.get(peer)
        if recovering:
            self._remember(peer, (*position, store_id))
            return True
        if known is not None and (store_id != known[2] or position < (known[0], known[1])):
            return False
        self._remember(peer, (*position, store_id))
        return True

    def begin_recovery(self, why: str) -> None:
        """This voter may have forgotten acknowledged entries or votes: no vote, no candidacy until it caught up."""
        if self.recovering:
            return
        logger.error("this peer must recover before it votes again: %s", why)
        self.recovering = self.transport.recovering = True
        self.store.put_recovering(True)

    def _note_position(self, peer: str, index: int) -> None:
        entry = self.journal.entry(index)
        known = self._positions.get(peer)
        if entry is not None and known is not None and (known[0], known[1]) < (entry[2], index):
            self._positions[peer] = (entry[2], index, known[2])
            self._positions_changed = True

    def _remember(self, peer: str, position: tuple[int, int, str]) -> None:
        self._positions[peer] = position
        self._positions_changed = True
        self.store.want_commit = True

    def _share_positions(self) -> None:
        """Once a second the leader tells all what each holds: any voter can then notice a rolled-back disk."""
        now = _now()
        if not self.is_leader or now - self._positions_sent_at < _POSITIONS_PERIOD_S:
            return
        self._positions_sent_at = now
        for peer in self._up:
            self._say(peer, "positions", positions=self._positions)
            if peer in self._recovering_peers:
                self._offer_recovery_goal(peer)

    def _on_positions(self, _peer: str, message: Message) -> None:
        for peer, (term, index, store_id) in message["positions"].items():
            known = self._positions.get(peer)
            if (
                peer in self.others
                and known is not None
                and known[2] == store_id
                and (known[0], known[1]) < (term, index)
            ):
                self._positions[peer] = (term, index, store_id)
                self._positions_changed = True

    # -- storage --------------------------------------------------------------------------------------------------

    def tell_storage(self, refusal: str | None) -> None:
        """Let the leader know whether this voter has room; a leader takes nothing that a voter could not store."""
        leader = self.leader
        if leader is not None and leader != self.name and (refusal is not None or self._told_full):
            self._told_full = refusal is not None
            if leader in self._up:
                self._network.send(leader, {"type": "storage", "refusal": refusal})

    def storage_refusal(self) -> str | None:
        """What a connected voter said about its full disk, or None."""
        for peer, refusal in self._full_peers.items():
            if peer in self._up:
                return refusal
        return None

    def _on_storage(self, peer: str, message: Message) -> None:
        if message["refusal"] is None:
            self._full_peers.pop(peer, None)
        else:
            self._full_peers[peer] = str(message["refusal"])

    # -- recovery -------------------------------------------------------------------------------------------------

    def _finish_recovery(self) -> None:
        if self._recovery_goal is None or not self.recovering:
            return
        term, index, leader = self._recovery_goal
        if term != self.term or leader != self.leader:
            self._recovery_goal = None
        elif self.applied >= index:
            self._leave_recovery(leader)

    def _offer_recovery_goal(self, peer: str) -> None:
        """Tell a recovering voter where it has caught up: a read index that a quorum without it confirms from now on.

        That quorum overlaps with every majority that a forgotten vote or acknowledgement of it belonged to, so this
        leader is the newest one that it can have promised anything to, and holds everything that it acknowledged.
        """

        def answer(index: int | None) -> None:
            if index is not None and peer in self._up:
                self._network.send(peer, {"type": "caught_up", "term": self.term, "index": index})

        self._reads_new.append(_Read(answer))

    def _on_caught_up(self, peer: str, message: Message) -> None:
        if self.recovering and message["term"] == self.term and peer == self.leader:
            self._recovery_goal = (message["term"], message["index"], peer)

    def _leave_recovery(self, leader: str) -> None:
        logger.warning("caught up at index %d: this peer votes again", self.applied)
        self._recovery_goal = None
        self.recovering = self.transport.recovering = False
        # The vote of this term may have been forgotten; giving it to its known leader can contradict nobody.
        self.journal.setCurrentTerm(self.term, leader)
        self.core.set_private("votedForNodeId", leader)
        self.store.put_recovering(False)

    def close(self) -> None:
        """Stop for good; what is not committed is dropped."""
        self.snapshots.close()
        self.store.close()


_FORWARDED_READS_MAX = 4096
_OWN_MESSAGES: dict[str, Callable[[RaftNode, str, Message], None]] = {
    "pre_vote": RaftNode._on_pre_vote,
    "pre_vote_granted": RaftNode._on_pre_vote_granted,
    "read_index": RaftNode._on_read_index,
    "read_index_reply": RaftNode._on_read_index_reply,
    "positions": RaftNode._on_positions,
    "caught_up": RaftNode._on_caught_up,
    "term": RaftNode._on_term,
    "storage": RaftNode._on_storage,
}


def _now() -> float:
    """pysyncobj's own clock (a simulation replaces it there)."""
    return float(engine.monotonicTime())
