"""Where other zones' gateways are reached: as the registry last said, kept so that a restart without it knows them."""

import asyncio
import contextlib
from typing import Any, Protocol

from zonegw.errors import RegistryAway, RegistryRefused
from zonegw.limits import Limits
from zonegw.store import Store

_KEY = b"zones"


class Source(Protocol):
    """The registry's list of zones."""

    async def zones(self) -> dict[str, Any]: ...


class Zones:
    """The zones known here."""

    def __init__(self, store: Store, source: Source, limits: Limits) -> None:
        self._store = store
        self._source = source
        self._limits = limits
        self._changed = asyncio.Event()

    def endpoints(self, zone: str) -> list[str]:
        """URLs of the gateways of `zone`."""
        return self._known().get(zone, [])

    def with_endpoints(self) -> list[str]:
        """Zones whose gateways have told where their data are reached."""
        return sorted(zone for zone, endpoints in self._known().items() if endpoints)

    def _known(self) -> dict[str, list[str]]:
        return self._store.read().row("meta", _KEY) or {}

    async def refresh(self) -> None:
        """Ask the registry."""
        answer = await self._source.zones()
        known = {name: _endpoints(zone) for name, zone in answer.items()}
        if known != self._store.read().row("meta", _KEY):
            with self._store.transaction() as txn:
                txn.put_row("meta", _KEY, known)

    def changed(self) -> None:
        """The feed told of a zone that is new or has moved."""
        self._changed.set()

    async def run(self) -> None:
        """For ever: refresh when something changed, and now and then; sooner after a failure."""
        while True:
            self._changed.clear()
            try:
                await self.refresh()
                await self._wait(self._limits.zones_refresh_s)
            except (RegistryAway, RegistryRefused):
                await asyncio.sleep(self._limits.retry_delay_max_s)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()


def _endpoints(zone: dict[str, Any]) -> list[str]:
    gateways = zone.get("gateways") or {}
    found = [gateway.get("endpoint") for gateway in gateways.values()]
    return [endpoint for endpoint in found if endpoint]
