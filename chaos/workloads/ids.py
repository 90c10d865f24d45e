"""Image numbers taken straight from the registry, by clients of every peer, beside the blocks that gateways take.

Some are asked for again with the same key, which must give the same numbers and take no others.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from chaos.workloads.recording import RegistryClient, Values, client_anywhere, client_at
from chaos.workloads.workload import Site, Workload
from raftreg.client import Client, new_key

NUMBERS_AT_ONCE_MAX = 50
# The share of them that is asked for twice.
ASKED_AGAIN = 0.3


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
                key, count = new_key(), chance.randint(1, NUMBERS_AT_ONCE_MAX)
                for _ in range(2 if chance.random() < ASKED_AGAIN else 1):
                    await registry.noted("allocate", {"key": key}, _allocate(client, key, count))


async def _allocate(client: Client, key: str, count: int) -> Values:
    first, last = await client.allocate_ids(count, key=key)
    return {"first": first, "last": last}
