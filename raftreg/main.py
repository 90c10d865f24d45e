"""One registry peer or observer as a process: what is started, in which order, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import Any

import uvloop

from raftreg import api, certificates, queries, state_machine
from raftreg.api_drain import drain
from raftreg.backup_schedule import BackupKeeper
from raftreg.changefeed import Feed
from raftreg.compaction import ChangeCompactor
from raftreg.config import PeerConfig
from raftreg.id_forecast import IdForecast
from raftreg.leases import LeaseKeeper
from raftreg.levels import Levels, admit
from raftreg.metrics import PeerMetrics
from raftreg.peer import Peer
from raftreg.state_checks import STATE_CHECKS

logger = logging.getLogger(__name__)


def run(config: PeerConfig) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. Raises StoreError when the data directory does not fit."""
    return uvloop.run(_serve(config))


async def _serve(config: PeerConfig) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(config):
        await stop.wait()
        logger.info("stopping")
    return 0


@contextlib.asynccontextmanager
async def running(config: PeerConfig):  # type: ignore[no-untyped-def]
    """A peer with its API, for as long as the block lasts; yields (peer, API addresses)."""
    metrics = PeerMetrics()
    feed: Feed | None = None
    applied_before = 0

    def after_turn(seconds: float) -> None:
        # The feed's consumers re-read from their own revision; the call only wakes them.
        nonlocal applied_before
        metrics.turn_s.observe(seconds)
        if peer.raft.applied != applied_before and feed is not None:
            applied_before = peer.raft.applied
            feed.notify()
            ids.sample()

    # The store is opened first: a directory of another peer, cluster or release must stop us before anything listens.
    peer = Peer(
        config,
        apply=state_machine.apply,
        applied_index=state_machine.applied_index,
        on_commit=metrics.fsync_s.observe,
        after_turn=after_turn,
        checks=STATE_CHECKS,
        admit=admit,
    )
    identity = peer.store.identity
    ids = IdForecast(peer.reads.view)
    feed = Feed(peer.reads, epoch=identity.epoch, limits=config.limits)
    leases = LeaseKeeper(peer.proposer, peer.reads, peer_name=config.name, lease_s=config.limits.zone_lease_s)
    levels = Levels(peer, leases)
    compactor = ChangeCompactor(peer, queries.revision, queries.compaction_floor, queries.first_change_since)
    backups = _backups(config, identity.cluster_id, peer, metrics)
    metrics.before_render.append(lambda: _fill(metrics, peer, backups, ids))
    app = api.build_app(
        proposer=peer.proposer,
        reads=peer.reads,
        leadership=peer.leadership,
        status=lambda: _with_levels(_status(peer, backups, ids), levels),
        cluster_id=identity.cluster_id,
        epoch=identity.epoch,
        peer_name=config.name,
        config=config,
        metrics=metrics,
        feed=feed,
        leases=leases,
        integrity=peer.integrity,
        levels=levels,
        forward_tls=certificates.api_client_context(config.tls, observers=False) if config.api_tls else None,
    )
    await peer.start()
    runner = await api.serve(app, config, certificates.server_context(config.tls) if config.api_tls else None)
    # An observer never leads, and only a leader has anything to do there.
    tasks = [asyncio.create_task(each.run()) for each in ((leases, compactor) if not config.observer else ())]
    if backups is not None:
        tasks.append(asyncio.create_task(backups.run()))
    logger.info("peer %s of cluster %s serves on %s", config.name, identity.cluster_id, runner.addresses)
    try:
        yield peer, runner.addresses
    finally:
        # Hand over first, while requests are taken as ever: they wait for the successor and are forwarded to it. Then
        # no new connections, and a polite end for those that there are; then the log.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await peer.leadership.leave()
        await drain(runner, app[api.CONTEXT])
        await runner.cleanup()
        await peer.stop()


def _backups(config: PeerConfig, cluster_id: str, peer: Peer, metrics: PeerMetrics) -> BackupKeeper | None:
    if not config.backup.every_s:
        return None
    return BackupKeeper(config, cluster_id, applied=lambda: peer.raft.applied, failed=metrics.backups.failed)


def _with_levels(status: dict[str, Any], levels: Levels) -> dict[str, Any]:
    unfinished = levels.trouble()
    errors = status["errors"] if unfinished is None else [*status["errors"], unfinished]
    return {**status, "errors": errors, "level": levels.status()}


def _status(peer: Peer, backups: BackupKeeper | None, ids: IdForecast) -> dict[str, Any]:
    status = peer.status()
    if backups is not None:
        status["errors"] += backups.errors()
    return {**status, "ids": ids.status(), "backup": None if backups is None else backups.status()}


def _fill(metrics: PeerMetrics, peer: Peer, backups: BackupKeeper | None, ids: IdForecast) -> None:
    """The gauges that only consensus and schedule know."""
    status = _status(peer, backups, ids)
    metrics.term.set(status["term"])
    metrics.commit_index.set(status["commit"])
    metrics.proposals_pending.set(status["proposals_pending"])
    metrics.observers.set(len(status["observers"]))
    metrics.log_entries.set(status["db"]["log_entries"])
    metrics.log_bytes.set(status["db"]["log_bytes"])
    metrics.db_used_bytes.set(status["db"]["used_bytes"])
    metrics.db_file_bytes.set(status["db"]["file_bytes"])
    readers = [peer.raft.snapshots.spool.reader_age_s(), 0.0 if backups is None else backups.reader_age_s()]
    metrics.oldest_reader_s.set(max(readers))
    metrics.backups.fill(status["backup"])
    metrics.ids.fill(status["ids"])
    metrics.integrity.fill(status["integrity"])
