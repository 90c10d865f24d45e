"""Bytes of deleted images: they go where the delete was said, however late it is heard, and nowhere else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from raftreg import errors
from raftreg.client import Client
from tests.gateway.restoring import PROMPT, in_epoch, restorable, zone_of
from tests.gateway.running import Zone, running, until
from tests.gateway.test_drainer import HeldLink
from tests.gateway.test_imports import files, imported, method, no_bytes
from tests.gateway.test_stores import TO_AMS, seen, two_zones
from tests.registry import Registry, registry
from tests.registry import until as until_so
from zonegw.data_stores.interface import DEFAULT_STORE

FORMATS = {"disk_format": "raw", "container_format": "bare"}


def rows(zone: Zone, table: str) -> int:
    return zone.gateway.store.committed().count(table)


async def holders(client: Client, image: dict[str, Any]) -> list[str]:
    """The zones that may still hold bytes of a deleted image, as an operator is told."""
    with pytest.raises(errors.ImageDeleted) as deleted:
        await client.get_image(image["id"])
    found: list[str] = deleted.value.details["holders"]
    return found


async def confirmed(client: Client, image: dict[str, Any]) -> None:
    async def by_all() -> bool:
        return await holders(client, image) == []

    await until_so(by_all)


async def forgotten(cluster: Registry) -> None:
    """No change up to now is in the feed any more."""
    async with cluster.client() as client:
        made = await client.create_image(attributes={"name": "the newest change"})
        await client.compact(floor=made["revision"])


async def test_every_zone_that_held_bytes_confirms_their_deletion(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two, two.cluster.client() as client:
        image = await two.fra.create_active(b"x" * 99, name="n")
        await imported(two.fra, image, method("copy-image") | {"stores": ["ams"]})
        await two.fra.drained()
        await seen(two.ams, image, stores={"fra", "ams"})
        gate = asyncio.Event()
        confirm = two.ams.gateway.uplink.confirm_deletions

        async def held(numbers: list[int]) -> None:
            await gate.wait()
            await confirm(numbers)

        two.ams.gateway.uplink.confirm_deletions = held  # type: ignore[method-assign]
        assert await two.fra.status("DELETE", image["self"]) == 204
        for zone in (two.fra, two.ams):
            await no_bytes(zone)

        async def only_ams() -> bool:
            return await holders(client, image) == ["ams"]

        await two.fra.drained()
        await until_so(only_ams)
        gate.set()
        await confirmed(client, image)
        await until(lambda: rows(two.ams, "confirmations") == 0, "nothing to be left to say")


async def _never(images: list[Any]) -> Any:
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("compacted", [False, True], ids=["in the feed", "past the compaction floor"])
async def test_a_zone_that_was_off_during_a_delete_loses_the_bytes_when_it_is_back(
    tmp_path: Path, compacted: bool
) -> None:
    async with registry(tmp_path) as cluster, cluster.client() as client:
        async with running(tmp_path / "fra", registry=cluster, **PROMPT) as fra:
            gone, stays = [await fra.create_active(name.encode(), name=name) for name in ("gone", "stays")]
            await fra.drained()
        await client.delete_image(gone["id"], force=True)
        if compacted:
            await forgotten(cluster)
        async with running(tmp_path / "fra", registry=cluster, **PROMPT) as fra:
            await fra.drained()
            await until(lambda: len(files(fra)) == 1, "the bytes of the deleted image to go")
            await confirmed(client, gone)
            assert await fra.data(stays) == b"stays"
            assert await fra.status("GET", gone["self"]) == 404
            assert rows(fra, "unseen") == 0
            assert fra.gateway.feed.resyncs == int(compacted)


async def test_a_location_that_names_no_data_key_ends_no_gateway(tmp_path: Path) -> None:
    """The registry takes any text as a key, from whoever may write to it."""
    location = {"zone": "fra", "store": DEFAULT_STORE, "key": "not a data key", "size": 1, "status": "active"}
    async with (
        registry(tmp_path) as cluster,
        cluster.client() as client,
        running(tmp_path / "fra", registry=cluster, **PROMPT) as fra,
    ):
        attributes = {"name": "n", "status": "active", "size": 1, **FORMATS}
        made = await client.create_image(attributes=attributes, locations=[location])
        image = {"id": made["uuid"]}
        await client.delete_image(image["id"], force=True)
        await confirmed(client, image)
        await until(lambda: rows(fra, "garbage") == 0, "the row to go")
        assert not fra.gateway.failed.done()


@pytest.mark.slow
async def test_bytes_of_an_upload_whose_ack_alone_was_heard_go_too(tmp_path: Path) -> None:
    """The catalogue never had the image: the zone hears the ack, then not the feed until all of it is forgotten."""
    async with registry(tmp_path) as cluster, cluster.client() as client:
        async with running(tmp_path / "fra", registry=cluster, **PROMPT) as fra:
            await fra.drained()
            fra.gateway._tasks[1].remove_done_callback(fra.gateway._ended)
            fra.gateway._tasks[1].cancel()  # the feed
            image = await fra.create_active(b"bytes", name="n")
            await until(lambda: fra.gateway.queue.depth(fra.gateway.store.read()) == 0, "the upload to be acked")
        await client.delete_image(image["id"], force=True)
        await forgotten(cluster)
        async with running(tmp_path / "fra", registry=cluster, **PROMPT) as fra:
            await fra.drained()
            await no_bytes(fra)
            await confirmed(client, image)


@pytest.mark.slow
async def test_a_copy_that_was_removed_while_the_zone_was_off_goes_past_the_floor_too(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, running(tmp_path / "fra", registry=cluster, **PROMPT) as fra:
        async with running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1", **PROMPT) as ams:
            await ams.drained()
            await fra.drained()
            await fra.gateway.zones.refresh()
            image = await fra.create(name="n", **FORMATS)
            assert await fra.status("PUT", f"{image['self']}/file", data=b"x", headers=TO_AMS) == 204
            await imported(fra, image, method("copy-image") | {"stores": ["fra"]})
            await fra.drained()
            await seen(ams, image, stores={"fra", "ams"})
        assert await fra.status("DELETE", f"/v2/stores/ams/{image['id']}") == 204
        await fra.drained()
        await forgotten(cluster)
        async with running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1", **PROMPT) as ams:
            await ams.drained()
            await no_bytes(ams)
            assert await fra.data(image) == b"x"


async def test_bytes_of_images_that_the_registry_does_not_know_stay_and_are_asked_for_again(tmp_path: Path) -> None:
    """The registry is restored from a backup in which they are not, and the writes that made them are not kept."""
    async with restorable(tmp_path) as registry, zone_of(registry, tmp_path, queue_retain_h=1e-9) as fra:
        file = await registry.save()
        image = await fra.create_active(b"bytes", name="n")
        await fra.drained()
        await until(lambda: rows(fra, "retained") == 0, "the writes to be forgotten")
        await registry.restore(file, fra)
        await in_epoch(fra, 2)
        key = UUID(image["id"]).bytes
        await until(
            lambda: fra.gateway.store.committed().row("unseen", key)["fate"] == "unknown", "the registry's word"
        )
        assert [path.read_bytes() for path in files(fra)] == [b"bytes"]
        async with registry.cluster.client() as client:
            assert await fra.status("GET", image["self"]) == 404
            again = {name: image[name] for name in ("name",)}
            location = fra.gateway.store.committed().row("unseen", key)["image"]["locations"][0]
            await client.create_image(uuid=image["id"], attributes=again, locations=[location])
            fra.gateway.deletions.ask()
            await until(lambda: fra.gateway.catalogue.get(fra.gateway.store.committed(), image["id"]) is not None, "it")
            # The same UUID under another number: it is not known that this is the same image.
            assert fra.gateway.store.committed().row("unseen", key)["fate"] == "unknown"
        assert [path.read_bytes() for path in files(fra)] == [b"bytes"]


@pytest.mark.slow
async def test_an_image_that_is_deleted_before_it_was_sent_is_confirmed_in_the_end(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, running(tmp_path / "fra", registry=cluster) as fra:
        await fra.drained()
        gate = asyncio.Event()
        fra.gateway.drainer._link = HeldLink(fra.gateway.uplink, gate)
        first = await fra.create(name="what is in flight")
        image = await fra.create_active(b"x", name="n")
        assert await fra.status("DELETE", image["self"]) == 204
        await no_bytes(fra)
        gate.set()
        await fra.drained()
        async with cluster.client() as client:
            await confirmed(client, image)
            assert await fra.status("GET", first["self"]) == 200


@pytest.mark.slow
async def test_a_crash_between_forgetting_an_image_and_asking_for_it_leaves_no_bytes(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, cluster.client() as client:
        async with running(tmp_path / "fra", registry=cluster, **PROMPT) as fra:
            image = await fra.create_active(b"x", name="n")
            await fra.drained()
        await client.delete_image(image["id"], force=True)
        await forgotten(cluster)
        async with running(tmp_path / "fra", registry=cluster, **PROMPT) as fra:
            fra.gateway.uplink.fates = _never  # type: ignore[method-assign]
            await fra.drained()
            await until(lambda: rows(fra, "unseen") == 1, "the image to be missed")
            assert len(files(fra)) == 1
        async with running(tmp_path / "fra", registry=cluster, **PROMPT) as fra:
            await no_bytes(fra)
            await confirmed(client, image)


@pytest.mark.slow
async def test_an_image_that_left_the_tenant_set_loses_its_bytes_only_when_it_is_deleted(tmp_path: Path) -> None:
    """The feed does not tell of it any more, so the registry is asked now and then."""
    async with (
        registry(tmp_path) as cluster,
        cluster.client() as client,
        running(tmp_path / "fra", registry=cluster, tenants=["demo"], **PROMPT) as fra,
    ):
        image = await fra.create_active(b"bytes", name="n")
        await fra.drained()
        await client.update_image(image["id"], {"owner": "other"}, force=True)
        await until(lambda: rows(fra, "unseen") == 1, "the image to leave the catalogue")
        fra.gateway.deletions.ask()
        key = UUID(image["id"]).bytes
        await until(lambda: fra.gateway.store.committed().row("unseen", key)["fate"] == "live", "the registry's word")
        assert await fra.status("GET", image["self"]) == 404
        assert len(files(fra)) == 1
        await client.delete_image(image["id"], force=True)
        fra.gateway.deletions.ask()
        await no_bytes(fra)
        await confirmed(client, image)
