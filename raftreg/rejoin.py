"""`raftreg rejoin`: an empty store for a voter whose disk was wiped, replaced or rolled back; it catches up by itself.

What the store must say of the cluster (ID, epoch, voter set) comes from the other voters, never from the old disk.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

from raftreg import certificates, errors, store, stored_peer
from raftreg.client import Client
from raftreg.cluster_init import InitError
from raftreg.config import PeerConfig
from raftreg.stored_peer import Configured

_ASK_S = 5.0
_MOVED_ASIDE_MAX = 100  # old stores beside each other; whoever has more should look at his disks

Status = dict[str, Any]


def rejoin(configured: Configured, *, replace: bool = False) -> tuple[str, Path | None]:
    """Make the empty store; returns the cluster ID and where the old store was moved to (with `replace`), if any.

    Raises InitError, store.StoreError: nothing was changed.
    """
    settings = configured.settings
    if configured.has_store and not replace:
        raise store.StoreError(
            f"{store.store_path(settings.data_dir)} already holds a registry store. A healthy one needs no rejoin: "
            "`raftreg serve` starts it. If its disk was rolled back or is damaged, --replace moves it aside"
        )
    if stored_peer.in_use(settings.data_dir):
        raise InitError(f"{settings.name} is running on {settings.data_dir}; stop it first")
    told = _newest(settings, _ask_others(settings))
    _check(configured, told)
    aside = _move_aside(settings) if configured.has_store else None
    store.initialise(
        settings.data_dir,
        cluster_id=told["cluster_id"],
        peer=settings.name,
        peers=told["voters"]["names"],
        epoch=told["epoch"],
        recovering=not settings.observer,  # it has nothing to vote about, it just gets a snapshot
        observer=settings.observer,
        membership_generation=told["voters"]["generation"],
        previous_peers=told["voters"]["previous"],
    )
    return str(told["cluster_id"]), aside


def _ask_others(settings: PeerConfig) -> dict[str, Status | errors.RegistryError]:
    others = [url for name, url in settings.api_peers.items() if name != settings.name]
    if not others:
        raise InitError(
            "this peer is alone in its cluster: nobody else has the data; `raftreg restore` starts it from a backup"
        )
    return asyncio.run(_ask(others, certificates.api_client_context(settings.tls) if settings.api_tls else None))


async def _ask(urls: list[str], tls: ssl.SSLContext | None) -> dict[str, Status | errors.RegistryError]:
    async with Client(urls, ssl=tls, deadline_s=_ASK_S) as client:
        return await client.peer_status(_ASK_S)


def _newest(settings: PeerConfig, answers: dict[str, Status | errors.RegistryError]) -> Status:
    """The word of a peer of the newest epoch and voter set among those that answer."""
    told = [answer for answer in answers.values() if not isinstance(answer, errors.RegistryError)]
    if not told:
        why = "; ".join(answer.message for answer in answers.values() if isinstance(answer, errors.RegistryError))
        raise InitError(
            f"no other peer of {settings.name}'s cluster answers ({why}). Start them first; if they are lost for good, "
            "`raftreg recover`"
        )
    clusters = sorted({str(status["cluster_id"]) for status in told})
    if len(clusters) > 1:
        raise InitError(
            f"peers of several clusters answer ({', '.join(clusters)}): correct api.peers in {settings.name}"
        )
    return max(told, key=lambda status: (status["epoch"], status["voters"]["generation"]))


def _check(configured: Configured, told: Status) -> None:
    settings, names = configured.settings, tuple(told["voters"]["names"])
    if names != settings.cluster_peers:
        raise InitError(
            f"the cluster's voters are {', '.join(names)}, but {configured.file} names "
            f"{', '.join(settings.cluster_peers)}: correct raft.peers and api.peers first"
        )
    if configured.has_store:
        identity = stored_peer.identity_of(settings)
        if identity is not None and identity.cluster_id != told["cluster_id"]:
            raise InitError(
                f"{settings.data_dir} belongs to cluster {identity.cluster_id}, but at the other peers' addresses "
                f"answers cluster {told['cluster_id']}: correct api.peers"
            )


def _move_aside(settings: PeerConfig) -> Path:
    path = store.store_path(settings.data_dir)
    for number in range(1, _MOVED_ASIDE_MAX):
        aside = path.with_name(f"{path.name}.replaced-{number}")
        if not aside.exists():
            path.rename(aside)
            store.sync_directory(path.parent)
            return aside
    raise InitError(f"{path.parent} holds {_MOVED_ASIDE_MAX} replaced stores: delete some")
