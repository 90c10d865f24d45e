"""Links that carry nothing: connections that end, or that stay open and swallow what is sent."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence

from chaos.cluster import ClusterUnderTest
from chaos.faults.fault import Aim, Fault
from chaos.links import Direction, Mode


class Partition(Fault):
    """A cut of the links that a kind of partition chooses, in one of the two ways of a cut."""

    _links: Sequence[str] = ()
    _mode: Mode = "blackhole"
    _direction: Direction | None = None

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        self._mode = chance.choice(("blackhole", "reset"))
        aim, self._links = self._choose(cluster, chance)
        return Aim(f"{aim.target} ({self._mode})", cut=aim.cut)

    @abstractmethod
    def _choose(self, cluster: ClusterUnderTest, chance: random.Random) -> tuple[Aim, Sequence[str]]:
        """What is cut off, and the links that do it."""

    def inject(self, cluster: ClusterUnderTest) -> None:
        for link in self._links:
            cluster.through.cut(link, self._direction, mode=self._mode)

    def heal(self, cluster: ClusterUnderTest) -> None:
        for link in self._links:
            cluster.through.heal(link)


class LeaderAlone(Partition):
    """The leader can't reach the other peers; clients still reach it."""

    name = "partition-leader"

    def _choose(self, cluster: ClusterUnderTest, chance: random.Random) -> tuple[Aim, Sequence[str]]:
        leader = cluster.wait_leader()
        return Aim(f"leader {leader} from the other peers"), cluster.wiring.links_of_peer(leader)


class MajorityRing(Partition):
    """Each peer sees only its two neighbours in a ring. With three peers, whose ring is whole, one link is missing."""

    name = "partition-ring"

    def _choose(self, cluster: ClusterUnderTest, chance: random.Random) -> tuple[Aim, Sequence[str]]:
        ring = chance.sample(cluster.peers, len(cluster.peers))
        near = {frozenset((one, ring[place - 1])) for place, one in enumerate(ring)}
        apart = [pair for pair in _pairs(ring) if frozenset(pair) not in near] or [(ring[0], ring[1])]
        links = [
            f"{kind}-{a}-{b}" for one, two in apart for a, b in ((one, two), (two, one)) for kind in ("raft", "api")
        ]
        return Aim(f"ring {' '.join(ring)}"), links


class OneWay(Fault):
    """What one peer sends to the others is lost, on the links that it dialled and on theirs; it still hears them."""

    name = "partition-one-way"
    _peer = ""

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        self._peer = chance.choice(cluster.peers)
        return Aim(f"what {self._peer} sends to the other peers")

    def inject(self, cluster: ClusterUnderTest) -> None:
        for other in cluster.peers:
            if other != self._peer:
                cluster.through.cut(f"raft-{self._peer}-{other}", "upstream", mode="blackhole")
                cluster.through.cut(f"raft-{other}-{self._peer}", "downstream", mode="blackhole")

    def heal(self, cluster: ClusterUnderTest) -> None:
        for link in cluster.wiring.links_of_peer(self._peer):
            cluster.through.heal(link)


class ZoneAlone(Partition):
    """A zone reaches neither the registry nor other zones."""

    name = "partition-zone"

    def _choose(self, cluster: ClusterUnderTest, chance: random.Random) -> tuple[Aim, Sequence[str]]:
        zone = chance.choice(list(cluster.zones))
        return Aim(f"zone {zone}", cut=(zone,)), cluster.wiring.links_of_zone(zone)


class ZoneFromPeer(Partition):
    """A zone reaches all peers but one."""

    name = "partition-zone-peer"

    def _choose(self, cluster: ClusterUnderTest, chance: random.Random) -> tuple[Aim, Sequence[str]]:
        gateway, peer = chance.choice(cluster.gateways), chance.choice(cluster.peers)
        return Aim(f"{gateway} from peer {peer}"), [f"registry-{gateway}-{peer}"]


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(one, two) for place, one in enumerate(names) for two in names[place + 1 :]]
