"""What a healed cluster holds in the end, read as evidence for the judge."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from chaos import config
from chaos.changes import FIRST_EPOCH, change_of, owner_of, revision_of
from chaos.judge import Evidence
from chaos.workloads.workload import Site
from ops.dev.backup_job import ImagesApi
from ops.dev.readout import client_of, registry_images
from raftreg import errors
from raftreg.cli_verify import compare
from raftreg.client import Client, client_ssl_context


async def read(site: Site, troubles: list[str]) -> Evidence:
    """The registry's images, all zones' lists, all changes, parked writes and digests of a cluster that has settled."""
    cluster = site.cluster
    async with client_of(cluster, config.RECOVERY_MAX_S) as registry:
        images = await registry_images(registry)
        changes = await _changes(registry)
    zones: dict[str, list[Mapping[str, Any]]] = {}
    for name, zone in cluster.zones.items():
        async with ImagesApi(zone) as api:
            zones[name] = [*await api.images()]
    return Evidence(
        registry=[*images],
        zones=zones,
        parked=await asyncio.to_thread(cluster.parked),
        changes=[*changes],
        digests=await _digests(site),
        processes=cluster.voters_and_observers,
        troubles=troubles,
    )


async def _changes(registry: Client) -> list[dict[str, Any]]:
    """All changes of images from the first on, as far as the registry has come; none of a later epoch than the first.

    A restored registry has no changes of the time before; whom that would spoil is not run beside a restore.
    """
    status = await registry.status()
    changes: list[dict[str, Any]] = []
    owners: dict[str, str | None] = {}
    if status["epoch"] > FIRST_EPOCH:
        return changes
    async with contextlib.aclosing(registry.changes(f"{FIRST_EPOCH}.0")) as messages:
        async for message in messages:
            if message["type"] == "change" and message["kind"] == "image":
                one = message["uuid"]
                owners[one] = owner_of(message) or owners.get(one)
                changes.append(change_of(message) | {"owner": owners[one]})
            if revision_of(message["cursor"]) >= status["revision"]:
                return changes
    return changes


async def _digests(site: Site) -> dict[str, dict[str, str]]:
    """Process -> applied index -> digest, at an index that all of them know."""
    cluster = site.cluster
    tls = cluster.wiring.operator_tls()
    urls = [cluster.url(name) for name in cluster.voters_and_observers]
    async with Client(urls, ssl=client_ssl_context(tls.ca, tls.cert, tls.key)) as everybody:
        found = await compare(everybody)
    return {
        answer["name"]: {str(index): digest for index, digest in answer["digests"].items()}
        for answer in found.answers.values()
        if not isinstance(answer, errors.RegistryError)
    }
