"""`scale`: what a registry of N images costs (a million by default), beside one of ten thousand in the same run.

Both clusters run at once and are asked in turns, so that what else the machine does weighs on both. All images are read
once; then creates, reads by number and UUID, and pages of 20 in every order and with filters, from anywhere in the
list, one request at a time. Medians are compared. Then the small one is stopped; of the large one are measured: the
time from the start of all its peers, killed, to the next acknowledged write; a backup, its verification and a
comparison of all peers while images are created at a steady rate; how the databases grow meanwhile; memory of the peers
all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ops.dev.cluster import Cluster
from ops.dev.wiring import ROOT
from ops.soak import peers, restarts
from ops.soak.images import ZONES, client, filled, image, owner
from ops.soak.outcome import Outcome, spread_ms
from ops.soak.steady_writes import Writes
from ops.soak.watch import Watch
from raftreg.client import Client
from raftreg.listing import SORT_KEYS

IMAGES, SMALL = 1_000_000, 10_000
RATIO_MAX, GROWTH_MAX = 1.3, 1.5
RESTART_MAX_S, RESTARTS = 2.0, 5
MEMORY_MAX_BYTES = 300_000_000
ROUNDS, ASKED_PER_ROUND = 10, 20
PAGE = 20
RATE = 50.0  # creates per second beside a backup
_BEFORE_S = 8.0
_COMMAND_MAX_S = 600.0
_MIB = 1 << 20

Ask = Callable[[Client, "Side"], Awaitable[Any]]


@dataclass
class Side:
    """One of the two registries."""

    images: int
    registry: Client
    uuids: list[str] = field(default_factory=list)
    took: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def number(self) -> int:
        """Any image's; zones were registered before, but took no numbers."""
        return self.chance.randint(1, self.images)

    def anyone(self) -> str:
        return owner(self.chance.randint(1, self.images))


def _page(**fixed: Any) -> Ask:
    """A page from anywhere, by stale reads: a linearizable one costs a round between peers besides."""

    async def ask(registry: Client, side: Side) -> None:
        wanted = {name: value(side) if callable(value) else value for name, value in fixed.items()}
        await registry.list_images(limit=PAGE, consistency="stale", **wanted)

    return ask


async def _create(registry: Client, side: Side) -> None:
    await registry.create_image(**image(side.chance.randrange(1 << 40)))


async def _by_number(registry: Client, side: Side) -> None:
    await registry.get_image(side.number())


async def _by_uuid(registry: Client, side: Side) -> None:
    await registry.get_image(side.chance.choice(side.uuids))


ASKED: dict[str, Ask] = {
    "create": _create,
    "read by number": _by_number,
    "read by UUID": _by_uuid,
    **{f"page by {key}": _page(sort=f"{key}:desc", marker=Side.number) for key in SORT_KEYS},
    "page by name, ascending": _page(sort="name:asc", marker=Side.number),
    "first page": _page(),
    "page of an owner": _page(owner=Side.anyone),
    "page of an owner by name": _page(owner=Side.anyone, sort="name:asc"),
    "page of an owner by size": _page(owner=Side.anyone, sort="size:desc"),
    "page of an owner by updated_at": _page(owner=Side.anyone, sort="updated_at:desc"),
    "page of an owner, status, format": _page(owner=Side.anyone, status="queued", disk_format="qcow2"),
    "page of an owner with a property": _page(owner=Side.anyone, **{"properties.os_distro": "debian"}),
    "page of public": _page(visibility="public", marker=Side.number),
    "page of public by name": _page(visibility="public", sort="name:asc"),
    "page of public, one format, by size": _page(visibility="public", disk_format="raw", sort="size:desc"),
    "page of a format": _page(disk_format="iso", marker=Side.number),
    "page of a status by size": _page(status="queued", sort="size:desc", marker=Side.number),
    "page of a home zone": _page(home_zone=ZONES[3]),
    "page of a home zone by name": _page(home_zone=ZONES[3], sort="name:desc"),
    "page of a tag": _page(tag="tag4"),
    "page of sizes": _page(size_min=5_000_000_000, size_max=6_000_000_000, sort="size:asc"),
    "page of a name": _page(name="backup of server 17 of project 17", sort="size:desc"),
}


async def run(images: int = IMAGES) -> Outcome:
    """The whole run; loads the images where that was not done before."""
    outcome = Outcome("scale", {"images": images, "beside": SMALL})
    async with filled(images, "scale") as base:
        large = Cluster(base, gateways={})
        watch = Watch(large)
        async with filled(SMALL, "scale-small") as small_base:
            small = Cluster(small_base, gateways={})
            async with _started(large), _started(small), watch.running():
                await _compare(small, large, images, outcome)
        async with _started(large), watch.running():
            await _restarts(large, outcome)
            await _backup(large, base / "registry.backup", watch, outcome)
    most = max(max(samples) for samples in watch.memory.values())
    outcome.figures["memory_mib"] = most // _MIB
    outcome.require(most <= MEMORY_MAX_BYTES, f"a peer took more than {MEMORY_MAX_BYTES // 10**6} MB of memory")
    return outcome


@contextlib.asynccontextmanager
async def _started(cluster: Cluster) -> AsyncIterator[None]:
    await asyncio.to_thread(cluster.start)
    try:
        yield
    finally:
        await asyncio.to_thread(cluster.stop)


# -- requests -----------------------------------------------------------------------------------------------------


async def _compare(small: Cluster, large: Cluster, images: int, outcome: Outcome) -> None:
    async with _leader_of(small) as at_small, _leader_of(large) as at_large:
        sides = [Side(SMALL, at_small), Side(images, at_large)]
        for side in sides:
            side.uuids = [(await side.registry.get_image(side.number()))["uuid"] for _ in range(200)]
        for side in sides:
            await _read_through(side)
        for number in range(ROUNDS + 1):
            for side in sides if number % 2 else reversed(sides):
                await _ask_all(side, measured=number > 0)  # the first round fills caches
    slow = []
    for name in ASKED:
        medians = [statistics.median(side.took[name]) * 1000 for side in sides]
        ratio = medians[1] / medians[0]
        slow.append((ratio, name))
        outcome.figures.setdefault("p50_ms", []).append([name, *(round(ms, 2) for ms in medians), round(ratio, 2)])
        outcome.within(ratio <= RATIO_MAX, f"{name}: {ratio:.2f} times as long as among {SMALL} images")
    outcome.figures["most"] = "{1}: {0:.2f} times".format(*max(slow))


async def _read_through(side: Side) -> None:
    """All images once: the first touch of each page of the database after a start costs a fault of some microseconds,
    which a leader that has served for a while has behind it."""
    marker: int | None = 0
    while marker is not None:
        after = {"marker": marker} if marker else {}
        page = await side.registry.list_images(sort="number:asc", limit=1000, consistency="stale", **after)
        marker = page["next"]


async def _ask_all(side: Side, *, measured: bool) -> None:
    for name, ask in ASKED.items():
        for _ in range(ASKED_PER_ROUND):
            asked = time.perf_counter()
            await ask(side.registry, side)
            if measured:
                side.took[name].append(time.perf_counter() - asked)


def _leader_of(cluster: Cluster) -> Client:
    leader = cluster.wait_leader()
    return peers.client_at(cluster, dict(zip(cluster.peers, cluster.registry_urls, strict=True))[leader])


# -- restart ------------------------------------------------------------------------------------------------------


async def _restarts(cluster: Cluster, outcome: Outcome) -> None:
    took = []
    async with client(cluster) as registry:
        last = 0
        for _ in range(RESTARTS):
            seconds, last = await restarts.restart(cluster, registry, last, outcome)
            took.append(seconds)
            await asyncio.to_thread(cluster.wait_ready, cluster.peers)
    outcome.figures |= spread_ms("restart", took)
    outcome.within(max(took) <= RESTART_MAX_S, f"a write took more than {RESTART_MAX_S} s after the start of all peers")


# -- backup and verification while writes go on -------------------------------------------------------------------


async def _backup(cluster: Cluster, file: Path, watch: Watch, outcome: Outcome) -> None:
    leader = await asyncio.to_thread(cluster.wait_leader)
    config = cluster.wiring.peer_dir(next(peer for peer in cluster.peers if peer != leader)) / "raftreg.toml"
    writes, moments = Writes(RATE), [time.monotonic()]
    async with client(cluster) as registry:
        writing = asyncio.create_task(writes.run(registry))
        await asyncio.sleep(_BEFORE_S)
        before = {peer: watch.file[peer][-1] for peer in cluster.peers}
        for command in (
            ("backup", "create", str(file), "--config", str(config)),
            ("backup", "verify", str(file)),
            ("verify", "--config", str(cluster.wiring.registry)),
        ):
            moments.append(time.monotonic())
            problem = await asyncio.to_thread(_said, *command)
            outcome.require(problem is None, f"{' '.join(command[:2])}: {problem}")
        moments.append(time.monotonic())
        await asyncio.sleep(1)
        writes.stopped = True
        await writing
    growth = max(max(watch.file[peer]) / before[peer] for peer in cluster.peers)
    taken = [round(end - start, 1) for start, end in pairwise(moments[1:])]
    size = (await asyncio.to_thread(file.stat)).st_size
    outcome.figures |= {
        "file_mib": max(before.values()) // _MIB,
        "backup_mib": size // _MIB,
        **dict(zip(("backup_s", "backup_verify_s", "verify_s"), taken, strict=True)),
        "growth": round(growth, 2),
        "writes_before": writes.between(moments[0], moments[1]),
        "writes_meanwhile": writes.between(moments[1], moments[-1]),
        "writes_refused": writes.refused,
    }
    outcome.require(growth <= GROWTH_MAX, f"a database grew beyond {GROWTH_MAX} times its size")
    outcome.require(writes.refused == 0, f"{writes.refused} writes were refused")


def _said(*arguments: str) -> str | None:
    """What a command complained of; None when it succeeded."""
    command = [sys.executable, "-m", "raftreg.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_COMMAND_MAX_S, check=False)
    return None if done.returncode == 0 else f"{done.stdout.strip()} {done.stderr.strip()}"
