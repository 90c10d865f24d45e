"""Prefetch: bytes of public images are in every zone without an operator, as [cache.prefetch] says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running import Zone, running, until
from tests.gateway.test_cache import PUBLIC, ams_of, cached, is_cached, operator
from tests.gateway.test_stores import seen
from tests.registry import Registry, registry

POLICY = '[cache.prefetch]\nvisibility = ["public"]\nmax_image_bytes = 1000\n'
SOON: dict[str, Any] = {"prefetch_retry_min_s": 0.05, "prefetch_scan_s": 0.2, "retry_delay_min_s": 0.01}


@contextlib.asynccontextmanager
async def fra_of(tmp_path: Path, cluster: Registry, policy: str = POLICY, **limits: Any) -> AsyncIterator[Zone]:
    async with running(tmp_path / "fra", registry=cluster, more=policy, **SOON, **limits) as zone:
        await zone.drained()
        yield zone


async def test_bytes_of_a_new_public_image_come_by_themselves_and_are_pinned(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, ams_of(tmp_path, cluster) as ams, fra_of(tmp_path, cluster) as fra:
        private = await ams.create_active(b"p" * 100, name="private")
        large = await ams.create_active(b"l" * 1001, name="large", **PUBLIC)
        base = await ams.create_active(b"b" * 1000, name="base", **PUBLIC)
        empty = await ams.create_active(b"", name="empty", **PUBLIC)
        for image in (base, empty):
            await cached(fra, image)
        await until(lambda: fra.gateway.cached.is_pinned(base["id"]), "the pin")
        await seen(fra, large, status="active")
        await until(lambda: fra.gateway.prefetch._queue.empty(), "nothing to wait")
        assert not is_cached(fra, private)
        assert not is_cached(fra, large)
        # The zone is alone then, and boots all the same.
        for runner in ams.gateway._runners:
            await runner.cleanup()
        await cluster.stop("a")
        assert await fra.data(base) == b"b" * 1000


async def test_what_was_to_come_when_the_gateway_ended_comes_in_its_next_life(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, ams_of(tmp_path, cluster) as ams:
        async with fra_of(tmp_path, cluster) as fra:
            gate = asyncio.Event()
            fra.gateway.cache.open = _never(gate)  # type: ignore[method-assign]
            first = await ams.create_active(b"x", name="first", **PUBLIC)
            await asyncio.wait_for(gate.wait(), 20)
            assert not is_cached(fra, first)
        second = await ams.create_active(b"y", name="second", **PUBLIC)
        async with fra_of(tmp_path, cluster) as fra:
            await cached(fra, first)
            await cached(fra, second)


def _never(reached: asyncio.Event) -> Any:
    async def open_nothing(*arguments: Any, **options: Any) -> Any:
        reached.set()
        await asyncio.get_running_loop().create_future()

    return open_nothing


async def test_a_zone_that_is_away_is_asked_again_later(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, fra_of(tmp_path, cluster) as fra:
        async with ams_of(tmp_path, cluster) as ams:
            ams.gateway.interzone_address = None
            for runner in ams.gateway._runners[1:]:
                await runner.cleanup()
            images = [await ams.create_active(b"x", name=f"{n}", **PUBLIC) for n in range(3)]
            await until(lambda: fra.gateway.prefetch.failed >= 3, "all of them to be tried")
            assert not any(is_cached(fra, image) for image in images)
        async with ams_of(tmp_path, cluster):
            for image in images:
                await cached(fra, image)


@pytest.mark.parametrize("again", [False, True])
async def test_what_was_evicted_comes_again_only_if_the_policy_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], again: bool
) -> None:
    policy = POLICY + f"pin = false\nagain = {str(again).lower()}\n"
    async with (
        registry(tmp_path) as cluster,
        ams_of(tmp_path, cluster) as ams,
        fra_of(tmp_path, cluster, policy, data_cache_max_bytes=1500) as fra,
    ):
        image = await ams.create_active(b"x" * 900, name="n", **PUBLIC)
        await cached(fra, image)
        await until(lambda: any(known.prefetched for known in fra.gateway.cached.all()), "the note of it")
        assert not fra.gateway.cached.is_pinned(image["id"])
        assert await operator(fra, capsys, "cache", "evict", image["id"])
        other = await ams.create_active(b"y" * 500, name="other", **PUBLIC)
        await cached(fra, other)
        if again:
            await cached(fra, image)
        else:
            await looked(fra)
            assert not is_cached(fra, image)


async def looked(zone: Zone) -> None:
    """Wait until all of the catalogue was looked through once more."""
    prefetch, find_all, done = zone.gateway.prefetch, zone.gateway.prefetch._find_all, asyncio.Event()

    async def counted() -> None:
        await find_all()
        done.set()

    prefetch._find_all = counted  # type: ignore[method-assign]
    prefetch.look()
    await asyncio.wait_for(done.wait(), 20)
    await prefetch._queue.join()


async def test_nothing_that_clients_use_is_displaced_and_no_bound_of_pins_is_passed(tmp_path: Path) -> None:
    async with (
        registry(tmp_path) as cluster,
        ams_of(tmp_path, cluster) as ams,
        fra_of(tmp_path, cluster, POLICY + "pin = false\n", data_cache_max_bytes=1000) as fra,
    ):
        used = await ams.create_active(b"u" * 600, name="used", visibility="community", user="root")
        await seen(fra, used, status="active")
        await fra.data(used, user="root")
        await cached(fra, used)
        image = await ams.create_active(b"x" * 600, name="n", **PUBLIC)
        await until(lambda: fra.gateway.prefetch.refused > 0, "no room to be found for it")
        assert is_cached(fra, used)
        assert not is_cached(fra, image)
    async with registry(tmp_path / "2") as cluster, ams_of(tmp_path / "2", cluster) as ams:
        async with fra_of(tmp_path / "2", cluster, data_pinned_max_bytes=1000) as fra:
            images = [await ams.create_active(bytes([n]) * 600, name=f"{n}", **PUBLIC) for n in range(2)]
            await until(lambda: fra.gateway.prefetch.refused > 0, "the second one to be refused")
            assert sum(fra.gateway.cached.is_pinned(image["id"]) for image in images) == 1
        # Without the policy, its pins end.
        async with fra_of(tmp_path / "2", cluster, "") as fra:
            await until(lambda: fra.gateway.cached.pinned_bytes == 0, "the pin to end")
