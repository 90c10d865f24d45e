"""Few hot images whose names are registers: read, written, compared and set by clients of every peer and observer.

Each client reads, and then most often sets what it read to a value that nobody else writes; all linearizable. Half of
the clients know one process of the registry only, so that a peer which wrongly thinks that it leads is asked as well;
those of observers, which take no writes, only read.
"""

from __future__ import annotations

import random
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from chaos.changes import FIRST_EPOCH
from chaos.workloads.recording import RegistryClient, Values, client_anywhere, client_at
from chaos.workloads.workload import Site, Workload, new_uuid
from raftreg.client import Client

REGISTERS, FREE_CLIENTS = 2, 2


class Register(Workload):
    name: ClassVar[str] = "register"

    def __init__(self) -> None:
        self._registers: list[str] = []

    async def prepare(self, site: Site) -> None:
        chance = site.chance("registers")
        async with client_anywhere(site.cluster) as client:
            registry = RegistryClient(client, site.history, "registers")
            for number in range(REGISTERS):
                one = new_uuid(chance)
                self._registers.append(one)
                value = f"first-{number}"
                asked = {"uuid": one, "value": value}
                await registry.noted("write", asked, _create(client, one, value))

    def clients(self, site: Site) -> Sequence[Coroutine[Any, Any, None]]:
        bound = [client_at(site.cluster, name) for name in site.cluster.peers]
        free = [client_anywhere(site.cluster) for _ in range(FREE_CLIENTS)]
        readers = [client_at(site.cluster, name) for name in site.cluster.observers]
        return [
            self._client(site, number, client, reads_only=client in readers)
            for number, client in enumerate([*bound, *free, *readers])
        ]

    async def _client(self, site: Site, number: int, client: Client, *, reads_only: bool) -> None:
        process = f"register-{number}"
        chance = site.chance(process)
        async with client:
            registry = RegistryClient(client, site.history, process)
            while await site.pace():
                await self._turn(registry, chance, reads_only)

    async def _turn(self, registry: RegistryClient, chance: random.Random, reads_only: bool) -> None:
        one, client = chance.choice(self._registers), registry.client
        seen = await registry.noted("read", {"uuid": one}, _read(client, one))
        if reads_only:
            return
        value = f"{registry.process}-{chance.getrandbits(40):010x}"
        if seen is not None and chance.random() < 0.7:
            asked = {"uuid": one, "base": seen["version"], "value": value}
            await registry.noted("cas", asked, _set(client, one, value, seen["version"]))
        elif chance.random() < 0.3:
            await registry.noted("write", {"uuid": one, "value": value}, _set(client, one, value, None))


async def _create(client: Client, one: str, value: str) -> Values:
    attributes = {"name": value, "disk_format": "raw", "container_format": "bare", "owner": "demo"}
    image = await client.create_image(uuid=one, attributes=attributes)
    return _written(image, value)


async def _read(client: Client, one: str) -> Values:
    image = await client.get_image(one)
    return {"version": image["version"], "value": image["name"]}


async def _set(client: Client, one: str, value: str, base: int | None) -> Values:
    image = await client.update_image(one, {"name": value}, base_version=base)
    return _written(image, value)


def _written(image: Values, value: str) -> Values:
    """What an answer tells. A retry is answered with the image as it is now, which somebody may have changed since."""
    committed = {"committed": f"{FIRST_EPOCH}.{image['revision']}"}
    return committed | ({"version": image["version"]} if image["name"] == value else {})
