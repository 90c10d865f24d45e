"""Life without the registry, whole: restarts, steps of the clock, a full disk; what is pending shows in every read."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running import Zone, running, seed_block
from tests.registry import Registry, registry
from zonegw.store import free_bytes

IMAGE = {"disk_format": "raw", "container_format": "bare", "visibility": "shared"}
DAY_S = 86_400


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as running_cluster:
        yield running_cluster


async def all_images(zone: Zone, user: str = "alice") -> dict[str, Any]:
    return {image["name"]: image for image in (await zone.get("/v2/images?limit=100", user=user))["images"]}


def replacing(path: str, value: Any) -> dict[str, Any]:
    return {"op": "replace", "path": path, "value": value}


async def old_images(cluster: Registry, directory: Path) -> dict[str, Any]:
    """Images that the registry has too, before the link is cut."""
    async with running(directory, registry=cluster) as zone:
        await zone.drained()
        for name in ("a", "b", "c", "d"):
            image = await zone.create_active(name.encode(), name=name, **IMAGE)
            await zone.status("POST", f"{image['self']}/members", json={"member": "other"})
        await zone.drained()
        return await all_images(zone)


async def write_offline(zone: Zone, old: dict[str, Any]) -> None:
    """Every kind of write, on images that the registry has and on one that it has not."""
    for image in (old["a"], await zone.create_active(b"new", name="e", **IMAGE)):
        assert await zone.patch(image, replacing("/name", f"{image['name']}-renamed"), replacing("/min_ram", 7)) == 200
        assert await zone.status("PUT", f"{image['self']}/tags/nightly") == 204
        await zone.status("POST", f"{image['self']}/members", json={"member": "other"})
        body = {"status": "accepted"}
        assert await zone.status("PUT", f"{image['self']}/members/other", json=body, user="bob") == 200
    assert await zone.status("DELETE", old["b"]["self"]) == 204
    assert await zone.status("DELETE", f"{old['c']['self']}/members/other") == 204
    assert await zone.status("POST", f"{old['c']['self']}/actions/deactivate", user="root") == 204
    assert await zone.patch(old["d"], replacing("/visibility", "private"), replacing("/protected", True)) == 200
    gone = await zone.create(name="gone")
    assert await zone.status("DELETE", gone["self"]) == 204


LISTS = {
    "?sort=name:asc": ["a-renamed", "c", "d", "e-renamed"],
    "?sort=name:desc": ["e-renamed", "d", "c", "a-renamed"],
    "?sort=size:desc,name:asc": ["e-renamed", "a-renamed", "c", "d"],
    "?sort=status:asc,name:asc": ["a-renamed", "d", "e-renamed", "c"],
    "?name=a": [],
    "?name=a-renamed": ["a-renamed"],
    "?name=b": [],
    "?tag=nightly&sort=name:asc": ["a-renamed", "e-renamed"],
    "?status=deactivated": ["c"],
    "?visibility=private": ["d"],
    "?protected=true": ["d"],
    "?min_ram=7&sort=name:asc": ["a-renamed", "e-renamed"],
    "?size_min=3": ["e-renamed"],
}


async def check_offline(zone: Zone, old: dict[str, Any]) -> None:
    """What was written is in every list, filter and order, and each tenant sees its part."""
    for query, names in LISTS.items():
        assert await zone.names(query) == names, query
    assert await zone.names("?sort=name:asc", user="bob") == ["a-renamed", "e-renamed"]
    assert await zone.names("?visibility=shared&member_status=pending", user="bob") == []
    assert await zone.status("GET", old["b"]["self"]) == 404
    assert await zone.status("GET", f"{old['b']['self']}/file") == 404
    assert await zone.status("GET", f"{old['c']['self']}/file") == 403
    assert await zone.status("GET", old["d"]["self"], user="bob") == 404
    members = (await zone.get(f"{old['a']['self']}/members"))["members"]
    assert [(one["member_id"], one["status"]) for one in members] == [("other", "accepted")]
    shown = await all_images(zone)
    assert await zone.data(shown["e-renamed"], user="bob") == b"new"
    v1 = await zone.get("/v1/images/detail?sort_key=name&sort_dir=asc")
    assert [image["name"] for image in v1["images"]] == LISTS["?sort=name:asc"]


async def test_what_was_written_offline_is_in_every_read_before_and_after_a_restart_and_in_the_registry_in_the_end(
    cluster: Registry, tmp_path: Path
) -> None:
    old = await old_images(cluster, tmp_path / "fra")
    async with running(tmp_path / "fra") as zone:
        await write_offline(zone, old)
        await check_offline(zone, old)
        before = await all_images(zone)
    async with running(tmp_path / "fra") as zone:
        await check_offline(zone, old)
        assert await all_images(zone) == before
    async with running(tmp_path / "fra", registry=cluster) as zone, cluster.client() as client:
        await zone.drained()
        await check_offline(zone, old)
        registered = {image["name"]: image for image in (await client.list_images())["images"]}
        assert sorted(registered) == LISTS["?sort=name:asc"]
        assert {name: image["number"] for name, image in registered.items()} == {
            name: image["os_glance_v1_id"] for name, image in before.items()
        }
        assert list(zone.gateway.queue.parked(zone.gateway.store.read())) == []


@dataclass
class Clock:
    """The wall clock of a gateway in this process, which steps."""

    offset_s: float = 0

    def set(self, zone: Zone) -> None:
        gateway = zone.gateway
        gateway.catalogue.now_us = gateway.queue._now_us = self.now_us

    def now_us(self) -> int:
        return int((time.time() + self.offset_s) * 1e6)


@pytest.mark.parametrize("step_s", [-2 * DAY_S, 400 * DAY_S], ids=["backwards", "forwards"])
async def test_a_step_of_the_clock_changes_neither_order_nor_staleness_nor_what_is_kept(
    cluster: Registry, tmp_path: Path, step_s: int
) -> None:
    clock, directory = Clock(), tmp_path / "fra"
    async with running(directory, registry=cluster) as zone:
        clock.set(zone)
        await zone.drained()
        drained = await zone.create(name="drained")
        await zone.drained()
        staleness = zone.gateway.status.staleness_s()
        clock.offset_s = step_s
        assert (zone.gateway.status.staleness_s() or 0) < (staleness or 0) + 5
    async with running(directory) as zone:
        clock.offset_s = 0
        clock.set(zone)
        image = await zone.create(name="0")
        for n in (1, 2, 3):
            clock.offset_s = step_s if n == 2 else 0
            assert await zone.rename(image, str(n)) == 200
            assert await zone.rename(drained, f"drained-{n}") == 200
        assert (await zone.get(image["self"]))["name"] == "3"
        assert (zone.gateway.status.document()["queue_oldest_s"] or 0) >= 0
    async with running(directory, registry=cluster) as zone, cluster.client() as client:
        clock.offset_s = step_s
        clock.set(zone)
        await zone.drained()
        assert (await client.get_image(image["id"]))["name"] == "3"
        assert (await client.get_image(drained["id"]))["name"] == "drained-3"
        read = zone.gateway.store.committed()
        assert zone.gateway.queue.prunable(read) == []
        assert read.count("retained") == 8
        assert list(zone.gateway.queue.parked(read)) == []


async def test_a_full_disk_refuses_what_grows_loses_nothing_and_takes_writes_again_when_there_is_room(
    tmp_path: Path,
) -> None:
    """Full is what leaves less free than the reserve."""
    seed_block(tmp_path, 1, 100)
    async with running(tmp_path) as zone:
        kept = await zone.create_active(b"kept", name="kept", **IMAGE)
        doomed = await zone.create(name="doomed")
        waiting = await zone.create(name="waiting", **IMAGE)
    async with running(tmp_path, disk_reserve_bytes=2 * free_bytes(tmp_path)) as zone:
        headers = {"Content-Type": "application/octet-stream"}
        assert await zone.status("POST", "/v2/images", json={"name": "more"}) == 507
        assert await zone.rename(kept, "renamed") == 507
        assert await zone.status("PUT", f"{kept['self']}/tags/t") == 507
        assert await zone.status("PUT", f"{waiting['self']}/file", data=b"x", headers=headers) == 507
        assert await zone.data(kept) == b"kept"
        assert await zone.status("DELETE", doomed["self"]) == 204
        assert sorted(await zone.names()) == ["kept", "waiting"]
    async with running(tmp_path) as zone:
        assert sorted(await zone.names()) == ["kept", "waiting"]
        await zone.upload(waiting, b"x")
        assert await zone.rename(kept, "renamed") == 200
        more = await zone.create(name="more")
        assert more["os_glance_v1_id"] == 4, "a refused create takes no number"
