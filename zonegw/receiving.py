"""Receiving: the bytes of one fetch, from whichever of the zones that hold a copy answers.

All copies have the same sha512, so a fetch that one zone breaks off goes on from another one where it was. A zone that
is silent is left early for the next one, and not tried again for a moment.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol

from zonegw.bandwidth import Bandwidth
from zonegw.errors import DataUnavailable, ZoneAway
from zonegw.limits import Limits

Location = dict[str, Any]


class Origin(Protocol):
    """Where bytes of other zones come from."""

    def read(self, zone: str, key: str, offset: int) -> AsyncGenerator[bytes]:
        """The bytes from `offset` on. Raises DataUnavailable; ZoneAway when the zone can't be reached."""
        ...


class Incoming(Protocol):
    """A fetch, as far as this knows it."""

    size: int
    received: int
    wanted: bool

    def handle(self) -> int: ...

    def moved(self) -> None: ...


class Receiver:
    """Remembers for `zone_away_keep_s` which zones could not be reached."""

    def __init__(
        self, origin: Origin, bandwidth: Bandwidth, limits: Limits, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._origin = origin
        self._bandwidth = bandwidth
        self._limits = limits
        self._clock = clock
        self._away: dict[str, float] = {}

    def reachable(self, locations: list[Location]) -> list[Location]:
        """Those first that may answer. Raises ZoneAway where none could be reached a moment ago."""
        away = [location for location in locations if self._is_away(location["zone"])]
        if len(away) == len(locations):
            zones = " and ".join(sorted({f"zone {location['zone']}" for location in away}))
            raise ZoneAway(f"{zones} could not be reached a moment ago")
        return [location for location in locations if location not in away] + away

    def _is_away(self, zone: str) -> bool:
        return self._away.get(zone, 0.0) > self._clock()

    async def receive(self, fetch: Incoming, locations: list[Location]) -> str:
        """Take all bytes, and return their sha512. Raises DataUnavailable once every zone failed before the first byte,
        or `fetch_attempts_max` attempts in a row after it."""
        digest = hashlib.sha512()
        turn = failures = 0
        while fetch.received < fetch.size:
            before, last = fetch.received, (turn + 1) % len(locations) == 0
            try:
                await self._take(fetch, locations[turn % len(locations)], digest, patient=last)
            except (TimeoutError, DataUnavailable, OSError) as error:
                failures = 0 if fetch.received > before else failures + 1
                if failures >= (self._limits.fetch_attempts_max if fetch.received else len(locations)):
                    raise error if isinstance(error, DataUnavailable) else DataUnavailable(str(error)) from error
                await self._pause(failures if last else 0)
            turn += 1
        return digest.hexdigest()

    async def _pause(self, failures: int) -> None:
        """Give a zone that restarts the time for it."""
        if failures:
            await asyncio.sleep(
                min(self._limits.retry_delay_min_s * 2 ** (failures - 1), self._limits.retry_delay_max_s)
            )

    async def _take(self, fetch: Incoming, location: Location, digest: "hashlib._Hash", *, patient: bool) -> None:
        zone, before = location["zone"], fetch.received
        try:
            async with aclosing(self._origin.read(zone, location["key"], before)) as body:
                while (piece := await self._next(body, zone, patient)) is not None:
                    await self._keep(fetch, piece, digest)
                    self._away.pop(zone, None)
        except ZoneAway:
            self._away[zone] = self._clock() + self._limits.zone_away_keep_s
            raise
        if fetch.received == before:
            raise DataUnavailable(f"zone {zone} sent fewer bytes than the image has")

    async def _next(self, body: AsyncGenerator[bytes], zone: str, patient: bool) -> bytes | None:
        """Where another zone can be asked, silence is not waited for."""
        patience_s = None if patient else self._limits.store_probe_max_s
        try:
            async with asyncio.timeout(patience_s):
                return await anext(body, None)
        except TimeoutError:
            raise ZoneAway(f"zone {zone} did not answer within {patience_s} s") from None

    async def _keep(self, fetch: Incoming, piece: bytes, digest: "hashlib._Hash") -> None:
        if fetch.received + len(piece) > fetch.size:
            raise DataUnavailable("the other zone sent more bytes than the image has")
        await self._bandwidth.take(len(piece), urgent=lambda: fetch.wanted)
        await asyncio.to_thread(_write, fetch.handle(), piece, fetch.received, digest)
        fetch.received += len(piece)
        fetch.moved()


def _write(handle: int, piece: bytes, offset: int, digest: "hashlib._Hash") -> None:
    view = memoryview(piece)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
    digest.update(piece)
