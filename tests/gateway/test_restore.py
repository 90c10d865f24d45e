"""A backup of a cluster under load becomes a new epoch: who may join, what is back, and that the zones go on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from raftreg import backup, main
from raftreg.backup import Label
from raftreg.commands import EPOCH_IDS_SKIPPED
from tests.gateway.restoring import command
from tests.gateway.running import Zone, running, until
from tests.gateway.test_recover import in_epoch
from tests.registry import Registry, registry

BLOB = b"image data"


async def backed_up_under_load(cluster: Registry, zone: Zone, file: Path) -> list[dict[str, Any]]:
    """Make a backup beside the leader while this zone creates images; those images, in order."""
    images: list[dict[str, Any]] = []
    saving = asyncio.create_task(
        command("backup", "create", file, "--config", cluster.directory / await cluster.leader())
    )
    while not saving.done():
        images.append(await zone.create(name=f"meanwhile {len(images)}"))
    await saving
    await zone.drained()
    assert images, "nothing was written while the backup was made"
    return images


async def restored(cluster: Registry, file: Path) -> tuple[Path, str]:
    """All stores but that of c are lost, whose disk is kept elsewhere; a new epoch of the same voters, not started.
    Where the old c is, and what the command said."""
    old = cluster.directory.parent / "old c"
    shutil.copytree(cluster.directory / "c", old)
    for name in "abc":
        shutil.rmtree(cluster.directory / name / "store")
    return old, await command("restore", file, *(cluster.directory / name for name in "abc"), "--yes")


@contextlib.asynccontextmanager
async def old_peer(cluster: Registry, directory: Path) -> AsyncIterator[Any]:
    """c as it was in the epoch before, at its address."""
    async with main.running(dataclasses.replace(cluster.configs["c"], data_dir=directory)) as (peer, _):
        yield peer


async def a_peer_of_the_old_epoch_is_refused(cluster: Registry, directory: Path) -> None:
    async with old_peer(cluster, directory) as old, cluster.client(at="a") as client:
        before = old.raft.applied
        await until(lambda: any("epoch 1" in error for error in old.status()["errors"]), "a refusal")
        assert (await client.create_image(attributes={"name": "by the new epoch"}))["number"] > EPOCH_IDS_SKIPPED
        assert old.raft.leader is None
        assert not old.raft.is_leader
        assert old.raft.applied == before
        assert not cluster.peers["a"].raft.is_connected("c")


async def numbers_by_uuid(cluster: Registry) -> dict[str, int]:
    async with cluster.client() as client:
        images = (await client.list_images(limit=1000))["images"]
        return {image["uuid"]: image["number"] for image in images}


@pytest.mark.slow
async def test_a_cluster_under_load_is_restored_and_its_zones_go_on(tmp_path: Path) -> None:
    file = tmp_path / "registry.backup"
    async with (
        registry(tmp_path, "abc") as cluster,
        running(tmp_path / "fra", registry=cluster) as fra,
        running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1") as ams,
    ):
        for zone in (fra, ams):
            await zone.drained()
        kept = await fra.create_active(BLOB, name="kept")
        await fra.drained()
        meanwhile = await backed_up_under_load(cluster, fra, file)
        label = backup.verify(file)[0]
        lost = await fra.create_active(BLOB, name="lost")
        assert await fra.rename(kept, "renamed since") == 200
        await fra.drained()
        before = await numbers_by_uuid(cluster)
        held_bytes = fra.gateway.status.document()["data_used_bytes"]

        await cluster.stop_all()
        for zone in (fra, ams):
            await until(lambda zone=zone: zone.gateway.status.state == "degraded", "the link to count as down")  # type: ignore[misc]
        offline = {zone: await zone.create_active(BLOB, name="offline") for zone in (fra, ams)}
        old, said = await restored(cluster, file)
        assert "a begins epoch 2" in said
        for name in "ab":
            await cluster.start(name)
        await cluster.leader()
        await a_peer_of_the_old_epoch_is_refused(cluster, old)
        await cluster.start("c")
        await until(lambda: cluster.peers["c"].raft.applied >= cluster.peers["a"].raft.applied, "c to catch up")

        for zone in (fra, ams):
            await in_epoch(zone, 2)
            await zone.drained_but_parked()
        after = await numbers_by_uuid(cluster)
        assert label.images <= 1 + len(meanwhile)
        made = {image["id"]: image["os_glance_v1_id"] for image in (kept, *meanwhile, lost, *offline.values())}
        assert made.items() <= after.items()
        assert len(after) == len(made) + 1, "more than what was made, and the one by the new epoch"
        assert before.items() <= after.items()
        assert [zone.gateway.status.document()["reoffers"] != [] for zone in (fra, ams)] == [True, False]
        assert fra.gateway.status.document()["data_used_bytes"] >= held_bytes
        for zone in (fra, ams):
            status = zone.gateway.status.document()
            assert (status["parked"], status["sessions_lost"]) == (0, [])
            assert (await zone.get(offline[zone]["self"]))["os_glance_v1_id"] == made[offline[zone]["id"]]
        assert await fra.data(lost) == BLOB
        assert (await fra.get(kept["self"]))["name"] == "renamed since"
        await both_zones_go_on(cluster, label, (fra, ams))


async def both_zones_go_on(cluster: Registry, label: Label, zones: tuple[Zone, ...]) -> None:
    fresh = [await zone.create_active(BLOB, name="in epoch 2") for zone in zones]
    for zone in zones:
        await zone.drained_but_parked()
    known = await numbers_by_uuid(cluster)
    for image in fresh:
        assert known[image["id"]] >= label.next_id + EPOCH_IDS_SKIPPED
    assert len(set(known.values())) == len(known)
