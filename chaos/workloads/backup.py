"""The backup job of a cloud in every zone: each backup must end, however often it has to be tried."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from chaos import config
from chaos.workloads.workload import Site, Workload
from ops.dev.backup_job import LATER, BackupJob, ImagesApi

CLIENTS_PER_ZONE = 2
# A disk that is full now has room again when its fault is healed.
AGAIN = (*LATER, 507)


class Backup(Workload):
    name: ClassVar[str] = "backup"

    def clients(self, site: Site) -> Sequence[Coroutine[Any, Any, None]]:
        return [self._zone(site, number, gateway) for number, gateway in enumerate(site.cluster.gateways)]

    async def _zone(self, site: Site, number: int, gateway: str) -> None:
        async with ImagesApi(site.cluster.zones[site.cluster.zone_of(gateway)]) as api, asyncio.TaskGroup() as tasks:
            seed = site.chance(f"backup-{number}").getrandbits(32)
            count = config.IMAGES_WITH_DATA_MAX
            job = BackupJob(api, gateway, site.history, count=count, seed=seed, clients=CLIENTS_PER_ZONE, later=AGAIN)
            running = tasks.create_task(job.run())
            for begun in range(1, count + 1):
                await job.allow(begun)
                if running.done() or not await site.pace():
                    break
            job.count = begun
            await job.allow(begun)
