"""`kills`: the leader gets SIGKILL again and again under load. Nothing acknowledged is lost or doubled, all peers are
equal in the end, and at default timing half of the pauses are not longer than half a second."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from ops.dev.cluster import Cluster
from ops.soak import peers
from ops.soak.outcome import Outcome, spread_ms
from ops.soak.workload import Workload, judged

KILLS = 40
CLIENTS = 4
PAUSE_MEDIAN_MAX_S = 0.5
# Leaves time to judge and compare before the whole run is broken off.
TIME_MAX_S = 190.0
# Answers that the leader had sent before it died arrive in that time.
_LAST_ANSWERS_S = 0.05
_BETWEEN = 40


async def run(count: int = KILLS) -> Outcome:
    outcome, pauses = Outcome("kills"), list[float]()
    seed = int.from_bytes(os.urandom(4))
    end = time.monotonic() + TIME_MAX_S
    async with peers.running() as cluster:
        with tempfile.TemporaryDirectory(prefix="soak-history-") as directory:
            async with Workload(cluster, Path(directory) / "history.jsonl", seed=seed, clients=CLIENTS) as workload:
                while len(pauses) < count and time.monotonic() < end:
                    pauses.append(await _kill(cluster, workload))
            verdict, operations = await judged(workload)
        differing = await peers.differences(cluster)
    acknowledged = sum(operation.acknowledged for operation in operations)
    outcome.figures = {**spread_ms("pause", pauses), "acknowledged": acknowledged, "seed": seed, "pauses": pauses}
    outcome.within(len(pauses) == count, f"only {len(pauses)} of {count} kills in {TIME_MAX_S:.0f} s")
    outcome.within(statistics.median(pauses) <= PAUSE_MEDIAN_MAX_S, f"median pause above {PAUSE_MEDIAN_MAX_S} s")
    outcome.problems += verdict.problems + differing
    return outcome


async def _kill(cluster: Cluster, workload: Workload) -> float:
    """Kill the leader; seconds to the next acknowledged operation. It is back when this returns."""
    await workload.progress(_BETWEEN)
    leader = await asyncio.to_thread(cluster.wait_leader)
    killed = time.monotonic()
    cluster.signal(leader, signal.SIGKILL)
    await asyncio.sleep(_LAST_ANSWERS_S)
    before = workload.acknowledged
    await workload.progress(1)
    pause = workload.acknowledged_at[before] - killed
    await asyncio.to_thread(cluster.kill, leader)
    await asyncio.to_thread(cluster.start_process, leader)
    await asyncio.to_thread(cluster.wait_ready, [leader])
    return pause
