"""Links that are late."""

from __future__ import annotations

import random

from chaos import config
from chaos.cluster import ClusterUnderTest
from chaos.faults.fault import Aim, Fault


class Latency(Fault):
    """All links of one peer or gateway get a delay, which may be longer than an election timeout."""

    name = "latency"
    _links: tuple[str, ...] = ()
    _ms = 0

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        far = chance.choice([*cluster.peers, *cluster.gateways])
        self._ms = chance.choice(config.FAULT_LATENCIES_MS)
        self._links = links_at(cluster, far)
        return Aim(f"{far} by {self._ms} ms each way")

    def inject(self, cluster: ClusterUnderTest) -> None:
        for link in self._links:
            cluster.through.latency(link, self._ms)

    def heal(self, cluster: ClusterUnderTest) -> None:
        for link in self._links:
            cluster.through.latency(link, 0)


def links_at(cluster: ClusterUnderTest, name: str) -> tuple[str, ...]:
    """The links at one end of which is this peer, observer or gateway."""
    return tuple(link for link in cluster.through.addresses() if _is_end(link, name))


def _is_end(link: str, name: str) -> bool:
    kind, _, ends = link.partition("-")
    return ends == name if kind == "interzone" else ends.startswith(f"{name}-") or ends.endswith(f"-{name}")
