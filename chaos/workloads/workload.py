"""What a workload is."""

from __future__ import annotations

import asyncio
import random
import uuid
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from chaos import config
from chaos.cluster import ClusterUnderTest
from chaos.history import History


@dataclass
class Site:
    """Where workloads are at work."""

    cluster: ClusterUnderTest
    history: History
    seed: int
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def chance(self, process: str) -> random.Random:
        """The randomness of one client, decided by the seed."""
        return random.Random(f"{self.seed}.{process}")

    async def pace(self) -> bool:
        """Wait between two operations; False when the run is over."""
        try:
            await asyncio.wait_for(self.stopped.wait(), config.CLIENT_PACE_S)
        except TimeoutError:
            return True
        return False


class Workload(ABC):
    """Clients of one kind. An object is used for one run."""

    name: ClassVar[str]

    async def prepare(self, site: Site) -> None:
        """What has to be there before the first fault."""
        return

    @abstractmethod
    def clients(self, site: Site) -> Sequence[Coroutine[Any, Any, None]]:
        """The clients, each of which goes on until the site says that the run is over."""

    async def finish(self, site: Site) -> None:
        """What clients do once all is healed and drained, such as to read in one zone what was made in another."""
        return


def new_uuid(chance: random.Random) -> str:
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))
