"""Own pending write x what another side did meanwhile: the table of zonegw/DESIGN.md, one test per cell."""

import contextlib
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
    """`shown` is what tenants see in the end, None for nothing; `parked` the refusal, None when ours was applied."""

    ours: Callable[[Zone, Image], Awaitable[None]]
    theirs: Callable[[Client, Image], Awaitable[Any]]
    shown: dict[str, Any] | None
    parked: str | None = None


CELLS = {
    "rename x rename": Cell(rename, sets(name="theirs"), {"name": "theirs"}, "conflict"),
    "rename x other attribute": Cell(rename, sets(min_ram=7), {"name": "ours", "min_ram": 7}),
    "rename x narrowed visibility": Cell(rename, sets(visibility="private"), {"name": "ours", "visibility": "private"}),
    "rename x delete": Cell(rename, deletes, None, "image_deleted"),
    "delete x rename": Cell(delete, sets(name="theirs"), None),
    "delete x narrowed visibility": Cell(delete, sets(visibility="private"), None),
    "delete x delete": Cell(delete, deletes, None),
    "delete x protect": Cell(delete, sets(protected=True), {"protected": True, "name": "old"}, "protected"),
    "protect x delete": Cell(protect, deletes, None, "image_deleted"),
    "protect x rename": Cell(protect, sets(name="theirs"), {"name": "theirs", "protected": True}),
    "upload x rename": Cell(upload, sets(name="theirs"), {"name": "theirs", "status": "active"}),
    "upload x narrowed visibility": Cell(
        upload, sets(visibility="private"), {"visibility": "private", "status": "active"}
    ),
    "upload x delete": Cell(upload, deletes, None, "image_deleted"),
    "share x rename": Cell(share, sets(name="theirs"), {"name": "theirs", "members": ["other"]}),
    "share x narrowed visibility": Cell(
        share, sets(visibility="private"), {"visibility": "private", "members": ["other"]}
    ),
    "share x share": Cell(share, shares, {"members": ["other"]}, "conflict"),
    "share x delete": Cell(share, deletes, None, "image_deleted"),
}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
async def test_a_pending_write_meets_another_sides_change(tmp_path: Path, cell: Cell) -> None:
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(registry(tmp_path))
        client = await stack.enter_async_context(cluster.client())
        async with running(tmp_path / "fra", registry=cluster) as zone:
            await zone.drained()
            image = await zone.create(name="old", disk_format="raw", container_format="bare", visibility="shared")
            await zone.drained()
        async with running(tmp_path / "fra") as zone:
            await cell.ours(zone, image)
        await cell.theirs(client, image)
        async with running(tmp_path / "fra", registry=cluster) as zone:
            await zone.drained_but_parked()
            gateway = zone.gateway
            codes = [row["reason"]["code"] for row in gateway.queue.parked(gateway.store.read())]
            assert codes == ([cell.parked] if cell.parked else [])
            async with zone.ask("GET", image["self"]) as answer:
                if cell.shown is None:
                    assert answer.status == 404
                else:
                    known = gateway.catalogue.get(gateway.store.read(), image["id"]) or {}
                    shown = {**(await answer.json()), "members": list(known["members"])}
                    assert {name: shown[name] for name in cell.shown} == cell.shown


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
