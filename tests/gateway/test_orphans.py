"""Bytes that nothing owns: found among all that something does own, and deleted only when named."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.restoring import in_epoch, restorable, zone_of
from tests.gateway.running import Zone, running, until
from tests.gateway.test_cache import operator
from tests.gateway.test_drainer import HeldLink
from tests.gateway.test_imports import OCTETS, files, stage
from tests.registry import registry
from zonegw.data_stores.interface import mint_key

DAY_S = 24 * 3600
EVERYTHING: dict[str, Any] = {"orphan_age_min_h": 1e-9}
DELAY = "[deletion]\ndelay_h = 1000"


def lost_bytes(zone: Zone, data: bytes = b"lost", age_s: float = 2 * DAY_S) -> str:
    """Bytes of which no row tells."""
    key = mint_key()
    path = zone.gateway.data.path(key)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    at = path.stat().st_mtime - age_s
    os.utime(path, (at, at))
    return key


async def keys(zone: Zone, capsys: pytest.CaptureFixture[str], *words: str) -> set[str]:
    listed = await operator(zone, capsys, "data", "orphan", "list", *words)
    return {row["key"] for row in listed["orphans"]}


async def test_whatever_owns_bytes_keeps_them_off_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image, drained or pending, a running upload, staged data, a parked write, a grave."""
    async with (
        registry(tmp_path) as cluster,
        cluster.client() as client,
        running(tmp_path / "fra", registry=cluster, more=DELAY, list_chunk_rows=2, **EVERYTHING) as fra,
    ):
        await fra.drained()
        drained = await fra.create_active(b"1", name="drained")
        buried = await fra.create_active(b"2", name="buried")
        await fra.drained()
        assert await fra.status("DELETE", buried["self"]) == 204
        await fra.drained()
        gate, goes_on = asyncio.Event(), asyncio.Event()
        fra.gateway.drainer._link = HeldLink(fra.gateway.uplink, gate)
        taken = await fra.create_active(b"3", name="parked")
        await client.create_image(uuid=taken["id"], attributes={"name": "theirs"})
        gate.set()
        await fra.drained_but_parked()
        await until(lambda: fra.gateway.queue.parked_count(fra.gateway.store.read()) > 0, "the create to be parked")
        fra.gateway.drainer._link = HeldLink(fra.gateway.uplink, asyncio.Event())
        await fra.create_active(b"4", name="pending")
        staged = await fra.create(name="staged", disk_format="raw", container_format="bare")
        await stage(fra, staged, b"5")

        async def body() -> AsyncIterator[bytes]:
            yield b"6"
            await goes_on.wait()

        running_one = await fra.create(name="running", disk_format="raw", container_format="bare")
        upload = asyncio.create_task(fra.status("PUT", f"{running_one['self']}/file", data=body(), headers=OCTETS))
        await until(lambda: fra.gateway.store.committed().count("uploads") == 1, "the upload to be under way")
        lost = [lost_bytes(fra) for _ in range(3)]
        assert len(files(fra)) >= 8
        assert await keys(fra, capsys) == set(lost)
        goes_on.set()
        assert await upload == 204
        assert await keys(fra, capsys) == set(lost)
        assert await fra.data(drained) == b"1"


async def test_only_named_or_old_orphans_are_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with registry(tmp_path) as cluster, running(tmp_path / "fra", registry=cluster) as fra:
        await fra.drained()
        image = await fra.create_active(b"owned", name="n")
        owned = fra.gateway.catalogue.get(fra.gateway.store.committed(), image["id"])["locations"][0]["key"]  # type: ignore[index]
        os.utime(fra.gateway.data.path(owned), (0, 0))
        young, old, older = lost_bytes(fra, age_s=0), lost_bytes(fra), lost_bytes(fra, age_s=4 * DAY_S)
        assert await keys(fra, capsys) == {old, older}
        assert await keys(fra, capsys, "--older-than", "72") == {older}
        for refused in (["--older-than", "1", "--all"], ["--all"], [], [young], [owned], [old, owned], ["nonsense"]):
            assert await operator(fra, capsys, "data", "orphan", "delete", *refused) is None
        assert len(files(fra)) == 4
        deleted = await operator(fra, capsys, "data", "orphan", "delete", "--all", "--older-than", "72")
        assert [row["key"] for row in deleted["deleted"]] == [older]
        await until(lambda: len(files(fra)) == 3, "the oldest to go")
        await operator(fra, capsys, "data", "orphan", "delete", old)
        await until(lambda: len(files(fra)) == 2, "the one that was named to go")
        assert await fra.data(image) == b"owned"


@pytest.mark.slow
async def test_a_catalogue_that_was_never_read_makes_nothing_an_orphan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(tmp_path, **EVERYTHING) as zone:
        lost_bytes(zone)
        assert await operator(zone, capsys, "data", "orphan", "list") is None


@pytest.mark.slow
async def test_bytes_of_an_image_that_the_registry_does_not_know_are_told_with_their_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with restorable(tmp_path) as registry, zone_of(registry, tmp_path, queue_retain_h=1e-9, **EVERYTHING) as fra:
        file = await registry.save()
        image = await fra.create_active(b"bytes", name="n")
        await fra.drained()
        await until(lambda: fra.gateway.store.committed().count("retained") == 0, "the writes to be forgotten")
        await registry.restore(file, fra)
        await in_epoch(fra, 2)
        await until(lambda: not fra.gateway.deletions._asking, "the registry to be asked")
        listed: list[dict[str, Any]] = []

        async def told() -> None:
            while not listed:
                document = await operator(fra, capsys, "data", "orphan", "list")
                listed.extend(document["orphans"])

        await asyncio.wait_for(told(), 20)
        assert [(row["image"], row["name"], row["bytes"]) for row in listed] == [(image["id"], "n", 5)]
        await operator(fra, capsys, "data", "orphan", "delete", listed[0]["key"])
        await until(lambda: not files(fra), "the bytes to go")
        assert fra.gateway.store.read().count("unseen") == 0
