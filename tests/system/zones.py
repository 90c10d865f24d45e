"""A proxied cluster with a backup job in one of its zones, for tests that break something meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from chaos import history
from chaos.history import History
from chaos.validate import judge
from ops.dev import processes
from ops.dev.backup_job import BackupJob, ImagesApi
from ops.dev.cluster import Cluster
from ops.dev.readout import client_of, registry_images

# For everything that must happen in the end, on a busy machine.
SOON_S = 45.0
BACKUPS = 90


class Zones:
    """A proxied cluster with a backup job in fra, and what both zones and the registry hold in the end."""

    def __init__(self, cluster: Cluster, path: Path, seed: int) -> None:
        self.cluster, self.path = cluster, path
        self.history = History(path)
        self.ams, self.fra = ImagesApi(cluster.zones["ams"]), ImagesApi(cluster.zones["fra"])
        self.job = BackupJob(self.fra, "fra-1", self.history, count=BACKUPS, seed=seed)

    async def state_is(self, state: str) -> None:
        """Wait until fra says that it is in this state."""

        def is_so() -> bool:
            status = self.cluster.gateway_status("fra-1")
            return status is not None and status["state"] == state

        assert await asyncio.to_thread(processes.wait_until, is_so, SOON_S), self.cluster.gateway_status("fra-1")

    async def drained(self) -> None:
        """Wait until fra has nothing left to send, and ams has seen it all."""

        def is_so() -> bool:
            status = self.cluster.gateway_status("fra-1")
            return status is not None and status["queue_depth"] == 0

        assert await asyncio.to_thread(processes.wait_until, is_so, SOON_S), self.cluster.gateway_status("fra-1")
        async with asyncio.timeout(SOON_S):
            while not await self._known_in_ams():  # noqa: ASYNC110
                await asyncio.sleep(processes.POLL_INTERVAL_S)

    async def _known_in_ams(self) -> bool:
        """Whether ams lists all backups, and has learnt where fra's data are."""
        listed = {image["id"] for image in await self.ams.images()}
        if not listed >= set(self.job.uuids):
            return False
        status, _ = await self.ams.ask("GET", f"/v2/images/{self.job.uuids[0]}/file")
        return status == 200

    async def read_all_in_ams(self) -> None:
        """Download every tenth backup in the other zone; the judge compares what came."""
        for one in self.job.uuids[::10]:
            operation = self.history.invoke("reader", "download", uuid=one)
            sha512, size = await self.ams.download(one)
            self.history.ok(operation, sha512=sha512, size=size)

    async def judge(self) -> None:
        self.history.close()
        async with client_of(self.cluster) as registry:
            images = await registry_images(registry)
        listings = {"ams": await self.ams.images(), "fra": await self.fra.images()}
        verdict = judge(history.read(self.path), images, listings)
        assert verdict.ok, f"{verdict.problems} in {self.cluster.base}"
        assert verdict.acknowledged == BACKUPS
        assert verdict.checksums_verified >= BACKUPS + BACKUPS // 10
