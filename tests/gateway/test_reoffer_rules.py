"""The rules of offering again, one by one: conflicts, refusals, several restores, sessions and numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from raftreg import errors, wire
from raftreg.client import Client
from tests.gateway.restoring import Restorable, files, garbage, in_epoch, parked, restorable, zone_of
from tests.gateway.running import Zone, until
from tests.gateway.test_drainer import HeldLink

pytestmark = pytest.mark.slow  # a cluster and its restore for each; `test_reoffers` has a quick one for all
BLOB = b"image data"


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Restorable]:
    async with restorable(tmp_path) as one:
        yield one


def reoffered(zone: Zone) -> list[int]:
    """Writes of each rewind."""
    return [reoffer["writes"] for reoffer in zone.gateway.status.document()["reoffers"]]


async def drain_error(zone: Zone, words: str) -> None:
    await until(lambda: words in (zone.gateway.drainer.last_error or ""), f"the drainer to say: {words}")


# -- what others did meanwhile ------------------------------------------------------------------------------------


async def test_what_others_did_in_the_new_epoch_meets_re_offers_as_it_meets_pending_writes(
    registry: Restorable, tmp_path: Path
) -> None:
    """The table of pairs holds for writes that were acked before, and nothing else conflicts, although their base
    versions are of a time line that was lost: the zone's own writes before the backup and behind it are no others'."""
    image: dict[str, dict[str, Any]] = {}
    async with zone_of(registry, tmp_path) as zone:
        for name in ("both", "other attribute", "deleted", "protected", "ours alone", "pending"):
            image[name] = await zone.create_active(BLOB, name=name)
        assert await zone.rename(image["ours alone"], "before the backup") == 200
        await zone.drained()
        file = await registry.save()
        for n in range(2):  # the second one's base version is above all that the backup has
            for name in ("both", "other attribute", "ours alone"):
                if (name, n) != ("both", 0):
                    assert await zone.rename(image[name], f"ours {n}") == 200
            if n == 0:
                assert await zone.patch(image["both"], {"op": "replace", "path": "/min_disk", "value": 5}) == 200
            await zone.drained()
        assert await zone.rename(image["deleted"], "ours") == 200
        await zone.drained()
        await registry.stop(zone)
        for name in ("pending", "ours alone"):
            assert await zone.rename(image[name], "ours, pending") == 200
        assert await zone.status("DELETE", image["protected"]["self"]) == 204
    await registry.start_from(file)
    async with registry.cluster.client() as client:
        theirs: dict[str, dict[str, Any]] = {
            "both": {"name": "theirs"}, "other attribute": {"min_ram": 7}, "pending": {"name": "theirs"},
            "protected": {"protected": True},
        }  # fmt: skip
        for name, change in theirs.items():
            await client.update_image(image[name]["id"], set=change, force=True)
        await client.delete_image(image["deleted"]["id"], force=True)
    async with zone_of(registry, tmp_path) as zone:
        await in_epoch(zone, 2)
        assert parked(zone) == [
            (image["both"]["id"], "update_image", "conflict"),
            (image["deleted"]["id"], "update_image", "image_deleted"),
            (image["pending"]["id"], "update_image", "conflict"),
            (image["protected"]["id"], "delete_image", "protected"),
        ]
        shown = {name: await zone.get(image[name]["self"]) for name in image if name != "deleted"}
        assert (shown["both"]["name"], shown["pending"]["name"]) == ("theirs", "theirs")
        assert shown["both"]["min_disk"] == 5
        assert (shown["other attribute"]["name"], shown["other attribute"]["min_ram"]) == ("ours 1", 7)
        assert shown["ours alone"]["name"] == "ours, pending"
        assert reoffered(zone) == [7]
        # The delete was refused, so the bytes are there.
        assert await zone.data(image["protected"]) == BLOB


async def bind(client: Client, number: int) -> None:
    """Another gateway brings back an image with this number first."""
    session = str(uuid4())
    await client.open_session(
        gateway="ams-1", zone="ams", session=session, highest_sequence=0, acked_sequence=0, acked_hash=bytes(16)
    )
    create = {"op": "create_image", "uuid": str(uuid4()), "attributes": {}, "home_zone": "ams", "number": number}
    operation = {"sequence": 1, "previous_hash": wire.CHAIN_START, "payload": wire.pack(create)}
    (result,) = await client.session_operations(session, [operation], gateway="ams-1")
    assert result["ok"]["result"]["ok"]["number"] == number


async def test_a_re_offered_image_whose_number_or_uuid_is_taken_is_parked_and_keeps_its_bytes(
    registry: Restorable, tmp_path: Path
) -> None:
    file = await registry.save()
    async with zone_of(registry, tmp_path) as zone:
        formats = {"disk_format": "raw", "container_format": "bare"}
        images = [await zone.create(name=name, **formats) for name in ("number", "uuid", "fine")]
        await zone.drained()
        for image in images:  # each by itself: it names its image by number and UUID
            await zone.upload(image, BLOB)
        await zone.drained()
        before = files([zone])
        await registry.stop(zone)
    await registry.start_from(file)
    async with registry.cluster.client() as client:
        await bind(client, images[0]["os_glance_v1_id"])
        await client.create_image(uuid=images[1]["id"], attributes={"name": "theirs", "visibility": "public"})
    async with zone_of(registry, tmp_path) as zone:
        await in_epoch(zone, 2)
        assert parked(zone) == [
            (images[0]["id"], "create_image", "number_taken"),
            (images[1]["id"], "create_image", "uuid_taken"),
            (images[0]["id"], "update_image", "image_mismatch"),
            (images[1]["id"], "update_image", "image_mismatch"),
        ]
        assert files([zone]) == before
        assert (await zone.get(images[0]["self"]))["os_glance_parked"] is True
        assert await zone.data(images[0]) == BLOB
        assert (await zone.get(images[1]["self"]))["name"] == "theirs"
        found = await registry.images()
        assert found[images[2]["id"]]["status"] == "active"
        assert (found[images[1]["id"]]["status"], found[images[1]["id"]]["locations"]) == ("queued", [])


async def test_what_was_refused_before_is_not_offered_again(registry: Restorable, tmp_path: Path) -> None:
    """The update was parked, and a client was told that its change of another zone's image is refused: the restored
    registry, in which nothing speaks against either, gets neither."""
    async with zone_of(registry, tmp_path) as zone, registry.cluster.client() as client:
        image = await zone.create(name="old")
        await zone.drained()
        created = await client.create_image(attributes={"name": "of nobody", "visibility": "public", "owner": "demo"})
        foreign = {"self": f"/v2/images/{created['uuid']}"}
        await until(lambda: zone.gateway.catalogue.known(zone.gateway.store.committed(), created["uuid"]), "the image")
        file = await registry.save()
        await registry.stop(zone)
        assert await zone.rename(image, "ours") == 200
        await registry.cluster.start("a")
        await client.update_image(image["id"], set={"name": "theirs"}, force=True)
        await client.update_image(created["uuid"], set={"protected": True}, force=True)
        await zone.drained()
        assert parked(zone) == [(image["id"], "update_image", "conflict")]
        assert await zone.status("DELETE", foreign["self"]) == 403
        later = await zone.create(name="later")
        await zone.drained()
        await registry.restore(file, zone)
        await in_epoch(zone, 2)
        assert reoffered(zone) == [1]
        assert parked(zone) == [(image["id"], "update_image", "conflict")]
        images = await registry.images()
        assert (images[image["id"]]["name"], images[later["id"]]["name"]) == ("old", "later")
        assert created["uuid"] in images


async def test_an_image_that_was_made_and_deleted_behind_the_backup_is_deleted_again(
    registry: Restorable, tmp_path: Path
) -> None:
    """And one whose bytes went with its delete before the disaster is deleted in the new epoch as well."""
    async with zone_of(registry, tmp_path) as zone:
        older = await zone.create_active(BLOB, name="older")
        kept = await zone.create_active(BLOB, name="kept")
        await zone.drained()
        file = await registry.save()
        newer = await zone.create_active(BLOB, name="newer")
        await zone.drained()
        for image in (older, newer):
            assert await zone.status("DELETE", image["self"]) == 204
        await zone.drained()
        await registry.restore(file, zone)
        await in_epoch(zone, 2)
        assert parked(zone) == []
        assert await zone.names() == ["kept"]
        assert set(await registry.images()) == {kept["id"]}
        async with registry.cluster.client() as client:
            with pytest.raises(errors.ImageDeleted) as deleted:
                await client.get_image(newer["id"])
        assert deleted.value.details["number"] == newer["os_glance_v1_id"]
        assert await zone.data(kept) == BLOB


async def test_bytes_of_a_re_offered_image_go_only_with_its_acknowledged_delete(
    registry: Restorable, tmp_path: Path
) -> None:
    """Its create is pending and not sent, as a new image's is; but other zones knew it, and the registry may refuse."""
    async with zone_of(registry, tmp_path) as zone:
        file = await registry.save()
        image = await zone.create_active(BLOB, name="lost")
        await zone.drained()
        gate = asyncio.Event()
        zone.gateway.drainer._link = HeldLink(zone.gateway.uplink, gate)
        await registry.restore(file, zone)
        await until(lambda: reoffered(zone) == [2], "the rewind")
        held = files([zone])
        assert await zone.status("DELETE", image["self"]) == 204
        assert garbage(zone) == 0
        gate.set()
        await in_epoch(zone, 2)
        assert held
        await until(lambda: files([zone]) == {}, "the bytes to go")
        assert (await registry.images(), parked(zone)) == ({}, [])


class SilentLink(HeldLink):
    """The uplink, but the handshake has its answer only once `gate` is open."""

    async def open_session(self, session: dict[str, Any]) -> dict[str, Any]:
        await self._gate.wait()
        answer: dict[str, Any] = await self._uplink.open_session(session)
        return answer


async def test_the_catalogue_enters_no_epoch_before_what_that_lacks_is_laid_over_it(
    registry: Restorable, tmp_path: Path
) -> None:
    """Else a reader would miss for a moment what was acknowledged: the feed is there sooner than the handshake."""
    async with zone_of(registry, tmp_path) as zone:
        file = await registry.save()
        image = await zone.create_active(BLOB, name="lost")
        await zone.drained()
        gate = asyncio.Event()
        zone.gateway.drainer._sessions._link = SilentLink(zone.gateway.uplink, gate)
        await registry.restore(file, zone)
        await until(lambda: "no handshake there yet" in (zone.gateway.feed.last_error or ""), "the feed to wait")
        assert zone.gateway.catalogue.epoch(zone.gateway.store.committed()) == 1
        assert await zone.data(image) == BLOB
        gate.set()
        await in_epoch(zone, 2)
        assert await zone.data(image) == BLOB


# -- several restores, and wrong ones -----------------------------------------------------------------------------


async def test_two_restores_in_a_row_bring_all_back_both_times(registry: Restorable, tmp_path: Path) -> None:
    """First the older backup of epoch 1, then one of epoch 2, then the first once more."""
    async with zone_of(registry, tmp_path) as zone:
        images = [await zone.create_active(BLOB, name="0")]
        await zone.drained()
        first = await registry.save("first")

        async def write(name: str) -> None:
            images.append(await zone.create_active(BLOB, name=name))
            assert await zone.rename(images[0], f"renamed {name}") == 200

        await write("1")
        await zone.drained()
        await registry.restore(first, zone)
        await in_epoch(zone, 2)
        second = await registry.save("second")
        await write("2")
        await zone.drained()
        for file, epoch in ((second, 3), (first, 4)):
            await registry.stop(zone)
            await write(f"pending in {epoch}")
            await registry.start_from(file, epoch=epoch)
            await in_epoch(zone, epoch)
            found = await registry.images()
            assert {image["number"]: uuid for uuid, image in found.items()} == {
                image["os_glance_v1_id"]: image["id"] for image in images
            }
            assert all(image["status"] == "active" for image in found.values())
            assert found[images[0]["id"]]["name"] == f"renamed pending in {epoch}"
            assert parked(zone) == []
        assert reoffered(zone) == [3, 3, 9]
        assert zone.gateway.status.document()["sessions_lost"] == []


async def test_a_gateway_waits_where_the_registry_lives_in_an_epoch_that_it_has_left(
    registry: Restorable, tmp_path: Path
) -> None:
    """The same backup is restored again, under the same number and under an older one: the gateway takes no part, goes
    on in its zone, and comes along when the epoch is a new one."""
    async with zone_of(registry, tmp_path) as zone:
        file = await registry.save()
        image = await zone.create_active(BLOB, name="lost")
        await zone.drained()
        await registry.restore(file, zone, epoch=3)
        await in_epoch(zone, 3)
        for epoch in (3, 2):
            await registry.restore(file, zone, epoch=epoch)
            await drain_error(zone, "restore it once more with --epoch 4 or higher")
            offline = await zone.create_active(BLOB, name=f"while it waits {epoch}")
            assert await zone.data(image) == BLOB
            assert await registry.images() == {}
        status = zone.gateway.status.document()
        assert (status["parked"], status["sessions_lost"], reoffered(zone)) == (0, [], [2])
        await registry.restore(file, zone, epoch=4)
        await in_epoch(zone, 4)
        assert (await registry.images())[offline["id"]]["number"] == offline["os_glance_v1_id"]
        assert reoffered(zone) == [2, 2]
        assert sorted(await zone.names()) == ["lost", "while it waits 2", "while it waits 3"]


async def test_a_gateway_whose_store_is_older_than_the_backup_is_fenced_in_a_new_epoch_too(
    registry: Restorable, tmp_path: Path
) -> None:
    """The registry has another operation where this store remembers its own: nothing is offered, all is parked."""
    async with zone_of(registry, tmp_path) as zone:
        await zone.create(name="a")
        await zone.drained()
        file = await registry.save()
        await zone.create(name="b")
        await zone.drained()
        await registry.stop(zone)
        with zone.gateway.store.transaction() as txn:
            first, _ = next(txn.scan("retained"))
            txn.put_row("retained", first, txn.row("retained", first) | {"hash": bytes(16)})
        await registry.start_from(file)
        await in_epoch(zone, 2)
        status = zone.gateway.status.document()
        assert "operation 1 of the session is another one" in status["sessions_lost"][0]["reason"]
        assert [(op, code) for _, op, code in parked(zone)] == [("create_image", "session_lost")]
        assert reoffered(zone) == []


# -- sessions -----------------------------------------------------------------------------------------------------


async def test_sessions_that_began_behind_the_backup_are_offered_from_their_first_operation_on(
    registry: Restorable, tmp_path: Path
) -> None:
    """The session in force was lost behind the backup: what it had drained until then comes back too, and the next
    one's, in the order of acknowledgement."""
    async with zone_of(registry, tmp_path) as zone:
        old = await zone.create(name="in the backup")
        await zone.drained()
        file = await registry.save()
        image = await zone.create(name="0")
        assert await zone.rename(image, "1") == 200
        await zone.drained()
        async with registry.cluster.client() as client:
            await client.open_session(
                gateway="fra-1", zone="fra", session=str(uuid4()), highest_sequence=0, acked_sequence=0,
                acked_hash=bytes(16),
            )  # fmt: skip
        zone.gateway.drainer.link_changed(True)
        await until(lambda: bool(zone.gateway.status.document()["sessions_lost"]), "the session to be lost")
        await until(lambda: zone.gateway.ids.on_hand(zone.gateway.store.committed()) > 0, "IDs of the next session")
        assert await zone.rename(image, "2") == 200
        newer = await zone.create(name="newer")
        await zone.drained()
        await registry.restore(file, zone)
        await in_epoch(zone, 2)
        assert reoffered(zone) == [4]
        found = await registry.images()
        assert {one["id"]: one["os_glance_v1_id"] for one in (old, image, newer)} == {
            uuid: one["number"] for uuid, one in found.items()
        }
        assert found[image["id"]]["name"] == "2"
        assert parked(zone) == []


async def test_a_gateway_that_the_backup_does_not_know_brings_everything(registry: Restorable, tmp_path: Path) -> None:
    file = await registry.save()
    async with zone_of(registry, tmp_path) as zone:
        images = [await zone.create_active(BLOB, name=f"{n}") for n in range(3)]
        await zone.drained()
        await registry.restore(file, zone)
        await in_epoch(zone, 2)
        found = await registry.images()
        assert {uuid: image["number"] for uuid, image in found.items()} == {
            image["id"]: image["os_glance_v1_id"] for image in images
        }
        assert (parked(zone), reoffered(zone)) == ([], [6])


# -- numbers ------------------------------------------------------------------------------------------------------


async def test_an_image_whose_number_the_lost_registry_issued_gets_it_again(
    registry: Restorable, tmp_path: Path
) -> None:
    async with zone_of(registry, tmp_path) as zone:
        file = await registry.save()
        await registry.stop(zone)
        with zone.gateway.store.transaction() as txn:
            zone.gateway.ids.seal(txn, "for a test")
        image = await zone.create(name="without a number")
        assert image["os_glance_v1_id"] is None
        assert await zone.rename(image, "renamed") == 200
        await registry.cluster.start("a")
        await zone.drained()
        number = (await zone.get(image["self"]))["os_glance_v1_id"]
        assert number is not None
        await registry.restore(file, zone)
        await in_epoch(zone, 2)
        found = (await registry.images())[image["id"]]
        assert (found["number"], found["name"]) == (number, "renamed")


async def test_numbers_above_all_that_the_epoch_skipped_raise_its_floor(registry: Restorable, tmp_path: Path) -> None:
    """The gateway holds a block that no number of the new epoch may meet."""
    async with zone_of(registry, tmp_path) as zone:
        file = await registry.save()
        beyond = 30_000_000
        await registry.stop(zone)
        with zone.gateway.store.transaction() as txn:
            zone.gateway.ids.seal(txn, "for a test")
            zone.gateway.ids.add(txn, beyond, beyond + 9, 1)
        image = await zone.create(name="of a block that was lost")
        await registry.start_from(file)
        await in_epoch(zone, 2)
        assert (await registry.images())[image["id"]]["number"] == image["os_glance_v1_id"] == beyond
        async with registry.cluster.client() as client:
            assert (await client.create_image(attributes={}))["number"] > beyond + 9


# -- retention ----------------------------------------------------------------------------------------------------


async def test_what_is_not_retained_any_more_is_reported_and_the_rest_comes_back(
    registry: Restorable, tmp_path: Path
) -> None:
    async with zone_of(registry, tmp_path, queue_retain_max_writes=2) as zone:
        file = await registry.save()
        images = []
        for n in range(5):
            images.append(await zone.create(name=f"{n}"))
            await zone.drained()
        store = zone.gateway.store
        await until(lambda: store.read().count("retained") == 2, "the older ones to be pruned")
        await registry.restore(file, zone)
        await in_epoch(zone, 2)
        assert sorted(image["name"] for image in (await registry.images()).values()) == ["3", "4"]
        (reoffer,) = zone.gateway.status.document()["reoffers"]
        assert (reoffer["writes"], reoffer["missing"]) == (2, 3)
        gauges = zone.gateway.status.gauges()
        assert (gauges["reoffered"], gauges["reoffers_missing"]) == (2, 3)
        metrics = zone.gateway.metrics.render(gauges).decode()
        assert "zonegw_reoffered 2.0" in metrics
        assert "zonegw_reoffers_missing 3.0" in metrics
