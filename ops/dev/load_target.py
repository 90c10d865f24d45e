"""The cluster that a load driver works on: the one of `make up`, or one of its own; its zones can be cut off."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.links import Links
from ops.dev.backup_job import BackupError, ImagesApi
from ops.dev.cluster import RUN_DIR, STATE_FILE, Cluster, ClusterError, Zone, read_state, running_processes
from raftreg.client import Client, client_ssl_context

_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Target:
    """Zones with their demo users, the registry, the peers' processes on this machine, and links if they are proxied.

    `gateways` are zones by gateway. `salt` keeps the UUIDs of this run apart from those of others on the same cluster.
    """

    zones: Mapping[str, Zone]
    gateways: Mapping[str, str]
    registry: Client
    peers: Mapping[str, int]
    links: Links | None
    salt: str

    async def cut(self, zone: str) -> None:
        """Cut the zone off from registry and other zones: connections stay, and nothing is answered."""
        await asyncio.to_thread(self._change, zone, "cut")

    async def heal(self, zone: str) -> None:
        await asyncio.to_thread(self._change, zone, "heal")

    def _change(self, zone: str, what: str) -> None:
        if self.links is None:
            raise ClusterError("this cluster's links are not proxied: start it by `make up ARGS=--proxied`")
        for name in links_of(zone, self.gateways, self.links.addresses()):
            if what == "cut":
                self.links.cut(name, mode="blackhole")
            else:
                self.links.heal(name)


def links_of(zone: str, gateways: Mapping[str, str], links: Sequence[str] | Mapping[str, str]) -> list[str]:
    """The links from a zone to the registry, and those of all zones' data, which it fetches and serves."""
    own = tuple(f"registry-{gateway}-" for gateway, of in gateways.items() if of == zone)
    return [name for name in links if name.startswith((*own, "interzone-"))]


@contextlib.asynccontextmanager
async def target(zones: int | None) -> AsyncIterator[Target]:
    """The running development cluster; with a number of `zones`, or where none runs, one of its own, proxied, for as
    long as the block lasts."""
    state = read_state()
    if zones is None and state is not None and state["zones"] and running_processes(state):
        async with _running(state) as found:
            yield found
        return
    base = RUN_DIR / "backup-load"
    gateways = {f"zone{n}-1": f"zone{n}" for n in range(1, (zones or 2) + 1)}
    await asyncio.to_thread(shutil.rmtree, base, ignore_errors=True)
    cluster = Cluster(base, proxied=True, gateways=gateways)
    await asyncio.to_thread(cluster.start)
    try:
        tls = cluster.wiring.operator_tls()
        async with _client(cluster.registry_urls, tls.ca, tls.cert, tls.key) as registry:
            pids = {name: _pid(cluster, name) for name in cluster.peers}
            yield Target(cluster.zones, gateways, registry, pids, cluster.links, "")
    finally:
        await asyncio.to_thread(cluster.stop)


@contextlib.asynccontextmanager
async def _running(state: Mapping[str, Any]) -> AsyncIterator[Target]:
    if "gateways" not in state:
        raise ClusterError(f"{STATE_FILE} is of an earlier checkout: `make down`, then `make up`")
    zones = {name: Zone(zone["url"], zone["token"]) for name, zone in state["zones"].items()}
    # Peers are those that are neither gateways nor the proxy.
    peers = {
        entry["name"]: entry["pid"]
        for entry in running_processes(state)
        if Path(entry["data_dir"]).parent.name == "registry"
    }
    operator = {name: Path(path) for name, path in state["operator"].items()}
    async with _client(state["registry"], **operator) as registry:
        links = await asyncio.to_thread(_adopted, state)
        yield Target(zones, state["gateways"], registry, peers, links, uuid.uuid4().hex)


def _adopted(state: Mapping[str, Any]) -> Links | None:
    proxy = state.get("proxy")
    if proxy is None:
        return None
    links = Links(proxy["control"], run=proxy["run"])
    for name in state["links"]:
        links.adopt(name)
    return links


def _client(urls: Sequence[str], ca: Path, cert: Path, key: Path) -> Client:
    return Client(urls, ssl=client_ssl_context(ca, cert, key), deadline_s=_DEADLINE_S)


def _pid(cluster: Cluster, name: str) -> int:
    identity = cluster.processes[name].identity
    return 0 if identity is None else identity.pid


async def status_of(api: ImagesApi) -> dict[str, Any] | None:
    """What a gateway says of itself; None where it has no answer in time."""
    with contextlib.suppress(BackupError, OSError, TimeoutError):
        return await api.status()
    return None
