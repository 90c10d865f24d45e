"""Fill a registry with images: a cluster of three peers is made in a directory (or the one that is there is started),
loaded until it holds so many, and stopped. The stores stay, for the runs beside this module.

Images go in by batches through the API, as an import would send them.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.dev.cluster import Cluster
from raftreg import certificates, errors
from raftreg.client import Client

# One request is one entry of the log, more or less: two in flight, and one on its way, keep the leader busy.
BATCH, BATCHES_AT_ONCE = 500, 3
_OWNERS, _ZONES = 400, 8
_DEADLINE_S = 60.0


def image(number: int) -> dict[str, Any]:
    """What a cloud registers: a backup of a server, or one image in ten that is for everybody."""
    owner = f"{number % _OWNERS:032x}"
    return {
        "uuid": str(uuid.uuid4()),
        "attributes": {
            "name": f"backup of server {number} of project {number % _OWNERS}",
            "disk_format": "qcow2",
            "container_format": "bare",
            "visibility": "public" if number % 10 == 0 else "private",
            "owner": owner,
            "min_disk": 20,
        },
        "properties": {
            "os_type": "linux",
            "os_distro": "debian",
            "architecture": "x86_64",
            "base_image_ref": str(uuid.uuid4()),
            "instance_uuid": str(uuid.uuid4()),
            "image_type": "snapshot",
        },
    }


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


def fill(base: Path, count: int) -> None:
    """Make a cluster in `base` that holds at least `count` images, and stop it."""
    cluster = Cluster(base, gateways={})
    cluster.start()
    try:
        asyncio.run(_fill(cluster, count))
    finally:
        cluster.stop()


async def _fill(cluster: Cluster, count: int) -> None:
    async with client(cluster) as registry:
        present = int((await registry.status())["revision"])
        took = await load(registry, max(0, count - present))
        status = await registry.status()
    print(
        f"{count - present} images in {took:.1f} s: {(count - present) / max(took, 0.001):.0f}/s; "
        f"used {status['db']['used_bytes'] >> 20} MiB, file {status['db']['file_bytes'] >> 20} MiB",
        flush=True,
    )
