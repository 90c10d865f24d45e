"""`rejoin`: a wiped peer comes back while writes go on. N is the number of images that the registry holds.

The images are loaded once, into .run/soak; the run works on a copy. One follower is killed with SIGKILL, its store
removed, `raftreg rejoin` called and the peer started, while images are created through the API at a steady rate.
Measured: the time from then until it is a follower which holds the leader's log, latencies of the writes before and
meanwhile, sizes of the databases before and at their peak, memory of the processes, age of the oldest reader. At the
end all peers must hold the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.dev.cluster import RUN_DIR, Cluster
from ops.dev.wiring import ROOT
from ops.soak.images import client, fill, image
from ops.soak.outcome import Outcome
from raftreg import certificates, errors
from raftreg.client import Client
from raftreg.store import store_path

IMAGES = 1_000_000
BACK_MAX_S, GROWTH_MAX = 60.0, 1.5
RATE = 100.0  # creates per second meanwhile
LOG_KEEP_ENTRIES = 1000  # so that a small registry needs a snapshot too
_SAMPLE_PERIOD_S = 0.25
_WRITERS = 16
_BEFORE_S, _AFTER_S = 8.0, 5.0
_GIVE_UP_S = 600.0
_MIB = 1 << 20


@dataclass
class Writes:
    """Creates at a steady rate by a few writers; (when it was asked for, seconds it took)."""

    rate: float
    done: list[tuple[float, float]] = field(default_factory=list)
    refused: int = 0
    stopped: bool = False
    _next: float = 0.0

    async def run(self, registry: Client) -> None:
        self._next = time.monotonic()
        await asyncio.gather(*(self._writer(registry) for _ in range(_WRITERS)))

    async def _writer(self, registry: Client) -> None:
        while not self.stopped:
            due = max(self._next, time.monotonic())
            self._next = due + 1 / self.rate
            await asyncio.sleep(due - time.monotonic())
            asked = time.monotonic()
            try:
                await registry.create_image(**image(len(self.done)))
            except errors.RegistryError:
                self.refused += 1
            else:
                self.done.append((asked, time.monotonic() - asked))

    def between(self, start: float, end: float) -> str:
        taken = [took for at, took in self.done if start <= at < end]
        if len(taken) < 2:
            return "no writes"
        cuts = statistics.quantiles(taken, n=100)
        return (
            f"{len(taken) / (end - start):.0f}/s, p50 {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms, "
            f"max {max(taken) * 1000:.0f} ms"
        )


class Watch:
    """Samples of every peer: bytes of its database, anonymous memory of its process and of that one's children."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.file: dict[str, list[int]] = defaultdict(list)
        self.memory: dict[str, list[int]] = defaultdict(list)
        self.copier: list[int] = [0]
        self.reader_s: list[float] = [0.0]

    async def run(self) -> None:
        while True:
            for peer in self.cluster.peers:
                await asyncio.to_thread(self._sample, peer)
            await asyncio.sleep(_SAMPLE_PERIOD_S)

    def _sample(self, peer: str) -> None:
        process = self.cluster.processes[peer]
        if not process.running or process.identity is None:
            return
        data = self.cluster.wiring.peer_dir(peer)
        with contextlib.suppress(OSError):
            self.file[peer].append((store_path(data) / "data.mdb").stat().st_size)
        pids = [process.identity.pid, *_children(process.identity.pid)]
        sizes = [_anonymous_bytes(pid) for pid in pids]
        self.memory[peer].append(sizes[0])
        self.copier.append(sum(sizes[1:]))
        self.reader_s.append(_reader_age_s(self.cluster, peer))


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _anonymous_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def _reader_age_s(cluster: Cluster, peer: str) -> float:
    context = certificates.client_context(cluster.wiring.operator_tls())
    with contextlib.suppress(OSError):
        url = f"https://{cluster.wiring.listen(f'api-{peer}')}/metrics"
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            found = re.search(r"^\w*oldest_reader_seconds (\S+)", answer.read().decode(), re.MULTILINE)
            return float(found[1]) if found else 0.0
    return 0.0


async def run(images: int = IMAGES) -> Outcome:
    """The whole run; loads the images where that was not done before."""
    stores = RUN_DIR / "soak" / f"images-{images}"
    if not stores.exists():
        making = stores.with_name(f"{stores.name}.making")
        await asyncio.to_thread(fill, making, images)
        making.rename(stores)
    with copied(stores) as base:
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
    async with client(cluster) as registry:
        tasks = [asyncio.create_task(writes.run(registry)), asyncio.create_task(watch.run())]
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
        await tasks[0]
        same = await _until(lambda: _all_the_same(cluster)) is not None
        tasks[1].cancel()
        await asyncio.gather(tasks[1], return_exceptions=True)
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


@contextlib.contextmanager
def copied(stores: Path) -> Iterator[Path]:
    """A copy of the cluster's directory beside it, removed afterwards."""
    copy = stores.with_name(f"{stores.name}-rejoin")
    shutil.rmtree(copy, ignore_errors=True)
    subprocess.run(["cp", "-r", "--sparse=always", str(stores), str(copy)], check=True)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)
