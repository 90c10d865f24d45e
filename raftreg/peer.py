"""One voter or observer put together: store, Raft node, links, turns, proposer and reads, without the HTTP API.

`main` adds the API around it; benchmarks and tests use it as it is, several in one process.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raftreg import certificates
from raftreg.config import PeerConfig, split_address
from raftreg.digests import StateChecks
from raftreg.engine import now
from raftreg.integrity import Integrity
from raftreg.leadership import Leadership
from raftreg.observer_node import ObserverNode
from raftreg.peer_links import PeerLinks
from raftreg.proposer import Proposer
from raftreg.raft import Apply, RaftNode
from raftreg.reads import Reads
from raftreg.scrub import Scrubber
from raftreg.snapshots import Fatal
from raftreg.store import Store, StoreError
from raftreg.tables import View
from raftreg.turns import Turns
from raftreg.voter_links import VoterLinks

logger = logging.getLogger(__name__)

EXIT_FATAL = 70  # EX_SOFTWARE: a supervisor restarts the process, and it resumes from its disk
_SLOW_COMMITS_MAX = 5
_SLOW_COMMIT_FRACTION = 0.5  # of the shortest election timeout
_HOUSEKEEPING_PERIOD_S = 1.0


def end_process(reason: str) -> None:
    """The only safe answer to a failed write, fsync or apply: nothing more is said or stored."""
    logger.critical("stopping at once: %s", reason)
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(EXIT_FATAL)


@dataclass(frozen=True)
class Runtime:
    """What a simulation replaces of the machine: threads, the disk's sync, the wall clock (microseconds).

    Without `sync` a commit counts as durable when it returns, and a crash is modelled by dropping the open transaction.
    """

    threads: bool = True
    sync: bool = True
    now_us: Callable[[], int] = lambda: time.time_ns() // 1000


def _wrong_kind(config: PeerConfig) -> str:
    ours, other = ("an observer", "a voter") if config.observer else ("a voter", "an observer")
    return (
        f"{config.data_dir} holds the store of {other}, but the configuration is that of {ours}; correct `data_dir` or "
        "`observer`. Neither can become the other: make a new one with `raftreg observer add`, or `raftreg rejoin`."
    )


class Peer:
    """A running voter, or observer where the configuration says so. `apply`, `applied_index` and `admit` (raises for
    commands that the state does not take yet) are the state machine; call `start` within a running loop.

    With `checks` the state is verified: digests are compared with the other peers', and its rows are scrubbed.
    """

    def __init__(
        self,
        config: PeerConfig,
        *,
        apply: Apply,
        applied_index: Callable[[View], int],
        fatal: Fatal = end_process,
        on_commit: Callable[[float], None] = lambda _seconds: None,
        after_turn: Callable[[float], None] = lambda _seconds: None,
        runtime: Runtime = Runtime(),
        checks: StateChecks | None = None,
        admit: Callable[[View, Sequence[dict[str, Any]]], None] = lambda _view, _commands: None,
    ) -> None:
        self.config, self._runtime = config, runtime
        self.store = Store(
            config.data_dir,
            map_size_bytes=config.limits.map_size_bytes,
            peer=config.name,
            peers=config.cluster_peers,
            sync=runtime.sync,
        )
        if self.store.identity.observer != config.observer:
            self.store.close()
            raise StoreError(_wrong_kind(config))
        self.links = self._make_links()
        self.raft = (ObserverNode if config.observer else RaftNode)(
            self.store,
            apply=apply,
            applied_index=applied_index,
            network=self.links,
            limits=config.limits,
            timing=config.timing,
            fatal=fatal,
            threaded_snapshots=runtime.threads,
            checks=checks,
        )
        self.raft.on_commit = self._committed
        self.leadership = Leadership(self.raft, config.limits, config.timing, poke=self.poke, clock=now)
        self.proposer = Proposer(
            self.raft,
            config.limits,
            self.leadership,
            poke=self.poke,
            full=self.full,
            admit=lambda commands: admit(self.store.view(), commands),
            now_us=runtime.now_us,
            clock=now,
        )
        self.reads = Reads(
            self.raft,
            self.leadership,
            poke=self.poke,
            clock=now,
            waiting_max=config.limits.reads_waiting_max,
            deadline_s=config.limits.read_deadline_s,
        )
        self.integrity = Integrity(self.raft, self._scrubber(checks))
        self._fatal, self._on_commit, self._after_turn = fatal, on_commit, after_turn
        self._turns: Turns | None = None
        self._slow_commits = 0
        self._housekeeping_at = 0.0
        self._full: str | None = None
        self.raft_port = 0

    def _make_links(self) -> PeerLinks | VoterLinks:
        config, client_ssl = self.config, certificates.client_context(self.config.tls)
        if config.observer:
            return VoterLinks(
                config.raft_peers, client_ssl=client_ssl, limits=config.limits, timing=config.timing, poke=self.poke
            )
        return PeerLinks(
            config.raft_peers,
            client_ssl=client_ssl,
            server_ssl=certificates.server_context(config.tls),
            limits=config.limits,
            timing=config.timing,
            poke=self.poke,
        )

    def _scrubber(self, checks: StateChecks | None) -> Scrubber | None:
        if checks is None:
            return None
        return Scrubber(
            self.store,
            begin_pass=checks.begin_pass,
            found=self.raft.damage.found_here,
            limits=self.config.limits,
            timing=self.config.timing,
        )

    def poke(self) -> None:
        if self._turns is not None:
            self._turns.poke()

    async def start(self) -> None:
        """Listen (an observer does not), dial and run turns."""
        if isinstance(self.links, PeerLinks):
            host, port = split_address(self.config.raft_listen)
            self.raft_port = await self.links.start(self.raft, host, port)
        else:
            self.links.start(self.raft)
        self._turns = Turns(
            self.raft,
            tick_s=self.config.timing.tick_s,
            turn_max_s=self.config.timing.turn_max_s,
            fatal=self._fatal,
            each_tick=self._tick,
            after_turn=self._turned,
            watched=self._runtime.threads,
        )
        self._turns.start()

    async def stop(self) -> None:
        """Break the links, stop the turns, drop what is not committed. Nothing acknowledged is lost by it."""
        if self._turns is not None:
            self._turns.stop()
        await self.links.close()
        self.raft.close()

    # -- every turn and tick --------------------------------------------------------------------------------------

    def _turned(self, seconds: float) -> None:
        self.leadership.after_turn()
        self.reads.after_turn()
        self._after_turn(seconds)
        if self._slow_commits >= _SLOW_COMMITS_MAX and self.raft.is_leader:
            self._slow_commits = 0
            logger.warning("this disk commits slowly; another voter shall lead")
            self.leadership.leave_soon()

    def _committed(self, seconds: float) -> None:
        slow = seconds > _SLOW_COMMIT_FRACTION * self.config.timing.raft_min_timeout_s
        self._slow_commits = self._slow_commits + 1 if slow else 0
        self._on_commit(seconds)

    def _tick(self) -> None:
        self.links.check()
        if now() - self._housekeeping_at >= _HOUSEKEEPING_PERIOD_S:
            self._housekeeping_at = now()
            self.store.check_readers()
            self._full = self._growth_refusal()
            self.raft.tell_storage(self._full)
        self.leadership.expire()
        self.proposer.expire()
        self.reads.expire()
        self.integrity.tick()

    # -- storage --------------------------------------------------------------------------------------------------

    def full(self) -> str | None:
        """Why this leader refuses growth, its own storage and that of the voters considered; None while it does not."""
        if self._full is not None:
            self._full = self._growth_refusal()  # a delete may have made room since the last look
        return self._full or self.raft.storage_refusal()

    def _growth_refusal(self) -> str | None:
        limits = self.config.limits
        used = self.store.used_bytes()
        if used > limits.db_soft_limit_bytes:
            return (
                f"the database of {self.config.name} holds {used} bytes, above its limit of "
                f"{limits.db_soft_limit_bytes}; delete images, or raise limits.db_soft_limit_bytes"
            )
        free = self.store.free_disk_bytes()
        if free < limits.disk_reserve_bytes:
            return f"the disk of {self.config.name} has {free} bytes left; {limits.disk_reserve_bytes} are kept free"
        return None

    # -- status ---------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Plain values for `/registry/v1/status`, `raftreg status` and metrics."""
        raft = self.raft
        return {
            "name": self.config.name,
            "role": raft.role,
            "term": raft.term,
            "leader": raft.leader,
            "commit": raft.commit_index,
            "applied": raft.applied,
            "last_index": raft.journal.last_index,
            "log_first": raft.journal.first_index,
            "staleness_s": raft.staleness_s(),
            "recovering": raft.recovering,
            "peers": {
                peer: {"connected": raft.is_connected(peer), "match": raft.match_index(peer)} for peer in raft.others
            },
            # Those that are linked to this very peer; match is known to the leader alone.
            "observers": {name: {"connected": True, "match": raft.match_index(name)} for name in raft.observers},
            "voters": {
                "generation": self.store.identity.membership_generation,
                "names": list(self.store.identity.peers),
                "previous": list(self.store.identity.previous_peers),
                "settled": raft.voters.settled,
            },
            "errors": [
                *self.integrity.errors(),
                *self.links.refusals().values(),
                *filter(None, [self._full, raft.snapshots.trouble, raft.voters.waits_for()]),
            ],
            "integrity": self.integrity.status(),
            "proposals_pending": self.proposer.pending,
            "db": {
                "used_bytes": self.store.used_bytes(),
                "file_bytes": self.store.file_bytes(),
                "map_bytes": self.config.limits.map_size_bytes,
                "log_entries": len(raft.journal),
                "log_bytes": raft.journal.bytes,
            },
        }
