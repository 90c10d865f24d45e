"""Images that two zones write at the same time: their home zone, cut off or not, and another one, which has to ask.

What the registry then refuses is parked by the home zone, and the judge knows of which images. Sometimes the other zone
deletes the image under the home zone's hands.
"""

from __future__ import annotations

import random
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from chaos.workloads.image_set import create, show
from chaos.workloads.life import rename
from chaos.workloads.recording import ZoneClient
from chaos.workloads.workload import Site, Workload, new_uuid

# A disputed image is left after so many turns, so that deletes and parked writes do not end the dispute early.
TURNS_PER_IMAGE = 12


class Conflict(Workload):
    name: ClassVar[str] = "conflict"

    def clients(self, site: Site) -> Sequence[Coroutine[Any, Any, None]]:
        gateways = site.cluster.gateways
        return [
            self._dispute(site, home, gateways[place - 1], f"conflict-{home}") for place, home in enumerate(gateways)
        ]

    async def _dispute(self, site: Site, home: str, other: str, process: str) -> None:
        chance = site.chance(process)
        async with (
            ZoneClient(site.cluster, home, site.history, f"{process}-home") as at_home,
            ZoneClient(site.cluster, other, site.history, f"{process}-abroad") as abroad,
        ):
            while await site.pace():
                made: list[str] = []
                await create(at_home, new_uuid(chance), made)
                for one in made:
                    await self._about(site, at_home, abroad, one, chance)

    async def _about(self, site: Site, home: ZoneClient, abroad: ZoneClient, one: str, chance: random.Random) -> None:
        for turn in range(TURNS_PER_IMAGE):
            if not await site.pace():
                return
            name = f"{turn}-{chance.getrandbits(24):06x}"
            if chance.random() < 0.5:
                await rename(home, one, f"home-{name}")
            elif turn > TURNS_PER_IMAGE // 2 and chance.random() < 0.1:
                await abroad.noted("delete", {"uuid": one}, "DELETE", f"/v2/images/{one}", promised=False)
            else:
                await rename(abroad, one, f"abroad-{name}", promised=False)
            if chance.random() < 0.3:
                await show(home, one)
