"""Image numbers taken straight from the registry, by clients of every peer, beside the blocks that gateways take."""

from __future__ import annotations

import random
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from chaos.workloads.recording import RegistryClient, Values, client_anywhere, client_at
from chaos.workloads.workload import Site, Workload
from raftreg.client import Client

NUMBERS_AT_ONCE_MAX = 50


class Ids(Workload):
    name: ClassVar[str] = "ids"

    def clients(self, site: Site) -> Sequence[Coroutine[Any, Any, None]]:
        bound = [client_at(site.cluster, name) for name in site.cluster.peers]
        return [self._client(site, number, one) for number, one in enumerate([*bound, client_anywhere(site.cluster)])]

    async def _client(self, site: Site, number: int, client: Client) -> None:
        process = f"ids-{number}"
        chance = site.chance(process)
        async with client:
            registry = RegistryClient(client, site.history, process)
            while await site.pace():
                await registry.noted("allocate", {}, _allocate(client, chance))


async def _allocate(client: Client, chance: random.Random) -> Values:
    first, last = await client.allocate_ids(chance.randint(1, NUMBERS_AT_ONCE_MAX))
    return {"first": first, "last": last}
