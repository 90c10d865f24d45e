"""Zones as stores: an image's data lie in one or several of them, each named as its zone."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from zonegw.config import Limits
from zonegw.errors import BadRequest, DataUnavailable
from zonegw.placement import DEFAULT_STORE


class Far(Protocol):
    """Other zones, by their data."""

    async def reaches(self, zone: str) -> bool: ...


class Stores:
    """This zone's store, which is the default, and those of the zones that have told where their data are reached."""

    def __init__(self, zone: str, others: Callable[[], list[str]], far: Far, limits: Limits) -> None:
        self.zone = zone
        self._others = others
        self._far = far
        self._limits = limits
        self._probed: dict[str, tuple[float, bool]] = {}

    def names(self) -> list[str]:
        """Own zone first."""
        return [self.zone, *(zone for zone in self._others() if zone != self.zone)]

    def choose(self, name: str | None) -> str:
        """The zone of the store that a client named, or the own one. Raises BadRequest for one that is not known."""
        if name is None or name == self.zone:
            return self.zone
        names = self.names()
        if name not in names:
            raise BadRequest(f"there is no store {name!r:.80}; there are: {', '.join(names)}")
        return name

    async def reachable(self) -> dict[str, bool]:
        """Whether each store can be reached; the answer of a moment ago will do."""
        names = self.names()
        answers = await asyncio.gather(*(self._reaches(name) for name in names))
        return dict(zip(names, answers, strict=True))

    async def asked(self, names: list[str]) -> bool:
        """Whether other zones had to be asked. Raises DataUnavailable where none of the stores can be reached."""
        if not names or self.zone in names:
            return False
        if not any(await asyncio.gather(*(self._far.reaches(name) for name in names))):
            raise DataUnavailable(f"zone {' and zone '.join(names)} can't be reached now")
        return True

    async def _reaches(self, name: str) -> bool:
        if name == self.zone:
            return True
        at, answer = self._probed.get(name, (0.0, False))
        if name not in self._probed or time.monotonic() - at > self._limits.store_probe_keep_s:
            answer = await self._far.reaches(name)
            self._probed[name] = (time.monotonic(), answer)
        return answer


def store_name(location: dict[str, Any]) -> str:
    """A location as the API names stores: the zone, with the store's name unless it is the default."""
    zone, store = location["zone"], location["store"]
    return str(zone) if store == DEFAULT_STORE else f"{zone}.{store}"
