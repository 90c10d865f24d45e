"""`restart`: all peers get SIGKILL at once and are started at once. Writes go on within two seconds of the start."""

from __future__ import annotations

import asyncio
import time

from ops.dev.cluster import Cluster
from ops.dev.readout import client_of
from ops.soak import peers
from ops.soak.outcome import Outcome, spread_ms
from raftreg import errors
from raftreg.client import Client

ROUNDS = 10
UNTIL_WRITE_MAX_S = 2.0
_BEFORE = 50
# A round that takes longer is a failure of its own.
_ROUND_MAX_S = 20.0


async def run(count: int = ROUNDS) -> Outcome:
    outcome, took = Outcome("restart"), []
    async with peers.running() as cluster, client_of(cluster) as client:
        last = 0
        for _ in range(count):
            for _ in range(_BEFORE):
                last = await _next(client, last, outcome)
            seconds, last = await restart(cluster, client, last, outcome)
            took.append(seconds)
            await asyncio.to_thread(cluster.wait_ready, cluster.peers)
        outcome.problems += await peers.differences(cluster)
    outcome.figures = {**spread_ms("until_write", took), "each_s": [round(seconds, 3) for seconds in took]}
    outcome.within(max(took) <= UNTIL_WRITE_MAX_S, f"a write took more than {UNTIL_WRITE_MAX_S} s after the start")
    return outcome


async def restart(cluster: Cluster, client: Client, last: int, outcome: Outcome) -> tuple[float, int]:
    """Kill and start all peers; the seconds from the start to the next acknowledged write, and the ID that it got."""
    await asyncio.to_thread(cluster.kill, *cluster.peers)
    started = time.monotonic()
    starting = asyncio.create_task(asyncio.to_thread(cluster.start_processes, cluster.peers))
    async with asyncio.timeout(_ROUND_MAX_S):
        while True:
            try:
                last = await _next(client, last, outcome)
            except errors.RegistryError:
                await asyncio.sleep(0.01)
            else:
                break
    seconds = time.monotonic() - started
    await starting
    return seconds, last


async def _next(client: Client, last: int, outcome: Outcome) -> int:
    """One acknowledged write; an ID that does not rise was given before."""
    number, _ = await client.allocate_ids(1)
    outcome.require(number > last, f"ID {number} was given after {last}")
    return number
