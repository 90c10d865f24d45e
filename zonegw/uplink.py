"""The only door to the registry: requests in the words of this package, and whether the link is up.

Heartbeats probe the link beside all other work. After `heartbeat_failures_max` of them failed, the circuit is open:
nothing that a client waits for tries the link until a heartbeat got through again.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raftreg import errors, wire
from raftreg.client import Client, FeedFilter, client_ssl_context
from zonegw.config import Config
from zonegw.errors import FeedGone, RegistryAway, RegistryRefused

log = logging.getLogger(__name__)

FEATURE_LEVEL = 1
"""The highest feature level of the registry that this gateway understands; the registry does not rise above it while
the gateway is live."""

# Verdicts on the request itself. Everything else passes, or leaves the outcome open: the same request is sent again.
_VERDICTS = (errors.BadRequest, errors.TooLarge, errors.Forbidden, errors.NotFound, errors.Conflict)
_MALFORMED = (errors.BadRequest, errors.TooLarge)


class Uplink:
    """The link of one gateway; `on_change` is called whenever it comes up or goes down."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._limits = config.limits
        tls = config.tls
        context = client_ssl_context(tls.ca, tls.cert, tls.key) if tls else None
        # A registry without TLS, which only a loopback one may be, takes the names from headers.
        names = {wire.HEADER_ZONE: config.zone, wire.HEADER_GATEWAY: config.gateway}
        self._client = Client(
            config.endpoints, ssl=context, headers=None if tls else names, deadline_s=self._limits.uplink_deadline_s,
            attempt_s=self._limits.uplink_attempt_s, connect_s=self._limits.uplink_connect_s,
        )  # fmt: skip
        self._wanted = FeedFilter(tenants=frozenset(config.tenants))
        self._failures = config.limits.heartbeat_failures_max
        self._registered = False
        self.last_error: str | None = "the registry was not reached yet"
        self.down_since = time.time()
        self.on_change: list[Callable[[bool], None]] = []
        # Gets a position of the registry, and a monotonic time up to which that surely contains everything.
        self.on_confirmed: Callable[[tuple[int, int], float], None] = lambda position, complete_to: None

    @property
    def up(self) -> bool:
        """Whether requests have a prospect: false while the circuit is open."""
        return self._failures < self._limits.heartbeat_failures_max

    def away_reason(self) -> str:
        """For people: why the registry is not there."""
        return self.last_error or "the registry does not answer"

    async def close(self) -> None:
        await self._client.close()

    async def probe(self) -> None:
        """For ever: register once, then send heartbeats."""
        while True:
            try:
                # A link that is down gets the time that a far registry needs: connections and registration are to come.
                deadline_s = self._limits.heartbeat_deadline_s if self.up else self._limits.uplink_deadline_s
                async with asyncio.timeout(deadline_s):
                    await self._beat(deadline_s)
                self._settle(None)
            except (RegistryAway, RegistryRefused, TimeoutError) as error:
                self._settle(str(error) or "no answer in time")
            await asyncio.sleep(self._limits.heartbeat_interval_s)

    async def _beat(self, deadline_s: float) -> None:
        with _translated():
            zone, gateway = self._config.zone, self._config.gateway
            if not self._registered:
                await self._client.register_zone(zone)
                await self._client.register_gateway(zone, gateway, self._config.advertise or "")
                self._registered = True
            asked = time.monotonic()
            answer = await self._client.heartbeat(zone, gateway, level=FEATURE_LEVEL, deadline_s=deadline_s)
            if (state := answer["state"]) is not None:
                self.on_confirmed((state["epoch"], state["revision"]), asked - state["staleness_s"])

    def _settle(self, error: str | None) -> None:
        was = self.up
        self._failures = 0 if error is None else self._failures + 1
        self.last_error = error
        if was != self.up:
            self.down_since = time.time()
            self._registered = self._registered and self.up
            log.warning("uplink is %s%s", "up" if self.up else "down: ", error or "")
            for listener in self.on_change:
                listener(self.up)

    async def open_session(self, session: dict[str, Any]) -> dict[str, Any]:
        """Contract of the session handshake: {"last_sequence", "last_hash", "token", "diverged", "follows", "epoch",
        "epoch_revision", "epoch_began"}."""
        with _translated():
            return await self._client.open_session(**session)

    async def session_operations(self, session: str, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One result per operation, in order."""
        with _translated():
            return await self._client.session_operations(session, operations, gateway=self._config.gateway)

    async def grant_block(self, *, gateway: str, session: str, size: int, token: int) -> dict[str, Any]:
        """{"first", "last", "token"}"""
        with _translated():
            return await self._client.grant_block(gateway=gateway, session=session, size=size, token=token)

    async def fates(self, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What has become of images, each {"number", "uuid"}: {"fate": live | deleted | unknown}, in order."""
        with _translated():
            return await self._client.fates(images)

    async def confirm_deletions(self, numbers: list[int]) -> None:
        """This zone holds no bytes of these deleted images any more."""
        with _translated():
            await self._client.confirm_deletions(self._config.zone, numbers)

    async def zones(self) -> Any:
        """The zones with their gateways' endpoints, as the registry tells them."""
        with _translated():
            return await self._client.zones()

    async def bootstrap(self) -> AsyncIterator[dict[str, Any]]:
        """Chunks of the registry's images, as far as the tenant set has them; each has "images" and "start", an (epoch,
        revision)."""
        with _translated():
            async for chunk in self._client.bootstrap(wanted=self._wanted):
                yield chunk | {"start": _position(chunk["start"])}

    def shows(self, image: dict[str, Any]) -> bool:
        """Whether bootstrap and feed bring this image."""
        return self._wanted.shows(image)

    async def changes(
        self, position: tuple[int, int], widened_from: frozenset[str] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Changes, "gone" and heartbeats after `position`, each with "position"; before them, where the tenant set was
        `widened_from` a smaller one, "image" for each that is new with it, and "filled". Raises FeedGone when resync is
        needed."""
        known = None if widened_from is None else FeedFilter(tenants=widened_from)
        after = str(wire.Cursor(*position))
        with _translated():
            async for message in self._client.changes(after, wanted=self._wanted, widened_from=known):
                yield message | {"position": _position(message["cursor"])}


def _position(cursor: Any) -> tuple[int, int]:
    parsed = wire.parse_cursor(str(cursor))
    return parsed.epoch, parsed.revision


@contextmanager
def _translated() -> Iterator[None]:
    """Registry errors in this package's words."""
    try:
        yield
    except (errors.Compacted, errors.WrongEpoch) as error:
        raise FeedGone(str(error)) from error
    except _VERDICTS as error:
        malformed = isinstance(error, _MALFORMED)
        raise RegistryRefused(error.code, error.message, malformed=malformed) from error
    except errors.RegistryError as error:
        raise RegistryAway(f"{error.code}: {error.message}") from error
    except OSError as error:  # TimeoutError among them
        raise RegistryAway(str(error) or type(error).__name__) from error
