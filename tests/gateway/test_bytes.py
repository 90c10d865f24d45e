"""Bytes on the disk: never removed before what says so is durable, never left to nobody, never exchanged."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.gateway.running import Zone, running, until
from tests.gateway.test_drainer import HeldLink
from tests.registry import registry
from zonegw.data_stores import filesystem
from zonegw.data_stores.filesystem import FilesystemStore
from zonegw.data_stores.interface import mint_key


def shown(zone: Zone, image: dict[str, Any]) -> dict[str, Any] | None:
    """The image as the zone's tenants see it."""
    return zone.gateway.catalogue.get(zone.gateway.store.committed(), image["id"])


def location(zone: Zone, image: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (shown(zone, image) or {})["locations"][0]
    return found


async def test_bytes_stay_until_their_delete_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delete comes in just as the remover wakes up after the commit of an earlier one, and is not committed yet."""
    async with running(tmp_path) as zone:
        gateway, store = zone.gateway, zone.gateway.store
        made = [location(zone, await zone.create_active(b"x")) for _ in range(2)]
        late, early = sorted(made, key=lambda row: str(row["key"]))

        def discard(row: dict[str, Any]) -> None:
            with store.transaction() as txn:
                gateway.images.discard_bytes(txn, [row])

        with monkeypatch.context() as held:

            def committed(seconds: float) -> None:
                store.on_commit = None
                held.setattr(store, "commit", lambda: None)
                discard(late)

            discard(early)
            store.on_commit = committed
            gateway.placement.wake()
            await until(lambda: not gateway.data.exists(early["key"]), "the bytes to go")
            assert gateway.data.exists(late["key"]), "removed before anything on the disk says so"
        store.commit()
        gateway.placement.wake()
        await until(lambda: not gateway.data.exists(late["key"]), "the bytes to go")


async def test_an_upload_that_the_registry_refuses_leaves_no_bytes(tmp_path: Path) -> None:
    """The image is not of this zone, so the client hears the refusal and nothing is parked."""
    async with (
        registry(tmp_path) as cluster,
        running(tmp_path / "fra", registry=cluster) as fra,
        cluster.client() as client,
    ):
        await fra.drained()
        attributes = {"name": "n", "disk_format": "raw", "container_format": "bare", "visibility": "public"}
        made = await client.create_image(uuid=str(uuid4()), attributes=attributes)
        image = {"id": made["uuid"], "self": f"/v2/images/{made['uuid']}"}
        await until(lambda: shown(fra, image) is not None, "the image to come by the feed")
        gate = asyncio.Event()
        fra.gateway.drainer._link = HeldLink(fra.gateway.uplink, gate)
        headers = {"Content-Type": "application/octet-stream"}
        upload = asyncio.create_task(
            fra.status("PUT", f"{image['self']}/file", data=b"x", headers=headers, user="root")
        )
        await until(lambda: fra.gateway.queue.depth(fra.gateway.store.read()) == 1, "the upload to be queued")
        await client.delete_image(made["uuid"])
        gate.set()
        assert await upload == 404
        await until(lambda: fra.gateway.data.used_bytes == 0, "the bytes to go")


async def test_bytes_of_an_active_image_are_not_exchanged_by_a_slower_upload_to_another_gateway(
    tmp_path: Path,
) -> None:
    async with (
        registry(tmp_path) as cluster,
        running(tmp_path / "1", registry=cluster, zone="ams", gateway="ams-1") as first,
        running(tmp_path / "2", registry=cluster, zone="ams", gateway="ams-2") as second,
    ):
        await first.drained()
        await second.drained()
        image = await first.create(name="n", disk_format="raw", container_format="bare")
        await until(lambda: shown(second, image) is not None, "the image to come by the feed")
        gate = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"slow"
            await gate.wait()

        headers = {"Content-Type": "application/octet-stream"}
        slow = asyncio.create_task(second.status("PUT", f"{image['self']}/file", data=body(), headers=headers))
        await until(lambda: bool(second.gateway.image_data._uploading), "the slow upload to begin")
        await first.upload(image, b"fast")
        await until(lambda: (shown(second, image) or {})["status"] == "active", "the fast upload to be known")
        gate.set()
        assert await slow == 409
        await first.drained()
        await second.drained()
        assert (shown(second, image) or {})["size"] == 4
        assert len((shown(second, image) or {})["locations"]) == 1
        assert await second.data(image) == b"fast"


async def test_the_name_of_new_bytes_is_durable_up_to_the_top_also_where_another_upload_made_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That upload may have been cut off between making the directory and the fsync of the one above."""
    store = FilesystemStore(tmp_path, max_bytes=1 << 30, disk_reserve_bytes=1, chunk_bytes=1 << 20)
    key = mint_key()
    store.path(key).parent.mkdir()
    synced: list[Path] = []
    monkeypatch.setattr(filesystem, "fsync_directory", synced.append)

    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    await store.write(key, body())
    assert synced == [store.path(key).parent, tmp_path]


async def test_a_cached_file_that_somebody_removed_is_fetched_again_and_an_unknown_size_is_no_failure(
    tmp_path: Path,
) -> None:
    async with (
        registry(tmp_path) as cluster,
        running(tmp_path / "fra", registry=cluster) as fra,
        running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1") as ams,
        cluster.client() as client,
    ):
        await fra.drained()
        await ams.drained()
        await fra.gateway.zones.refresh()
        image = await ams.create_active(b"base", user="root", visibility="public")
        await until(lambda: (shown(fra, image) or {}).get("status") == "active", "the image to come by the feed")
        assert await fra.data(image) == b"base"
        key = location(fra, image)["key"]
        await until(lambda: key in fra.gateway.cache._files, "the copy to be kept")
        (tmp_path / "fra/data/cache" / key).unlink()
        assert await fra.data(image) == b"base"
        made = await client.create_image(
            uuid=str(uuid4()), attributes={"name": "n", "visibility": "public", "status": "active"},
            locations=[{"zone": "ams", "store": "default", "key": uuid4().hex}],
        )  # fmt: skip
        bare = {"id": made["uuid"], "self": f"/v2/images/{made['uuid']}"}
        await until(lambda: shown(fra, bare) is not None, "the image to come by the feed")
        assert await fra.status("GET", f"{bare['self']}/file") == 503
