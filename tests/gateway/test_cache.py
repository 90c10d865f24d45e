"""Data of other zones: pinned or passing, from whichever zone answers, within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.gateway.running import Zone, running, until
from tests.gateway.test_imports import files, imported, method
from tests.gateway.test_stores import seen, two_zones
from tests.registry import Registry, free_ports, registry
from zonegw import cli
from zonegw.errors import Conflict

PUBLIC: dict[str, Any] = {"user": "root", "visibility": "public"}
BIG = bytes(range(256)) * (1 << 16)  # 16 MiB: more than sockets hold
SLOW = f"[cache]\nbandwidth_max_bytes_per_s = {6 << 20}"
# Waiting for silence would end the test.
IMPATIENT: dict[str, Any] = {"fetch_idle_max_s": 1000, "store_probe_max_s": 0.2, "zone_away_keep_s": 1000}


async def operator(zone: Zone, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What the command prints as JSON; None where it fails."""
    config = zone.gateway.config.data_dir.parent / "zonegw.toml"
    status = await asyncio.to_thread(cli.main, [*words, "--json", "--config", str(config)])
    printed = capsys.readouterr().out
    return json.loads(printed) if status == 0 else None


async def cached(zone: Zone, image: dict[str, Any]) -> None:
    def here() -> bool:
        known = zone.gateway.cached.get(image["id"])
        return known is not None and known.key is not None

    await until(here, f"the bytes of {image['name']} to be kept")


def is_cached(zone: Zone, image: dict[str, Any]) -> bool:
    known = zone.gateway.cached.get(image["id"])
    return known is not None and known.key is not None


async def test_pinned_bytes_are_not_evicted_and_have_a_bound_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with two_zones(tmp_path, data_cache_max_bytes=250, data_pinned_max_bytes=150) as two:
        made = [await two.ams.create_active(bytes([n]) * 100, name=f"{n}", **PUBLIC) for n in range(5)]
        await seen(two.fra, made[-1], status="active")
        pinned = await operator(two.fra, capsys, "cache", "pin", made[0]["id"])
        assert pinned["pinned"] == "operator"
        await cached(two.fra, made[0])
        for image in made[1:4]:
            assert await two.fra.data(image) == bytes([int(image["name"])]) * 100
            await cached(two.fra, image)
        assert [is_cached(two.fra, image) for image in made] == [True, False, True, True, False]
        assert await operator(two.fra, capsys, "cache", "pin", made[4]["id"]) is None
        with pytest.raises(Conflict, match="data_pinned_max_bytes"):
            two.fra.gateway.cache.pin(made[4]["id"], 100, "operator")
        assert await operator(two.fra, capsys, "cache", "evict", made[0]["id"]) is None
        await operator(two.fra, capsys, "cache", "evict", made[2]["id"])
        assert not is_cached(two.fra, made[2])
        listed = await operator(two.fra, capsys, "cache", "list")
        assert {(row["name"], row["state"], row["pinned"]) for row in listed["images"]} == {
            ("0", "cached", "operator"), ("3", "cached", None),
        }  # fmt: skip
        assert (listed["used_bytes"], listed["pinned_bytes"]) == (200, 100)
        await operator(two.fra, capsys, "cache", "unpin", made[0]["id"])
        assert await operator(two.fra, capsys, "cache", "unpin", made[0]["id"]) is None
        for image in (made[1], made[4]):
            await two.fra.data(image)
            await cached(two.fra, image)
        assert not is_cached(two.fra, made[0])
        assert two.fra.gateway.cache.used_bytes <= 250


async def test_a_pin_outlives_the_process_and_ends_with_its_image(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, ams_of(tmp_path, cluster) as ams:
        image = await ams.create_active(b"x" * 100, name="n", **PUBLIC)
        async with running(tmp_path / "fra", registry=cluster) as fra:
            await fra.drained()
            await seen(fra, image, status="active")
            fra.gateway.cache.pin(image["id"], 100, "operator")
        async with running(tmp_path / "fra", registry=cluster) as fra:
            await cached(fra, image)
            # Somebody made room by hand.
            for key in fra.gateway.cache.files():
                fra.gateway.cache.evict(key)
            fra.gateway.prefetch.look()
            await cached(fra, image)
            assert fra.gateway.cached.is_pinned(image["id"])
            assert await ams.status("DELETE", image["self"], user="root") == 204
            await until(lambda: fra.gateway.cached.all() == [], "the pin to go with the image")
            assert fra.gateway.cache.used_bytes == 0


@contextlib.asynccontextmanager
async def ams_of(tmp_path: Path, cluster: Registry, gateway: str = "ams-1", **options: Any) -> AsyncIterator[Zone]:
    async with running(tmp_path / gateway, registry=cluster, zone="ams", gateway=gateway, **options) as zone:
        await zone.drained()
        yield zone


async def test_images_of_this_zone_and_unknown_ones_are_not_for_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(tmp_path) as zone:
        own = await zone.create_active(b"x", name="own")
        empty = await zone.create(name="empty")
        for image in (own["id"], empty["id"], "0b1c2d3e-0000-4000-8000-00000000000a", "nonsense"):
            for verb in ("pin", "unpin", "evict", "prefetch"):
                assert await operator(zone, capsys, "cache", verb, image) is None
        assert await operator(zone, capsys, "cache", "list") == {"images": [], "used_bytes": 0, "pinned_bytes": 0}


# -- from whichever zone answers ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def reader_of_two(tmp_path: Path, *, more: str = "", **limits: Any) -> AsyncIterator[tuple[Zone, Zone, Zone]]:
    """fra, ams, and a second gateway of ams, which holds nothing itself: it reads from fra, or from its sibling."""
    async with (
        registry(tmp_path) as cluster,
        running(tmp_path / "fra", registry=cluster, shutdown_grace_s=0.1) as fra,
        ams_of(tmp_path, cluster) as ams,
        ams_of(tmp_path, cluster, "ams-2", more=more, **limits) as reader,
    ):
        await fra.drained()
        for zone in (fra, ams):
            await zone.gateway.zones.refresh()
        endpoints = reader.gateway.zones._known()
        sibling = f"https://{ams.gateway.config.interzone_listen[0]}:{ams.gateway.config.interzone_listen[1]}"  # type: ignore[index]
        tell(reader, fra=endpoints.get("fra") or fra.gateway.zones._known()["fra"], ams=[sibling])
        yield fra, ams, reader


def tell(reader: Zone, **endpoints: list[str]) -> None:
    """Where the reader takes the zones to be."""
    reader.gateway.interzone._endpoints = lambda zone: endpoints.get(zone, [])


@contextlib.asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """An address at which connections are accepted and nothing is answered."""
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _reader, writer: held.append(writer), "127.0.0.1", 0)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in held:
            writer.close()


async def test_silence_of_one_zone_costs_a_download_next_to_nothing_where_another_one_has_a_copy(
    tmp_path: Path,
) -> None:
    async with reader_of_two(tmp_path, **IMPATIENT) as (fra, ams, reader), black_hole() as nowhere:
        first = await fra.create_active(b"both have it", name="n")
        await imported(fra, first, method("copy-image") | {"stores": ["ams"]})
        only = await fra.create_active(b"fra alone has it", name="m")
        await fra.drained()
        shown = await seen(reader, first, stores={"fra", "ams"})
        assert [at["zone"] for at in shown["locations"]] == ["fra", "ams"]
        await seen(reader, only, status="active")
        sibling = reader.gateway.interzone._endpoints("ams")
        tell(reader, fra=[nowhere], ams=sibling)
        assert await reader.data(first) == b"both have it"
        assert ams.gateway.cache.misses == 0
        # The zone is remembered, so that nobody waits for it again meanwhile.
        async with reader.ask("GET", f"{only['self']}/file") as answer:
            assert answer.status == 503
            assert "zone fra could not be reached a moment ago" in await answer.text()


async def test_silence_of_one_gateway_is_not_waited_for_where_the_zone_has_another(tmp_path: Path) -> None:
    async with reader_of_two(tmp_path, **IMPATIENT) as (fra, _, reader), black_hole() as nowhere:
        image = await fra.create_active(b"x", name="n")
        await fra.drained()
        await seen(reader, image, status="active")
        tell(reader, fra=[nowhere, *reader.gateway.interzone._endpoints("fra")])
        assert await reader.data(image) == b"x"


async def test_a_download_goes_on_from_another_zone_when_its_source_dies(tmp_path: Path) -> None:
    async with reader_of_two(tmp_path, more=SLOW, data_chunk_bytes=1 << 16) as (fra, ams, reader):
        image = await fra.create_active(BIG, name="n")
        await imported(fra, image, method("copy-image") | {"stores": ["ams"]})
        await fra.drained()
        await seen(reader, image, stores={"fra", "ams"})
        download = asyncio.create_task(reader.data(image))
        await until(lambda: received(reader) > 1 << 20, "the download to be under way")
        for runner in fra.gateway._runners:
            await runner.cleanup()
        assert received(reader) < len(BIG), "the source died in the middle"
        assert await download == BIG
        assert reader.gateway.cache.misses == 1
        assert ams.gateway.cache.misses == 0


def received(zone: Zone) -> int:
    return sum(fetch.received for fetch in zone.gateway.cache.fetching().values())


async def test_a_download_whose_only_source_dies_breaks_off_and_works_when_it_is_back(tmp_path: Path) -> None:
    quick: dict[str, Any] = {"data_chunk_bytes": 1 << 16, "retry_delay_min_s": 0.01, "fetch_attempts_max": 3}
    async with reader_of_two(tmp_path, more=SLOW, **quick) as (fra, _, reader):
        image = await fra.create_active(BIG, name="n")
        await fra.drained()
        await seen(reader, image, status="active")
        download = asyncio.create_task(reader.data(image))
        await until(lambda: received(reader) > 1 << 20, "the download to be under way")
        endpoint = reader.gateway.interzone._endpoints("fra")
        tell(reader, fra=[f"https://127.0.0.1:{free_ports(1)[0]}"])
        await _cut(fra)
        with pytest.raises(aiohttp.ClientError):
            await download
        await until(lambda: not list((tmp_path / "ams-2/data/cache/incoming").iterdir()), "no leftover")
        assert await reader.status("GET", f"{image['self']}/file") == 503
        tell(reader, fra=endpoint)
        assert await reader.data(image) == BIG


async def _cut(zone: Zone) -> None:
    """Every connection between zones breaks; the listener stays."""
    runner = zone.gateway._runners[1]
    assert runner.server is not None
    for connection in list(runner.server.connections):
        assert connection.transport is not None
        connection.transport.abort()


async def test_while_the_registry_is_down_ams_boots_the_backup_of_fra_through_fra(tmp_path: Path) -> None:
    async with two_zones(tmp_path) as two:
        image = await two.fra.create_active(b"a backup" * 999, name="backup", **PUBLIC)
        await two.fra.drained()
        await seen(two.ams, image, status="active")
        await two.cluster.stop("a")
        await until(lambda: two.ams.gateway.status.state == "degraded", "the link to count as down")
        boots = await asyncio.gather(*(two.ams.data(image) for _ in range(8)))
        assert set(boots) == {b"a backup" * 999}
        assert two.ams.gateway.cache.misses == 1, "one fetch for all of them"


async def test_copies_into_this_zone_pass_the_cache_and_its_bounds(tmp_path: Path) -> None:
    async with two_zones(tmp_path, data_cache_max_bytes=1000) as two:
        small = await two.ams.create_active(b"x" * 100, name="small", **PUBLIC)
        large = await two.ams.create_active(b"x" * 2000, name="large", **PUBLIC)
        for image in (small, large):
            await seen(two.fra, image, status="active")
        copy = method("copy-image") | {"stores": ["fra"]}
        async with two.fra.ask("POST", f"{small['self']}/import", json=copy, user="root") as answer:
            assert answer.status == 202, await answer.text()
        await seen(two.fra, small, stores={"ams", "fra"})
        assert two.fra.gateway.cache.misses == 1
        async with two.fra.ask("POST", f"{large['self']}/import", json=copy, user="root") as answer:
            assert answer.status == 202, await answer.text()
        job = two.fra.gateway.imports.jobs.latest(large["id"])
        assert job is not None
        await until(lambda: job.done, "the import to end")
        assert "larger than the data cache" in job.message
        assert len(files(two.fra)) == 1
