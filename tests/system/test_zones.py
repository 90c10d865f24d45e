"""Zones of real processes: cut off, killed and healed while a backup job runs; what the job was told must be there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from chaos import links
from tests.system.conftest import MakeCluster
from tests.system.zones import BACKUPS, SOON_S, Zones

# A busy disk takes a fraction of it; whoever waits for a dead uplink takes longer.
PAUSE_MAX_S = 4.0


@pytest.mark.parametrize("mode", [pytest.param("reset", marks=pytest.mark.slow), "blackhole"])
async def test_a_zone_cut_off_takes_backups_and_drains_them_later(
    make_cluster: MakeCluster, tmp_path: Path, seed: int, mode: links.Mode
) -> None:
    cluster = make_cluster(proxied=True)
    await asyncio.to_thread(cluster.start)
    zones = Zones(cluster, tmp_path / "history.jsonl", seed)
    async with zones.ams, zones.fra, asyncio.TaskGroup() as tasks:
        tasks.create_task(zones.job.run())
        await zones.job.allow(BACKUPS * 2 // 3)
        await zones.job.reached(BACKUPS // 3, SOON_S)
        await asyncio.to_thread(cluster.cut_zone, "fra", mode)
        await zones.state_is("degraded")
        before = zones.job.done
        await zones.job.allow(BACKUPS)
        await zones.job.reached(BACKUPS, SOON_S)
        assert zones.job.done > before
        assert zones.job.longest_pause_s < PAUSE_MAX_S, "clients waited for the link that was cut"
        # All of them: also those that the registry had already applied when the answer was cut off.
        for one in zones.job.uuids:
            await zones.fra.download(one)
        listed = {image["id"] for image in await zones.ams.images()}
        assert not listed >= set(zones.job.uuids), "fra was not cut off"
        await asyncio.to_thread(cluster.heal_zone, "fra")
        await zones.drained()
        await zones.state_is("online")
        await zones.read_all_in_ams()
        await zones.judge()


@pytest.mark.slow
async def test_a_gateway_killed_during_a_backup_job_loses_nothing_that_it_acknowledged(
    make_cluster: MakeCluster, tmp_path: Path, seed: int
) -> None:
    cluster = make_cluster(proxied=True)
    await asyncio.to_thread(cluster.start)
    zones = Zones(cluster, tmp_path / "history.jsonl", seed)
    async with zones.ams, zones.fra, asyncio.TaskGroup() as tasks:
        tasks.create_task(zones.job.run())
        await zones.job.allow(BACKUPS)
        for third in (1, 2):
            await zones.job.reached(BACKUPS * third // 3, SOON_S)
            await asyncio.to_thread(cluster.kill, "fra-1")
            await asyncio.to_thread(cluster.start_process, "fra-1")
        await zones.job.reached(BACKUPS, SOON_S)
        await zones.drained()
        await zones.read_all_in_ams()
        await zones.judge()
