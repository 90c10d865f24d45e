"""Images that one tenant shares with another, who may see them from then on, and none before that."""

from __future__ import annotations

import random
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from chaos.cluster import GUEST_PROJECT
from chaos.workloads.image_set import create
from chaos.workloads.recording import Answer, Values, ZoneClient
from chaos.workloads.workload import Site, Workload, new_uuid

IMAGES_AT_ONCE = 6


class Sharing(Workload):
    name: ClassVar[str] = "sharing"

    def __init__(self) -> None:
        self._shared: set[str] = set()

    def clients(self, site: Site) -> Sequence[Coroutine[Any, Any, None]]:
        gateways = site.cluster.gateways
        return [self._client(site, home, gateways[place - 1]) for place, home in enumerate(gateways)]

    async def _client(self, site: Site, home: str, other: str) -> None:
        process, tokens = f"sharing-{home}", site.cluster.guest_tokens
        chance, images = site.chance(process), list[str]()
        async with (
            ZoneClient(site.cluster, home, site.history, process) as owner,
            ZoneClient(site.cluster, home, site.history, f"{process}-guest", token=tokens[home]) as guest,
            ZoneClient(site.cluster, other, site.history, f"{process}-far-guest", token=tokens[other]) as far_guest,
        ):
            while await site.pace():
                if len(images) < IMAGES_AT_ONCE:
                    await create(owner, new_uuid(chance), images)
                else:
                    await self._turn(owner, chance.choice((guest, guest, far_guest)), chance, images)

    async def _turn(self, owner: ZoneClient, guest: ZoneClient, chance: random.Random, images: list[str]) -> None:
        """Mostly looks; an image is shared once, and later taken back and left alone."""
        one, drawn = chance.choice(images), chance.random()
        if drawn < 0.15 and one not in self._shared:
            self._shared.add(one)
            member = {"member": GUEST_PROJECT}
            await owner.noted("share", tenant(one), "POST", f"/v2/images/{one}/members", json=member)
        elif drawn < 0.25 and one in self._shared:
            images.remove(one)
            await owner.noted("unshare", tenant(one), "DELETE", f"/v2/images/{one}/members/{GUEST_PROJECT}")
            await look(guest, one)
        else:
            await look(guest, one)


async def look(guest: ZoneClient, one: str) -> None:
    """Look for an image of another tenant."""
    await guest.noted("spy", tenant(one), "GET", f"/v2/images/{one}", _found, good=(200, 404))


def tenant(one: str) -> Values:
    """An image and who it is shared with, as the judge knows it."""
    return {"uuid": one, "tenant": GUEST_PROJECT}


def _found(answer: Answer) -> Values:
    return {"found": answer.status == 200}
