"""Simulated processes: registry peers, zone gateways and clients. Each is the product's own code on a loop of its own.

A process that crashes loses what it had not committed to its disk, and nothing else; a disk can be copied, and an older
copy put in its place.
"""

from __future__ import annotations

import shutil
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos.simulation.judge import Violation
from chaos.simulation.loop import SimulatedLoop
from raftreg import queries, state_machine, store
from raftreg.compaction import ChangeCompactor
from raftreg.config import Limits, PeerConfig, Timing, TlsFiles
from raftreg.engine import now
from raftreg.leases import LeaseKeeper
from raftreg.peer import Peer, Runtime
from raftreg.state_checks import STATE_CHECKS
from raftreg.store import StoreError
from raftreg.tables import View

if TYPE_CHECKING:
    from chaos.simulation.world import World

CLUSTER_ID = "simulated"
# Ratios as in the product's defaults, times ten: every step of the clock then means something to someone.
TIMING = Timing(
    raft_min_timeout_s=1.0,
    raft_max_timeout_s=2.0,
    heartbeat_s=0.1,
    leader_fallback_s=1.5,
    tick_s=0.05,
    link_silence_s=2.0,
    link_ping_s=0.5,
    transfer_max_s=3.0,
    digest_period_s=3.0,
    scrub_step_s=0.2,
    scrub_pass_s=10.0,
)


class DiskFailure(Exception):
    """A durable commit failed; the product ends its process on it."""


class Process:
    """A name, a loop and clocks. `clock_ahead_s` and `wall_ahead_us` are how far its clocks have jumped."""

    def __init__(self, world: World, name: str, role: str) -> None:
        self.world, self.name = world, name
        self.alive = False
        self.paused_until = 0.0
        self.clock_ahead_s = 0.0
        self.wall_ahead_us = 0
        self.certificate = {"subject": ((("commonName", name),), (("organizationalUnitName", role),))}
        self.loop = self._new_loop()

    def _new_loop(self) -> SimulatedLoop:
        return SimulatedLoop(self.name, self.clock, self.world.network, self.world.failures)  # type: ignore[abstract]

    def clock(self) -> float:
        """The process's monotonic clock, in seconds."""
        return self.world.now + self.clock_ahead_s

    def now_us(self) -> int:
        """The process's wall clock, in microseconds since 1970."""
        return self.world.wall_us() + self.wall_ahead_us

    def begin(self) -> None:
        """A new life: a fresh loop."""
        self.loop = self._new_loop()
        self.alive = True
        self.paused_until = 0.0

    def run(self) -> None:
        """Run what is due, until this process has nothing left to do."""
        if not self.alive or self.paused_until > self.world.now:
            return
        self.world.touched.add(self.name)
        self.world.drain(self)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        with self.world.inside(self):
            self.loop.create_task(coroutine)

    def end(self) -> None:
        """The process is killed."""
        self.alive = False
        self.world.touched.add(self.name)
        self.world.network.crash(self)
        with self.world.inside(self):
            self.loop.kill()


@dataclass(frozen=True)
class Shape:
    """What a schedule's peers are set to. `append_batch_bytes` splits a replication into several messages."""

    limits: Limits
    append_batch_bytes: int


class RegistryProcess(Process):
    """A voter, or an observer where its name is not among the voters: the product's `Peer` with its leases, its
    compaction of changes and its checks of the state."""

    def __init__(self, world: World, name: str, voters: tuple[str, ...], tls: TlsFiles, shape: Shape) -> None:
        self.observer = name not in voters
        super().__init__(world, name, "observer" if self.observer else "peer")
        self.directory = world.directory / name
        self.voters = voters
        self.config = PeerConfig(
            name=name,
            data_dir=self.directory,
            raft_listen="" if self.observer else f"{name}:1",
            raft_peers={voter: f"{voter}:1" for voter in voters},
            api_listen="127.0.0.1:0",
            api_tls=True,
            api_peers={voter: f"https://{voter}:2" for voter in voters},
            tls=tls,
            limits=shape.limits,
            timing=TIMING,
            observer=self.observer,
        )
        self.peer: Peer | None = None
        self.leases: LeaseKeeper | None = None
        self.compactor: ChangeCompactor | None = None
        self.commit_fails = False
        self.commit_takes_s = 0.0
        self.last_words: str | None = None
        self._installs_before = 0
        self.copied = (0, 0)  # term and last index of the copy that was kept of its disk
        self._durable_positions: dict[str, tuple[int, int, str]] = {}

    @property
    def running(self) -> Peer:
        assert self.peer is not None
        return self.peer

    def start(self) -> None:
        self.begin()
        self.last_words = None
        try:
            self._put_together()
        except StoreError as error:
            raise Violation(f"{self.name} does not start: {error}") from error

    def _put_together(self) -> None:
        with self.world.inside(self), self.loop.running():
            self.peer = Peer(
                self.config,
                apply=self._apply,
                applied_index=state_machine.applied_index,
                fatal=self._fatal,
                runtime=Runtime(threads=False, sync=False, now_us=self.now_us),
                checks=STATE_CHECKS,
            )
            self._watch_commits(self.peer)
            self.leases = LeaseKeeper(self.peer.proposer, self.peer.reads, peer_name=self.name, lease_s=15.0, clock=now)
            self.compactor = ChangeCompactor(
                self.peer, queries.revision, queries.compaction_floor, queries.first_change_since, clock=now
            )
            self.loop.create_task(self.peer.start())
            self.loop.create_task(self.leases.run())
            self.loop.create_task(self.compactor.run())

    def _apply(self, view: View, index: int, payload: bytes | None) -> Any:
        results = state_machine.apply(view, index, payload)
        self.world.judge.applied(self.name, index, payload, view)
        return results

    def _fatal(self, reason: str) -> None:
        """The product asks for its process to be ended at once."""
        self.last_words = self.last_words or reason
        self.loop.halt()

    def _watch_commits(self, peer: Peer) -> None:
        commit = peer.store.commit

        def watched() -> None:
            if self.commit_fails:
                raise DiskFailure(self.name)
            self.world.now += self.commit_takes_s
            commit()
            self._durable_positions = peer.raft._positions.shared()

        peer.store.commit = watched  # type: ignore[method-assign]

    def run(self) -> None:
        super().run()
        if self.alive and self.last_words is not None:
            self.world.peer_died(self, self.last_words)

    def crash(self) -> None:
        """SIGKILL, or the power is cut: what was not committed is gone."""
        self.end()
        self._installs_before = self.installs
        self.running.raft.close()
        self.peer = None
        self.commit_fails, self.commit_takes_s = False, 0.0

    @property
    def installs(self) -> int:
        """Snapshots installed in all lives."""
        return self._installs_before + (self.peer.raft.snapshots.installed if self.peer is not None else 0)

    def remembers(self, other: str) -> tuple[int, int]:
        """(term, index) that this voter durably knows another one to hold."""
        known = self._durable_positions.get(other)
        return (-1, -1) if known is None else known[:2]

    def state(self) -> View:
        return self.running.store.view()

    # -- disks ----------------------------------------------------------------------------------------------------

    def make_disk(self) -> None:
        """An initialised, empty store, as `raftreg init` leaves it."""
        self.world.templates.copy(self.name, self.voters, self.directory)

    def wipe(self, *, recovering: bool) -> None:
        """An empty store in place of the old one; `recovering` is what `raftreg rejoin` writes."""
        shutil.rmtree(self.directory)
        store.initialise(
            self.directory,
            cluster_id=CLUSTER_ID,
            peer=self.name,
            peers=self.voters,
            recovering=recovering and not self.observer,
            observer=self.observer,
        )

    def copy_disk(self) -> None:
        """Keep a copy of what is committed now."""
        target = self.directory.with_name(f"{self.name}.copy")
        shutil.rmtree(target, ignore_errors=True)
        (target / "store").mkdir(parents=True)
        shutil.copy(self.directory / "store" / "data.mdb", target / "store" / "data.mdb")
        self.copied = (self.running.raft.term, self.running.raft.journal.last_index)

    @property
    def has_copy(self) -> bool:
        return self.directory.with_name(f"{self.name}.copy").exists()

    def roll_back(self) -> None:
        """Put the kept copy in place of the disk."""
        shutil.rmtree(self.directory)
        self.directory.with_name(f"{self.name}.copy").rename(self.directory)


class Templates:
    """Initialised stores, made once for all schedules of this process: making one costs several fsyncs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def copy(self, name: str, voters: tuple[str, ...], target: Path) -> None:
        source = self._directory / f"{len(voters)}-{name}"
        if not source.exists():
            store.initialise(source, cluster_id=CLUSTER_ID, peer=name, peers=voters, observer=name not in voters)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("lock.mdb"))


def shape(*, keep_entries: int, chunk_bytes: int, batch_bytes: int, entry_bytes: int, window_bytes: int) -> Shape:
    """Limits under which a few hundred writes meet everything that a year of them would.

    An entry must stay below a batch: pysyncobj would split it, which nobody takes.
    """
    limits = replace(
        Limits(),
        entry_bytes_max=entry_bytes,
        snapshot_chunk_bytes=chunk_bytes,
        log_keep_entries=keep_entries,
        log_keep_bytes=1 << 20,
        map_size_bytes=1 << 28,
        db_soft_limit_bytes=1 << 26,
        changes_keep_rows=200,
        leader_wait_s=3.0,
        append_window_bytes=window_bytes,
        digest_every_entries=16,
        scrub_step_rows=50,
        bootstrap_max_s=20.0,
    )
    return Shape(limits, batch_bytes)
