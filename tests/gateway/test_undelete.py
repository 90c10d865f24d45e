"""Deleted images whose bytes are kept for a while: listed, undeleted as new images, purged, and gone in the end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running import Zone, running, until
from tests.gateway.test_cache import operator
from tests.gateway.test_deletion import confirmed, holders
from tests.gateway.test_drainer import HeldLink
from tests.gateway.test_imports import files, no_bytes
from tests.registry import Registry, registry
from zonegw.limits import Limits
from zonegw.running_clock import RunningClock
from zonegw.store import Store

DELAY = "[deletion]\ndelay_h = 2"
HOUR_S = 3600


def fra_of(tmp_path: Path, cluster: Registry | None = None, **limits: Any) -> Any:
    return running(tmp_path / "fra", registry=cluster, more=DELAY, **limits)


async def kept(zone: Zone, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await operator(zone, capsys, "data", "deleted", "list"))["images"]
    return listed


async def test_a_deleted_image_comes_back_as_a_new_one_with_all_that_it_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with registry(tmp_path) as cluster, cluster.client() as client, fra_of(tmp_path, cluster) as fra:
        await fra.drained()
        old = await fra.create_active(b"bytes", name="n", tags=["t"], purpose="backup", visibility="shared")
        assert await fra.status("POST", f"{old['self']}/members", json={"member": "other"}) == 200
        before = await fra.get(old["self"])
        assert await fra.status("DELETE", old["self"]) == 204
        await fra.drained()
        assert await fra.status("GET", old["self"]) == 404
        ((row),) = await kept(fra, capsys)
        assert (row["image"], row["name"], row["size"]) == (old["id"], "n", 5)
        assert HOUR_S < row["left_s"] <= 2 * HOUR_S
        assert await holders(client, old) == ["fra"]
        path = files(fra)
        made = await operator(fra, capsys, "data", "undelete", old["id"])
        await fra.drained()
        new = await fra.get(f"/v2/images/{made['image']}")
        assert new["id"] != old["id"]
        assert new["os_glance_v1_id"] != before["os_glance_v1_id"]
        assert new["undeleted_from"] == old["id"]
        same = (
            "name",
            "tags",
            "purpose",
            "visibility",
            "owner",
            "status",
            "size",
            "checksum",
            "os_hash_value",
            "stores",
        )
        assert {name: new[name] for name in same} == {name: before[name] for name in same}
        assert [m["member_id"] for m in (await fra.get(f"{new['self']}/members"))["members"]] == ["other"]
        assert await fra.data(new) == b"bytes"
        assert files(fra) == path, "no byte was copied"
        await confirmed(client, old)
        assert await kept(fra, capsys) == []
        assert await operator(fra, capsys, "data", "undelete", old["id"]) is None
        # The new one is deleted as any image is.
        assert await fra.status("DELETE", new["self"]) == 204
        await fra.drained()
        assert await operator(fra, capsys, "data", "deleted", "purge", new["id"])
        await no_bytes(fra)
        await confirmed(client, new)


@pytest.mark.slow
async def test_what_is_heard_late_of_the_delete_leaves_the_new_image_its_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image is undeleted before the registry has heard of it at all, and then of its delete."""
    async with registry(tmp_path) as cluster, cluster.client() as client, fra_of(tmp_path, cluster) as fra:
        await fra.drained()
        gate = asyncio.Event()
        fra.gateway.drainer._link = HeldLink(fra.gateway.uplink, gate)
        await fra.create(name="what is in flight")
        old = await fra.create_active(b"bytes", name="n")
        assert await fra.status("DELETE", old["self"]) == 204
        made = await operator(fra, capsys, "data", "undelete", old["id"])
        new = await fra.get(f"/v2/images/{made['image']}")
        assert await fra.data(new) == b"bytes"
        gate.set()
        await fra.drained()
        await confirmed(client, old)
        assert fra.gateway.store.read().count("garbage") == 0
        assert fra.gateway.store.read().count("graves") == 0
        assert await fra.data(new) == b"bytes"


@pytest.mark.slow
async def test_bytes_go_when_the_delay_has_passed_while_the_gateway_ran(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps of the wall clock, and time that nobody watched, do not count."""
    async with registry(tmp_path) as cluster, cluster.client() as client:
        async with fra_of(tmp_path, cluster) as fra:
            await fra.drained()
            image = await fra.create_active(b"bytes", name="n")
            await fra.drained()
            fra.gateway.catalogue.now_us = lambda: 1 << 60
            assert await fra.status("DELETE", image["self"]) == 204
            await fra.drained()
            await passes(fra, 1.5)
            assert len(files(fra)) == 1
            assert (await kept(fra, capsys))[0]["left_s"] <= HOUR_S / 2
        async with fra_of(tmp_path, cluster) as fra:
            await fra.drained()
            assert await holders(client, image) == ["fra"]
            await passes(fra, 0.4)
            assert len(files(fra)) == 1
            await passes(fra, 0.2)
            await no_bytes(fra)
            await confirmed(client, image)


async def passes(zone: Zone, hours: float) -> None:
    """The gateway runs for so long."""
    clock = zone.gateway.graves.clock
    clock._started -= hours * HOUR_S
    zone.gateway.deletions.ask()
    await until(lambda: not zone.gateway.deletions._asking, "a look at what is due")
    with zone.gateway.store.transaction() as txn:
        clock.save(txn)


@pytest.mark.slow
async def test_an_image_that_is_not_kept_is_not_undeleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create_active(b"bytes", name="n")
        assert await zone.status("DELETE", image["self"]) == 204
        await no_bytes(zone)
        for verb in (["undelete"], ["deleted", "purge"]):
            for uuid in (image["id"], "nonsense"):
                assert await operator(zone, capsys, "data", *verb, uuid) is None


def test_the_running_clock_goes_on_where_it_was_saved_and_never_ahead_of_it(tmp_path: Path) -> None:
    now = 100.0
    store = Store(tmp_path, Limits())
    clock = RunningClock(store, clock=lambda: now)
    now += 10
    with store.transaction() as txn:
        clock.save(txn)
    now += 5
    assert clock.now_ms() == 15_000
    again = RunningClock(store, clock=lambda: now)
    assert again.now_ms() == 10_000
    now += 1
    assert again.now_ms() == 11_000
    store.close()
