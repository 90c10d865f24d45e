"""The simulated world: one clock, one source of chance, all processes, the network between them and the judge.

Nothing happens by itself. `run`, `deliver`, `move` and `pass_time` are the only ways in which anything goes on, and
each is one event in the trace.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chaos.simulation.judge import Judge, Violation
from chaos.simulation.network import Connection, Network, Stream
from chaos.simulation.processes import Process, RegistryProcess, Shape, Templates
from chaos.simulation.rpc import Call
from raftreg import engine
from raftreg.config import TlsFiles

START_S = 1000.0
START_US = 1_700_000_000_000_000
# Events kept for the report of a violation; about three election timeouts.
TRACE_EVENTS_MAX = 400


class World:
    """Voters by name; processes are added by the schedule."""

    def __init__(self, directory: Path, seed: int, templates: Templates, tls: TlsFiles) -> None:
        self.directory, self.seed, self.templates, self.tls = directory, seed, templates, tls
        # The product draws election timeouts from the module's own source.
        random.seed(seed)
        self.random = random.Random(seed)
        self.now = START_S
        self.steps = 0
        self.processes: dict[str, Process] = {}
        self.network = Network(self.processes, lambda: self.random.random() < 0.5)
        self.calls: list[Call] = []
        self.judge = Judge()
        self.failures: list[BaseException] = []
        self._trace: deque[tuple[int, float, str, Any]] = deque(maxlen=TRACE_EVENTS_MAX)
        self.touched: set[str] = set()  # processes that ran since the last check
        self.leading: set[str] = set()  # peers that said at the last check that they lead
        self._events = 0
        self._inside: Process | None = None
        self._clock_before = engine.use_clock(self._clock)

    def close(self) -> None:
        """End every process and give the engine its clock back."""
        for process in self.processes.values():
            if isinstance(process, RegistryProcess):
                if process.peer is not None:
                    process.crash()
            elif process.alive:
                process.end()
        engine.use_clock(self._clock_before)

    # -- clocks ---------------------------------------------------------------------------------------------------

    def _clock(self) -> float:
        """The engine's clock: that of the process which runs."""
        return self.now + self._inside.clock_ahead_s if self._inside is not None else self.now

    def wall_us(self) -> int:
        return START_US + int((self.now - START_S) * 1_000_000)

    @contextlib.contextmanager
    def inside(self, process: Process) -> Iterator[None]:
        """Code of this process runs."""
        before, self._inside = self._inside, process
        try:
            yield
        finally:
            self._inside = before

    def drain(self, process: Process) -> None:
        """This process runs until it has nothing to do; `inside`, without what entering it costs."""
        before, self._inside = self._inside, process
        try:
            process.loop.drain()
        finally:
            self._inside = before

    # -- who is there ---------------------------------------------------------------------------------------------

    def add_peers(self, voters: tuple[str, ...], observers: tuple[str, ...], shape: Shape) -> None:
        for name in (*voters, *observers):
            process = RegistryProcess(self, name, voters, self.tls, shape)
            self.processes[name] = process
            process.make_disk()

    @property
    def peers(self) -> list[RegistryProcess]:
        return [process for process in self.processes.values() if isinstance(process, RegistryProcess)]

    @property
    def voters(self) -> list[RegistryProcess]:
        return [peer for peer in self.peers if not peer.observer]

    def up(self) -> list[RegistryProcess]:
        return [peer for peer in self.peers if peer.alive]

    def leaders(self) -> list[RegistryProcess]:
        return [peer for peer in self.up() if peer.running.raft.is_leader]

    # -- what can happen ------------------------------------------------------------------------------------------

    def note(self, event: str, about: Process | None = None) -> None:
        """One line of the trace; with what a peer has become by it. Written out only for a violation."""
        raft = about.peer.raft if isinstance(about, RegistryProcess) and about.peer is not None else None
        seen = () if raft is None else (raft.is_leader, raft.recovering, raft.term, raft.journal.last_index)
        line = (self.steps, self.now, event, seen)
        self._trace.append(line)
        self._events = hash((self._events, line))

    def events_hash(self) -> str:
        """The same for the same events (with a fixed PYTHONHASHSEED)."""
        return f"{self._events & (1 << 64) - 1:016x}"

    def told(self) -> list[str]:
        """The last events, for people."""
        lines = []
        for step, at, event, seen in self._trace:
            became = ""
            if seen:
                leads, recovers, term, last_index = seen
                role = "leads in" if leads else "recovers in" if recovers else "in"
                became = f"   [{role} term {term}, log up to {last_index}]"
            lines.append(f"{step:>6} {at - START_S:9.2f} s  {event}{became}")
        return lines

    def due(self) -> list[Process]:
        now = self.now
        return [
            process
            for process in self.processes.values()
            if process.alive and process.paused_until <= now and process.loop.is_due(now + process.clock_ahead_s)
        ]

    def run(self, process: Process) -> None:
        process.run()
        self.note(f"{process.name} runs", process)

    def deliver(self, stream: Stream, chunks: int, *, torn: bool = False) -> None:
        cut = (lambda length: self.random.randrange(1, length)) if torn else None
        what = self.network.deliver(stream, chunks, cut)
        stream.target.run()
        self.note(f"{stream.source.name} -> {stream.target.name} #{stream.number}: {what}", stream.target)

    def movable(self) -> list[Call]:
        self.calls = [call for call in self.calls if not call.over]
        return [call for call in self.calls if call.movable]

    def move(self, call: Call) -> None:
        call.move()
        call.server.run()
        call.client.run()
        self.note(str(call), call.server)

    def exchange(self) -> None:
        """Everything that is under way arrives; then those run who got something."""
        reached: dict[str, Process] = {}
        for stream in self.network.deliverable():
            self.network.deliver(stream, len(stream.chunks), None)
            reached[stream.target.name] = stream.target
        for call in self.movable():
            call.move()
            reached[call.server.name], reached[call.client.name] = call.server, call.client
        for process in reached.values():
            self.run(process)

    def call(self, client: Process, server: RegistryProcess, method: str, body: dict[str, Any]) -> Call:
        """A request sets out; it moves when the world moves it."""
        made = Call(client, server, method, body)
        self.calls.append(made)
        return made

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.note(f"{seconds:.2f} s pass")

    def until_next_timer(self) -> float:
        """How long nothing would happen; bounded."""
        waits = [
            max(process.loop.next_timer() - process.clock(), process.paused_until - self.now)
            for process in self.processes.values()
            if process.alive
        ]
        return min([wait for wait in waits if wait > 0], default=0.1)

    def reset(self, connection: Connection, side: str) -> None:
        self.network.reset(connection, side)
        self.note(f"the connection {connection.dialler.name} -> {connection.listener.name} breaks at {side}")

    def peer_died(self, peer: RegistryProcess, reason: str) -> None:
        """A peer has ended itself. Where no fault explains it, that is a violation."""
        explained = peer.commit_fails
        peer.crash()
        self.note(f"{peer.name} ended itself: {reason}")
        if not explained:
            raise Violation(f"{peer.name} ended itself: {reason}")
