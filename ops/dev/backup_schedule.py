"""When which server is backed up, and which backup goes then: the same for the same seed, computed and never stored.

Every server has its minute of the day, spread evenly over 24 hours in an order that the seed shuffles, and a backup on
each day; with the backup of day d the one of day d - keep is deleted. So a million servers ask for twelve creates a
second. Nothing is remembered of a backup: its UUID follows from seed, server and day.
"""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

DAY_S = 86_400.0


@dataclass(frozen=True)
class Backup:
    """One backup: due `due_s` after the start, in real seconds; `expired` is the UUID of the one that it replaces."""

    server: int
    day: int
    due_s: float
    zone: str
    uuid: str
    expired: str | None


@dataclass(frozen=True)
class Schedule:
    """`servers` with a daily backup of which `keep` are kept, spread over `zones`; `speed` simulated seconds pass in a
    real one. `salt` keeps the UUIDs of two runs on one cluster apart."""

    servers: int
    keep: int
    zones: tuple[str, ...]
    seed: int
    speed: float = 1.0
    salt: str = ""

    @property
    def per_s(self) -> float:
        """Backups per real second."""
        return self.servers / DAY_S * self.speed

    def backups(self) -> Iterator[Backup]:
        """For ever, in the order in which they are due."""
        chance = random.Random(self.seed)
        step, first = self._step(chance), chance.randrange(self.servers)
        day = 0
        while True:
            for slot in range(self.servers):
                jitter = random.Random(f"{self.seed}.{day}.{slot}").random()
                yield self._backup((first + slot * step) % self.servers, day, (slot + jitter) / self.servers)
            day += 1

    def _step(self, chance: random.Random) -> int:
        """Steps of this width come to every server once a day."""
        while math.gcd(step := chance.randrange(self.servers) + 1, self.servers) != 1:
            pass
        return step

    def _backup(self, server: int, day: int, share_of_day: float) -> Backup:
        return Backup(
            server, day, (day + share_of_day) * DAY_S / self.speed, self.zones[server % len(self.zones)],
            self.uuid_of(server, day), self.uuid_of(server, day - self.keep) if day >= self.keep else None,
        )  # fmt: skip

    def uuid_of(self, server: int, day: int) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.salt}.{self.seed}.{server}.{day}"))
