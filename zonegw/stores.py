"""Stores as the API names them: a zone's own name is its store `default`, ZONE.NAME is another one of that zone."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from zonegw.data_stores.interface import DEFAULT_STORE, DataStore
from zonegw.errors import BadRequest, DataUnavailable
from zonegw.limits import Limits
from zonegw.own_stores import OwnStores
from zonegw.placement import Target


class Far(Protocol):
    """Other zones, by their data."""

    # Names of a zone's stores, as it last said itself.
    stores_told: dict[str, list[str]]

    async def reaches(self, zone: str) -> bool: ...


class Stores:
    """This zone's stores, and those of the zones that have told where their data are reached."""

    def __init__(self, own: OwnStores, others: Callable[[], list[str]], far: Far, limits: Limits) -> None:
        self._own = own
        self._others = others
        self._far = far
        self._limits = limits
        self._probed: dict[str, tuple[float, bool]] = {}
        self._own_names = {named(own.zone, store): store for store in own.offered}
        # What takes data for which no client chose a store.
        self.default = named(own.zone, own.default)

    def names(self) -> list[str]:
        """The default one first, then the other own ones. Of another zone the one with its name, which always takes
        data, and what else it told of."""
        own = sorted(self._own_names, key=lambda name: name != self.default)
        return own + [name for zone in self._other_zones() for name in self._names_of(zone)]

    def _other_zones(self) -> list[str]:
        return [zone for zone in self._others() if zone != self._own.zone]

    def _names_of(self, zone: str) -> list[str]:
        told = [named(zone, store) for store in self._far.stores_told.get(zone, ())]
        return [zone, *(name for name in told if name != zone)]

    def choose(self, name: str | None) -> str:
        """The store that a client named, or the default one. Raises BadRequest for one that is not known."""
        if name is None or name in self._own_names:
            return name or self.default
        if name == self._own.zone:
            return self.default
        if self._other(name) is None:
            raise BadRequest(f"there is no store {name!r:.80}; there are: {', '.join(self.names())}")
        return name

    def target(self, name: str) -> Target:
        """Where the store lies that `choose` gave."""
        if name in self._own_names:
            return self._own.zone, self._own_names[name]
        other = self._other(name)
        if other is None:
            raise DataUnavailable(f"store {name} is not known any more")
        return other

    def _other(self, name: str) -> Target | None:
        """A zone's name may have dots itself: the longest one that fits counts."""
        for zone in sorted(self._other_zones(), key=len, reverse=True):
            if name == zone:
                return zone, None
            if name.startswith(f"{zone}."):
                return zone, name.removeprefix(f"{zone}.")
        return None

    def is_own(self, name: str) -> bool:
        return name in self._own_names

    def _store(self, name: str) -> DataStore | None:
        return self._own.get(self._own_names[name]) if name in self._own_names else None

    def kind(self, name: str) -> str:
        """As administrators are told it: what lies in another zone is of that zone."""
        store = self._store(name)
        return "zone" if store is None else store.kind

    async def properties(self, name: str) -> dict[str, Any]:
        """What an operator wants to know of an own store, as far as it can be asked now."""
        store = self._store(name)
        if store is None or not await self._reaches(name):
            return {}
        return await store.properties()

    async def reachable(self) -> dict[str, bool]:
        """Whether each store can be reached; the answer of a moment ago will do."""
        names = self.names()
        answers = await asyncio.gather(*(self._reaches(name) for name in names))
        return dict(zip(names, answers, strict=True))

    async def asked(self, names: list[str]) -> bool:
        """Whether other zones had to be asked. Raises DataUnavailable where none of the stores can be reached."""
        if not names or any(self.is_own(name) for name in names):
            return False
        zones = sorted({self.target(name)[0] for name in names})
        if not any(await asyncio.gather(*(self._far.reaches(zone) for zone in zones))):
            raise DataUnavailable(f"zone {' and zone '.join(zones)} can't be reached now")
        return True

    async def _reaches(self, name: str) -> bool:
        """An own store is asked itself, another one through a gateway of its zone, once for all stores of it."""
        store = self._store(name)
        about = name if store is not None else self.target(name)[0]
        at, answer = self._probed.get(about, (0.0, False))
        if about not in self._probed or time.monotonic() - at > self._limits.store_probe_keep_s:
            answer = await (store.reachable() if store is not None else self._far.reaches(about))
            self._probed[about] = (time.monotonic(), answer)
        return answer


def named(zone: str, store: str) -> str:
    return zone if store == DEFAULT_STORE else f"{zone}.{store}"


def store_name(location: dict[str, Any]) -> str:
    """The store of a location."""
    return named(str(location["zone"]), location["store"])
