"""What the zones wrote after a backup comes back after its restore: the same images, and every byte."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.restoring import files, garbage, in_epoch, restorable, zone_of
from tests.gateway.running import Zone, until

CLIENTS = 8
# Readers leave the one processor of this process to what they watch.
READ_PAUSE_S = 0.01


class Work:
    """What one zone's tenants do: creates, some with data, and updates and deletes of older and newer images."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.name = zone.gateway.config.zone
        self.there: dict[str, dict[str, Any]] = {}
        self.data: dict[str, bytes] = {}
        self.started = 0
        self.writes = 0
        self.one_at_a_time = asyncio.Lock()

    async def run(self, count: int) -> None:
        """`count` creates by some clients at a time, and what goes with them."""
        last = self.started + count

        async def client() -> None:
            while self.started < last:
                self.started += 1
                await self._one(self.started)

        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(client())

    async def _one(self, n: int) -> None:
        zone, label = self.zone, f"{self.name} {n}"
        formats = {"disk_format": "raw", "container_format": "bare"}
        image = await zone.create(name=label, tags=[f"t{n % 7}"], purpose=f"p{n % 5}", visibility="shared", **formats)
        self.writes += 1
        if n % 4 == 0:
            self.data[image["id"]] = label.encode() * n
            await zone.upload(image, self.data[image["id"]])
            self.writes += 1
        if n % 3 == 0:
            await self._rename(image)
        self.there[image["id"]] = image
        async with self.one_at_a_time:
            if n % 5 == 0:
                await self._rename(self.there[sorted(self.there)[n % len(self.there)]])
            if n % 10 == 9:
                await self._delete(min(self.there))

    async def _rename(self, image: dict[str, Any]) -> None:
        """An attribute, a property that goes, and one that comes."""
        number = self.writes
        operations = [
            {"op": "replace", "path": "/name", "value": f"{self.name} renamed {number}"},
            {"op": "add", "path": f"/n{number}", "value": "x"},
        ]
        assert await self.zone.patch(image, *operations) == 200
        self.writes += 1

    async def _delete(self, uuid: str) -> None:
        image = self.there.pop(uuid)
        self.data.pop(uuid, None)
        assert await self.zone.status("DELETE", image["self"]) == 204
        self.writes += 1

    async def shown(self) -> dict[str, dict[str, Any]]:
        """Every image of this zone, as its tenants see it; its UUID, number and attributes."""
        kept = {}
        for uuid, image in self.there.items():
            shown = await self.zone.get(image["self"])
            kept[uuid] = {name: value for name, value in shown.items() if name != "updated_at"}
        return kept


async def watched(zone: Zone, images: list[dict[str, Any]], stop: asyncio.Event) -> int:
    """Read these images over and over, each of which must be there every time; how often one was read."""
    count = 0
    while not stop.is_set():
        for image in images:
            assert await zone.status("GET", image["self"]) == 200, f"{image['name']} was gone for a moment"
            count += 1
            await asyncio.sleep(READ_PAUSE_S)
    return count


@pytest.mark.parametrize(
    ("before", "after", "offline"),
    [(12, 24, 6), pytest.param(60, 500, 40, marks=pytest.mark.slow)],
    ids=["quick", "a thousand creates"],
)
async def test_all_that_two_zones_wrote_after_a_backup_is_back_after_its_restore(
    tmp_path: Path, before: int, after: int, offline: int
) -> None:
    """`after` creates of each zone are drained behind the backup, with updates and deletes of these and of older images
    among them; `offline` more are pending when the registry comes back. Tenants read all the while."""
    async with (
        restorable(tmp_path) as registry,
        zone_of(registry, tmp_path, rewind_batch_max=50) as fra,
        zone_of(registry, tmp_path, "ams", rewind_batch_max=50) as ams,
    ):
        works = [Work(fra), Work(ams)]
        await asyncio.gather(*(work.run(before) for work in works))
        file = await registry.save()
        await asyncio.gather(*(zone.drained() for zone in (fra, ams)))
        at_backup = [work.writes for work in works]
        await asyncio.gather(*(work.run(after) for work in works))
        await asyncio.gather(*(zone.drained() for zone in (fra, ams)))
        drained, in_registry = [work.writes for work in works], await registry.images()
        await until(lambda: not any(garbage(zone) for zone in (fra, ams)), "the bytes of what was deleted to go")
        await registry.stop(fra, ams)
        await asyncio.gather(*(work.run(offline) for work in works))
        shown, bytes_held = [await work.shown() for work in works], files((fra, ams))
        stop = asyncio.Event()
        readers = [asyncio.create_task(watched(work.zone, list(work.there.values())[-20:], stop)) for work in works]

        await registry.start_from(file)
        for zone in (fra, ams):
            await in_epoch(zone, 2)
        stop.set()
        assert all(count > 0 for count in await asyncio.gather(*readers))

        images = await registry.images()
        assert images.keys() == {uuid for work in works for uuid in work.there}
        untouched = [uuid for uuid in in_registry if uuid in images and not_pending(in_registry[uuid], shown)]
        assert len(untouched) > after
        assert {uuid: images[uuid] for uuid in untouched} == {uuid: in_registry[uuid] for uuid in untouched}
        assert [await work.shown() for work in works] == shown
        numbers = {image["os_glance_v1_id"]: uuid for zone in shown for uuid, image in zone.items()}
        assert numbers == {image["number"]: uuid for uuid, image in images.items()}
        assert files((fra, ams)).items() >= {p: d for p, d in bytes_held.items() if owned(p, images)}.items()
        for work, wrote, had in zip(works, drained, at_backup, strict=True):
            status = work.zone.gateway.status.document()
            assert (status["parked"], status["sessions_lost"]) == (0, [])
            (reoffer,) = status["reoffers"]
            assert wrote - had <= reoffer["writes"] <= wrote
            assert reoffer["missing"] == 0
            for uuid, data in work.data.items():
                for zone in (fra, ams):
                    assert await zone.data(work.there[uuid]) == data


def not_pending(image: dict[str, Any], shown: list[dict[str, dict[str, Any]]]) -> bool:
    """Whether the registry had the image as its zone shows it in the end."""
    return any(zone.get(image["uuid"], {}).get("name") == image["name"] for zone in shown)


def owned(path: Path, images: dict[str, dict[str, Any]]) -> bool:
    """Whether the file holds the data of an image."""
    return path.name in {location["key"] for image in images.values() for location in image["locations"]}
