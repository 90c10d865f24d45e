"""Processes that end at once, without a word: SIGKILL."""

from __future__ import annotations

import random

from chaos.cluster import ClusterUnderTest
from chaos.faults.fault import Aim, Fault, OfOneProcess


class Kill(OfOneProcess):
    name = "kill"

    def inject(self, cluster: ClusterUnderTest) -> None:
        cluster.kill(self._victim)

    def heal(self, cluster: ClusterUnderTest) -> None:
        cluster.restart(self._victim)


class RestartAll(Fault):
    """Every process at once, as when the power of the whole installation fails; then all start together."""

    name = "restart-all"
    alone = True

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        everything = (*cluster.peers, *cluster.observers, *cluster.gateways)
        return Aim("all processes", down=everything)

    def inject(self, cluster: ClusterUnderTest) -> None:
        cluster.kill(*cluster.peers, *cluster.observers, *cluster.gateways)

    def heal(self, cluster: ClusterUnderTest) -> None:
        cluster.restart(*cluster.peers, *cluster.observers, *cluster.gateways)
