"""Images written at the registry itself: created, renamed, deleted by one client each, read linearizably by all.

Some creates are sent twice with one key, which must give the same image and make no other.
"""

from __future__ import annotations

import random
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from chaos.workloads.recording import RegistryClient, Values, client_anywhere, client_at
from chaos.workloads.register import FIRST_EPOCH
from chaos.workloads.workload import Site, Workload, new_uuid
from raftreg import errors
from raftreg.client import Client, new_key

FREE_CLIENTS = 2
# Recent ones, so that reads meet writes that are under way.
OWN_MAX, READ_MAX = 6, 24
# The share of creates that is sent twice.
ASKED_AGAIN = 0.3


class RegistryImages(Workload):
    name: ClassVar[str] = "images"

    def __init__(self) -> None:
        self._made: list[str] = []

    def clients(self, site: Site) -> Sequence[Coroutine[Any, Any, None]]:
        bound = [client_at(site.cluster, name) for name in site.cluster.peers]
        free = [client_anywhere(site.cluster) for _ in range(FREE_CLIENTS)]
        return [self._client(site, number, client) for number, client in enumerate([*bound, *free])]

    async def _client(self, site: Site, number: int, client: Client) -> None:
        process, own = f"images-{number}", list[str]()
        chance = site.chance(process)
        async with client:
            registry = RegistryClient(client, site.history, process)
            while await site.pace():
                await self._turn(registry, chance, own)
                del own[:-OWN_MAX]

    async def _turn(self, registry: RegistryClient, chance: random.Random, own: list[str]) -> None:
        drawn = chance.random()
        if drawn < 0.4 and self._made:
            one = chance.choice(self._made[-READ_MAX:])
            await registry.noted("get", {"uuid": one}, _seen(registry.client, one))
        elif drawn < 0.65 and own:
            one, changes = chance.choice(own), {"name": f"name-{chance.getrandbits(40):010x}"}
            await registry.noted("update", {"uuid": one, "set": changes}, _renamed(registry.client, one, changes))
        elif drawn < 0.75 and own:
            one = own.pop(chance.randrange(len(own)))
            await registry.noted("delete", {"uuid": one}, _deleted(registry.client, one))
        else:
            own.append(new_uuid(chance))
            self._made.append(own[-1])
            await _create(registry, own[-1], 2 if chance.random() < ASKED_AGAIN else 1)

    async def finish(self, site: Site) -> None:
        """What the registry holds in the end, so that the last writes are judged too."""
        async with client_anywhere(site.cluster) as client:
            registry = RegistryClient(client, site.history, "images-end")
            for one in self._made[-READ_MAX:]:
                await registry.noted("get", {"uuid": one}, _seen(client, one))


async def _create(registry: RegistryClient, one: str, times: int) -> None:
    key, name = new_key(), f"image {one}"
    fields = {"name": name, "disk_format": "raw", "container_format": "bare", "owner": "demo"}
    body = {"uuid": one, "attributes": fields}
    for _ in range(times):
        asked = {"uuid": one, "key": key, "attributes": {"name": name}}
        await registry.noted("create", asked, _did(registry.client, "POST", "images", body, key))


async def _renamed(client: Client, one: str, changes: Values) -> Values:
    return await _did(client, "PATCH", f"images/{one}", {"set": changes, "unset": []}, new_key())


async def _deleted(client: Client, one: str) -> Values:
    return _told(await client.delete_image(one))


async def _did(client: Client, method: str, path: str, body: Values, key: str) -> Values:
    """What the write did, by its first answer; `Client` hands out the image as it is now, which may be newer."""
    return _told(await client.request(method, path, body=body, key=key))


def _told(answer: Values) -> Values:
    committed = f"{FIRST_EPOCH}.{answer['revision']}"
    return {"version": answer["version"], "number": answer["number"], "committed": committed}


async def _seen(client: Client, one: str) -> Values:
    try:
        image = await client.get_image(one)
    except errors.NotFound:
        return {"found": False}
    attributes = {"name": image["name"]}
    return {"found": True, "version": image["version"], "number": image["number"], "attributes": attributes}
