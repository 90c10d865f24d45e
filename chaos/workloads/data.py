"""Images with data: stored in their home zone, read there and in another one, each time compared by checksum."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

import aiohttp

from chaos import config
from chaos.workloads.image_set import create
from chaos.workloads.recording import Answer, Values, ZoneClient
from chaos.workloads.workload import Site, Workload, new_uuid

BYTES_MIN, BYTES_MAX = 1, 256 * 1024
OCTETS = {"Content-Type": "application/octet-stream"}


class Data(Workload):
    name: ClassVar[str] = "data"

    def __init__(self) -> None:
        self._stored: dict[str, list[str]] = {}

    def clients(self, site: Site) -> Sequence[Coroutine[Any, Any, None]]:
        gateways = site.cluster.gateways
        return [self._client(site, home, gateways[place - 1]) for place, home in enumerate(gateways)]

    async def _client(self, site: Site, home: str, other: str) -> None:
        process = f"data-{home}"
        chance, stored = site.chance(process), self._stored.setdefault(home, [])
        async with (
            ZoneClient(site.cluster, home, site.history, process) as at_home,
            ZoneClient(site.cluster, other, site.history, process) as abroad,
        ):
            while await site.pace() and len(stored) < config.IMAGES_WITH_DATA_MAX:
                drawn = chance.random()
                if drawn < 0.4 or not stored:
                    await self._store(at_home, chance, stored)
                elif drawn < 0.8:
                    await download(at_home, chance.choice(stored))
                else:
                    await download(abroad, chance.choice(stored), promised=False)

    async def _store(self, zone: ZoneClient, chance: random.Random, stored: list[str]) -> None:
        made: list[str] = []
        await create(zone, new_uuid(chance), made)
        for one in made:
            data = chance.randbytes(chance.randint(BYTES_MIN, BYTES_MAX))
            asked = {"uuid": one, "sha512": hashlib.sha512(data).hexdigest(), "size": len(data)}
            path = f"/v2/images/{one}/file"
            if await zone.noted("upload", asked, "PUT", path, data=data, headers=OCTETS):
                stored.append(one)

    async def finish(self, site: Site) -> None:
        """Every image once more, in the zone that it is not at home in."""
        gateways = site.cluster.gateways
        for place, home in enumerate(gateways):
            async with ZoneClient(site.cluster, gateways[place - 1], site.history, "data-reader") as abroad:
                for one in self._stored.get(home, ()):
                    await arrived(abroad, one)
                    await download(abroad, one, promised=False)


async def download(zone: ZoneClient, one: str, *, promised: bool = True) -> None:
    """Read an image's data. A zone that has not heard of them yet says that there are none (204)."""
    path = f"/v2/images/{one}/file"
    await zone.noted("download", {"uuid": one}, "GET", path, _checksum, good=(200,), promised=promised)


async def arrived(zone: ZoneClient, one: str) -> None:
    """Wait until a zone that is healed can fetch the data. Raises TimeoutError if it never can."""
    async with asyncio.timeout(config.RECOVERY_MAX_S):
        while True:
            try:
                if (await zone.ask("GET", f"/v2/images/{one}/file")).status == 200:
                    return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(config.CLIENT_PACE_S)


def _checksum(answer: Answer) -> Values:
    return {"sha512": hashlib.sha512(answer.body).hexdigest(), "size": len(answer.body)}
