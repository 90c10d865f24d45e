"""Links that are late, narrow or loose."""

from __future__ import annotations

import contextlib
import random

from chaos import config
from chaos.cluster import ClusterUnderTest
from chaos.faults.fault import Aim, Fault


class Latency(Fault):
    """Links at one peer or gateway get a delay, which may be longer than an election timeout."""

    _links: tuple[str, ...] = ()
    _ms = 0

    def _aimed(self, far: str, links: tuple[str, ...], chance: random.Random) -> Aim:
        self._links, self._ms = links, chance.choice(config.FAULT_LATENCIES_MS)
        return Aim(f"{far} by {self._ms} ms each way")

    def inject(self, cluster: ClusterUnderTest) -> None:
        for link in self._links:
            cluster.through.latency(link, self._ms)

    def heal(self, cluster: ClusterUnderTest) -> None:
        for link in self._links:
            cluster.through.latency(link, 0)


class FarPeer(Latency):
    """A peer is far from the other peers and from the observers."""

    name = "latency-peer"

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        far = chance.choice(cluster.peers)
        links = tuple(link for link in links_at(cluster, far) if not link.startswith("registry-"))
        return self._aimed(far, links, chance)


class FarZone(Latency):
    """A gateway is far from the registry and from the other zones."""

    name = "latency-zone"

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        far = chance.choice(cluster.gateways)
        return self._aimed(far, links_at(cluster, far), chance)


def links_at(cluster: ClusterUnderTest, name: str) -> tuple[str, ...]:
    """The links at one end of which is this peer, observer or gateway."""
    return tuple(link for link in cluster.through.addresses() if _is_end(link, name))


def _is_end(link: str, name: str) -> bool:
    kind, _, ends = link.partition("-")
    return ends == name if kind == "interzone" else ends.startswith(f"{name}-") or ends.endswith(f"-{name}")


class Bandwidth(Fault):
    """All links of one peer or gateway carry little per second, so that what is sent piles up."""

    name = "bandwidth"
    _links: tuple[str, ...] = ()
    _kib_per_s = 0

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        narrow = chance.choice([*cluster.peers, *cluster.gateways])
        self._kib_per_s = chance.choice(config.FAULT_BANDWIDTHS_KIB_PER_S)
        self._links = links_at(cluster, narrow)
        return Aim(f"{narrow} to {self._kib_per_s} KiB/s")

    def inject(self, cluster: ClusterUnderTest) -> None:
        for link in self._links:
            cluster.through.throttle(link, self._kib_per_s)

    def heal(self, cluster: ClusterUnderTest) -> None:
        for link in self._links:
            cluster.through.throttle(link, None)


class Flapping(Fault):
    """Two links of one peer or gateway break and heal, again and again."""

    name = "flapping"

    def __init__(self) -> None:
        self._links: list[str] = []
        self._down_s = self._up_s = 0.0
        self._flaps = contextlib.ExitStack()

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        shaky = chance.choice([*cluster.peers, *cluster.gateways])
        self._links = chance.sample(links_at(cluster, shaky), 2)
        self._down_s, self._up_s = chance.uniform(0.1, 0.6), chance.uniform(0.1, 0.6)
        return Aim(" and ".join(self._links))

    def inject(self, cluster: ClusterUnderTest) -> None:
        for link in self._links:
            self._flaps.enter_context(cluster.through.flap(link, down_s=self._down_s, up_s=self._up_s))

    def heal(self, cluster: ClusterUnderTest) -> None:
        self._flaps.close()
