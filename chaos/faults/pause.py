"""Processes that stand still with all their connections open: SIGSTOP. Others must not take them for gone or alive."""

from __future__ import annotations

import random

from chaos.cluster import ClusterUnderTest
from chaos.faults.fault import Aim, Fault


class Pause(Fault):
    """One process: the leader half of the time, else any peer, observer or gateway."""

    name = "pause"
    _victim = ""

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        other = chance.choice([*cluster.peers, *cluster.observers, *cluster.gateways])
        self._victim = cluster.wait_leader() if chance.random() < 0.5 else other
        return Aim(self._victim, down=(self._victim,))

    def inject(self, cluster: ClusterUnderTest) -> None:
        cluster.pause(self._victim)

    def heal(self, cluster: ClusterUnderTest) -> None:
        cluster.resume(self._victim)
