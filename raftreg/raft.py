"""One Raft voter: pysyncobj's algorithm behind our journal, transport rules and snapshots. No socket, no asyncio.

The owner calls `turn()` whenever frames, proposals or reads wait, and at least every tick. One turn is:

    deliver all frames -> pre-vote -> pysyncobj's tick -> a leader's append_entries leave
    -> one durable commit, if log, term or vote changed -> release messages -> complete proposals and reads

so nothing that promises durability (acknowledgement, vote, answer to a client) leaves before its transaction. Any
exception on the way is fatal: the process stops rather than go on with a log that may differ from its disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any, Protocol

from pysyncobj.node import Node

from raftreg import engine
from raftreg.append_window import AppendWindow
from raftreg.config import Limits, Timing
from raftreg.damage import Damage
from raftreg.digests import Digests, StateChecks
from raftreg.elections import Elections
from raftreg.engine import now
from raftreg.journal import Journal
from raftreg.observers import FROM_OBSERVERS, Observers
from raftreg.positions import Hello, Position, Positions
from raftreg.read_rounds import Complete, ForwardedReads, Freshness, ReadRounds
from raftreg.snapshots import Fatal, Snapshots, unchecked_rows
from raftreg.store import Store
from raftreg.tables import View
from raftreg.transport import (
    CLOCK,
    CONFIRMED_AGE,
    RECOVERING,
    ROUND,
    TERM,
    Message,
    RaftTransport,
    has_fields,
    is_position,
    is_well_formed,
)
from raftreg.voter_recovery import VoterRecovery
from raftreg.voter_set import VoterSet

logger = logging.getLogger(__name__)

_SHARE_PERIOD_S = 1.0
_IDLE_COMMIT_S = 1.0


class Apply(Protocol):
    """Applies one committed entry to the state; None is an entry without a command (it only advances the index)."""

    def __call__(self, view: View, index: int, payload: bytes | None) -> Any: ...


class Network(Protocol):
    """Links to the others, by name. `send` never blocks; `buffered` is what has not left yet, in bytes."""

    def send(self, peer: str, message: Message) -> None: ...

    def buffered(self, peer: str) -> int: ...


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
        checks: StateChecks | None = None,
    ) -> None:
        engine.assert_engine()
        self.store = store
        self.name = store.identity.peer
        self.others = tuple(peer for peer in store.identity.peers if peer != self.name)
        self._apply, self._network, self._limits, self._timing = apply, network, limits, timing
        self._end_process = fatal
        self._failed: str | None = None
        self._nodes = {peer: Node(peer) for peer in store.identity.peers}
        self.observers = Observers(limits, timing, network.buffered)
        self.on_pump: Callable[[], None] = lambda: None
        self.on_leadership: Callable[[bool], None] = lambda _leader: None
        self.on_commit: Callable[[float], None] = lambda _seconds: None

        self.journal = Journal(store)
        store.check_log(self.journal[:], applied_index)
        self.snapshots = Snapshots(
            store,
            self.journal,
            limits,
            applied_index=applied_index,
            buffered=self.observers.waiting,
            fatal=self._fatal,
            threaded=threaded_snapshots,
            checked_rows=checks.checked_rows if checks is not None else unchecked_rows,
        )
        self.transport = RaftTransport(self.snapshots, AppendWindow(limits.append_window_bytes), self.observers)
        self.transport.clock = now
        self._applied_index = applied_index
        self._inbox: list[tuple[str, Message]] = []
        self._up: set[str] = set()
        self._was_leader = False
        self._completions: list[tuple[Callable[[Any], None], Any]] = []

        self._rounds = ReadRounds(len(self._nodes))
        self._forwarded = ForwardedReads()
        self._freshness = Freshness()

        self._leader_heard = float("-inf")
        self.recovery = VoterRecovery(self, self.transport, self._say)
        self._positions = Positions(store, self.others)
        self._shared_at = float("-inf")
        self._full_peers: dict[str, str] = {}
        self._told_full = False
        self.damage = Damage(self, self._say, end=self._fatal, hand_over_max_s=timing.transfer_max_s)
        self.digests = Digests(
            self,
            self._say,
            self.damage,
            checks=checks,
            linked=lambda: [*sorted(self._up), *self.observers],
            limits=limits,
            period_s=timing.digest_period_s,
        )

        # An observer has no node of its own; it is not among the voters.
        self.core = engine.build(self, self._nodes.get(self.name), [self._nodes[p] for p in self.others], timing)
        self.observers.core = self.core
        self.core.resume(max(applied_index(store.view()), 1))
        self.digests.begin()
        self.voters = VoterSet(store, self.journal)
        self.elections = Elections(self, self._say, timing)
        if not self.others and not self.recovering:
            self.core.election_deadline = 0  # nobody else could be the leader
        self._commit()

    # -- what the owner sees --------------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        return bool(self.core._isLeader())

    @property
    def leader(self) -> str | None:
        """Name of the leader as far as this voter knows; None when it was silent for an election timeout."""
        node = self.core._getLeader()
        silent = not self.is_leader and self.leader_silence_s > self._timing.raft_max_timeout_s
        return None if node is None or silent else str(node.id)

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
        """How far a leader knows the log of a voter or observer to agree with its own; None when not leading."""
        return self.core.match_index(self._node(peer)) if self.is_leader else None

    def is_connected(self, peer: str) -> bool:
        return peer in self._up

    def is_recovering(self, peer: str) -> bool:
        """Whether a leader counts another voter as one that may have forgotten promises."""
        return peer in self.recovery.peers

    def holds(self, peer: str, index: int) -> bool:
        """Whether a leader knows that a voter is connected, does not recover and has the log up to `index`."""
        return peer in self._up and not self.is_recovering(peer) and (self.match_index(peer) or 0) >= index

    def staleness_s(self) -> float | None:
        """Seconds since a quorum confirmed the leader whose commits up to then are applied here; None: never."""
        fresh_at = self._rounds.confirmed_at if self._leads_for_sure() else self._freshness.fresh_at
        return None if fresh_at is None else max(0.0, now() - fresh_at)

    @property
    def leader_silence_s(self) -> float:
        """Seconds since a leader was last heard."""
        return now() - self._leader_heard

    @property
    def connected(self) -> Collection[str]:
        """Voters with which both directions are open."""
        return self._up

    def _leads_for_sure(self) -> bool:
        """A new leader has every committed entry in its log, but not in its state before its first one is applied."""
        return self.is_leader and self.applied >= self.core.noop_index

    def hello(self) -> Hello:
        """What this voter says of its disk when a link opens (between turns, when all of it is durable)."""
        identity = self.store.identity
        last, recovered = self.journal.last_index, self.store.recovered()
        return Hello(identity.store_id, self.term, last, self.recovering, recovered, self.journal.last_term)

    # -- events ---------------------------------------------------------------------------------------------------

    def greet(self, peer: str, hello: Hello) -> bool:
        """A voter says hello. False: it says less than is remembered of it, and there is no link with it."""
        if hello.recovering:
            self.core.forget_match(self._nodes[peer])
        accepted = self._positions.greet(peer, hello)
        if accepted:
            self.voters.meet(peer, hello)
        return accepted

    def remembered(self, peer: str) -> Position | None:
        """What this voter remembers of another: the highest that it knows it to have acknowledged."""
        return self._positions.shared().get(peer)

    def link_up(self, peer: str) -> None:
        """Both directions to a voter or observer are open."""
        self.damage.forget(peer)
        if peer in self._nodes:
            self._up.add(peer)
            self.transport.link_up(self._nodes[peer])
        else:
            self.transport.observer_up(self.observers.add(peer, Node(peer)))

    def link_down(self, peer: str) -> None:
        """A direction broke, or the other end was silent too long. Frames of the old link are no longer delivered."""
        self._inbox = [item for item in self._inbox if item[0] != peer]
        self._rounds.forget(peer)
        self._full_peers.pop(peer, None)
        self.snapshots.peer_lost(peer)
        self._completions += self._forwarded.lost(peer)
        if peer in self._up:
            self._up.discard(peer)
            self.transport.link_down(self._nodes[peer])
        elif peer in self.observers:
            self.transport.observer_down(self.observers.remove(peer))

    def receive(self, peer: str, message: Message) -> None:
        """A decoded frame of the current inbound link; handled by the next turn."""
        self._inbox.append((peer, message))

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
        self.observers.end_tick()
        self._compact()
        self._confirm_reads()
        self._finish_recovery()
        self._share()
        self.digests.tick()
        if self.snapshots.damage is not None:
            self.damage.found_here(self.snapshots.damage)
        self.damage.tick()
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
        started = now()
        self._positions.flush()
        self.journal.flush()
        self.store.commit()
        self._applied_on_disk, self._committed_at = self.applied, now()
        self.on_commit(self._committed_at - started)
        self.snapshots.after_commit()

    def _applied_lags_on_disk(self) -> bool:
        """Applied state rides on the next durable transaction; with none in sight it is written once a second."""
        return self.applied > self._applied_on_disk and now() - self._committed_at > _IDLE_COMMIT_S

    def _release_appends(self) -> None:
        """A leader's append_entries promise nothing about its own disk, so they need not wait for it: followers sync
        while it does. Their acknowledgements are counted in a later turn, when its own copy is durable."""
        if not self.is_leader:
            return
        kept: list[tuple[str, Message]] = []
        for peer, message in self.transport.outbox:
            if message["type"] != "append_entries":
                kept.append((peer, message))
            else:
                self._send(peer, message)
        self.transport.outbox = kept

    def _release(self) -> None:
        outbox, self.transport.outbox = self.transport.outbox, []
        for peer, message in outbox:
            self._send(peer, message)

    def _send(self, peer: str, message: Message) -> None:
        if peer in self._up or peer in self.observers:
            self._network.send(peer, message)

    def _complete(self) -> None:
        leader = self.is_leader
        if not leader:
            self._completions += self._rounds.abandon()
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
        else:
            self.store.reclaim(self._limits.reclaim_rows_max, self._limits.reclaim_whole_rows_max)

    # -- entries --------------------------------------------------------------------------------------------------

    def append(self, payload: bytes, done: Callable[[Any], None]) -> None:
        """Offer one entry; only from `on_pump`. `done(result)` after it was applied here in the term it was offered.

        An entry whose leader is deposed first is never completed: whoever waits learns it from `on_leadership`.
        """
        if len(payload) >= engine.ENTRY_BYTES_MAX:
            raise ValueError(f"an entry of {len(payload)} bytes; the limit is {engine.ENTRY_BYTES_MAX}")
        self.core.queue(payload, lambda result: self._completions.append((done, result)))

    def pump(self) -> None:
        if not self.damage.stopping:
            self.on_pump()

    def apply_entry(self, index: int, payload: bytes | None) -> Any:
        """Called by the core for every committed entry, in order."""
        try:
            result = self._apply(self.store.view(), index, payload)
            if index == self.digests.note_at:
                self.digests.note(index)
            return result
        except Exception as error:
            logger.exception("entry %d cannot be applied", index)
            self._fatal(f"entry {index} cannot be applied: {error!r}")
            raise

    def on_state_changed(self, _old: int, _new: int) -> None:
        self.snapshots.stop_serving()
        self.transport.forget_sent()
        self._rounds.reset()
        self.transport.confirmed_age = None
        self.recovery.goals.clear()
        self._full_peers.clear()
        self.damage.reset()
        self.digests.reset()

    def transfer_leadership(self, to: str | None = None) -> bool:
        """Ask a voter, by default the furthest, to take over; False when it lacks part of the log. Best effort."""
        return self.core.hand_over(None if to is None else self._nodes[to])

    # -- messages -------------------------------------------------------------------------------------------------

    def _handle(self, peer: str, message: Message) -> None:
        if not has_fields(message):
            logger.warning("malformed %r message from %s ignored", message.get("type"), peer)
        elif not self._heeds(peer, message["type"]):
            logger.warning("%s from %s ignored", message["type"], peer)
        elif message["type"] in _OWN_MESSAGES:
            _OWN_MESSAGES[message["type"]](self, peer, message)
        elif is_well_formed(message):
            self._deliver(peer, message)
        else:
            logger.warning("malformed %s from %s ignored", message["type"], peer)

    def _heeds(self, peer: str, kind: str) -> bool:
        """Nothing of an observer that could be counted; nothing of one that is not linked (any more)."""
        return peer in self._nodes or (peer in self.observers and kind in FROM_OBSERVERS)

    def _counts(self, peer: str) -> bool:
        """Whether an acknowledgement confirms this leader, and is a promise."""
        return peer in self._nodes

    def _node(self, peer: str) -> Node:
        return self._nodes[peer] if peer in self._nodes else self.observers.node(peer)

    def _deliver(self, peer: str, message: Message) -> None:
        kind = message["type"]
        if kind == "request_vote" and not self.voters.may_elect(message):
            return
        if kind == "timeout_now" and not self.voters.settled:
            return
        if kind == "next_node_idx":
            self._note_acknowledgement(peer, message)
        try:
            self.transport.deliver(self._node(peer), message)
        finally:
            self.journal.end_message()
        if "serialized" in message and self.applied != max(self._applied_index(self.store.view()), 1):
            # pysyncobj swallows what goes wrong while it rebases the log on a snapshot.
            self._fatal(f"log and state disagree after a snapshot: {self.applied} is applied by the one only")
        if kind == "append_entries":
            if message["term"] == self.term:
                self._note_leader(message)
            else:
                self._say(peer, "term", term=self.term)

    def _note_leader(self, message: Message) -> None:
        self._leader_heard = now()
        # Dated by our own clock, which the leader had from us before it sent this: a frame may wait long on its way.
        age, sent_after = message.get(CONFIRMED_AGE), message.get(CLOCK)
        if isinstance(age, float) and isinstance(sent_after, float) and "prevLogIdx" in message:
            self._freshness.announce(message["commit_index"], min(sent_after, self._leader_heard) - age)

    def _note_acknowledgement(self, peer: str, message: Message) -> None:
        if not self.is_leader or message[TERM] != self.term:
            return
        if isinstance(message.get(CLOCK), float):
            self.transport.clocks[peer] = message[CLOCK]
        if not self._counts(peer):
            return
        if isinstance(message.get(ROUND), int):
            self._rounds.echo(peer, message[ROUND])
        if message.get(RECOVERING):
            self.recovery.peers.add(peer)
            self.core.forget_match(self._nodes[peer])
            return
        self.recovery.peers.discard(peer)
        if message["success"] and message["next_node_idx"] - 1 <= self.journal.last_index:
            self._positions.acknowledged(peer, self.term, message["next_node_idx"] - 1)

    def _say(self, peer: str, kind: str, **fields: Any) -> None:
        self.transport.outbox.append((peer, {"type": kind, **fields}))

    def _seek_votes(self) -> None:
        self.elections.seek()

    # -- reads ----------------------------------------------------------------------------------------------------

    def read_index(self, complete: Complete) -> None:
        """Ask for a log index such that a state which has applied it is linearizable with this call.

        `complete(index)`, or `complete(None)` when there is no leader to confirm it (a definite "try again").
        """
        if self.is_leader and not self.damage.stopping:
            self._rounds.ask(complete)
            return
        leader = None if self.damage.stopping else self.leader
        number = self._forwarded.ask(leader, complete) if leader is not None and leader in self._up else None
        if leader is None or number is None:
            complete(None)
        else:
            self._network.send(leader, {"type": "read_index", "id": number})

    def _open_round(self) -> None:
        """Number the append_entries of this turn; reads that wait go with them and force a heartbeat."""
        if not self.is_leader:
            return
        self.transport.round += 1
        confirmed_at = self._rounds.confirmed_at if self._leads_for_sure() else None
        self.transport.confirmed_age = None if confirmed_at is None else now() - confirmed_at
        if self._rounds.open(self.transport.round, max(self.commit_index, self.core.noop_index)):
            self.core.send_soon()

    def _confirm_reads(self) -> None:
        if not self.is_leader:
            self._freshness.note(self.applied)
            return
        number = self.transport.round
        if not self.others or any(message["type"] == "append_entries" for _, message in self.transport.outbox):
            self._rounds.sent(number, now())
        self._completions += self._rounds.confirm(number, self.recovery.peers)
        self.recovery.tell_goals(self._rounds.echoed)

    def _on_read_index(self, peer: str, message: Message) -> None:
        number = message["id"]

        def answer(index: int | None) -> None:
            self._send(peer, {"type": "read_index_reply", "id": number, "index": index})

        if self.is_leader and not self.damage.stopping:
            self._rounds.ask(answer, peer)
        else:
            answer(None)

    def _on_read_index_reply(self, peer: str, message: Message) -> None:
        self._completions += self._forwarded.answered(peer, message["id"], message["index"])

    # -- what the leader tells all once a second ------------------------------------------------------------------

    def _share(self) -> None:
        """What each voter holds, so that any can notice a rolled-back disk; where a recovering one has caught up."""
        if not self.is_leader or now() - self._shared_at < _SHARE_PERIOD_S:
            return
        self._shared_at = now()
        own = (self.term, self.journal.last_index, self.store.identity.store_id)
        for peer in self._up:
            self._say(peer, "positions", positions={**self._positions.shared(), self.name: own})
        self.recovery.set_goals(self._up, self.transport.round + 1, max(self.commit_index, self.core.noop_index))

    def _on_positions(self, peer: str, message: Message) -> None:
        if all(is_position(position) for position in message["positions"].values()):
            self._positions.merge(message["positions"])
        else:
            logger.warning("malformed positions from %s ignored", peer)

    # -- storage --------------------------------------------------------------------------------------------------

    def tell_storage(self, refusal: str | None) -> None:
        """Let the leader know whether this voter has room; a leader takes nothing that a voter could not store."""
        leader = self.leader
        if leader is not None and leader != self.name and (refusal is not None or self._told_full):
            self._told_full = refusal is not None
            self._send(leader, {"type": "storage", "refusal": refusal})

    def storage_refusal(self) -> str | None:
        """What a connected voter said about its full disk, or None."""
        return next((refusal for peer, refusal in self._full_peers.items() if peer in self._up), None)

    def _on_storage(self, peer: str, message: Message) -> None:
        if message["refusal"] is None:
            self._full_peers.pop(peer, None)
        else:
            self._full_peers[peer] = message["refusal"]

    # -- recovery -------------------------------------------------------------------------------------------------

    @property
    def recovering(self) -> bool:
        return self.recovery.recovering

    def begin_recovery(self, why: str) -> None:
        """This voter may have forgotten acknowledged entries or votes: no vote, no candidacy until it caught up."""
        if self.recovering:
            return
        self.recovery.begin(why)
        if self.is_leader:
            self.core.step_down()
        # Durable before any hello tells of it: the others then forget what this voter had promised, so a crash must
        # not bring it back as one that keeps its promises.
        try:
            self._commit()
        except Exception as error:
            self._fatal(f"the need to recover cannot be written: {error!r}")
            raise

    def _finish_recovery(self) -> None:
        self.voters.followed(self.leader, self.term, self.applied)
        leader = self.recovery.caught_up_with()
        if leader is not None:
            self.recovery.end()
            # The vote of this term may have been forgotten; giving it to its known leader can contradict nobody.
            self.core.vote_for(leader)
            self.voters.settle_on_own_log()

    def close(self) -> None:
        """Stop for good; what is not committed is dropped."""
        self.snapshots.close()
        self.store.close()


_OWN_MESSAGES: dict[str, Callable[[RaftNode, str, Message], None]] = {
    "pre_vote": lambda raft, peer, message: raft.elections.on_pre_vote(peer, message),
    "pre_vote_granted": lambda raft, peer, message: raft.elections.on_pre_vote_granted(peer, message),
    "term": lambda raft, _peer, message: raft.elections.on_term(message),
    "read_index": RaftNode._on_read_index,
    "read_index_reply": RaftNode._on_read_index_reply,
    "positions": RaftNode._on_positions,
    "caught_up": lambda raft, peer, message: raft.recovery.on_caught_up(peer, message),
    "storage": RaftNode._on_storage,
    "digest_wanted": lambda raft, peer, message: raft.digests.on_wanted(peer, message),
    "digest": lambda raft, peer, message: raft.digests.on_digest(
        peer, message, counts=peer in raft.others and not raft.is_recovering(peer)
    ),
    "digest_verdict": lambda raft, peer, message: raft.digests.on_verdict(peer, message),
    "damage": lambda raft, peer, message: raft.damage.on_damage(peer, message),
    "damage_stop": lambda raft, peer, message: raft.damage.on_stop(peer, message),
}
