"""Zones as stores: data are uploaded, imported and copied to other zones, and removed from one of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running import Zone, running, until
from tests.gateway.test_drainer import HeldLink
from tests.gateway.test_imports import (
    BLOB,
    FORMATS,
    OCTETS,
    files,
    imported,
    job_is_over,
    last_message,
    method,
    no_bytes,
    stage,
    start,
)
from tests.registry import Registry, registry
from zonegw.data_stores.interface import Stored, mint_key
from zonegw.errors import DataUnavailable

TO_AMS = OCTETS | {"X-Image-Meta-Store": "ams"}


@dataclass
class Two:
    """Two zones that know each other."""

    cluster: Registry
    fra: Zone
    ams: Zone


@contextlib.asynccontextmanager
async def two_zones(tmp_path: Path, **limits: Any) -> AsyncIterator[Two]:
    async with (
        registry(tmp_path) as cluster,
        running(tmp_path / "fra", registry=cluster, **limits) as fra,
        running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1", **limits) as ams,
    ):
        for zone in (fra, ams):
            await zone.drained()
        for zone in (fra, ams):
            await zone.gateway.zones.refresh()
        yield Two(cluster, fra, ams)


async def seen(zone: Zone, image: dict[str, Any], **expected: Any) -> dict[str, Any]:
    """Wait until the zone shows the image with these attributes to its owner."""
    shown: dict[str, Any] = {}

    def is_so() -> bool:
        nonlocal shown
        found = zone.gateway.catalogue.get(zone.gateway.store.committed(), image["id"])
        shown = {} if found is None else {**found, "stores": {location["zone"] for location in found["locations"]}}
        return found is not None and all(shown[name] == value for name, value in expected.items())

    await until(is_so, f"{image['id']} with {expected}")
    return shown


def evict_all(zone: Zone) -> None:
    for key in list(zone.gateway.cache._files):
        zone.gateway.cache.evict(key)


async def test_zones_are_listed_as_stores_with_the_own_one_as_default(tmp_path: Path) -> None:
    async with two_zones(tmp_path, store_probe_keep_s=1e-6) as two:
        rows = (await two.fra.get("/v2/info/stores"))["stores"]
        assert [(row["id"], row.get("default"), row["reachable"]) for row in rows] == [
            ("fra", "true", "true"), ("ams", None, "true"),
        ]  # fmt: skip
        assert await two.fra.status("GET", "/v2/info/stores/detail") == 403
        details = (await two.fra.get("/v2/info/stores/detail", user="root"))["stores"]
        assert [row["type"] for row in details] == ["file", "zone"]
        assert details[0]["properties"]["data_dir"] == str(two.fra.gateway.data.directory)
        for runner in two.ams.gateway._runners:
            await runner.cleanup()
        rows = (await two.fra.get("/v2/info/stores"))["stores"]
        assert [row["reachable"] for row in rows] == ["true", "false"]


async def test_an_upload_for_another_zones_store_goes_there_and_nowhere_else(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two:
        image = await two.fra.create(name="n", **FORMATS)
        assert await two.fra.status("PUT", f"{image['self']}/file", data=BLOB, headers=TO_AMS) == 204
        shown = await two.fra.get(image["self"])
        assert (shown["status"], shown["size"], shown["stores"]) == ("active", len(BLOB), "ams")
        assert files(two.fra) == []
        await seen(two.ams, image, status="active", stores={"ams"})
        assert await two.ams.data(image) == BLOB
        assert await two.fra.data(image) == BLOB
        assert two.ams.gateway.store.read().count("deposits") == 1
        assert await two.ams.status("DELETE", image["self"]) == 204
        await no_bytes(two.ams)
        assert two.ams.gateway.store.read().count("deposits") == 0


async def test_a_store_that_is_unknown_or_away_is_refused_and_the_data_are_not_kept_here_instead(
    tmp_path: Path,
) -> None:
    async with two_zones(tmp_path) as two:
        image = await two.fra.create(name="n", **FORMATS)
        unknown = OCTETS | {"X-Image-Meta-Store": "nowhere"}
        assert await two.fra.status("PUT", f"{image['self']}/file", data=b"x", headers=unknown) == 400
        for runner in two.ams.gateway._runners:
            await runner.cleanup()
        async with two.fra.ask("PUT", f"{image['self']}/file", data=b"x", headers=TO_AMS) as answer:
            assert answer.status == 503
            assert "zone ams" in await answer.text()
        assert (await two.fra.get(image["self"]))["status"] == "queued"
        await no_bytes(two.fra)
        assert two.fra.gateway.store.read().count("uploads") == 0


async def test_a_full_store_of_another_zone_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    async with two_zones(tmp_path, data_store_max_bytes=1000) as two:
        image = await two.fra.create(name="n", **FORMATS)
        assert await two.fra.status("PUT", f"{image['self']}/file", data=BLOB, headers=TO_AMS) == 507
        assert (await two.fra.get(image["self"]))["status"] == "queued"
        await no_bytes(two.ams)


async def test_a_client_that_breaks_off_leaves_nothing_in_the_other_zone(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two:
        image = await two.fra.create(name="n", **FORMATS)
        begun = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield BLOB
            begun.set()
            await asyncio.Event().wait()

        upload = asyncio.create_task(two.fra.status("PUT", f"{image['self']}/file", data=body(), headers=TO_AMS))
        await begun.wait()
        await until(lambda: bool(files(two.ams)), "the data to arrive")
        upload.cancel()
        await no_bytes(two.ams)
        await until(lambda: two.fra.gateway.store.committed().count("uploads") == 0, "the note of the upload to go")
        assert (await two.fra.get(image["self"]))["status"] == "queued"


async def test_bytes_that_were_placed_and_never_registered_are_withdrawn_after_a_crash(tmp_path: Path) -> None:
    """Between the other zone's answer and the transaction that would make the bytes an image's."""

    async def body() -> AsyncIterator[bytes]:
        yield BLOB

    async with (
        registry(tmp_path) as cluster,
        running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1") as ams,
    ):
        await ams.drained()
        async with running(tmp_path / "fra", registry=cluster) as fra:
            await fra.drained()
            await fra.gateway.zones.refresh()
            image = await fra.create(name="n", **FORMATS)
            placed = await fra.gateway.placement.place(image["id"], "ams", body())
            assert ams.gateway.data.exists(placed["key"])
        async with running(tmp_path / "fra", registry=cluster):
            await no_bytes(ams)


async def test_only_the_sender_withdraws_and_never_what_an_image_owns(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two:
        image = await two.fra.create(name="n", **FORMATS)
        assert await two.fra.status("PUT", f"{image['self']}/file", data=BLOB, headers=TO_AMS) == 204
        shown = await seen(two.ams, image, stores={"ams"})
        key = shown["locations"][0]["key"]
        await two.fra.gateway.interzone.withdraw("ams", key)
        own = await two.ams.create_active(b"x")
        own_key = (await seen(two.ams, own))["locations"][0]["key"]
        await two.fra.gateway.interzone.withdraw("ams", own_key)
        assert two.ams.gateway.data.exists(key)
        assert two.ams.gateway.data.exists(own_key)


async def test_a_staged_image_is_imported_to_all_stores_at_once(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two:
        image = await two.fra.create(name="n", **FORMATS)
        assert await stage(two.fra, image, BLOB) == 204
        shown = await imported(two.fra, image, method("glance-direct") | {"all_stores": True})
        assert (shown["status"], shown["stores"]) == ("active", "fra,ams")
        await seen(two.ams, image, stores={"fra", "ams"})
        assert await two.ams.data(image) == BLOB
        assert two.ams.gateway.cache.misses == 0
        await two.fra.drained()
        async with two.cluster.client() as client:
            assert (await client.get_image(image["id"]))["version"] == 2


@pytest.mark.parametrize("must_succeed", [True, False])
async def test_a_store_that_is_away_fails_the_import_unless_the_others_do(tmp_path: Path, must_succeed: bool) -> None:
    async with two_zones(tmp_path) as two:
        image = await two.fra.create(name="n", **FORMATS)
        assert await stage(two.fra, image, BLOB) == 204
        for runner in two.ams.gateway._runners:
            await runner.cleanup()
        body = method("glance-direct") | {"stores": ["ams", "fra"], "all_stores_must_succeed": must_succeed}
        shown = await imported(two.fra, image, body)
        assert shown["os_glance_failed_import"] == "ams"
        assert shown["status"] == ("queued" if must_succeed else "active")
        assert shown.get("stores") == (None if must_succeed else "fra")
        if must_succeed:
            await no_bytes(two.fra)
        else:
            assert await two.fra.data(image) == BLOB


async def test_an_image_is_copied_to_another_zone_and_from_there(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two:
        image = await two.fra.create_active(BLOB, name="n")
        assert await start(two.fra, image, method("copy-image") | {"stores": ["fra"]}) == 400
        shown = await imported(two.fra, image, method("copy-image") | {"stores": ["ams"]})
        assert (shown["status"], shown["stores"]) == ("active", "fra,ams")
        await seen(two.ams, image, stores={"fra", "ams"})
        assert await two.ams.data(image) == BLOB
        assert await start(two.fra, image, method("copy-image") | {"all_stores": True}) == 202
        other = await two.ams.create_active(BLOB[:1000], name="other")
        await seen(two.fra, other, status="active")
        shown = await imported(two.fra, other, method("copy-image"))
        assert shown["stores"] == "ams,fra"
        assert len(files(two.fra)) == 2
        await seen(two.ams, other, stores={"fra", "ams"})


async def test_a_copy_of_wrong_bytes_is_dropped(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two:
        image = await two.fra.create_active(BLOB, name="n")
        (path,) = files(two.fra)
        path.write_bytes(BLOB[:-1] + bytes([BLOB[-1] ^ 1]))
        shown = await imported(two.fra, image, method("copy-image") | {"stores": ["ams"]})
        assert (shown["stores"], shown["os_glance_failed_import"]) == ("fra", "ams")
        assert "sha512" in await last_message(two.fra, image)
        await no_bytes(two.ams)


async def test_one_copy_is_removed_in_the_zone_that_holds_it_once_the_registry_knows(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two:
        image = await two.fra.create_active(BLOB, name="n")
        assert await two.fra.status("DELETE", f"/v2/stores/fra/{image['id']}") == 403
        assert await two.fra.status("DELETE", f"/v2/stores/ams/{image['id']}") == 404
        await imported(two.fra, image, method("copy-image") | {"stores": ["ams"]})
        await two.fra.drained()
        await seen(two.ams, image, stores={"fra", "ams"})
        await two.cluster.stop("a")
        await until(lambda: two.fra.gateway.status.state == "degraded", "the link to count as down")
        assert await two.fra.status("DELETE", f"/v2/stores/ams/{image['id']}") == 204
        assert (await two.fra.get(image["self"]))["stores"] == "fra"
        assert len(files(two.ams)) == 1
        await two.cluster.start("a")
        await no_bytes(two.ams)
        assert len(files(two.fra)) == 1
        assert await two.ams.data(image) == BLOB


async def test_data_reach_another_zone_while_the_registry_is_away(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two:
        await two.cluster.stop("a")
        await until(lambda: two.fra.gateway.status.state == "degraded", "the link to count as down")
        image = await two.fra.create(name="n", **FORMATS)
        assert await two.fra.status("PUT", f"{image['self']}/file", data=BLOB, headers=TO_AMS) == 204
        assert await two.fra.data(image) == BLOB
        doomed = await two.fra.create(name="doomed", **FORMATS)
        assert await two.fra.status("PUT", f"{doomed['self']}/file", data=b"x", headers=TO_AMS) == 204
        assert await two.fra.status("DELETE", doomed["self"]) == 204
        await until(lambda: len(files(two.ams)) == 1, "the bytes of the image that the registry never had to go")
        await two.cluster.start("a")
        await seen(two.ams, image, stores={"ams"})
        assert await two.ams.data(image) == BLOB


async def test_services_and_administrators_are_told_where_data_lie_and_tenants_are_not(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two:
        image = await two.fra.create_active(BLOB, name="n", visibility="community")
        shown = await imported(two.fra, image, method("copy-image") | {"stores": ["ams"]})
        assert "locations" not in shown
        assert "direct_url" not in shown
        assert not [row for row in (await two.fra.get("/v2/images"))["images"] if "locations" in row]
        for user in ("nova", "root"):
            told = await two.fra.get(image["self"], user=user)
            assert [place["metadata"]["store"] for place in told["locations"]] == ["fra", "ams"]
            assert told["direct_url"] == told["locations"][0]["url"] == files(two.fra)[0].as_uri()
            assert told["locations"][1]["url"].startswith("zonegw://ams/default/")


async def test_data_that_come_after_they_were_given_up_are_not_kept(tmp_path: Path) -> None:
    """A sender that died is asked by nobody any more, so the receiver must remember."""

    async def body() -> AsyncIterator[bytes]:
        yield b"late"

    async with two_zones(tmp_path) as two:
        image, key = await two.fra.create(name="n"), mint_key()
        await two.fra.gateway.interzone.withdraw("ams", key)
        with pytest.raises(DataUnavailable):
            await two.fra.gateway.interzone.write("ams", key, image["id"], body())
        await no_bytes(two.ams)


async def test_data_that_are_still_coming_in_are_withdrawn_later(tmp_path: Path) -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        begun.set()
        await goes_on.wait()
        yield b"last"

    async with two_zones(tmp_path) as two:
        image, key = await two.fra.create(name="n"), mint_key()
        writing = asyncio.create_task(two.fra.gateway.interzone.write("ams", key, image["id"], body()))
        await begun.wait()
        await until(lambda: two.ams.gateway.store.committed().count("uploads") == 1, "the data to come in")
        with pytest.raises(DataUnavailable):
            await two.fra.gateway.interzone.withdraw("ams", key)
        goes_on.set()
        assert (await writing).size == len(b"firstlast")
        await two.fra.gateway.interzone.withdraw("ams", key)
        await no_bytes(two.ams)


async def test_a_copy_for_an_image_that_was_deleted_meanwhile_is_withdrawn(tmp_path: Path) -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()
    async with two_zones(tmp_path) as two:
        write = two.ams.gateway.data.write

        async def held(key: str, body: AsyncIterator[bytes], size: int | None = None) -> Stored:
            stored = await write(key, body)
            begun.set()
            await goes_on.wait()
            return stored

        two.ams.gateway.data.write = held  # type: ignore[method-assign]
        image = await two.fra.create_active(b"x", name="n")
        assert await start(two.fra, image, method("copy-image") | {"stores": ["ams"]}) == 202
        await begun.wait()
        assert await two.fra.status("DELETE", image["self"]) == 204
        goes_on.set()
        await until(lambda: job_is_over(two.fra, image), "the import to end")
        await no_bytes(two.ams)
        await no_bytes(two.fra)
        assert two.fra.gateway.store.read().count("far_garbage") == 0


async def test_an_import_for_other_zones_of_which_none_answers_is_refused_at_once(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two:
        image = await two.fra.create_active(BLOB, name="n")
        for runner in two.ams.gateway._runners:
            await runner.cleanup()
        async with two.fra.ask(
            "POST", f"{image['self']}/import", json=method("copy-image") | {"stores": ["ams"]}
        ) as answer:
            assert answer.status == 503
            assert "zone ams" in await answer.text()
            assert answer.headers["Retry-After"]
        assert (await two.fra.get(image["self"])).get("os_glance_importing_to_stores", "") == ""


async def test_other_bytes_than_were_sent_are_not_taken_for_the_images(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two:
        write = two.ams.gateway.data.write

        async def spoiled(key: str, body: AsyncIterator[bytes], size: int | None = None) -> Stored:
            async def zeroed() -> AsyncIterator[bytes]:
                async for piece in body:
                    yield bytes(len(piece))

            return await write(key, zeroed())

        two.ams.gateway.data.write = spoiled  # type: ignore[method-assign]
        image = await two.fra.create(name="n", **FORMATS)
        assert await two.fra.status("PUT", f"{image['self']}/file", data=BLOB, headers=TO_AMS) == 503
        assert (await two.fra.get(image["self"]))["status"] == "queued"
        await no_bytes(two.ams)


async def test_two_sides_that_remove_the_two_copies_at_once_leave_one(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two, two.cluster.client() as client:
        image = await two.fra.create_active(BLOB, name="n")
        await imported(two.fra, image, method("copy-image") | {"stores": ["ams"]})
        await two.fra.drained()
        keys = {row["zone"]: row["key"] for row in (await seen(two.ams, image, stores={"fra", "ams"}))["locations"]}
        gate = asyncio.Event()
        two.fra.gateway.drainer._link = HeldLink(two.fra.gateway.uplink, gate)
        assert await two.fra.status("DELETE", f"/v2/stores/ams/{image['id']}") == 204
        await client.update_image(image["id"], remove_locations=[keys["fra"]])
        gate.set()
        await two.fra.drained_but_parked()
        assert (await client.get_image(image["id"]))["locations"][0]["key"] == keys["ams"]
        await no_bytes(two.fra)
        assert await two.fra.data(image) == BLOB
        parked = list(two.fra.gateway.queue.parked(two.fra.gateway.store.read()))
        assert [row["reason"]["code"] for row in parked] == ["invalid"]


async def test_rows_of_deposits_that_images_own_are_forgotten_some_at_a_time(tmp_path: Path) -> None:
    async with two_zones(tmp_path, prune_batch_max=2) as two:
        for n in range(3):
            image = await two.fra.create(name=f"{n}", **FORMATS)
            assert await two.fra.status("PUT", f"{image['self']}/file", data=b"x", headers=TO_AMS) == 204
        await seen(two.ams, image, stores={"ams"})
        for _ in range(3):
            two.ams.gateway.deposits.settle()
        assert two.ams.gateway.store.read().count("deposits") == 0
        assert len(files(two.ams)) == 3
