"""What a fault is."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from chaos.cluster import ClusterUnderTest


@dataclass(frozen=True)
class Aim:
    """What a fault is going to hit: words for the report, processes that will be away, zones that will be cut off."""

    target: str
    down: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()


class Fault(ABC):
    """One way in which a cluster breaks; an object is used for one injection.

    All methods block and run in a thread. `heal` undoes all that `inject` did, and only that; it is called too when
    `inject` raised half way. Where it starts processes it need not wait until they serve.
    """

    name: ClassVar[str]
    alone: ClassVar[bool] = False
    """Takes away data or votes, so that another fault beside it could break more than is promised to hold."""
    spoils: ClassVar[tuple[str, ...]] = ()
    """Workloads whose promises do not hold under it, such as what the registry itself acknowledged, under a restore."""

    def available(self, cluster: ClusterUnderTest) -> str | None:
        """None where it can be injected, else the reason why not."""
        return None

    @abstractmethod
    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        """Choose the target."""

    @abstractmethod
    def inject(self, cluster: ClusterUnderTest) -> None:
        """Break what was aimed at."""

    @abstractmethod
    def heal(self, cluster: ClusterUnderTest) -> None:
        """Undo it."""


class OfOneProcess(Fault):
    """Hits one process: the leader half of the time, else any peer, observer or gateway."""

    _victim = ""

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        other = chance.choice([*cluster.peers, *cluster.observers, *cluster.gateways])
        self._victim = cluster.wait_leader() if chance.random() < 0.5 else other
        return Aim(self._victim, down=(self._victim,))
