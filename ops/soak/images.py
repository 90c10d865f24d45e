"""A registry full of images, for the runs beside this module: a cluster of three peers is made in a directory, loaded
and stopped; its stores stay, and each run works on a copy.

Images go in by batches through the API, as an import would send them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from ops.dev.cluster import RUN_DIR, Cluster
from raftreg import certificates, errors
from raftreg.client import Client

# One request is one entry of the log, more or less: two in flight, and one on its way, keep the leader busy.
BATCH, BATCHES_AT_ONCE = 500, 3
_OWNERS = 400
_DEADLINE_S = 60.0


ZONES = tuple(f"zone{number}" for number in range(8))
TAGGED_EVERY = 50


def image(number: int) -> dict[str, Any]:
    """What a cloud registers: a backup of a server, or one image in ten that is for everybody."""
    public = number % 10 == 0
    return {
        "uuid": str(uuid.uuid4()),
        "attributes": {
            "name": f"backup of server {number} of project {number % _OWNERS}",
            "disk_format": ("raw", "iso")[number // 10 % 2] if public else "qcow2",
            "container_format": "bare",
            "visibility": "public" if public else "private",
            "owner": owner(number),
            "min_disk": 20,
            "size": number * 1_000_003 % 10_000_000_019,
        },
        "properties": {
            "os_type": "linux",
            "os_distro": "debian",
            "architecture": "x86_64",
            "base_image_ref": str(uuid.uuid4()),
            "instance_uuid": str(uuid.uuid4()),
            "image_type": "snapshot",
        },
        "tags": [f"tag{number // TAGGED_EVERY % 10}"] if number % TAGGED_EVERY == 0 else [],
        "home_zone": ZONES[number % len(ZONES)],
    }


def owner(number: int) -> str:
    """The project that owns image `number`."""
    return f"{number % _OWNERS:032x}"


def client(cluster: Cluster) -> Client:
    """A client with the operator's certificate."""
    context = certificates.api_client_context(cluster.wiring.operator_tls())
    return Client(cluster.registry_urls, ssl=context, deadline_s=_DEADLINE_S)


async def load(registry: Client, count: int) -> float:
    """Create `count` images; the seconds it took."""
    started = time.monotonic()
    firsts = iter(range(0, count, BATCH))

    async def sender() -> None:
        for first in firsts:
            await _send(registry, [image(number) for number in range(first, min(first + BATCH, count))])

    await asyncio.gather(*(sender() for _ in range(BATCHES_AT_ONCE)))
    return time.monotonic() - started


async def _send(registry: Client, images: Sequence[dict[str, Any]]) -> None:
    """Every image has its UUID, so a batch whose outcome is unknown may be sent again: what is there is refused."""
    operations = [{"op": "create_image", **fields} for fields in images]
    while True:
        try:
            results = await registry.batch(operations)
        except (errors.OutcomeUnknown, errors.NoQuorum):
            continue
        refused = [result for result in results if "ok" not in result and result["error"]["code"] != "uuid_taken"]
        if refused:
            raise RuntimeError(f"an image was refused: {refused[0]}")
        return


@contextlib.asynccontextmanager
async def filled(count: int, purpose: str) -> AsyncIterator[Path]:
    """The directory of a cluster that holds `count` images, for one run: a copy of what was loaded once."""
    copy = await asyncio.to_thread(_copied, count, purpose)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


def _copied(count: int, purpose: str) -> Path:
    stores = RUN_DIR / "soak" / f"images-{count}"
    if not stores.exists():
        making = stores.with_name(f"{stores.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        fill(making, count)
        making.rename(stores)
    copy = stores.with_name(f"{stores.name}-{purpose}")
    shutil.rmtree(copy, ignore_errors=True)
    subprocess.run(["cp", "-r", "--sparse=always", str(stores), str(copy)], check=True)
    os.sync()  # or the first writes of the run would wait for the copy to reach the disk
    return copy


def fill(base: Path, count: int) -> None:
    """Make a cluster in `base` that holds `count` images, and stop it."""
    cluster = Cluster(base, gateways={})
    cluster.start()
    try:
        asyncio.run(_fill(cluster, count))
    finally:
        cluster.stop()


async def _fill(cluster: Cluster, count: int) -> None:
    async with client(cluster) as registry:
        for zone in ZONES:
            await registry.register_zone(zone)
        took = await load(registry, count)
        status = await registry.status()
    print(
        f"{count} images in {took:.1f} s: {count / took:.0f}/s; "
        f"used {status['db']['used_bytes'] >> 20} MiB, file {status['db']['file_bytes'] >> 20} MiB",
        flush=True,
    )
