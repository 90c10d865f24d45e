"""What a zone acknowledges is valid for the registry too: else it would be parked, whatever others do."""

from pathlib import Path
from typing import Any

import pytest

from raftreg import commands
from tests.gateway.running import queued_commands, running
from zonegw.images import CONTAINER_FORMATS, DISK_FORMATS, VISIBILITIES

BODIES: list[dict[str, Any]] = [
    {"name": "a\x00b"},
    {"tags": ["a\x00b"]},
    {"colour": "a\x00b"},
    {"a\x00b": "x"},
    {"name": "n" * 255, "tags": ["t" * 255] * 3, "p" * 255: "v" * 60_000},
    {"p": "v" * 65_536},
    {f"p{n}": "" for n in range(128)},
    {"tags": [str(n) for n in range(128)]},
    {"min_disk": 2**31 - 1, "min_ram": 0, "protected": True, "os_hidden": True},
]


def valid_for_the_registry(command: dict[str, Any]) -> None:
    image = {name: value for name, value in command.get("image", {}).items() if value is not None}
    commands.validate(command | ({"image": image} if image else {}))


@pytest.mark.parametrize("body", BODIES)
async def test_a_create_that_a_zone_acknowledges_is_valid_for_the_registry(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    async with running(tmp_path) as zone:
        status = await zone.status("POST", "/v2/images", json=body)
        assert status in (201, 400, 413)
        for command in queued_commands(zone):
            valid_for_the_registry(command)


async def test_a_patch_that_a_zone_acknowledges_is_valid_for_the_registry(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="n", present="x")
        operations: list[dict[str, Any]] = [{"op": "remove", "path": "/present"}]
        for n in range(200):
            operations += [{"op": "add", "path": f"/p{n}", "value": "v"}, {"op": "remove", "path": f"/p{n}"}]
        assert await zone.patch(image, *operations) == 200
        assert await zone.patch(image, {"op": "replace", "path": "/name", "value": "a\x00b"}) == 400
        _, update = queued_commands(zone)
        assert update["unset"] == ["properties.present"]
        valid_for_the_registry(update | {"base_version": 1})


def test_formats_and_visibilities_are_those_of_the_registry() -> None:
    assert set(DISK_FORMATS) <= set(commands.DISK_FORMATS)
    assert set(CONTAINER_FORMATS) <= set(commands.CONTAINER_FORMATS)
    assert set(VISIBILITIES) == set(commands.VISIBILITIES)
