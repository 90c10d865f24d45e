"""The Images API v1 between zones: numbers are the same everywhere, and work goes on without the registry."""

from __future__ import annotations

from pathlib import Path

from tests.gateway.running import running, until
from tests.gateway.test_images_v1 import BLOB, create, head, meta, names, put
from tests.registry import registry


async def test_an_image_has_one_number_in_every_zone_and_its_data_come_from_the_other(tmp_path: Path) -> None:
    async with (
        registry(tmp_path) as cluster,
        running(tmp_path / "fra", registry=cluster) as fra,
        running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1") as ams,
        cluster.client() as client,
    ):
        await fra.drained()
        await ams.drained()
        await fra.gateway.zones.refresh()
        made = await create(ams, BLOB, name="base", is_public=True, user="root", KEY="value")
        number = made["id"]
        assert (await head(ams, number))["status"] == "active"
        await ams.drained()
        assert (await client.get_image(number))["uuid"] == made["properties"]["os_glance_uuid"]
        catalogue = fra.gateway.catalogue
        await until(
            lambda: (catalogue.by_number(fra.gateway.store.committed(), number) or {}).get("status") == "active",
            "the image to come by the feed",
        )
        assert (await head(fra, number))["property-key"] == "value"
        async with fra.ask("GET", f"/v1/images/{number}") as answer:
            assert await answer.read() == BLOB
        assert await put(fra, number, headers=meta(name="renamed"), user="root") == 200
        await until(
            lambda: (ams.gateway.catalogue.by_number(ams.gateway.store.committed(), number) or {})["name"] == "renamed",
            "the name to come by the feed",
        )


async def test_a_zone_that_lost_the_registry_goes_on_by_its_block_and_drains_later(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster:
        async with running(tmp_path / "fra", registry=cluster) as fra:
            await fra.drained()
            await until(lambda: fra.gateway.ids.on_hand(fra.gateway.store.committed()) > 0, "a block to be granted")
        async with running(tmp_path / "fra") as cut_off:
            number = (await create(cut_off, BLOB, name="backup"))["id"]
            assert await cut_off.status("PUT", f"/v1/images/{number}/members/other") == 204
            assert await put(cut_off, number, headers=meta(name="renamed", NEW="1")) == 200
            assert await names(cut_off, user="bob") == ["renamed"]
        async with running(tmp_path / "fra", registry=cluster) as fra, cluster.client() as client:
            await fra.drained()
            image = await client.get_image(number)
            assert (image["name"], image["status"], list(image["members"])) == ("renamed", "active", ["other"])
            assert image["properties"] == {"new": "1"}
            assert await names(fra, user="bob") == ["renamed"]
