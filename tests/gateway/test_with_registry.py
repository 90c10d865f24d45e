"""A gateway and a real registry: draining, feed, other zones, lost sessions."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from raftreg import errors
from tests.gateway.running import Zone, running, until
from tests.registry import Registry, registry
from zonegw import tls
from zonegw.config import Tls
from zonegw.limits import MIB

BLOB = os.urandom(3 * MIB + 17)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as running_cluster:
        yield running_cluster


def parked(zone: Zone) -> list[dict[str, Any]]:
    gateway = zone.gateway
    return list(gateway.queue.parked(gateway.store.read()))


async def in_catalogue(zone: Zone, image: dict[str, Any], **expected: Any) -> None:
    """Wait until the zone's tenants see the image with these attributes."""

    def seen() -> bool:
        shown = zone.gateway.catalogue.get(zone.gateway.store.committed(), image["id"])
        return shown is not None and all(shown[name] == value for name, value in expected.items())

    await until(seen, f"{image['id']} with {expected}")


async def gone(zone: Zone, image: dict[str, Any]) -> None:
    await until(
        lambda: zone.gateway.catalogue.get(zone.gateway.store.committed(), image["id"]) is None, "the image to go"
    )


async def test_what_a_zone_acknowledged_reaches_the_registry_with_its_number(cluster: Registry, tmp_path: Path) -> None:
    async with running(tmp_path / "fra", registry=cluster) as zone, cluster.client() as client:
        await zone.drained()
        image = await zone.create_active(BLOB, name="backup", tags=["t"], os_distro="x")
        assert await zone.rename(image, "renamed") == 200
        await zone.drained()
        registered = await client.get_image(image["id"])
        assert registered["number"] == image["os_glance_v1_id"]
        assert registered["name"] == "renamed"
        assert (registered["status"], registered["size"]) == ("active", len(BLOB))
        assert registered["home_zone"] == "fra"
        assert registered["properties"] == {"os_distro": "x"}
        assert zone.gateway.status.document()["parked"] == 0


async def test_writes_made_while_the_registry_is_away_are_drained_in_order(cluster: Registry, tmp_path: Path) -> None:
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await zone.drained()
        await cluster.stop("a")
        await until(lambda: zone.gateway.status.state == "degraded", "the link to count as down")
        images = [await zone.create_active(b"data", name=f"offline-{n}") for n in range(5)]
        for n in range(20):
            assert await zone.rename(images[0], f"name-{n}") == 200
        assert await zone.status("DELETE", images[1]["self"]) == 204
        assert sorted(await zone.names()) == ["name-19", "offline-2", "offline-3", "offline-4"]
        await cluster.start("a")
        await zone.drained()
        async with cluster.client() as client:
            assert (await client.get_image(images[0]["id"]))["name"] == "name-19"
            with pytest.raises(errors.ImageDeleted):
                await client.get_image(images[1]["id"])
            numbers = [(await client.get_image(i["id"]))["number"] for i in images[2:]]
        assert numbers == [i["os_glance_v1_id"] for i in images[2:]]
        assert parked(zone) == []
        assert sorted(await zone.names()) == ["name-19", "offline-2", "offline-3", "offline-4"]


async def test_a_create_without_a_number_gets_one_from_the_registry(cluster: Registry, tmp_path: Path) -> None:
    async with running(tmp_path / "fra") as zone:
        image = await zone.create_active(b"x", name="early")
        assert image["os_glance_v1_id"] is None
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await zone.drained()
        assert (await zone.get(image["self"]))["os_glance_v1_id"] >= 1
        assert (await zone.get(image["self"]))["status"] == "active"


async def test_the_catalogue_follows_other_zones_and_survives_a_restart(cluster: Registry, tmp_path: Path) -> None:
    async with running(tmp_path / "fra", registry=cluster) as fra:
        await fra.drained()
        async with running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1") as ams:
            await ams.drained()
            image = await ams.create_active(BLOB, user="root", name="base", visibility="public")
            await in_catalogue(fra, image, status="active")
            assert await fra.names() == ["base"]
            doomed = await ams.create_active(b"x", user="root", name="doomed", visibility="public")
            await in_catalogue(fra, doomed, status="active")
    async with cluster.client() as client:
        await client.delete_image(doomed["id"])
    async with running(tmp_path / "fra", registry=cluster) as fra:
        await gone(fra, doomed)
        assert await fra.names() == ["base"]
        position = fra.gateway.status.cursor()
        assert int(position.split(".")[1]) > 0
    async with running(tmp_path / "fra") as fra:
        assert await fra.names() == ["base"]
        async with fra.ask("GET", "/v2/images") as answer:
            assert answer.headers["X-Zonegw-State"] == "degraded"


async def test_data_of_another_zone_is_fetched_once_verified_and_kept_for_the_time_cut_off(
    cluster: Registry, tmp_path: Path
) -> None:
    async with running(tmp_path / "fra", registry=cluster) as fra:
        async with running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1") as ams:
            await fra.drained()
            await ams.drained()
            await fra.gateway.zones.refresh()
            image = await ams.create_active(BLOB, user="root", name="base", visibility="public")
            other = await ams.create_active(b"never fetched", user="root", name="other", visibility="public")
            await in_catalogue(fra, image, status="active")
            await in_catalogue(fra, other, status="active")
            copies = await asyncio.gather(*(fra.data(image) for _ in range(8)))
            assert all(copy == BLOB for copy in copies)
            assert fra.gateway.cache.misses == 1
            assert await fra.data(image, headers={"Range": "bytes=7-99"}) == BLOB[7:100]
        assert await fra.data(image) == BLOB
        async with fra.ask("GET", f"{other['self']}/file") as answer:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) >= 1
    async with running(tmp_path / "fra") as fra:
        assert await fra.data(image) == BLOB


async def test_wrong_bytes_from_another_zone_never_become_a_complete_answer(cluster: Registry, tmp_path: Path) -> None:
    async with (
        running(tmp_path / "fra", registry=cluster) as fra,
        running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1") as ams,
    ):
        await ams.drained()
        await fra.drained()
        await fra.gateway.zones.refresh()
        image = await ams.create_active(BLOB, user="root", visibility="public")
        await in_catalogue(fra, image, status="active")
        key = ams.gateway.catalogue.get(ams.gateway.store.committed(), image["id"])["locations"][0]["key"]  # type: ignore[index]
        path = ams.gateway.data.path(key)
        path.write_bytes(BLOB[:-1] + bytes([BLOB[-1] ^ 1]))
        with pytest.raises(aiohttp.ClientPayloadError):
            await fra.data(image)
        assert not list((tmp_path / "fra" / "data" / "cache").glob("?" * 32))


async def test_only_gateways_read_data_between_zones(cluster: Registry, tmp_path: Path) -> None:
    async with running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1") as ams:
        await ams.drained()
        image = await ams.create_active(b"x")
        key = ams.gateway.catalogue.get(ams.gateway.store.committed(), image["id"])["locations"][0]["key"]  # type: ignore[index]
        host, port = ams.gateway.interzone_address or ("", 0)
        url = f"https://{host}:{port}/zonegw/v1/data/{key}"
        for who, status in (("fra-1", 200), ("operator", 403), ("a", 403)):
            files = cluster.tls(who)
            context = tls.client_context(Tls(files.ca, files.cert, files.key))
            async with ams.http.get(url, ssl=context) as answer:
                assert answer.status == status, who


async def test_an_image_of_another_zone_is_changed_with_the_registry_only(cluster: Registry, tmp_path: Path) -> None:
    async with (
        running(tmp_path / "fra", registry=cluster) as fra,
        running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1") as ams,
    ):
        await fra.drained()
        await ams.drained()
        image = await ams.create_active(b"x", name="theirs")
        await in_catalogue(fra, image, status="active")
        assert await fra.rename(image, "by fra") == 200
        assert (await fra.get(image["self"]))["name"] == "by fra"
        await in_catalogue(ams, image, name="by fra")
        await cluster.stop("a")
        await until(lambda: fra.gateway.status.state == "degraded", "the link to count as down")
        async with fra.ask("DELETE", image["self"]) as answer:
            assert answer.status == 503
            assert "zone ams" in await answer.text()
            assert "Retry-After" in answer.headers
        assert await ams.rename(image, "by ams, offline") == 200
        assert fra.gateway.queue.depth(fra.gateway.store.read()) == 0


async def test_a_refused_write_is_parked_with_the_later_ones_of_its_image(cluster: Registry, tmp_path: Path) -> None:
    uuid = str(uuid4())
    async with cluster.client() as client:
        await client.create_image(uuid=uuid, attributes={"name": "first", "visibility": "public"})
    async with running(tmp_path / "fra") as zone:
        image = await zone.create(id=uuid, name="second", disk_format="raw", container_format="bare")
        await zone.upload(image, b"kept")
        for n in range(3):
            assert await zone.rename(image, f"second-{n}") == 200
        other = await zone.create_active(b"x", name="unharmed")
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await until(lambda: len(parked(zone)) == 5, f"five parked writes: {zone.gateway.status.document()}")
        await zone.drained_but_parked()
        rows = parked(zone)
        assert rows[0]["reason"]["code"] == "uuid_taken"
        assert {row["write"]["uuid"] for row in rows} == {uuid}
        assert (await zone.get(image["self"]))["name"] == "first"
        shown = await zone.get(other["self"])
        assert shown["os_glance_parked"] is False
        assert zone.gateway.data.used_bytes == 5
        async with cluster.client() as client:
            assert (await client.get_image(uuid))["name"] == "first"
            assert (await client.get_image(other["id"]))["status"] == "active"


async def test_updates_conflict_only_where_the_same_attribute_changed(cluster: Registry, tmp_path: Path) -> None:
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await zone.drained()
        image = await zone.create_active(b"x", name="old", color="red", size_class="s")
        await zone.drained()
    async with running(tmp_path / "fra") as zone:
        assert await zone.rename(image, "ours") == 200
        assert await zone.patch(image, {"op": "replace", "path": "/color", "value": "blue"}) == 200
        assert await zone.rename(image, "ours again") == 200
    async with cluster.client() as client:
        await client.update_image(image["id"], set={"properties.color": "green", "min_ram": 7}, force=True)
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await until(lambda: len(parked(zone)) >= 1, f"a parked write: {zone.gateway.status.document()}")
        await zone.drained_but_parked()
        codes = [row["reason"]["code"] for row in parked(zone)]
        assert codes[0] == "conflict"
        assert parked(zone)[0]["write"]["command"]["set"] == {"properties.color": "blue"}
        shown = await zone.get(image["self"])
        assert (shown["name"], shown["color"], shown["min_ram"]) == ("ours", "green", 7)


async def test_a_rolled_back_data_directory_is_fenced_sealed_and_parked(cluster: Registry, tmp_path: Path) -> None:
    directory = tmp_path / "fra"
    async with running(directory, registry=cluster) as zone:
        await zone.drained()
        await zone.create_active(b"x", name="before")
        await zone.drained()
    shutil.copytree(directory / "data" / "store", tmp_path / "copy")
    async with running(directory, registry=cluster) as zone:
        lost = await zone.create_active(b"y", name="after the copy")
        await zone.drained()
    shutil.rmtree(directory / "data" / "store")
    shutil.copytree(tmp_path / "copy", directory / "data" / "store")
    async with running(directory) as zone:
        offline = await zone.create(name="from the old copy")
        assert offline["os_glance_v1_id"] is None, "the copied directory must not hand out its IDs"
    async with running(directory, registry=cluster) as zone:
        await until(lambda: len(parked(zone)) == 1, f"the write to be parked: {zone.gateway.status.document()}")
        assert parked(zone)[0]["write"]["uuid"] == offline["id"]
        assert (await zone.get(offline["self"]))["os_glance_parked"] is True
        document = zone.gateway.status.document()
        assert "session_diverged" in document["sessions_lost"][0]["reason"]
        fresh = await zone.create_active(b"z", name="goes on")
        await zone.drained_but_parked()
        async with cluster.client() as client:
            assert (await client.get_image(fresh["id"]))["name"] == "goes on"
            numbers = {(await client.get_image(i["id"]))["number"] for i in (lost, fresh)}
        assert len(numbers) == 2
        assert (await zone.get(lost["self"]))["name"] == "after the copy"


async def test_bytes_of_a_deleted_image_go_in_every_zone(cluster: Registry, tmp_path: Path) -> None:
    async with (
        running(tmp_path / "fra", registry=cluster) as fra,
        running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1") as ams,
    ):
        await fra.drained()
        await ams.drained()
        await fra.gateway.zones.refresh()
        image = await ams.create_active(BLOB, user="root", visibility="public")
        await in_catalogue(fra, image, status="active")
        assert await fra.data(image) == BLOB
        await until(lambda: fra.gateway.cache.used_bytes == len(BLOB), "the copy to be kept")
        assert await ams.status("DELETE", image["self"], user="root") == 204
        await gone(fra, image)
        await until(lambda: fra.gateway.cache.used_bytes == 0, "the cached copy to go")
        await until(lambda: ams.gateway.data.used_bytes == 0, "the bytes to go")


async def test_a_client_that_echoes_the_revision_never_sees_an_older_catalogue(
    cluster: Registry, tmp_path: Path
) -> None:
    async with (
        running(tmp_path / "fra", registry=cluster) as fra,
        running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1") as ams,
    ):
        await fra.drained()
        await ams.drained()
        image = await ams.create(user="root", name="base", visibility="public")
        await ams.drained()
        async with ams.ask("GET", image["self"], user="root") as answer:
            revision = answer.headers["X-Zonegw-Revision"]
        assert await fra.status("GET", image["self"], headers={"X-Zonegw-Revision": revision}) == 200
        epoch, _, number = revision.partition(".")
        for echoed, status in ((f"{epoch}.{int(number) + 10**6}", 503), ("x", 400), ("none", 200)):
            assert await fra.status("GET", image["self"], headers={"X-Zonegw-Revision": echoed}) == status


async def test_a_feed_that_cannot_go_on_is_resynced_and_only_what_was_deleted_loses_its_bytes(
    cluster: Registry, tmp_path: Path
) -> None:
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await zone.drained()
        kept = await zone.create_active(BLOB, name="kept")
        lost = await zone.create_active(BLOB, name="lost")
        await zone.drained()
    async with cluster.client() as client:
        deleted = await client.delete_image(lost["id"], force=True)
        await client.compact(floor=deleted["revision"] + 1)
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await gone(zone, lost)
        await zone.drained()
        assert zone.gateway.feed.resyncs == 1
        assert zone.gateway.status.cursor().startswith("1.")
        assert await zone.names() == ["kept"]
        assert await zone.data(kept) == BLOB
        await until(lambda: zone.gateway.data.used_bytes == len(BLOB), "the bytes of the deleted image to go")


async def test_clients_are_shown_and_told_only_what_is_on_the_disk(tmp_path: Path) -> None:
    """A change of the feed is seen, and counted in position and staleness, from its commit on."""
    async with (
        registry(tmp_path) as cluster,
        cluster.client() as client,
        running(tmp_path / "fra", registry=cluster) as fra,
    ):
        image = await fra.create(name="before")
        await fra.drained()
        store, feed, status = fra.gateway.store, fra.gateway.feed, fra.gateway.status
        await feed.confirmed()
        held = _Held(store.commit)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "commit", held)
            seen, complete_to = status.cursor(), feed._complete_to
            await client.update_image(image["id"], {"name": "after"}, force=True)
            number = int(seen.split(".")[1])
            await until(lambda: (fra.gateway.catalogue.position(store.read()) or (0, 0))[1] > number, "the change")
            await held.wanted.wait()
            feed.confirm(fra.gateway.catalogue.position(store.read()) or (0, 0), (complete_to or 0) + 1000)
            assert await fra.names() == ["before"]
            assert (await fra.get(image["self"]))["name"] == "before"
            assert status.cursor() == seen
            assert feed._complete_to is not None
            assert feed._complete_to < (complete_to or 0) + 1000
        held.commit()
        assert await fra.names() == ["after"]
        assert status.cursor() > seen
        assert feed._complete_to == (complete_to or 0) + 1000


class _Held:
    """A commit that is asked for and does not come."""

    def __init__(self, commit: Callable[[], None]) -> None:
        self.commit, self.wanted = commit, asyncio.Event()

    def __call__(self) -> None:
        self.wanted.set()
