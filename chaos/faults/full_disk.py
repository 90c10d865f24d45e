"""A disk with nothing left: a small file system that is filled up, or where none can be mounted, one that says so."""

from __future__ import annotations

import random

from chaos import config
from chaos.cluster import ClusterUnderTest
from chaos.faults.fault import Aim, Fault


class FullDisk(Fault):
    """One process' store is on a small disk, and something else takes up what is left there: what a process keeps free,
    so that growth must be refused (507), or the last byte, so that it may end. Nothing may be lost.

    A gateway refuses writes then, so it counts as away from what a zone promises.
    """

    name = "full-disk"
    _victim, _left = "", 0

    def available(self, cluster: ClusterUnderTest) -> str | None:
        return cluster.small_disks.missing and cluster.disturbances.missing

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        self._victim = chance.choice([*cluster.peers, *cluster.observers, *cluster.gateways])
        self._left = chance.choice(config.FULL_DISK_BYTES_LEFT)
        words = "its disk says that it is full" if cluster.small_disks.missing else f"{self._left} bytes left"
        return Aim(f"{self._victim}: {words}", down=(self._victim,))

    def inject(self, cluster: ClusterUnderTest) -> None:
        if cluster.small_disks.missing:
            cluster.disturbances.set(self._victim, disk_full=True)
            return
        store = cluster.store_of(self._victim)
        cluster.kill(self._victim)
        cluster.small_disks.put_under(store, config.SMALL_DISK_BYTES)
        cluster.restart(self._victim)
        cluster.wait(lambda: cluster.answers(self._victim), config.START_MAX_S)
        cluster.small_disks.fill(store, self._left)

    def heal(self, cluster: ClusterUnderTest) -> None:
        if cluster.small_disks.missing:
            cluster.disturbances.set(self._victim)
            return
        cluster.kill(self._victim)
        cluster.small_disks.take_away(cluster.store_of(self._victim))
        cluster.restart(self._victim)
