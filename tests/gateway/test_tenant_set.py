"""A catalogue by tenant set: whose images it holds, what leaves it, what a wider or narrower set makes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from raftreg.client import Client
from tests.gateway.running import Zone, running, seed_block, until
from tests.registry import Registry, registry


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as running_cluster:
        yield running_cluster


@pytest.fixture
async def client(cluster: Registry) -> AsyncIterator[Client]:
    async with cluster.client() as client:
        yield client


async def register(client: Client, name: str, owner: str, visibility: str = "private") -> dict[str, Any]:
    made: dict[str, Any] = await client.create_image(
        attributes={"name": name, "owner": owner, "visibility": visibility}
    )
    return made


async def reached(zone: Zone, client: Client) -> None:
    """Wait until the catalogue holds all that the registry has now."""
    revision = (await client.status())["revision"]
    await until(lambda: int(zone.gateway.status.cursor().split(".")[-1]) >= revision, f"revision {revision}")


async def all_names(zone: Zone) -> list[str]:
    """Names of all images of the zone, which its administrator sees."""
    return sorted(await zone.names(user="root"))


def pass_of(zone: Zone) -> int:
    """Counts bootstraps."""
    return int(zone.gateway.store.committed().row("meta", b"feed.pass"))


async def test_a_zone_holds_the_images_that_its_tenants_see_from_bootstrap_and_feed(
    cluster: Registry, client: Client, tmp_path: Path
) -> None:
    async def register_some(when: str) -> None:
        await register(client, f"own {when}", "demo")
        await register(client, f"public {when}", "other", "public")
        await register(client, f"private {when}", "other")
        shared = await register(client, f"shared {when}", "other", "shared")
        await client.update_image(shared["uuid"], set_members={"demo": {}})

    await register_some("before")
    async with running(tmp_path / "fra", registry=cluster, tenants=["demo"]) as zone:
        await zone.drained()
        await register_some("after")
        await reached(zone, client)
        assert await all_names(zone) == [
            f"{what} {when}" for what in ("own", "public", "shared") for when in ("after", "before")
        ]


async def test_what_leaves_the_set_leaves_the_catalogue_and_its_bytes_stay_until_it_is_deleted(
    cluster: Registry, client: Client, tmp_path: Path
) -> None:
    async with running(tmp_path / "fra", registry=cluster, tenants=["demo"]) as zone:
        await zone.drained()
        image = await zone.create_active(b"bytes", name="moves")
        await zone.drained()
        await client.update_image(image["id"], {"owner": "other"}, force=True)
        await reached(zone, client)
        assert await all_names(zone) == []
        assert await zone.status("GET", image["self"], user="root") == 404
        assert zone.gateway.data.used_bytes == len(b"bytes")
    async with running(tmp_path / "fra", registry=cluster, tenants=["demo", "other"]) as zone:
        await until(lambda: zone.gateway.status.state == "online", "online")
        assert await zone.data(image, user="bob") == b"bytes"
        await client.delete_image(image["id"], force=True)
        await reached(zone, client)
        await until(lambda: zone.gateway.data.used_bytes == 0, "the tombstone to take the bytes")


async def test_a_wider_set_is_filled_without_reading_again_what_is_there(
    cluster: Registry, client: Client, tmp_path: Path
) -> None:
    async with running(tmp_path / "fra", registry=cluster, tenants=["demo"]) as zone:
        await zone.drained()
        await register(client, "own", "demo")
        await register(client, "old of other", "other")
        await register(client, "third", "third")
        await reached(zone, client)
        assert await all_names(zone) == ["own"]
        passes = pass_of(zone)
    for tenants, names in (
        (["demo", "other"], ["old of other", "own"]),
        (None, ["old of other", "own", "third"]),
    ):
        async with running(tmp_path / "fra", registry=cluster, tenants=tenants) as zone:
            await until(lambda: zone.gateway.feed.current, "a current feed")
            assert await all_names(zone) == names
            assert pass_of(zone) == passes
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await until(lambda: zone.gateway.feed.current, "a current feed")
        await register(client, "new of other", "other")
        await reached(zone, client)
        assert "new of other" in await all_names(zone)
        assert pass_of(zone) == passes


async def test_a_narrower_set_forgets_what_its_tenants_do_not_see(
    cluster: Registry, client: Client, tmp_path: Path
) -> None:
    await register(client, "own", "demo")
    await register(client, "of other", "other")
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await zone.drained()
        mine = await zone.create_active(b"kept", user="bob", name="made here")
        await zone.drained()
        assert await all_names(zone) == ["made here", "of other", "own"]
    async with running(tmp_path / "fra", registry=cluster, tenants=["demo"]) as zone:
        await until(lambda: zone.gateway.feed.current, "a current feed")
        assert await all_names(zone) == ["own"]
        assert await zone.status("GET", mine["self"], user="bob") == 404
        assert zone.gateway.data.used_bytes == len(b"kept")


async def test_own_pending_writes_are_shown_until_the_registry_has_them(
    cluster: Registry, client: Client, tmp_path: Path
) -> None:
    directory = tmp_path / "fra"
    async with running(directory, registry=cluster) as zone:
        await zone.drained()
        renamed = await zone.create(user="bob", name="old name")
        await zone.drained()
    async with running(directory) as zone:
        await zone.create(user="bob", name="created")
        assert await zone.rename(renamed, "new name", user="bob") == 200
    async with running(directory, tenants=["demo"]) as zone:
        assert await all_names(zone) == ["created", "new name"]
        await cluster.stop("a")
    async with running(directory, registry=cluster, tenants=["demo"]) as zone:
        assert await all_names(zone) == ["created", "new name"]
        await cluster.start("a")
        await until(lambda: zone.gateway.queue.depth(zone.gateway.store.read()) == 0, "an empty queue")
        await register(client, "one more change", "demo")
        await reached(zone, client)
        assert await all_names(zone) == ["one more change"]
    assert (await client.get_image(renamed["id"]))["name"] == "new name"


async def test_a_create_whose_image_would_vanish_is_refused_with_what_to_do(tmp_path: Path) -> None:
    seed_block(tmp_path, 1, 100)
    async with running(tmp_path, tenants=["demo"]) as zone:
        async with zone.ask("POST", "/v2/images", user="bob", json={"name": "mine"}) as answer:
            assert (answer.status, "[registry] tenants" in await answer.text()) == (403, True)
        public = await zone.create(user="root", name="for all", visibility="public")
        assert public["owner"] == "admin"
        await zone.create(user="root", name="for demo", owner="demo")
        assert await all_names(zone) == ["for all", "for demo"]
