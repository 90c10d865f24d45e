"""`rejoin`: a wiped peer comes back while writes go on. N is the number of images that the registry holds.

The images are loaded once, into .run/soak; the run works on a copy. One follower is killed with SIGKILL, its store
removed, `raftreg rejoin` called and the peer started, while images are created through the API at a steady rate.
Measured: the time from then until it is a follower which holds the leader's log, latencies of the writes before and
meanwhile, sizes of the databases before and at their peak, memory of the processes, age of the oldest reader. At the
end all peers must hold the same.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from ops.dev.cluster import Cluster
from ops.dev.wiring import ROOT
from ops.soak.images import client, filled
from ops.soak.outcome import Outcome
from ops.soak.steady_writes import Writes
from ops.soak.watch import Watch
from raftreg.store import store_path

IMAGES = 1_000_000
BACK_MAX_S, GROWTH_MAX = 60.0, 1.5
RATE = 100.0  # creates per second meanwhile
LOG_KEEP_ENTRIES = 1000  # so that a small registry needs a snapshot too
_BEFORE_S, _AFTER_S = 8.0, 5.0
_GIVE_UP_S = 600.0
_MIB = 1 << 20


async def run(images: int = IMAGES) -> Outcome:
    """The whole run; loads the images where that was not done before."""
    async with filled(images, "rejoin") as base:
        cluster = Cluster(base, gateways={}, peer_limits={"log_keep_entries": LOG_KEEP_ENTRIES})
        await asyncio.to_thread(cluster.start)
        try:
            return await _measure(cluster, Writes(RATE), images)
        finally:
            await asyncio.to_thread(cluster.stop)


async def _measure(cluster: Cluster, writes: Writes, images: int) -> Outcome:
    leader = await asyncio.to_thread(cluster.wait_leader)
    wiped = next(peer for peer in cluster.peers if peer != leader)
    watch = Watch(cluster)
    async with client(cluster) as registry, watch.running():
        writing = asyncio.create_task(writes.run(registry))
        started = time.monotonic()
        await asyncio.sleep(_BEFORE_S)
        before = {peer: max(watch.file[peer]) for peer in cluster.peers}
        cluster.kill(wiped)
        shutil.rmtree(store_path(cluster.wiring.peer_dir(wiped)))
        watch.file[wiped].clear()
        watch.memory[wiped].clear()
        began = time.monotonic()
        await asyncio.to_thread(_rejoin, cluster, wiped)
        cluster.start_process(wiped)
        back = await _until(lambda: _is_back(cluster, wiped))
        ended = time.monotonic()
        await asyncio.sleep(_AFTER_S)
        writes.stopped = True
        await writing
        same = await _until(lambda: _all_the_same(cluster)) is not None
    growth = max(max(watch.file[peer]) / before[peer] for peer in cluster.peers)
    outcome = Outcome("rejoin")
    outcome.figures = {
        "images": images,
        "back_s": None if back is None else round(ended - began, 1),
        "growth": round(growth, 2),
        "writes_before": writes.between(started, began),
        "writes_meanwhile": writes.between(began, ended),
        "writes_refused": writes.refused,
        "file_mib": max(before.values()) // _MIB,
        "receiver_memory_mib": max(watch.memory[wiped]) // _MIB,
        "leader_memory_mib": max(watch.memory[leader]) // _MIB,
        "copier_memory_mib": max(watch.copier) // _MIB,
        "oldest_reader_s": round(max(watch.reader_s), 1),
    }
    outcome.within(back is not None and ended - began <= BACK_MAX_S, f"not back within {BACK_MAX_S:.0f} s")
    outcome.require(growth <= GROWTH_MAX, f"a database grew beyond {GROWTH_MAX} times its size")
    outcome.require(same, "the peers do not hold the same in the end")
    return outcome


def _rejoin(cluster: Cluster, peer: str) -> None:
    config = cluster.wiring.peer_dir(peer) / "raftreg.toml"
    subprocess.run(
        [sys.executable, "-m", "raftreg.cli", "rejoin", "--config", str(config)], check=True, cwd=ROOT, timeout=60
    )


def _is_back(cluster: Cluster, peer: str) -> bool:
    """It votes again, and holds what the leader held a moment ago."""
    leader = cluster.leader()
    own = cluster.ask_peer(peer, "/registry/v1/status")
    if leader is None or own is None or own["role"] != "follower":
        return False
    theirs: dict[str, Any] | None = cluster.ask_peer(leader, "/registry/v1/status")
    own = cluster.ask_peer(peer, "/registry/v1/status")
    return theirs is not None and own is not None and (theirs["peers"][peer]["match"] or 0) >= theirs["commit"] - 100


def _all_the_same(cluster: Cluster) -> bool:
    statuses = [cluster.ask_peer(peer, "/registry/v1/status") for peer in cluster.peers]
    return len({(s["applied"], s["revision"]) if s is not None else None for s in statuses}) == 1


async def _until(condition: Callable[[], bool]) -> bool | None:
    deadline = time.monotonic() + _GIVE_UP_S
    while time.monotonic() < deadline:
        if await asyncio.to_thread(condition):
            return True
        await asyncio.sleep(0.1)
    return None
