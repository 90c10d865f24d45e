"""A gateway whose registry begins a new epoch: it resyncs, keeps what it acknowledged, and goes on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from raftreg import recovery, stored_peer
from raftreg.commands import EPOCH_IDS_SKIPPED
from raftreg.stored_peer import Configured
from tests.gateway.running import Zone, running, until
from tests.registry import Registry, registry

BLOB = b"image data"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as running_cluster:
        yield running_cluster


def configured(cluster: Registry) -> Configured:
    return stored_peer.below(cluster.directory / "a")[0]


@contextlib.asynccontextmanager
async def stopped(cluster: Registry, zone: Zone) -> AsyncIterator[None]:
    """The registry is away inside the block, and the gateway knows it."""
    await cluster.stop("a")
    await until(lambda: zone.gateway.status.state == "degraded", "the link to count as down")
    yield
    await cluster.start("a")


async def in_epoch(zone: Zone, epoch: int) -> None:
    def resynced() -> bool:
        position = zone.gateway.catalogue.position(zone.gateway.store.committed())
        return position is not None and position[0] == epoch

    await until(resynced, f"a catalogue of epoch {epoch}")


async def test_what_a_zone_acknowledged_while_the_registry_was_recovered_from_a_survivor_is_drained(
    cluster: Registry, tmp_path: Path
) -> None:
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await zone.drained()
        before = await zone.create_active(BLOB, name="before")
        await zone.drained()
        async with stopped(cluster, zone):
            meanwhile = await zone.create_active(BLOB, name="meanwhile")
            recovery.from_survivor(configured(cluster), id_floor=None, now_us=1)
        await in_epoch(zone, 2)
        await zone.drained()
        after = await zone.create_active(BLOB, name="after")
        await zone.drained()
        assert sorted(await zone.names()) == ["after", "before", "meanwhile"]
        assert zone.gateway.status.document()["parked"] == 0
        async with cluster.client() as client:
            for image in (before, meanwhile, after):
                shown = await client.get_image(image["id"])
                number = (await zone.get(image["self"]))["os_glance_v1_id"]
                assert (shown["status"], shown["number"]) == ("active", number)
        assert meanwhile["os_glance_v1_id"] == before["os_glance_v1_id"] + 1
        assert after["os_glance_v1_id"] > EPOCH_IDS_SKIPPED
