"""What the registry says of deleted images: their fate, and the zones that may still hold bytes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftreg import errors
from tests.registry import registry
from tests.state_life import uuid_of


def place(zone: str) -> dict[str, Any]:
    return {"zone": zone, "store": "default", "key": f"in {zone}"}


async def test_a_tombstone_shows_the_zones_that_have_not_confirmed_yet(tmp_path: Path) -> None:
    """A zone that is not registered, as one that was retired, has nobody who could confirm."""
    async with registry(tmp_path) as cluster, cluster.client() as client, cluster.client("ams-1") as ams:
        for zone in ("ams", "fra"):
            await client.register_zone(zone)
        image = await client.create_image(locations=[place(zone) for zone in ("ams", "fra", "retired")])
        assert await ams.confirm_deletions("ams", [image["number"]]) == 0
        await client.delete_image(image["number"])
        with pytest.raises(errors.ImageDeleted, match="may still be in ams, fra") as deleted:
            await client.get_image(image["uuid"])
        assert deleted.value.details["holders"] == ["ams", "fra"]
        with pytest.raises(errors.Forbidden):
            await ams.confirm_deletions("fra", [image["number"]])
        assert await ams.confirm_deletions("ams", [image["number"], 999]) == 1
        assert await client.confirm_deletions("fra", [image["number"]]) == 1
        with pytest.raises(errors.ImageDeleted) as deleted:
            await client.get_image(image["number"])
        assert deleted.value.details["holders"] == []


async def test_only_the_tombstone_of_this_very_image_says_that_it_was_deleted(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, cluster.client() as client:
        live, gone = await client.create_image(), await client.create_image()
        revision = (await client.delete_image(gone["number"]))["revision"]
        asked = [
            {"number": live["number"], "uuid": live["uuid"]},
            {"number": gone["number"], "uuid": gone["uuid"]},
            {"number": gone["number"], "uuid": live["uuid"]},
            {"number": gone["number"], "uuid": uuid_of("another")},
            {"number": 999, "uuid": gone["uuid"]},
        ]
        unknown = {"fate": "unknown"}
        fates = [{"fate": "live"}, {"fate": "deleted", "revision": revision}, unknown, unknown, unknown]
        assert await client.fates(asked) == fates


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("images/fates", {"images": []}, 413),
        ("images/fates", {"images": [{"number": 1}]}, 400),
        ("images/fates", {"images": [{"number": 1, "uuid": "x"}]}, 400),
        ("images/fates", {"images": [{"sequence": 1}]}, 400),
        ("zones/ams/deletions", {"numbers": []}, 413),
        ("zones/ams/deletions", {"numbers": [1] * 513}, 413),
        ("zones/ams/deletions", {"numbers": ["1"]}, 400),
        ("zones/ams/deletions", {}, 400),
    ],
)
async def test_what_is_malformed_is_refused(tmp_path: Path, path: str, body: dict[str, Any], status: int) -> None:
    async with registry(tmp_path) as cluster, cluster.http() as http:
        assert (await http("POST", path, body)).status == status
