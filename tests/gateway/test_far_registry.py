"""A registry that is far away: everything takes several round trips, and works."""

from __future__ import annotations

import dataclasses
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


@pytest.mark.slow
async def test_a_gateway_half_a_second_away_comes_online_stays_so_and_drains(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster:
        link = Link("far", cluster.url("a").removeprefix("https://"), "127.0.0.1:0")
        await link.enable()
        for direction in link.directions.values():
            direction.delay_s = ONE_WAY_S
        try:
            far = Far(cluster, [f"https://{link.listen}"])
            async with running(tmp_path / "fra", registry=far) as zone:
                await until(lambda: zone.gateway.status.state == "online", "online")
                changes: list[bool] = []
                zone.gateway.uplink.on_change.append(changes.append)
                image = await zone.create(name="far")
                await zone.drained()
                await zone.rename(image, "renamed")
                await zone.drained()
                assert changes == []
        finally:
            await link.disable()
