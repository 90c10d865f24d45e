"""Several voters and observers in one process on a virtual clock: the product's Raft node, journal, transport rules,
frame codec and snapshots on real LMDB; only sockets and time are replaced, so that a test decides every delivery and
every crash.

The replicated state is a list: each entry appends its payload; `values(name)` is what a voter has applied.
"""

from __future__ import annotations

import random
import shutil
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pysyncobj.syncobj as engine

from raftreg.config import Limits, Timing
from raftreg.observer_node import ObserverNode
from raftreg.raft import RaftNode
from raftreg.store import Store, initialise
from raftreg.tables import View
from raftreg.transport import LENGTH, Message, encode_frame

HEARTBEAT_S = 0.1
TIMING = Timing(raft_min_timeout_s=1.0, raft_max_timeout_s=2.0, heartbeat_s=HEARTBEAT_S, leader_fallback_s=30.0)
A_HEARTBEAT_LATER = HEARTBEAT_S * 1.1
LONG_AFTER = 5.0
SMALL_SNAPSHOTS = Limits(
    snapshot_chunk_bytes=64,
    snapshot_commit_bytes=64,
    snapshot_resume_s=3.0,
    reclaim_whole_rows_max=1,
    log_keep_entries=1,
    log_keep_bytes=1 << 20,
)
WHOLE_SNAPSHOTS = replace(SMALL_SNAPSHOTS, snapshot_chunk_bytes=1 << 16)

ENGINE_CLOCK = engine.monotonicTime
_APPLIED = b"applied"
_VALUE = b"value:"


def apply_value(view: View, index: int, payload: bytes | None) -> int:
    """Append one value; returns the index. Applying an index twice or out of order is a bug of the caller."""
    assert index == max(applied_index(view), 1) + 1, f"entry {index} applied after {applied_index(view)}"
    view.put(_APPLIED, b"%d" % index)
    if payload is not None:
        view.put(_VALUE + b"%012d" % index, payload)
    return index


def applied_index(view: View) -> int:
    return int(view.get(_APPLIED) or b"0")


class DiskFailure(Exception):
    """A durable commit failed; the product ends its process on it."""


class Clock:
    """Virtual seconds; replaces pysyncobj's clock for the life of a cluster."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Port:
    """The network of one voter: frames go into the cluster's queues."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster, self._name = cluster, name

    def send(self, peer: str, message: Message) -> None:
        if (self._name, peer) not in self._cluster.cut:
            self._cluster.queues[(self._name, peer)].append(encode_frame(message))

    def buffered(self, peer: str) -> int:
        return sum(map(len, self._cluster.queues[(self._name, peer)]))


class Cluster:
    """Voters and observers named by single letters; all links are up after construction and nothing has been delivered.

    Observers have no links among each other.
    """

    def __init__(
        self, directory: Path, names: str, *, observers: str = "", seed: int = 0, limits: Limits = SMALL_SNAPSHOTS
    ) -> None:
        random.seed(seed)
        self.directory, self.names, self.observers, self.limits = directory, names, observers, limits
        self.clock = Clock()
        engine.monotonicTime = self.clock
        self.nodes: dict[str, RaftNode] = {}
        self.queues: dict[tuple[str, str], deque[bytes]] = defaultdict(deque)
        self.cut: set[tuple[str, str]] = set()
        self.dead: dict[str, str] = {}
        try:
            for name in names + observers:
                self._initialise(name)
                self.start(name)
            self.connect_all()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for name in list(self.nodes):
            self.crash(name)
        engine.monotonicTime = ENGINE_CLOCK

    # -- processes ------------------------------------------------------------------------------------------------

    def start(self, name: str) -> RaftNode:
        """Start a voter or observer on its directory, as after a crash; its links are still down."""

        def fatal(reason: str) -> None:
            self.dead[name] = reason

        kind = ObserverNode if name in self.observers else RaftNode
        self.nodes[name] = kind(
            Store(self.directory / name, map_size_bytes=1 << 26, peer=name, peers=self.names),
            apply=apply_value,
            applied_index=applied_index,
            network=_Port(self, name),
            limits=self.limits,
            timing=TIMING,
            fatal=fatal,
            threaded_snapshots=False,
        )
        return self.nodes[name]

    def wipe(self, name: str, *, recovering: bool = True) -> None:
        """Replace the disk of a stopped voter or observer; `recovering` is what `raftreg rejoin` writes for a voter."""
        shutil.rmtree(self.directory / name)
        self._initialise(name, recovering=recovering and name not in self.observers)

    def _initialise(self, name: str, *, recovering: bool = False) -> None:
        initialise(
            self.directory / name,
            cluster_id="test",
            peer=name,
            peers=self.names,
            recovering=recovering,
            observer=name in self.observers,
        )

    def crash(self, name: str) -> None:
        """SIGKILL or power loss: what was not committed to disk is gone, and so are the bytes in its links."""
        for peer in list(self.nodes):
            if peer != name:
                self.disconnect(name, peer)
        self.nodes.pop(name).close()

    # -- links ----------------------------------------------------------------------------------------------------

    def connect(self, a: str, b: str) -> None:
        observers = [name for name in (a, b) if name in self.observers]
        if len(observers) == 2:
            return
        if a in self.nodes and b in self.nodes and not observers:
            for source, target in ((a, b), (b, a)):
                self._say_hello(source, target)
        for source, target in ((a, b), (b, a)):
            self.cut.discard((source, target))
            if source in self.nodes and target in self.nodes:
                self.nodes[source].link_up(target)

    def _say_hello(self, source: str, target: str) -> None:
        """As `peer_links` does: a voter that has forgotten something is told so, and says hello as recovering."""
        node = self.nodes[source]
        if not self.nodes[target].greet(source, node.hello()):
            node.begin_recovery(f"{target} remembers more")
            assert self.nodes[target].greet(source, node.hello())

    def disconnect(self, a: str, b: str) -> None:
        """The connections between a and b break: what was in flight is lost, both notice."""
        for source, target in ((a, b), (b, a)):
            self.cut.add((source, target))
            self.queues[(source, target)].clear()
            if source in self.nodes:
                self.nodes[source].link_down(target)

    def connect_all(self) -> None:
        for name in self.nodes:
            self.heal(name)

    def isolate(self, name: str) -> None:
        for peer in self.names + self.observers:
            if peer != name:
                self.disconnect(name, peer)

    def heal(self, name: str) -> None:
        for peer in self.nodes:
            if peer != name:
                self.connect(name, peer)

    def lose(self, source: str, target: str) -> None:
        """The frames in flight from source to target are gone; the flap was too short for anyone to notice."""
        self.queues[(source, target)].clear()

    def in_flight(self, source: str, target: str) -> list[Message]:
        return [msgpack.unpackb(frame[LENGTH.size :]) for frame in self.queues[(source, target)]]

    # -- time and delivery ----------------------------------------------------------------------------------------

    def turn(self, name: str, *, after: float = 0.0) -> None:
        """One turn; a voter that asks for its process to be ended, or whose disk fails, is crashed at once."""
        self.clock.now += after
        try:
            self.nodes[name].turn()
        except DiskFailure:
            self.crash(name)
        except Exception:
            if name not in self.dead:
                raise
            self.crash(name)

    def fail_next_commit(self, name: str) -> None:
        """The next durable commit of a voter fails, after the early messages of that turn have left."""
        store = self.nodes[name].store

        def commit() -> None:
            raise DiskFailure(name)

        store.commit = commit  # type: ignore[method-assign]

    def deliver(self, source: str, target: str, frames: int | None = None) -> list[Message]:
        """Deliver the oldest frames of a link (all of them by default) and run one turn of the target."""
        queue = self.queues[(source, target)]
        count = len(queue) if frames is None else min(frames, len(queue))
        messages = [msgpack.unpackb(queue.popleft()[LENGTH.size :]) for _ in range(count)]
        if target in self.nodes:
            for message in messages:
                self.nodes[target].receive(source, msgpack.unpackb(msgpack.packb(message)))
            self.turn(target)
        return messages

    def pump(self, among: Iterable[str] | None = None, *, rounds: int = 6, step: float = 0.0) -> None:
        """Let the named voters (default: all) run and exchange everything, `step` seconds per round."""
        only = set(self.nodes if among is None else among)
        for _ in range(rounds):
            for name in sorted(only & set(self.nodes)):
                self.turn(name)
            for source, target in sorted(self.queues):
                if source in only and target in only:
                    self.deliver(source, target)
            self.clock.now += step

    def settle(self, among: Iterable[str] | None = None) -> None:
        self.pump(among, rounds=12, step=A_HEARTBEAT_LATER)

    def elect(self, name: str, voters: Iterable[str] | None = None) -> None:
        """Make `name` the leader with the votes of `voters` (default: all); nobody else stands meanwhile."""
        for node in self.nodes.values():
            node.core.set_private("raftElectionDeadline", self.clock.now + 3)
        core = self.nodes[name].core
        core.set_private("transferInProgress", True)
        core.set_private("raftElectionDeadline", 0)
        self.turn(name)
        self.pump({name, *(self.names if voters is None else voters)}, rounds=3)
        assert self.nodes[name].is_leader, f"{name} was not elected"

    # -- commands and state ---------------------------------------------------------------------------------------

    def propose(self, name: str, value: str, acknowledged: list[str]) -> None:
        """Offer one entry at a leader; `value` is appended to `acknowledged` when its client would be answered."""
        node = self.nodes[name]
        previous: Callable[[], None] = node.on_pump

        def pump() -> None:
            node.on_pump = previous
            previous()
            node.append(value.encode(), lambda _result: acknowledged.append(value))

        node.on_pump = pump

    def values(self, name: str) -> list[str]:
        view = self.nodes[name].store.view()
        return [bytes(value).decode() for _, value in view.scan(_VALUE, _VALUE + b"\xff")]

    def log(self, name: str) -> list[tuple[int, int]]:
        """(index, term) of every entry a voter holds."""
        return [(entry[1], entry[2]) for entry in self.nodes[name].journal[:]]

    def prepare_snapshot(self, name: str) -> None:
        """Have the copy of the state ready that a lagging peer would otherwise wait a heartbeat for."""
        snapshots = self.nodes[name].snapshots
        first_index = self.nodes[name].journal.first_index
        assert snapshots.spool.ready(first_index) is None
        self.turn(name)
        assert snapshots.spool.ready(first_index) is not None

    def next_indexes(self, name: str) -> dict[str, int]:
        core: Any = self.nodes[name].core
        return {node.id: index for node, index in core.private("raftNextIndex").items()}


# -- steps that many schedules share ------------------------------------------------------------------------------


def stand(cluster: Cluster, name: str) -> None:
    """Let `name` ask for votes in its next turn, whatever it heard of a leader."""
    core = cluster.nodes[name].core
    core.set_private("transferInProgress", True)
    core.set_private("raftElectionDeadline", 0)
    cluster.turn(name)


def write(cluster: Cluster, name: str, values: list[str]) -> list[str]:
    """Offer values at a leader; the list that is returned fills as they are acknowledged."""
    acknowledged: list[str] = []
    for value in values:
        cluster.propose(name, value, acknowledged)
    return acknowledged


def ask(cluster: Cluster, name: str) -> list[int | None]:
    """Ask a voter for a read index; its answer lands in the list."""
    answers: list[int | None] = []
    cluster.nodes[name].read_index(answers.append)
    return answers


def led_by_a(make_cluster: Callable[..., Cluster], names: str = "ABC", **options: Any) -> Cluster:
    cluster = make_cluster(names, **options)
    cluster.elect("A")
    cluster.settle()
    return cluster
