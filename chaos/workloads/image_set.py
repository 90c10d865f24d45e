"""Images made in every zone, each read back at once and listed now and then: nothing is lost, doubled or made up."""

from __future__ import annotations

import random
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from chaos import config
from chaos.workloads.recording import Answer, Values, ZoneClient
from chaos.workloads.workload import Site, Workload, new_uuid

CLIENTS_PER_ZONE = 2


class ImageSet(Workload):
    name: ClassVar[str] = "set"

    def clients(self, site: Site) -> Sequence[Coroutine[Any, Any, None]]:
        return [
            self._client(site, gateway, f"set-{gateway}-{number}")
            for gateway in site.cluster.gateways
            for number in range(CLIENTS_PER_ZONE)
        ]

    async def _client(self, site: Site, gateway: str, process: str) -> None:
        chance, made = site.chance(process), list[str]()
        async with ZoneClient(site.cluster, gateway, site.history, process) as zone:
            while await site.pace() and len(made) < config.IMAGES_PER_CLIENT_MAX:
                await self._turn(zone, chance, made)

    async def _turn(self, zone: ZoneClient, chance: random.Random, made: list[str]) -> None:
        drawn = chance.random()
        if drawn < 0.6 or not made:
            await create(zone, new_uuid(chance), made)
        elif drawn < 0.9:
            await show(zone, chance.choice(made))
        else:
            await zone.noted("list", {}, "GET", "/v2/images?limit=20", lambda answer: {"count": _count(answer)})


async def create(zone: ZoneClient, one: str, made: list[str]) -> None:
    """Create an image; note its UUID in `made` if it was acknowledged."""
    body = {"id": one, "name": f"image {one}", "disk_format": "raw", "container_format": "bare"}
    if await zone.noted("create", {"uuid": one}, "POST", "/v2/images", number, json=body):
        made.append(one)


async def show(zone: ZoneClient, one: str) -> Answer | None:
    """Read an image, which may be gone."""
    return await zone.noted("get", {"uuid": one}, "GET", f"/v2/images/{one}", shown, good=(200, 404))


def number(answer: Answer) -> Values:
    """What the answer to a create says."""
    return {"number": answer.document()["os_glance_v1_id"]}


def shown(answer: Answer) -> Values:
    """What the answer to a read says."""
    if answer.status == 404:
        return {"found": False}
    image = answer.document()
    return {"found": True, "number": image["os_glance_v1_id"], "attributes": {"name": image["name"]}}


def _count(answer: Answer) -> int:
    return len(answer.document()["images"])
