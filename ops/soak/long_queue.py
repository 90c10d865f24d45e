"""`queue`: a gateway with a million pending writes is started again while it is cut off, and then reaches the registry.
N is their number.

The queue is filled through the gateway's own code, once; each run works on a copy. Measured: the time from the start
of the process to its first answers, how long reads and creates take while it is cut off and while the queue drains,
memory, and how fast the queue drains while it is watched.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp

from ops.dev.backup_job import ImagesApi
from ops.dev.cluster import RUN_DIR, Cluster
from ops.dev.wiring import PROJECT, USER
from ops.soak import peers
from ops.soak.outcome import Outcome
from ops.soak.uplink import Clients
from ops.soak.watch import anonymous_bytes
from zonegw import usage
from zonegw.catalogue import Catalogue
from zonegw.id_pool import IdPool
from zonegw.identity import Identity
from zonegw.images import Images, Request
from zonegw.limits import Limits
from zonegw.store import Store
from zonegw.write_queue import WriteQueue

WRITES = 1_000_000
FIRST_ANSWER_MAX_S = 5.0
MEMORY_MAX_BYTES = 400_000_000
ZONE, GATEWAY = "fra", "fra-1"
CUT_OFF_S, DRAINING_S = 10.0, 60.0
_BATCH = 1000
_READY_MAX_S, _DRAIN_MAX_S, _LOOK_S = 120.0, 180.0, 0.1
_MIB = 1 << 20


async def run(writes: int = WRITES) -> Outcome:
    """The whole run; fills the queue where that was not done before."""
    outcome = Outcome("queue", {"writes": writes})
    limits: dict[str, int | float] = {"queue_depth_max": 2 * writes}
    filled = await asyncio.to_thread(_filled, writes, limits)
    async with peers.running(gateways={GATEWAY: ZONE}, gateways_run=False, gateway_limits=limits) as cluster:
        for peer in cluster.peers:
            await asyncio.to_thread(cluster.stop_process, peer)
        await asyncio.to_thread(_copy, filled, cluster.wiring.gateway_dir(GATEWAY) / "data")
        await _measure(outcome, cluster)
        await asyncio.to_thread(cluster.stop_process, GATEWAY)
    return outcome


async def _measure(outcome: Outcome, cluster: Cluster) -> None:
    async with ImagesApi(cluster.zones[ZONE]) as api, _Memory(cluster) as memory:
        began = time.monotonic()
        await asyncio.to_thread(cluster.start_process, GATEWAY)
        for name, request in (("read", ("GET", "/v2/images?limit=20")), ("create", ("POST", "/v2/images"))):
            await _first_answer(api, *request)
            took = time.monotonic() - began
            outcome.figures[f"first_{name}_s"] = round(took, 2)
            outcome.within(took <= FIRST_ANSWER_MAX_S, f"the first {name} was answered after {took:.1f} s")
        clients = Clients(api)
        await clients.phase("cut off", CUT_OFF_S)
        await asyncio.to_thread(cluster.start_processes, cluster.peers)
        draining = asyncio.create_task(_drain(outcome, api))
        await clients.phase("draining", DRAINING_S)
        await draining
    _report(outcome, clients, memory.most)


async def _first_answer(api: ImagesApi, method: str, path: str) -> None:
    async with asyncio.timeout(_READY_MAX_S):
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError, TimeoutError):
                status, _ = await api.ask(method, path, **({"json": {"name": "first"}} if method == "POST" else {}))
                if status < 300:
                    return
            await asyncio.sleep(_LOOK_S / 10)


async def _drain(outcome: Outcome, api: ImagesApi) -> None:
    """Watch the queue from its first acknowledged write on, for as long as the clients go on."""
    began, before = time.monotonic(), await peers.status_of(api)
    async with asyncio.timeout(_DRAIN_MAX_S):
        while (started := await peers.status_of(api))["acked_sequence"] == before["acked_sequence"]:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
    outcome.figures["drain_starts_s"] = round(time.monotonic() - began, 1)
    watched = time.monotonic()
    await asyncio.sleep(max(1.0, began + DRAINING_S - watched))
    after = await peers.status_of(api)
    drained = after["acked_sequence"] - started["acked_sequence"]
    outcome.figures["drained_per_s"] = round(drained / (time.monotonic() - watched), 1)
    outcome.figures["pending_after"] = after["queue_depth"]
    outcome.require(not after["parked"], f"{after['parked']} writes were parked: {after['errors']}")
    outcome.require(drained > 0 or not after["queue_depth"], f"the queue does not drain: {after['errors']}")


def _report(outcome: Outcome, clients: Clients, memory: int) -> None:
    for phase in ("cut off", "draining"):
        for method in ("POST", "GET"):
            for name, value in clients.spread(phase, method).items():
                outcome.figures[f"{method}_{phase.replace(' ', '_')}_{name}"] = value
    outcome.figures["memory_mib"] = memory // _MIB
    failures = clients.samples.failures
    outcome.require(not failures, f"{len(failures)} requests failed: {failures[:3]}")
    outcome.require(memory <= MEMORY_MAX_BYTES, f"the gateway took more than {MEMORY_MAX_BYTES // 10**6} MB of memory")


class _Memory:
    """The most anonymous memory that the gateway's process had while the block lasted."""

    def __init__(self, cluster: Cluster) -> None:
        self._process = cluster.processes[GATEWAY]
        self.most = 0

    async def __aenter__(self) -> _Memory:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            if (identity := self._process.identity) is not None:
                self.most = max(self.most, anonymous_bytes(identity.pid))
            await asyncio.sleep(_LOOK_S)


# -- a gateway's store with a long queue --------------------------------------------------------------------------


def _filled(writes: int, limits: dict[str, int | float]) -> Path:
    """A gateway's data directory with so many pending creates; made once."""
    base = RUN_DIR / "soak" / f"queue-{writes}"
    if not base.exists():
        making = base.with_name(f"{base.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        _fill(making, writes, Limits(**limits))  # type: ignore[arg-type]
        making.rename(base)
    return base


def _fill(base: Path, writes: int, limits: Limits) -> None:
    store = Store(base / "store", limits)
    images = Images(
        store, WriteQueue(limits), IdPool(limits), Catalogue(), zone=ZONE, gateway=GATEWAY, limits=limits
    )  # fmt: skip
    request = Request(Identity(USER, PROJECT, frozenset({"member"})))
    began = time.monotonic()
    try:
        with store.transaction() as txn:
            usage.begin(txn, ())  # as a gateway does at its first start
        for first in range(0, writes, _BATCH):
            with store.transaction(grows=True) as txn:
                for number in range(first, min(first + _BATCH, writes)):
                    images.append_create(txn, request, str(uuid.uuid4()), *_backup(images, request, number))
    finally:
        store.close()
    print(f"{writes} pending writes after {time.monotonic() - began:.0f} s", flush=True)


def _backup(images: Images, request: Request, number: int) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Attributes, properties and tags of an instance snapshot."""
    properties = {"image_type": "backup", "instance_uuid": str(uuid.UUID(int=number)), "os_type": "linux"}
    given = {"name": f"backup {number}", "disk_format": "qcow2", "container_format": "bare", "visibility": "private"}
    return images.check_create(request.who, given, properties, []), properties, []


def _copy(filled: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-r", "--sparse=always", str(filled), str(to)], check=True)
    subprocess.run(["sync"], check=True)  # or the first commits would wait for the copy to reach the disk
