"""Own pending write x what another side did meanwhile: the table of zonegw/DESIGN.md, one test per cell."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raftreg.client import Client
from tests.gateway.running import Zone, running
from tests.registry import registry

Image = dict[str, Any]


async def rename(zone: Zone, image: Image) -> None:
    assert await zone.rename(image, "ours") == 200


async def delete(zone: Zone, image: Image) -> None:
    assert await zone.status("DELETE", image["self"]) == 204


async def upload(zone: Zone, image: Image) -> None:
    await zone.upload(image, b"ours")


async def protect(zone: Zone, image: Image) -> None:
    assert await zone.patch(image, {"op": "replace", "path": "/protected", "value": True}) == 200


async def share(zone: Zone, image: Image) -> None:
    assert await zone.status("POST", f"{image['self']}/members", json={"member": "other"}) == 200


async def unshare(zone: Zone, image: Image) -> None:
    assert await zone.status("DELETE", f"{image['self']}/members/other") == 204


async def answer(zone: Zone, image: Image) -> None:
    body = {"status": "accepted"}
    assert await zone.status("PUT", f"{image['self']}/members/other", json=body, user="bob") == 200


async def label(zone: Zone, image: Image) -> None:
    assert await zone.status("PUT", f"{image['self']}/tags/ours") == 204


async def narrow(zone: Zone, image: Image) -> None:
    assert await zone.patch(image, {"op": "replace", "path": "/visibility", "value": "private"}) == 200


async def widen(zone: Zone, image: Image) -> None:
    assert await zone.patch(image, {"op": "replace", "path": "/visibility", "value": "community"}) == 200


async def deactivate(zone: Zone, image: Image) -> None:
    assert await zone.status("POST", f"{image['self']}/actions/deactivate", user="root") == 204


async def unshares(client: Client, image: Image) -> None:
    await client.update_image(image["id"], remove_members=["other"], force=True)


async def shares(client: Client, image: Image) -> None:
    await client.update_image(image["id"], set_members={"other": {"can_share": True}}, force=True)


def sets(**values: Any) -> Callable[[Client, Image], Awaitable[Any]]:
    async def change(client: Client, image: Image) -> None:
        await client.update_image(image["id"], set=values, force=True)

    return change


async def deletes(client: Client, image: Image) -> None:
    await client.delete_image(image["id"], force=True)


@dataclass(frozen=True)
class Cell:
    """`shown` is what tenants see in the end, None for nothing; `parked` the refusal, None when ours was applied.
    `active` images have data from the beginning, and `other` is a member of those with `member`."""

    ours: Callable[[Zone, Image], Awaitable[None]]
    theirs: Callable[[Client, Image], Awaitable[Any]]
    shown: dict[str, Any] | None
    parked: str | None = None
    active: bool = False
    member: bool = False


CELLS = {
    "rename x rename": Cell(rename, sets(name="theirs"), {"name": "theirs"}, "conflict"),
    "rename x other attribute": Cell(rename, sets(min_ram=7), {"name": "ours", "min_ram": 7}),
    "rename x narrowed visibility": Cell(rename, sets(visibility="private"), {"name": "ours", "visibility": "private"}),
    "rename x delete": Cell(rename, deletes, None, "image_deleted"),
    "rename x deactivate": Cell(
        rename, sets(status="deactivated"), {"name": "ours", "status": "deactivated"}, active=True
    ),
    "narrow x rename": Cell(narrow, sets(name="theirs"), {"name": "theirs", "visibility": "private"}),
    "narrow x widen": Cell(narrow, sets(visibility="community"), {"visibility": "private"}),
    "narrow x delete": Cell(narrow, deletes, None, "image_deleted"),
    "widen x narrow": Cell(widen, sets(visibility="private"), {"visibility": "private"}, "conflict"),
    "label x label": Cell(label, sets(tags=["theirs"]), {"tags": ["theirs"]}, "conflict"),
    "label x rename": Cell(label, sets(name="theirs"), {"name": "theirs", "tags": ["ours"]}),
    "label x delete": Cell(label, deletes, None, "image_deleted"),
    "delete x rename": Cell(delete, sets(name="theirs"), None),
    "delete x narrowed visibility": Cell(delete, sets(visibility="private"), None),
    "delete x share": Cell(delete, shares, None),
    "delete x deactivate": Cell(delete, sets(status="deactivated"), None, active=True),
    "delete x delete": Cell(delete, deletes, None),
    "delete x protect": Cell(delete, sets(protected=True), {"protected": True, "name": "old"}, "protected"),
    "protect x delete": Cell(protect, deletes, None, "image_deleted"),
    "protect x rename": Cell(protect, sets(name="theirs"), {"name": "theirs", "protected": True}),
    "protect x protect": Cell(protect, sets(protected=True), {"protected": True}, "conflict"),
    "upload x rename": Cell(upload, sets(name="theirs"), {"name": "theirs", "status": "active"}),
    "upload x narrowed visibility": Cell(
        upload, sets(visibility="private"), {"visibility": "private", "status": "active"}
    ),
    "upload x delete": Cell(upload, deletes, None, "image_deleted"),
    "deactivate x rename": Cell(
        deactivate, sets(name="theirs"), {"name": "theirs", "status": "deactivated"}, active=True
    ),
    "deactivate x deactivate": Cell(deactivate, sets(status="deactivated"), {"status": "deactivated"}, active=True),
    "deactivate x delete": Cell(deactivate, deletes, None, "image_deleted", active=True),
    "share x rename": Cell(share, sets(name="theirs"), {"name": "theirs", "members": ["other"]}),
    "share x narrowed visibility": Cell(
        share, sets(visibility="private"), {"visibility": "private", "members": ["other"]}
    ),
    "share x share": Cell(share, shares, {"members": ["other"]}, "conflict"),
    "share x delete": Cell(share, deletes, None, "image_deleted"),
    "un-share x rename": Cell(unshare, sets(name="theirs"), {"name": "theirs", "members": []}, member=True),
    "un-share x a wider share": Cell(unshare, shares, {"members": []}, member=True),
    "un-share x un-share": Cell(unshare, unshares, {"members": []}, member=True),
    "un-share x delete": Cell(unshare, deletes, None, "image_deleted", member=True),
    "a member's answer x un-share": Cell(answer, unshares, {"members": []}, "conflict", member=True),
}


@dataclass
class Played:
    """What came of all cells: images as tenants see them, and the refusals of what was parked, by cell."""

    shown: dict[str, Any]
    parked: dict[str, list[str]]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """One zone that is cut off does its part of every cell, each with an image of its own, and the other side its
    part; then the zone comes back."""
    return asyncio.run(_play(tmp_path_factory.mktemp("pairs")))


async def _play(directory: Path) -> Played:
    async with registry(directory) as cluster, cluster.client() as client:
        async with running(directory / "fra", registry=cluster) as zone:
            await zone.drained()
            images = {name: await _prepared(zone, cell) for name, cell in CELLS.items()}
            await zone.drained()
        async with running(directory / "fra") as zone:
            for name, cell in CELLS.items():
                await cell.ours(zone, images[name])
        for name, cell in CELLS.items():
            await cell.theirs(client, images[name])
        async with running(directory / "fra", registry=cluster) as zone:
            await zone.drained_but_parked()
            return Played({name: await _shown(zone, image) for name, image in images.items()}, _parked(zone, images))


async def _prepared(zone: Zone, cell: Cell) -> Image:
    attributes = {"name": "old", "disk_format": "raw", "container_format": "bare", "visibility": "shared"}
    image = await (zone.create_active(b"x", **attributes) if cell.active else zone.create(**attributes))
    if cell.member:
        await share(zone, image)
    return image


async def _shown(zone: Zone, image: Image) -> Image | None:
    async with zone.ask("GET", image["self"]) as answer:
        if answer.status == 404:
            return None
        known = zone.gateway.catalogue.get(zone.gateway.store.committed(), image["id"]) or {}
        return {**(await answer.json()), "members": list(known["members"])}


def _parked(zone: Zone, images: dict[str, Image]) -> dict[str, list[str]]:
    rows = list(zone.gateway.queue.parked(zone.gateway.store.read()))
    return {
        name: [row["reason"]["code"] for row in rows if row["write"]["uuid"] == image["id"]]
        for name, image in images.items()
    }


@pytest.mark.parametrize("name", CELLS)
def test_a_pending_write_meets_another_sides_change(played: Played, name: str) -> None:
    cell, shown = CELLS[name], played.shown[name]
    assert played.parked[name] == ([cell.parked] if cell.parked else [])
    if cell.shown is None:
        assert shown is None
    else:
        assert shown is not None
        assert {attribute: shown[attribute] for attribute in cell.shown} == cell.shown


async def test_a_deactivated_image_stays_deactivated_under_a_pending_rename(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, cluster.client() as client:
        async with running(tmp_path / "fra", registry=cluster) as zone:
            await zone.drained()
            image = await zone.create_active(b"x", name="old")
            await zone.drained()
        async with running(tmp_path / "fra") as zone:
            await rename(zone, image)
        await client.update_image(image["id"], set={"status": "deactivated"}, force=True)
        async with running(tmp_path / "fra", registry=cluster) as zone:
            await zone.drained()
            shown = await zone.get(image["self"])
            assert (shown["name"], shown["status"]) == ("ours", "deactivated")
            assert await zone.status("GET", f"{image['self']}/file") == 403
            assert await zone.data(image, user="root") == b"x"
