"""One schedule: a seed draws the shape of the cluster, a mix of faults, and then every single event.

Each seed takes only some of the kinds of fault, and each of those more or less often: a schedule in which everything
happens at once hardly gets anywhere, and the rare states lie behind long stretches of one kind of trouble.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from chaos.simulation.clients import ApiClient, Caller
from chaos.simulation.faults import FAULTS
from chaos.simulation.gateways import GatewayProcess
from chaos.simulation.judge import Violation
from chaos.simulation.processes import RegistryProcess, Shape, Templates, shape
from chaos.simulation.world import World
from raftreg import engine
from raftreg.config import Limits, TlsFiles

T = TypeVar("T")

STEPS = 2500
ACKNOWLEDGED_MIN = 100
# Where the drawn kinds of fault can't happen, others do, up to here.
MORE_STEPS_MAX = 4000
ROUNDS_MAX = 2000
ROUND_S, EXCHANGES_PER_ROUND = 0.1, 14
KINDS_MIN, KINDS_MAX = 3, 8
CLIENTS = 8
CLOCK_STEPS_S = (0.02, 0.05, 0.05, 0.1, 0.1, 0.3)
# How many of the events are the clock's: few, so that much happens between two heartbeats; more of them while nobody
# leads, but not so many that the messages of an election come too late for it.
CLOCK_RATE, ELECTION_CLOCK_RATE = 0.03, 0.36
FAULT_RATES = (0.01, 0.02, 0.04)
SMALL_BATCH_BYTES = 1024  # a few entries, so that a re-send is split
MENDS_PER_FAULT = (1, 2, 4)


@dataclass(frozen=True)
class Mix:
    """What a seed draws before anything happens."""

    kinds: tuple[str, ...]
    fault_rate: float
    mend_rate: float
    shape: Shape
    single_chunks: bool
    torn_rate: float
    gateways: int
    observers: int

    @classmethod
    def drawn(cls, chance: random.Random, kinds: Sequence[str]) -> Mix:
        gateways = chance.choice((0, 0, 1, 1, 2))
        usable = [kind for kind in kinds if gateways or not kind.startswith("gateway")]
        count = min(len(usable), chance.randint(KINDS_MIN, KINDS_MAX))
        small = chance.random() < 0.5
        fault_rate = chance.choice(FAULT_RATES)
        return cls(
            kinds=tuple(sorted(chance.sample(usable, count))),
            fault_rate=fault_rate,
            mend_rate=fault_rate * chance.choice(MENDS_PER_FAULT),
            shape=shape(
                keep_entries=chance.choice((1, 4, 20, 2000)),
                chunk_bytes=chance.choice((256, 4096, 1 << 18)),
                batch_bytes=SMALL_BATCH_BYTES if small else engine.APPEND_BATCH_BYTES,
                entry_bytes=SMALL_BATCH_BYTES - 1 if small else Limits().entry_bytes_max,
                window_bytes=chance.choice((1, 2000, Limits().append_window_bytes)),
            ),
            single_chunks=small,
            torn_rate=chance.choice((0.0, 0.0, 0.1)),
            gateways=gateways,
            observers=chance.choice((0, 0, 1, 2)),
        )


@dataclass
class Outcome:
    """What a schedule did and found. `violation` is None when every promise was kept."""

    seed: int
    steps: int = 0
    acknowledged: int = 0
    reads: int = 0
    installs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    violation: str | None = None
    stuck: bool = False
    trace: list[str] = field(default_factory=list)
    events: str = ""  # hash over all events


class Schedule:
    """Runs one seed to its end."""

    def __init__(
        self,
        directory: Path,
        seed: int,
        voters: int,
        templates: Templates,
        tls: TlsFiles,
        *,
        observers: int | None = None,
        kinds: Sequence[str] = (),
    ) -> None:
        self.world = World(directory, seed, templates, tls)
        self.random = self.world.random
        self.mix = Mix.drawn(self.random, kinds or tuple(FAULTS))
        self.outcome = Outcome(seed)
        self._batch_bytes = engine.APPEND_BATCH_BYTES
        engine.APPEND_BATCH_BYTES = self.mix.shape.append_batch_bytes
        watching = self.mix.observers if observers is None else observers
        names = tuple(f"O{number}" for number in range(1, watching + 1))
        self.world.add_peers(tuple("ABCDEFG"[:voters]), names, self.mix.shape)
        hot: list[str] = []
        self.clients = [ApiClient(self.world, f"client-{number}", hot) for number in range(1, CLIENTS + 1)]
        self.gateways = [GatewayProcess(self.world, f"gateway-{n}", f"zone-{n}") for n in range(self.mix.gateways)]
        self.world.processes.update({process.name: process for process in (*self.clients, *self.gateways)})
        self._election_clock_rate = ELECTION_CLOCK_RATE / len(self.world.peers)
        self._mending: list[Callable[[], None]] = []
        self._replaced: set[str] = set()
        self._behind: set[str] = set()  # voters whose new disk has not caught up yet
        self._recovering: set[str] = set()

    def close(self) -> None:
        self.world.close()
        engine.APPEND_BATCH_BYTES = self._batch_bytes

    def run(self, steps: int = STEPS) -> Outcome:
        """All of it; what breaks a promise ends it and stands in the outcome."""
        outcome, judge = self.outcome, self.world.judge
        try:
            self._begin()
            while self.world.steps < steps or self._too_few_faults():
                self.step()
            self._heal()
            self._work_in_peace()
            self._converge()
            self._judge_the_end()
        except Violation as violation:
            outcome.violation = str(violation)
            outcome.trace = self.world.told()
        outcome.events = self.world.events_hash()
        outcome.steps, outcome.acknowledged, outcome.reads = self.world.steps, judge.acknowledged, judge.reads
        return outcome

    def _too_few_faults(self) -> bool:
        return len(self.outcome.faults) < KINDS_MIN and self.world.steps < MORE_STEPS_MAX

    def _begin(self) -> None:
        for peer in self.world.peers:
            peer.start()
        for worker in self.workers:
            worker.start()

    # -- one event ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One event of the world, a fault or a mend; then the checks that cost little."""
        world, draw = self.world, self.random.random()
        world.steps += 1
        if draw < self.mix.fault_rate:
            self._fault()
        elif draw < self.mix.fault_rate + self.mix.mend_rate:
            self._mend()
        else:
            self._event()
        self._check()

    def _event(self) -> None:
        world, draw = self.world, self.random.random()
        if draw < (CLOCK_RATE if world.leading else self._election_clock_rate):
            world.pass_time(self.random.choice(CLOCK_STEPS_S))
            return
        if draw < 0.50 and (streams := world.network.deliverable()):
            chunks = 1 if self.mix.single_chunks else self.random.choice((1, 1, 2, 1000))
            world.deliver(self.random.choice(streams), chunks, torn=self.random.random() < self.mix.torn_rate)
        elif draw < 0.74 and (calls := world.movable()):
            world.move(self.random.choice(calls))
        elif due := world.due():
            world.run(self.random.choice(due))
        elif streams := world.network.deliverable():
            world.deliver(self.random.choice(streams), 1)
        else:
            world.pass_time(world.until_next_timer())

    def _fault(self) -> None:
        kinds = self.mix.kinds
        if self.world.steps > STEPS // 2 and len(self.outcome.faults) < KINDS_MIN:
            kinds = tuple(kind for kind in FAULTS if kind not in self.outcome.faults)  # those of the mix can't happen
        kind = self.random.choice(kinds)
        if FAULTS[kind](self):
            self.outcome.faults[kind] += 1

    def _mend(self) -> None:
        """Something that is broken works again: a link, a disk, or a peer that is down starts."""
        down = [peer for peer in self.world.peers if not peer.alive]
        if self._mending and (not down or self.random.random() < 0.5):
            self._mending.pop(self.random.randrange(len(self._mending)))()
        elif down:
            peer = self.random.choice(down)
            peer.start()
            self.world.note(f"{peer.name} starts")

    # -- for faults -----------------------------------------------------------------------------------------------

    def draw(self, among: Sequence[T]) -> T | None:
        return self.random.choice(among) if among else None

    def pair(self) -> tuple[str, str]:
        a, b = self.random.sample([peer.name for peer in self.world.peers], 2)
        return a, b

    def block(self, links: set[tuple[str, str]], *, short: bool = False) -> None:
        """Stop these directions until they are mended; `short`: the mend comes first in line."""
        network = self.world.network
        new = links - network.blocked
        network.blocked |= new

        def unblock() -> None:
            network.blocked -= new

        self.mend_later(unblock, first=short)
        self.world.note("nothing passes " + ", ".join(f"{a}->{b}" for a, b in sorted(new)))

    def mend_later(self, mend: Callable[[], None], *, first: bool = False) -> None:
        self._mending.insert(0 if first else len(self._mending), mend)

    def may_lose(self, victim: RegistryProcess) -> bool:
        """Whether a majority of the voters keeps its data when this one's is gone too."""
        return victim.observer or len(self._behind | {victim.name}) * 2 <= len(self.world.voters)

    def is_remembered(self, victim: RegistryProcess, beyond: tuple[int, int]) -> bool:
        """Whether every other voter durably knows that this one holds more than what it would come back with."""
        others = [peer for peer in self.world.voters if peer is not victim]
        return all(peer.alive and peer.remembers(victim.name) > beyond for peer in others)

    def replace(self, victim: RegistryProcess, change: Callable[[], None]) -> None:
        """The peer dies with its disk; another one is in its place when it starts again."""
        if victim.alive:
            victim.crash()
        change()
        if not victim.observer:
            self._replaced.add(victim.name)
            self._behind.add(victim.name)
            self._recovering.discard(victim.name)

    # -- checks ---------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """What costs little, of the peers that something has happened to."""
        touched, self.world.touched = self.world.touched, set()
        for name in touched:
            peer = self.world.processes[name]
            self.world.leading.discard(name)
            if not isinstance(peer, RegistryProcess) or peer.peer is None:
                continue
            raft = peer.running.raft
            if raft.is_leader:
                self.world.leading.add(name)
                self.world.judge.leads(name, raft.term)
            if raft.recovering:
                self._check_recovering(peer)
            elif peer.name in self._recovering:
                self._recovering.discard(peer.name)
                self._behind.discard(peer.name)
        for failure in self.world.failures:
            raise failure if isinstance(failure, Violation) else Violation(f"nobody handled {failure!r}") from failure

    def _check_recovering(self, peer: RegistryProcess) -> None:
        if peer.name not in self._replaced:
            raise Violation(f"{peer.name} recovers although it never lost anything")
        if peer.running.raft.is_leader:
            raise Violation(f"{peer.name} leads while it recovers")
        self._recovering.add(peer.name)

    # -- the end --------------------------------------------------------------------------------------------------

    def _converge(self) -> None:
        """Everything is mended: within a bounded time all peers agree, nobody recovers, every queue is drained."""
        for worker in self.workers:
            worker.stopping = True
        self._until(self._has_converged, "converge")

    def _work_in_peace(self) -> None:
        """Where faults left too little time for work, the rest is done without them."""
        for client in self.clients:
            client.hurried = True
        self._until(lambda: self.world.judge.acknowledged >= ACKNOWLEDGED_MIN, "take writes")

    def _until(self, done: Callable[[], bool], what: str) -> None:
        for _ in range(ROUNDS_MAX):
            if done():
                return
            self._fair_round()
        self.outcome.stuck = True
        raise Violation(f"the cluster did not {what} although nothing is broken: {self._positions()}")

    def _heal(self) -> None:
        self.world.note("everything is mended")
        for mend in self._mending:
            mend()
        self._mending.clear()
        for process in self.world.processes.values():
            process.paused_until = 0.0
        for peer in self.world.peers:
            peer.commit_fails = False
            if not peer.alive:
                peer.start()

    def _fair_round(self) -> None:
        world = self.world
        world.steps += 1
        for process in world.due():
            world.run(process)
        for _ in range(EXCHANGES_PER_ROUND):
            world.exchange()
        world.pass_time(ROUND_S)
        self._check()

    def _has_converged(self) -> bool:
        if not all(worker.idle for worker in self.workers) or not all(gateway.drained for gateway in self.gateways):
            return False
        rafts = [peer.running.raft for peer in self.world.up()]
        ends = {(raft.applied, raft.journal.last_index) for raft in rafts}
        return (
            len(ends) == 1
            and len({index for end in ends for index in end}) == 1
            and sum(raft.is_leader for raft in rafts) == 1
            and not any(raft.recovering for raft in rafts)
        )

    def _positions(self) -> str:
        lines = [
            f"{peer.name} {raft.role} term {raft.term} log {raft.journal.last_index} applied {raft.applied}"
            for peer in self.world.up()
            for raft in [peer.running.raft]
        ]
        lines += [f"{worker.name} idle {worker.idle}" for worker in self.workers]
        return "; ".join(lines)

    def _judge_the_end(self) -> None:
        judge = self.world.judge
        views = {peer.name: peer.state() for peer in self.world.up()}
        judge.agree(views)
        view = next(iter(views.values()))
        owners = judge.nothing_lost(view)
        for gateway in self.gateways:
            gateway.judge(view, owners)
        self.outcome.installs = sum(peer.installs for peer in self.world.peers)

    @property
    def workers(self) -> list[Caller]:
        """Those that use the registry."""
        return [*self.clients, *self.gateways]
