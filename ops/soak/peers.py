"""The peers that a measured run works on: a cluster of real processes for as long as a block lasts."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ops.dev.backup_job import ImagesApi
from ops.dev.cluster import Cluster
from ops.dev.wiring import ROOT
from raftreg.client import Client, client_ssl_context

_STATUS_MAX_S = 120.0


@contextlib.asynccontextmanager
async def running(*, gateways_run: bool = True, **options: Any) -> AsyncIterator[Cluster]:
    """Three registry peers, without gateways unless `gateways` names some, durable and with mutual TLS, at default
    timing. Without `gateways_run` the gateways' files are made, and whoever runs them may change these before."""
    with tempfile.TemporaryDirectory(prefix="soak-") as base:
        cluster = Cluster(Path(base), **{"gateways": {}, **options})
        await asyncio.to_thread(Cluster.start if gateways_run else _start_peers, cluster)
        try:
            yield cluster
        finally:
            await asyncio.to_thread(cluster.stop)


def _start_peers(cluster: Cluster) -> None:
    cluster.prepare()
    try:
        cluster.start_processes(cluster.peers)
        cluster.wait_ready(cluster.peers)
    except BaseException:
        cluster.stop()
        raise


async def status_of(api: ImagesApi) -> dict[str, Any]:
    """What a gateway says of itself; asked again while the machine is too busy for an answer in time."""
    async with asyncio.timeout(_STATUS_MAX_S):
        while True:
            with contextlib.suppress(TimeoutError):
                return await api.status()


def client_at(cluster: Cluster, url: str) -> Client:
    """An operator's client of one endpoint only."""
    tls = cluster.wiring.operator_tls()
    return Client([url], ssl=client_ssl_context(tls.ca, tls.cert, tls.key))


async def differences(cluster: Cluster) -> list[str]:
    """In what the peers' states differ, once all have applied the same index; empty when they are equal."""
    states = {}
    for peer, url in zip(cluster.peers, cluster.registry_urls, strict=True):
        async with client_at(cluster, url) as client:
            await client.list_images(limit=1)  # linearizable: this peer has applied everything that was acknowledged
            states[peer] = {image["uuid"]: image async for image in _images(client)}
    first, *others = cluster.peers
    return await asyncio.to_thread(_digests_differ, cluster) + [
        f"{peer} differs from {first} in image {uuid}"
        for peer in others
        for uuid in sorted(states[first].keys() | states[peer].keys())
        if states[first].get(uuid) != states[peer].get(uuid)
    ]


def _digests_differ(cluster: Cluster) -> list[str]:
    """What `raftreg verify` says of the digests of all peers at one index; empty when they are equal."""
    command = [sys.executable, "-m", "raftreg.cli", "verify", "--config", str(cluster.wiring.registry)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return [] if done.returncode == 0 else [f"raftreg verify: {done.stdout.strip()} {done.stderr.strip()}"]


async def _images(client: Client) -> AsyncIterator[dict[str, Any]]:
    async for chunk in client.bootstrap(consistency="stale"):
        for image in chunk["images"]:
            yield image
