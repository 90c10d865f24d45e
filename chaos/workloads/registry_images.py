"""Images at the registry itself: made, changed, read and deleted by clients of every peer, some of it asked twice.

Two clients are at work on each image at the same time. A write is now and then sent again under the same idempotency
key, as by a client that missed the answer: it must not happen twice, and gets the first answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from chaos.changes import FIRST_EPOCH
from chaos.workloads.recording import RegistryClient, Values, client_anywhere, client_at
from chaos.workloads.workload import Site, Workload, new_uuid
from ops.dev.wiring import PROJECT
from raftreg import errors
from raftreg.client import Client, new_key

# How many pairs of clients, and how many turns they have with one image before it is deleted.
PAIRS, TURNS = 2, 10
ASKED_TWICE = 0.2


class RegistryImages(Workload):
    name: ClassVar[str] = "images"

    def clients(self, site: Site) -> Sequence[Coroutine[Any, Any, None]]:
        return [self._pair(site, number) for number in range(PAIRS)]

    async def _pair(self, site: Site, number: int) -> None:
        chance, peers = site.chance(f"images-{number}"), site.cluster.peers
        async with client_anywhere(site.cluster) as free, client_at(site.cluster, peers[number % len(peers)]) as bound:
            one = RegistryClient(free, site.history, f"images-{number}-free")
            other = RegistryClient(bound, site.history, f"images-{number}-bound")
            while await site.pace():
                await self._life(site, one, other, chance)

    async def _life(self, site: Site, one: RegistryClient, other: RegistryClient, chance: random.Random) -> None:
        uuid = new_uuid(chance)
        attributes = {"name": f"first of {uuid}", "disk_format": "raw", "container_format": "bare", "owner": PROJECT}
        asked = {"uuid": uuid, "attributes": {"name": attributes["name"]}}
        await write(one, chance, "create", asked, "POST", "images", {"uuid": uuid, "attributes": attributes})
        for _ in range(TURNS):
            if not await site.pace():
                return
            await asyncio.gather(self._turn(one, uuid, chance), self._turn(other, uuid, chance))
        gone = write(one, chance, "delete", {"uuid": uuid}, "DELETE", f"images/{uuid}", None)
        await asyncio.gather(gone, look(other, uuid))

    async def _turn(self, registry: RegistryClient, uuid: str, chance: random.Random) -> None:
        seen = await look(registry, uuid)
        if chance.random() < 0.5:
            return
        name = f"{registry.process} {chance.getrandbits(40):010x}"
        asked: Values = {"uuid": uuid, "set": {"name": name}}
        body: Values = {"set": {"name": name}}
        if seen and seen.get("version") and chance.random() < 0.5:
            asked["base"] = body["base_version"] = seen["version"]
        await write(registry, chance, "update", asked, "PATCH", f"images/{uuid}", body)


async def look(registry: RegistryClient, uuid: str) -> Values | None:
    """A linearizable read; that there is no image is an answer, too."""
    return await registry.noted("get", {"uuid": uuid}, _read(registry.client, uuid))


async def write(
    registry: RegistryClient, chance: random.Random, kind: str, asked: Values, method: str, path: str, body: Any
) -> None:
    """One write, sometimes asked again under its key."""
    key = new_key()
    for _ in range(2 if chance.random() < ASKED_TWICE else 1):
        await registry.noted(kind, asked | {"key": key}, _written(registry.client, method, path, body, key))


async def _written(client: Client, method: str, path: str, body: Any, key: str) -> Values:
    """What the first answer to this key said; the client's own methods tell of the image as it is now."""
    ok = await client.request(method, path, body=body, key=key)
    told = {name: ok[name] for name in ("number", "version") if ok.get(name) is not None}
    return {**told, "committed": f"{FIRST_EPOCH}.{ok['revision']}"}


async def _read(client: Client, uuid: str) -> Values:
    try:
        image = await client.get_image(uuid)
    except (errors.ImageNotFound, errors.ImageDeleted):
        return {"found": False}
    attributes = {"name": image["name"]}
    return {"found": True, "version": image["version"], "number": image["number"], "attributes": attributes}
