"""`transfer`: the lead is given away by command, and by leaders that are told to stop, under load of plain clients. No
request fails; the pause between two answered writes is measured."""

from __future__ import annotations

import asyncio
import time

from ops.dev.cluster import Cluster
from ops.dev.readout import client_of
from ops.soak import peers
from ops.soak.outcome import Outcome, spread_ms
from ops.soak.plain_clients import PlainClients
from raftreg.client import Client

TRANSFERS, STOPS = 20, 10
# "Tens of milliseconds"; the load shares two cores with three peers, so a single one may be longer.
PAUSE_MEDIAN_MAX_S = 0.1
_BETWEEN = 60
# What is looked at around an event: before it everything is as ever, after it a pause would show.
_MARGIN_S = 0.3


async def run(transfers: int = TRANSFERS) -> Outcome:
    stops = -(-transfers * STOPS // TRANSFERS)
    outcome, by_command, took = Outcome("transfer"), [], []
    async with peers.running() as cluster, client_of(cluster) as operator, PlainClients(cluster) as clients:
        term = (await operator.status())["term"]
        for _ in range(transfers):
            pause, seconds = await _transfer(clients, operator)
            by_command.append(pause)
            took.append(seconds)
        by_stop = [await _stop(cluster, clients) for _ in range(stops)]
        # A machine that stops a process for an election timeout moves the lead too, and that does fail requests.
        unwanted = (await operator.status())["term"] - term - transfers - stops
    outcome.figures = {
        **spread_ms("transfer_pause", by_command),
        **spread_ms("transfer_took", took),
        **spread_ms("stop_pause", by_stop),
        "unwanted_elections": unwanted,
        "requests": clients.requests,
        "failed": len(clients.failures),
        "failures": clients.failures[:20],
    }
    outcome.require(not clients.failures, f"{len(clients.failures)} requests failed")
    median_ms = max(outcome.figures["transfer_pause_median_ms"], outcome.figures["stop_pause_median_ms"])
    outcome.within(median_ms <= PAUSE_MEDIAN_MAX_S * 1000, f"median pause above {PAUSE_MEDIAN_MAX_S} s")
    return outcome


async def _transfer(clients: PlainClients, operator: Client) -> tuple[float, float]:
    await clients.progress(_BETWEEN)
    began = time.monotonic()
    done = await operator.transfer_leadership()
    await asyncio.sleep(_MARGIN_S)
    return clients.longest_pause_s(began, time.monotonic()), done["took_s"]


async def _stop(cluster: Cluster, clients: PlainClients) -> float:
    await clients.progress(_BETWEEN)
    leader = await asyncio.to_thread(cluster.wait_leader)
    began = time.monotonic()
    await asyncio.to_thread(cluster.stop_process, leader)
    ended = time.monotonic()
    await asyncio.to_thread(cluster.start_process, leader)
    await asyncio.to_thread(cluster.wait_ready, [leader])
    return clients.longest_pause_s(began, ended)
