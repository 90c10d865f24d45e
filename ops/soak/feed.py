"""`feed`: what a thousand feed consumers cost those who create images. N is their number.

Three peers hold some images. Images are created through the API at a steady rate all the time; phases without and with
consumers alternate, so that what else the machine does weighs on both. The consumers are spread evenly over the peers,
one process for each peer, over mutual TLS. Compared: p99 of the creates in both kinds of phases. Every consumer must
get every change in order. In the first phase with consumers one more asks for all changes and reads nothing: it must be
cut off once its socket has been full for `feed_stall_max_s`, and the others must not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp

from ops.dev.cluster import Cluster
from ops.dev.wiring import ROOT
from ops.soak import peers
from ops.soak.images import ZONES, client, load
from ops.soak.outcome import Outcome
from ops.soak.steady_writes import Writes
from raftreg import certificates, wire
from raftreg.client import Client
from raftreg.config import Limits
from raftreg.http_once import send_once

CONSUMERS = 1000
RATE = 12.0  # creates per second
ROUNDS, PHASE_S = 3, 25.0
P99_RATIO_MAX = 1.5
IMAGES = 8_000
"""Their changes are more than all buffers between a peer and a consumer that does not read."""
_SETTLE_S = 2.0
_STALLED_GRACE_S, _LOOK_S = 5.0, 0.2
_CUT_OFF = re.compile(r"^raftreg_feed_cut_off_total (\S+)", re.MULTILINE)

Span = tuple[float, float]


async def run(consumers: int = CONSUMERS) -> Outcome:
    outcome = Outcome("feed", {"consumers": consumers, "rate": RATE})
    async with peers.running() as cluster, client(cluster) as registry:
        for zone in ZONES:
            await registry.register_zone(zone)
        await load(registry, IMAGES)
        writes = Writes(RATE)
        writing = asyncio.create_task(writes.run(registry))
        try:
            await _rounds(outcome, cluster, registry, writes)
        finally:
            writes.stopped = True
            await writing
    return outcome


async def _rounds(outcome: Outcome, cluster: Cluster, registry: Client, writes: Writes) -> None:
    without: list[Span] = []
    with_all: list[Span] = []
    followed: list[dict[str, Any]] = []
    stalled = None
    for _ in range(ROUNDS):
        without.append(await _phase())
        async with _Crowd.gathered(cluster, registry, outcome.figures["consumers"]) as crowd:
            stalled = stalled or asyncio.create_task(_cut_off_after_s(cluster))
            with_all.append(await _phase())
            took_s = await stalled
            followed += await crowd.end((await registry.status())["revision"])
    outcome.figures["stalled_cut_off_s"] = None if took_s is None else round(took_s, 1)
    outcome.require(took_s is not None, "a consumer that reads nothing was not cut off")
    _judge(outcome, writes, without, with_all, followed)


async def _phase() -> Span:
    await asyncio.sleep(_SETTLE_S)
    began = time.monotonic()
    await asyncio.sleep(PHASE_S)
    return began, time.monotonic()


def _judge(
    outcome: Outcome, writes: Writes, without: Sequence[Span], with_all: Sequence[Span], followed: list[dict[str, Any]]
) -> None:
    figures = outcome.figures
    p99 = []
    for name, spans in (("without", without), ("with", with_all)):
        taken = [took for start, end in spans for at, took in writes.done if start <= at < end]
        cuts = statistics.quantiles(taken, n=100)
        p99.append(cuts[98])
        figures |= {f"p50_{name}_ms": round(cuts[49] * 1000, 1), f"p99_{name}_ms": round(cuts[98] * 1000, 1)}
    figures["p99_ratio"] = round(p99[1] / p99[0], 2)
    figures["lag_p50_ms"] = max(crowd["lag_p50_ms"] for crowd in followed)
    figures["lag_p99_ms"] = max(crowd["lag_p99_ms"] for crowd in followed)
    figures["complete"] = f"{sum(crowd['complete'] for crowd in followed)} of {sum(c['consumers'] for c in followed)}"
    figures["writes_refused"] = writes.refused
    wrong = [sentence for crowd in followed for sentence in crowd["wrong"]]
    outcome.require(not wrong, f"{len(wrong)} consumers did not get every change in order: {wrong[:3]}")
    outcome.require(writes.refused == 0, f"{writes.refused} creates were refused")
    outcome.within(p99[1] <= P99_RATIO_MAX * p99[0], f"p99 of a create beyond {P99_RATIO_MAX} times that without")


class _Crowd:
    """Consumers of all peers, one process for each peer."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    @staticmethod
    @contextlib.asynccontextmanager
    async def gathered(cluster: Cluster, registry: Client, consumers: int) -> AsyncIterator[_Crowd]:
        """All of them, caught up with where the registry was, for as long as the block lasts."""
        status = await registry.status()
        cursor = f"{status['epoch']}.{status['revision']}"
        tls_dir = str(cluster.wiring.operator_tls().ca.parent)
        urls, most = cluster.registry_urls, len(cluster.registry_urls)
        pipe = asyncio.subprocess.PIPE
        processes = []
        try:
            for place, url in enumerate(urls):
                share = consumers // most + (place < consumers % most)
                command = (sys.executable, "-m", "ops.soak.feed_consumers", url, tls_dir, str(share), cursor)
                processes.append(await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe))
            for process in processes:
                assert process.stdout is not None
                if (said := await process.stdout.readline()) != b"ready\n":
                    raise RuntimeError(f"the consumers did not come up: {said!r}")
            yield _Crowd(processes)
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def end(self, revision: int) -> list[dict[str, Any]]:
        """What the processes say once all consumers have reached this revision."""
        said = await asyncio.gather(*(process.communicate(b"%d\n" % revision) for process in self._processes))
        return [json.loads(out) for out, _ in said]


async def _cut_off_after_s(cluster: Cluster) -> float | None:
    """Seconds until the first peer counts a consumer that reads nothing as cut off; None when it took too long."""
    host, port = cluster.wiring.listen(f"api-{cluster.peers[0]}").rsplit(":", 1)
    context = certificates.api_client_context(cluster.wiring.operator_tls())
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
    _, writer = await asyncio.open_connection(sock=raw, ssl=context, server_hostname=host, limit=4096)
    writer.write(f"GET {wire.PREFIX}/changes?after=1.0 HTTP/1.1\r\nHost: registry\r\n\r\n".encode())
    began, took_s = time.monotonic(), None
    async with aiohttp.ClientSession(middlewares=(send_once,)) as session:
        while took_s is None and time.monotonic() - began < Limits().feed_stall_max_s + _STALLED_GRACE_S:
            await asyncio.sleep(_LOOK_S)
            async with session.get(f"{cluster.registry_urls[0]}/metrics", ssl=context) as answer:
                found = _CUT_OFF.search(await answer.text())
            if found is not None and float(found[1]) > 0:
                took_s = time.monotonic() - began
    writer.transport.abort()
    return took_s
