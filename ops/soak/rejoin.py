"""A wiped peer comes back while writes go on: `python -m ops.soak.rejoin STORES`; `ops.soak.images` makes the STORES.

The run works on a copy of STORES. One follower is killed with SIGKILL, its store removed, `raftreg rejoin` called and
the peer started, while images are created through the API at a steady rate. Measured: the time from the start until it
is a follower which holds the leader's log, latencies of the writes before and meanwhile, sizes of the databases before,
at their peak and after, memory of the processes, age of the oldest reader. At the end all peers must hold the same.
"""

from __future__ import annotations

import argparse
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

from ops.dev.cluster import Cluster
from ops.dev.wiring import ROOT
from ops.soak.images import client, image
from raftreg import certificates, errors
from raftreg.client import Client
from raftreg.store import store_path

BACK_MAX_S, GROWTH_MAX = 60.0, 1.5
_SAMPLE_PERIOD_S = 0.25
_WRITERS = 16
_BEFORE_S, _AFTER_S = 8.0, 5.0
_GIVE_UP_S = 600.0
_MIB = 1 << 20


@dataclass
class Writes:
    """Creates at a steady rate by a few writers; (when it was asked for, seconds it took)."""

    rate: float
    images: int = 1  # created by each
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
                if self.images == 1:
                    await registry.create_image(**image(len(self.done)))
                else:
                    await registry.batch([{"op": "create_image", **image(n)} for n in range(self.images)])
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
        self.used: dict[str, list[int]] = defaultdict(list)
        self.file: dict[str, list[int]] = defaultdict(list)
        self.memory: dict[str, list[int]] = defaultdict(list)
        self.copier: list[int] = [0]
        self.reader_s: list[float] = [0.0]
        self.spool: list[int] = [0]

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
            self.spool.append(sum(spool.stat().st_size for spool in (data / "spool").iterdir()))
        pids = [process.identity.pid, *_children(process.identity.pid)]
        sizes = [_anonymous_bytes(pid) for pid in pids]
        self.memory[peer].append(sizes[0])
        self.copier.append(sum(sizes[1:]))
        status = self.cluster.ask_peer(peer, "/registry/v1/status")
        if status is not None:
            self.used[peer].append(status["db"]["used_bytes"])
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


@dataclass
class Outcome:
    """Seconds until the peer was back (None: never), and by which factor the largest database grew."""

    back_s: float | None
    growth: float
    same: bool

    @property
    def holds(self) -> bool:
        return self.same and self.back_s is not None and self.back_s <= BACK_MAX_S and self.growth <= GROWTH_MAX


async def run(cluster: Cluster, writes: Writes) -> Outcome:
    leader = await asyncio.to_thread(cluster.wait_leader)
    wiped = next(peer for peer in cluster.peers if peer != leader)
    watch = Watch(cluster)
    async with client(cluster) as registry:
        tasks = [asyncio.create_task(writes.run(registry)), asyncio.create_task(watch.run())]
        started = time.monotonic()
        await asyncio.sleep(_BEFORE_S)
        before = {peer: max(watch.file[peer]) for peer in cluster.peers}
        used_before = {peer: watch.used[peer][-1] for peer in cluster.peers}
        memory_before = {peer: watch.memory[peer][-1] for peer in cluster.peers}
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
    back_s = None if back is None else ended - began
    print(f"writes before:    {writes.between(started, began)}")
    print(f"writes meanwhile: {writes.between(began, ended)}; {writes.refused} refused in all")
    for peer in cluster.peers:
        role = "leader" if peer == leader else "wiped" if peer == wiped else "follower"
        print(
            f"{peer} {role:8}  file MiB {before[peer] // _MIB} -> peak {max(watch.file[peer]) // _MIB}, used MiB "
            f"{used_before[peer] // _MIB} -> {watch.used[peer][-1] // _MIB}; "
            f"memory MiB {memory_before[peer] // _MIB} -> peak {max(watch.memory[peer]) // _MIB}"
        )
    print(
        f"copier memory MiB {max(watch.copier) // _MIB}, spool MiB {max(watch.spool) // _MIB}, "
        f"oldest reader {max(watch.reader_s):.1f} s"
    )
    return Outcome(back_s, max(max(watch.file[peer]) / before[peer] for peer in cluster.peers), same)


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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.soak.rejoin", description=__doc__)
    parser.add_argument("stores", type=Path, help="directory of a cluster that ops.soak.images filled")
    parser.add_argument("--log-keep-entries", type=int, default=1000, help="so that a small registry needs a snapshot")
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second meanwhile (default 100)")
    parser.add_argument("--batch", type=int, default=1, help="images in each of these requests (default 1)")
    options = parser.parse_args()
    with copied(options.stores) as base:
        cluster = Cluster(base, gateways={}, peer_limits={"log_keep_entries": options.log_keep_entries})
        cluster.start()
        try:
            outcome = asyncio.run(run(cluster, Writes(options.rate, options.batch)))
        finally:
            cluster.stop()
    back = "never" if outcome.back_s is None else f"after {outcome.back_s:.1f} s"
    verdict = "PASS" if outcome.holds else "FAIL"
    print(
        f"rejoin: back {back} (at most {BACK_MAX_S:.0f} s), database grew to {outcome.growth:.2f} times its size "
        f"(at most {GROWTH_MAX}), all peers {'the same' if outcome.same else 'NOT the same'}: {verdict}"
    )
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
