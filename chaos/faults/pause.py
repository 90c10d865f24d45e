"""Processes that stand still with all their connections open: SIGSTOP. Others must not take them for gone or alive."""

from __future__ import annotations

from chaos.cluster import ClusterUnderTest
from chaos.faults.fault import OfOneProcess


class Pause(OfOneProcess):
    name = "pause"

    def inject(self, cluster: ClusterUnderTest) -> None:
        cluster.pause(self._victim)

    def heal(self, cluster: ClusterUnderTest) -> None:
        cluster.resume(self._victim)
