"""Images that are created, renamed and deleted in their home zone, cut off or not, and looked at in another zone.

A client writes its images alone and goes on with them only after an answer, so every read can be judged: its own zone
shows what it wrote, and the other zone what its client has seen already (`X-Zonegw-Revision` sent back).
"""

from __future__ import annotations

import random
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from chaos.workloads.image_set import create, show, shown
from chaos.workloads.recording import ZoneClient
from chaos.workloads.workload import Site, Workload, new_uuid

CLIENTS_PER_ZONE = 2
# Few, so that each has a life of several changes.
IMAGES_AT_ONCE = 4
PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
REVISION = "X-Zonegw-Revision"


class Life(Workload):
    name: ClassVar[str] = "life"

    def clients(self, site: Site) -> Sequence[Coroutine[Any, Any, None]]:
        gateways = site.cluster.gateways
        return [
            self._client(site, home, gateways[place - 1], f"life-{home}-{number}")
            for place, home in enumerate(gateways)
            for number in range(CLIENTS_PER_ZONE)
        ]

    async def _client(self, site: Site, home: str, other: str, process: str) -> None:
        chance, alive = site.chance(process), list[str]()
        async with (
            ZoneClient(site.cluster, home, site.history, process) as at_home,
            ZoneClient(site.cluster, other, site.history, process) as abroad,
        ):
            while await site.pace():
                if len(alive) < IMAGES_AT_ONCE:
                    await create(at_home, new_uuid(chance), alive)
                else:
                    await self._turn(at_home, abroad, chance, alive)

    async def _turn(self, home: ZoneClient, abroad: ZoneClient, chance: random.Random, alive: list[str]) -> None:
        one, drawn = chance.choice(alive), chance.random()
        if drawn < 0.4:
            await rename(home, one, f"name-{chance.getrandbits(32):08x}")
        elif drawn < 0.5:
            # Whatever the answer: nobody asks for it any more.
            alive.remove(one)
            await home.noted("delete", {"uuid": one}, "DELETE", f"/v2/images/{one}")
        elif drawn < 0.8:
            await show(home, one)
        else:
            await look_abroad(home, abroad, one)


async def rename(zone: ZoneClient, one: str, name: str, *, promised: bool = True) -> None:
    """Change an image's name, which every judge knows of."""
    patch = [{"op": "replace", "path": "/name", "value": name}]
    asked = {"uuid": one, "set": {"name": name}}
    await zone.noted("update", asked, "PATCH", f"/v2/images/{one}", promised=promised, json=patch, headers=PATCH)


async def look_abroad(home: ZoneClient, abroad: ZoneClient, one: str) -> None:
    """Read at home, then in the other zone nothing older than that; which it may refuse while it can't know."""
    seen = await show(home, one)
    revision = seen.headers.get(REVISION, "none") if seen else "none"
    if revision == "none":
        return
    asked = {"uuid": one, "after": revision}
    headers = {REVISION: revision}
    await abroad.noted(
        "get", asked, "GET", f"/v2/images/{one}", shown, good=(200, 404), promised=False, headers=headers
    )
