"""Quotas of projects: what would pass one is refused and leaves nothing; the sums are exact, whatever happens."""

import asyncio
import random
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running import Zone, running, until
from tests.gateway.test_imports import files, imported, last_message, method, no_bytes, stage, start
from tests.gateway.web_source import web_source
from tests.registry import registry
from zonegw import usage
from zonegw.errors import ConfigError
from zonegw.limits import MIB
from zonegw.quota_rules import parse

OCTETS = {"Content-Type": "application/octet-stream"}
FORMATS = {"disk_format": "raw", "container_format": "bare"}


async def put(zone: Zone, image: dict[str, Any], data: Any, **options: Any) -> int:
    return await zone.status("PUT", f"{image['self']}/file", data=data, headers=OCTETS, **options)


async def told(zone: Zone, **options: Any) -> dict[str, tuple[int, int]]:
    """(limit, usage) by name."""
    rows = (await zone.get("/v2/info/usage", **options))["usage"]
    return {name: (row["limit"], row["usage"]) for name, row in rows.items()}


def counted(zone: Zone) -> dict[str, usage.Used]:
    """Sums over all images, made anew."""
    found: dict[str, usage.Used] = {}
    for image in zone.gateway.catalogue.all(zone.gateway.store.committed()):
        was = found.get(image["owner"], usage.Used())
        size = (image["size"] or 0) * len(image["locations"])
        found[image["owner"]] = usage.Used(was.images + 1, was.size_bytes + size)
    return found


def kept(zone: Zone) -> dict[str, usage.Used]:
    """The sums as they are kept."""
    read = zone.gateway.store.committed()
    found = {project: usage.of(read, project) for project in ("demo", "other", "admin", "service", "third")}
    assert read.count("usage") == sum(used != usage.Used() for used in found.values())
    return {project: used for project, used in found.items() if used != usage.Used()}


async def chunked(data: bytes) -> AsyncIterator[bytes]:
    """Sent without its size."""
    for start_ in range(0, len(data), 65_536):
        yield data[start_ : start_ + 65_536]


async def test_an_image_too_many_is_refused_until_one_is_deleted(tmp_path: Path) -> None:
    more = "[quotas]\nimage_count_total = 1\n[quotas.projects.other]\nimage_count_total = -1"
    async with running(tmp_path, more=more) as zone:
        image = await zone.create(name="first")
        async with zone.ask("POST", "/v2/images", json={"name": "second"}) as answer:
            assert answer.status == 413
            assert "image_count_total" in await answer.text()
        assert await zone.names() == ["first"]
        assert (await told(zone))["image_count_total"] == (1, 1)
        assert await zone.status("DELETE", image["self"]) == 204
        await zone.create(name="second")
        for name in ("other", "without", "bound"):
            await zone.create(user="bob", name=name)
        assert (await told(zone, user="bob"))["image_count_total"] == (-1, 3)


async def test_an_upload_too_large_is_refused_with_or_without_its_size_and_a_smaller_one_is_taken(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, more="[quotas]\nimage_size_total = 3") as zone:
        await zone.create_active(bytes(2 * MIB))
        image = await zone.create(name="n", **FORMATS)
        never = asyncio.Event()

        async def announced() -> AsyncIterator[bytes]:
            yield b"x"
            await never.wait()

        size = {"x-openstack-image-size": str(MIB + 1)}
        async with zone.ask("PUT", f"{image['self']}/file", data=announced(), headers=OCTETS | size) as answer:
            assert answer.status == 413
            assert "image_size_total" in await answer.text()
        assert await put(zone, image, chunked(bytes(MIB + 1))) == 413
        await until(lambda: len(files(zone)) == 1, "the refused bytes to go")
        assert zone.gateway.store.read().count("uploads") == 0
        assert (await zone.get(image["self"]))["status"] == "queued"
        assert await put(zone, image, chunked(bytes(MIB))) == 204
        assert (await told(zone))["image_size_total"] == (3, 3)


async def test_uploads_at_the_same_time_stay_within_the_quota_together(tmp_path: Path) -> None:
    async with running(tmp_path, more="[quotas]\nimage_size_total = 1") as zone:
        images = [await zone.create(name="n", **FORMATS) for _ in range(2)]
        gate = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield bytes(MIB // 2 + 1)
            await gate.wait()

        uploads = [asyncio.create_task(put(zone, image, body())) for image in images]
        await until(lambda: len(zone.gateway.image_data._uploading) == 2, "both to be under way")
        gate.set()
        assert sorted(await asyncio.gather(*uploads)) == [204, 413]
        await until(lambda: len(files(zone)) == 1, "the refused bytes to go")


async def test_uploads_too_many_at_a_time_are_refused_and_staged_images_count_among_them(tmp_path: Path) -> None:
    async with running(tmp_path, more="[quotas]\nimage_count_uploading = 1") as zone:
        first, second = [await zone.create(name="n", **FORMATS) for _ in range(2)]
        assert await stage(zone, first, b"x") == 204
        assert (await told(zone))["image_count_uploading"] == (1, 1)
        assert await put(zone, second, b"x") == 413
        assert await stage(zone, second, b"x") == 413
        assert (await imported(zone, first, method("glance-direct")))["status"] == "active"
        assert await put(zone, second, b"x") == 204
        assert (await told(zone))["image_count_uploading"] == (1, 0)


async def test_staged_and_fetched_data_have_a_quota_of_their_own(tmp_path: Path) -> None:
    quotas = "\n[quotas]\nimage_stage_total = 1\n"
    async with web_source(bytes(MIB + 1)) as source, running(tmp_path, more=source.allowed() + quotas) as zone:
        first, second = [await zone.create(name="n", **FORMATS) for _ in range(2)]
        assert await stage(zone, first, chunked(bytes(MIB + 1))) == 413
        assert await stage(zone, first, bytes(MIB)) == 204
        assert (await told(zone))["image_stage_total"] == (1, 1)
        assert await stage(zone, second, b"x") == 413
        assert await zone.status("DELETE", first["self"]) == 204
        shown = await imported(zone, second, method("web-download", uri=source.url("/image")))
        assert shown["status"] == "queued"
        assert "image_stage_total" in await last_message(zone, second)
        await no_bytes(zone)


async def test_an_import_that_would_pass_the_quota_is_refused_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, more="[quotas]\nimage_size_total = 1") as zone:
        image = await zone.create(name="n", **FORMATS)
        assert await stage(zone, image, bytes(MIB + 1)) == 204
        assert await start(zone, image, method("glance-direct")) == 413
        assert (await zone.get(image["self"]))["status"] == "uploading"


async def test_the_sums_follow_whatever_happens_to_images_here_and_elsewhere_over_restarts_and_resyncs(
    tmp_path: Path,
) -> None:
    """Each life of the gateway begins with a resync, which finds that an image is gone."""
    chance = random.Random(4711)
    images: list[dict[str, Any]] = []
    async with registry(tmp_path) as cluster, cluster.client() as client:
        for _ in range(3):
            async with running(tmp_path / "fra", registry=cluster) as fra:
                await fra.drained()
                assert kept(fra) == counted(fra)
                for _ in range(12):
                    await something(fra, chance, images)
                    assert kept(fra) == counted(fra)
                made = await client.create_image(attributes={"name": "n", "owner": "third", "size": 5})
                await until(partial(known, fra, made["uuid"]), "the create to come by the feed")
                assert kept(fra) == counted(fra)
                await fra.drained()
                with fra.gateway.store.transaction() as txn:
                    txn.delete("meta", b"feed.position")
            await client.delete_image(images.pop()["id"])


def known(zone: Zone, uuid: str) -> bool:
    return zone.gateway.catalogue.get(zone.gateway.store.committed(), uuid) is not None


async def something(zone: Zone, chance: random.Random, images: list[dict[str, Any]]) -> None:
    """One random act of a client."""
    user = chance.choice(["alice", "bob", "root"])
    what = chance.choice(["create", "upload", "give away", "delete"]) if images else "create"
    if what == "create":
        images.append(await zone.create(user=user, name="n"))
    elif what == "upload":
        images.append(await zone.create_active(bytes(chance.randrange(1000)), user=user))
    elif what == "give away":
        owner = {"op": "replace", "path": "/owner", "value": chance.choice(["demo", "other"])}
        assert await zone.patch(chance.choice(images), owner, user="root") == 200
    else:
        image = images.pop(chance.randrange(len(images)))
        assert await zone.status("DELETE", image["self"], user="root") == 204


async def test_a_store_of_an_earlier_release_is_counted_once_at_the_start(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        for _ in range(3):
            await zone.create_active(b"abc")
        with zone.gateway.store.transaction() as txn:
            for key, _ in list(txn.scan("usage")):
                txn.delete("usage", key)
            txn.delete("meta", b"usage.kept")
    async with running(tmp_path) as zone:
        assert kept(zone) == counted(zone) == {"demo": usage.Used(3, 9)}


@pytest.mark.parametrize(
    "table", [{"images": 1}, {"image_count_total": -2}, {"image_count_total": True}, {"projects": {"p": 1}}]
)
def test_quotas_that_mean_nothing_are_refused_at_the_start(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="quotas"):
        parse(table)
