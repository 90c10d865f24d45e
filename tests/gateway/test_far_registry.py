"""A registry that is far away: everything takes several round trips, and works."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chaos.tcp_proxy import Link
from raftreg.config import TlsFiles
from tests.gateway.running import running, until
from tests.registry import Registry, registry

ONE_WAY_S = 0.25


@dataclasses.dataclass
class Far:
    """A registry as those see it who reach it through a slow link."""

    registry: Registry
    urls: list[str]

    def tls(self, who: str) -> TlsFiles:
        return self.registry.tls(who)


@contextlib.asynccontextmanager
async def far_registry(directory: Path) -> AsyncIterator[Far]:
    async with registry(directory) as cluster:
        link = Link("far", cluster.url("a").removeprefix("https://"), "127.0.0.1:0")
        await link.enable()
        for direction in link.directions.values():
            direction.delay_s = ONE_WAY_S
        try:
            yield Far(cluster, [f"https://{link.listen}"])
        finally:
            await link.disable()


@pytest.mark.slow
async def test_a_gateway_half_a_second_away_comes_online_stays_so_and_drains(tmp_path: Path) -> None:
    async with far_registry(tmp_path) as far, running(tmp_path / "fra", registry=far) as zone:
        await until(lambda: zone.gateway.status.state == "online", "online")
        changes: list[bool] = []
        zone.gateway.uplink.on_change.append(changes.append)
        image = await zone.create(name="far")
        await zone.drained()
        await zone.rename(image, "renamed")
        await zone.drained()
        assert changes == []


@pytest.mark.slow
async def test_what_a_far_registry_said_is_as_old_as_the_way_it_took(tmp_path: Path) -> None:
    async with far_registry(tmp_path) as far, running(tmp_path / "fra", registry=far) as zone:
        await until(lambda: zone.gateway.status.state == "online", "online")
        told: list[float] = []
        moved = zone.gateway.feed._wake_waiting

        def noting() -> None:
            moved()
            told.append(zone.gateway.status.staleness_s() or 0)

        zone.gateway.feed._wake_waiting = noting  # type: ignore[method-assign]
        await until(lambda: len(told) > 6, "word of the registry, a few times")
        assert min(told) >= ONE_WAY_S, "what came is that old at least"
        assert min(told) < 5, "and not given up"
