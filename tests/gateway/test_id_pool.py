"""Image numbers of a running gateway: blocks that roll under load, that end, and that are refused."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running import Zone, running, seed_block, until
from tests.gateway.test_drainer import LossyLink
from tests.registry import Registry, registry
from zonegw import cli
from zonegw.errors import RegistryRefused


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as running_cluster:
        yield running_cluster


class GrantlessLink(LossyLink):
    """The uplink, but the registry grants no block."""

    async def grant_block(self, **options: Any) -> dict[str, Any]:
        self.lost += 1
        raise RegistryRefused("id_space_exhausted", "no numbers are left")


async def create(zone: Zone, count: int) -> list[int | None]:
    return [(await zone.create(name="backup"))["os_glance_v1_id"] for _ in range(count)]


async def test_blocks_roll_under_load_and_every_create_has_a_number_of_its_own(
    cluster: Registry, tmp_path: Path
) -> None:
    small: dict[str, Any] = {"id_block_min": 60, "id_block_max": 60}
    async with running(tmp_path / "fra", registry=cluster, **small) as zone:
        await zone.drained()
        numbers = [one for made in await asyncio.gather(*(create(zone, 30) for _ in range(8))) for one in made]
        assert None not in numbers
        assert len(set(numbers)) == 240
        assert len({(number - 1) // 60 for number in numbers if number is not None}) >= 4
        await zone.drained()


async def test_a_block_that_ends_offline_stops_v1_alone_until_the_registry_is_back(
    cluster: Registry, tmp_path: Path
) -> None:
    async with running(tmp_path / "fra", registry=cluster, id_block_min=2, id_block_max=2) as zone:
        await zone.drained()
    v1 = {"x-image-meta-name": "old client", "x-image-meta-disk_format": "raw", "x-image-meta-container_format": "bare"}
    async with running(tmp_path / "fra") as zone:
        on_hand = zone.gateway.ids.on_hand(zone.gateway.store.committed())
        assert await zone.status("POST", "/v1/images", headers=v1) == 201
        assert None not in await create(zone, on_hand - 1)
        assert await create(zone, 3) == [None, None, None]
        async with zone.ask("POST", "/v1/images", headers=v1) as answer:
            assert answer.status == 503
            assert "image numbers" in await answer.text()
            assert "Retry-After" in answer.headers
        assert len(await zone.names()) == on_hand + 3
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await zone.drained()
        images = (await zone.get("/v2/images"))["images"]
        assert len({image["os_glance_v1_id"] for image in images} - {None}) == on_hand + 3
        assert await zone.status("POST", "/v1/images", headers=v1) == 201


async def test_a_registry_that_grants_no_block_gets_all_writes_and_says_why_in_the_status(
    cluster: Registry, tmp_path: Path
) -> None:
    async with running(tmp_path / "fra") as zone:
        image = await zone.create(name="kept")
    async with running(tmp_path / "fra", registry=cluster) as zone, cluster.client() as client:
        link = GrantlessLink(zone.gateway.uplink, lambda operations: False)
        zone.gateway.drainer._sessions._link = link
        await zone.drained()
        assert link.lost > 0
        assert (await client.get_image(image["id"]))["name"] == "kept"
        assert await create(zone, 1) == [None]
        await zone.drained()
        document = await zone.get("/zonegw/v1/status", user=None)
        assert "no numbers are left" in document["errors"]["ids"]
        assert document["ids_low"] is True
        async with zone.ask("GET", "/metrics", user=None) as answer:
            assert "zonegw_ids_low 1.0" in await answer.text()


async def test_numbers_that_get_few_are_told_once_before_they_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seed_block(tmp_path, 1, 12)
    with caplog.at_level(logging.WARNING, "zonegw.id_pool"):
        async with running(tmp_path, id_block_min=20, runway_warning_h=0.0001) as zone:
            before = await zone.get("/zonegw/v1/status", user=None)
            await create(zone, 12)
            after = await zone.get("/zonegw/v1/status", user=None)
    assert (before["ids_low"], after["ids_low"]) == (False, True)
    told = [record.getMessage() for record in caplog.records if record.name == "zonegw.id_pool"]
    assert len(told) == 1
    assert told[0].startswith("4 image numbers are left")


async def test_operators_see_the_queue_and_the_numbers_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed_block(tmp_path, 1, 12)
    settings = ["--config", str(tmp_path / "zonegw.toml")]
    async with running(tmp_path) as zone:
        image = await zone.create(name="backup")
        await until(lambda: zone.gateway.queue.depth(zone.gateway.store.read()) == 1, "one pending write")

        async def said(*arguments: str) -> str:
            assert await asyncio.to_thread(cli.main, [*arguments, *settings]) == 0
            return capsys.readouterr().out

        ids = json.loads(await said("id", "status", "--json"))
        assert (ids["numbers"], ids["blocks"][0]["next"], ids["renumbered"]) == (11, 2, [])
        stats = json.loads(await said("queue", "stats", "--json"))
        assert (stats["depth"], stats["depth_max"], stats["parked"]) == (1, 1_000_000, 0)
        (listed,) = json.loads(await said("queue", "list", "--json"))["pending"]
        assert json.loads(await said("queue", "show", "1")) == listed
        assert listed["command"]["uuid"] == image["id"]
        for noun in ("id status", "queue stats", "queue list"):
            assert await said(*noun.split())
        assert await asyncio.to_thread(cli.main, ["queue", "show", "9", *settings]) == 1
        assert "no write is pending as position 9" in capsys.readouterr().err
