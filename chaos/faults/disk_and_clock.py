"""Disks that sync late and wall clocks that are wrong: of one process each, while it runs."""

from __future__ import annotations

import random
from abc import abstractmethod
from typing import Any

from chaos import config
from chaos.cluster import ClusterUnderTest
from chaos.faults.fault import Aim, Fault


class Disturbance(Fault):
    """What the preloaded library does to one peer, observer or gateway."""

    _victim = ""
    _how: dict[str, Any]

    def available(self, cluster: ClusterUnderTest) -> str | None:
        return cluster.disturbances.missing

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        self._victim = chance.choice([*cluster.peers, *cluster.observers, *cluster.gateways])
        words, self._how = self._choose(chance)
        return Aim(f"{self._victim}: {words}")

    @abstractmethod
    def _choose(self, chance: random.Random) -> tuple[str, dict[str, Any]]:
        """In words, and as arguments of `Disturbances.set`."""

    def inject(self, cluster: ClusterUnderTest) -> None:
        cluster.disturbances.set(self._victim, **self._how)

    def heal(self, cluster: ClusterUnderTest) -> None:
        cluster.disturbances.set(self._victim)


class SlowSync(Disturbance):
    """Every fsync takes longer."""

    name = "slow-fsync"

    def _choose(self, chance: random.Random) -> tuple[str, dict[str, Any]]:
        ms = chance.choice(config.FAULT_SYNC_DELAYS_MS)
        return f"syncs take {ms} ms more", {"sync_delay_ms": ms}


class ClockOffset(Disturbance):
    """The wall clock jumps, ahead or back, and returns later. Nothing that is promised may depend on it."""

    name = "clock-offset"

    def _choose(self, chance: random.Random) -> tuple[str, dict[str, Any]]:
        ahead_s = chance.choice(config.FAULT_CLOCK_OFFSETS_S)
        return f"its clock is {ahead_s:+} s off", {"clock_ahead_s": ahead_s}
