"""Image data between zones, the client: reads bytes of other zones, and puts bytes into them.

Both sides need a gateway's certificate of the cluster's CA.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp

from zonegw import tls
from zonegw.config import Tls
from zonegw.data_stores.interface import DEFAULT_STORE, Digests, Stored
from zonegw.errors import BadRequest, DataUnavailable, StorageFull, ZoneAway
from zonegw.interzone_app import DATA_PATH, IMAGE_HEADER, READY_PATH, STORE_HEADER
from zonegw.limits import Limits


class InterzoneClient:
    """Speaks to the gateways of other zones; `endpoints` tells a zone's, as the registry last said."""

    def __init__(self, endpoints: Callable[[str], list[str]], files: Tls | None, limits: Limits) -> None:
        self._endpoints = endpoints
        self._limits = limits
        self._ssl = tls.client_context(files) if files else None
        self._session: aiohttp.ClientSession | None = None
        # Names of a zone's stores, as it last said itself.
        self.stores_told: dict[str, list[str]] = {}

    async def read(self, zone: str, key: str, offset: int) -> AsyncGenerator[bytes]:
        """The bytes of `key` from `offset` on, from the first gateway of the zone that has them. Raises
        DataUnavailable; ZoneAway where the last one is silent."""
        problem = DataUnavailable(f"zone {zone} has told the registry no endpoint for its data")
        endpoints = self._endpoints(zone)
        for endpoint in endpoints:
            try:
                # Silence of one gateway is waited for only where there is no other one.
                async with asyncio.timeout(None if endpoint == endpoints[-1] else self._limits.store_probe_max_s):
                    response = await self._get(endpoint, zone, key, offset)
            except (TimeoutError, aiohttp.ClientError, OSError, DataUnavailable) as error:
                kind = ZoneAway if isinstance(error, TimeoutError) else DataUnavailable
                problem = kind(f"zone {zone} can't be reached: {error or type(error).__name__}")
                continue
            async with response:
                try:
                    async for piece in response.content.iter_chunked(self._limits.data_chunk_bytes):
                        yield piece
                except (TimeoutError, aiohttp.ClientError) as error:
                    raise DataUnavailable(f"zone {zone} broke off: {error or type(error).__name__}") from error
            return
        raise problem

    async def _get(self, endpoint: str, zone: str, key: str, offset: int) -> aiohttp.ClientResponse:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        url = f"{endpoint.rstrip('/')}{DATA_PATH}/{key}"
        response = await self._http().get(url, headers=headers, ssl=self._ssl or True)
        if response.status not in (200, 206) or (offset and response.status != 206):
            response.release()
            raise DataUnavailable(f"{endpoint} answered {response.status}")
        self._check_zone(response, endpoint, zone)
        return response

    def _check_zone(self, response: aiohttp.ClientResponse, endpoint: str, zone: str) -> None:
        transport = response.connection.transport if response.connection else None
        if self._ssl and transport is not None and not tls.is_gateway(transport.get_extra_info("peercert"), zone):
            response.close()
            raise DataUnavailable(f"{endpoint} has no certificate of a gateway of zone {zone}")

    # Putting bytes into another zone.

    async def write(
        self, zone: str, key: str, uuid: str, body: AsyncIterator[bytes], store: str | None = None
    ) -> Stored:
        """Put `body` into the zone under `key`, for image `uuid`, into the store of that name or the default one; it is
        durable there, and its digests are those of what was sent. Raises DataUnavailable, StorageFull, BadRequest for a
        store that is not there, and what `body` raises."""
        endpoint = await self._first_ready(zone)  # a body can be sent once only
        sent = _Sent(key, body)
        try:
            async with asyncio.timeout(None) as watch:
                url = f"{endpoint}{DATA_PATH}/{key}"
                headers = {IMAGE_HEADER: uuid} | ({STORE_HEADER: store} if store else {})
                found = await self._put(url, endpoint, zone, headers, self._watched(sent, watch))
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            if sent.problem is not None:
                raise sent.problem from None
            raise DataUnavailable(f"zone {zone} did not take the data: {error or type(error).__name__}") from error
        if found != sent.stored(found.store):
            raise DataUnavailable(f"zone {zone} stored other bytes than were sent: they are dropped")
        return found

    async def _put(
        self, url: str, endpoint: str, zone: str, headers: dict[str, str], body: AsyncIterator[bytes]
    ) -> Stored:
        wait = self._limits.interzone_put_wait_max_s
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._limits.fetch_idle_max_s, sock_read=wait)
        headers = headers | {"Content-Type": "application/octet-stream"}
        async with self._http().put(url, data=body, headers=headers, ssl=self._ssl or True, timeout=timeout) as answer:
            self._check_zone(answer, endpoint, zone)
            if answer.status == StorageFull.http_status:
                raise StorageFull(f"zone {zone}: {await answer.text()}")
            if answer.status == BadRequest.http_status:
                raise BadRequest(await answer.text())
            if answer.status != 201:
                raise DataUnavailable(f"zone {zone} answered {answer.status}: {await answer.text()}")
            row = await answer.json()
        # Releases that know one store only don't name it.
        return Stored(url.rpartition("/")[2], row["size"], row["md5"], row["sha512"], row.get("store", DEFAULT_STORE))

    async def _watched(self, sent: "_Sent", watch: asyncio.Timeout) -> AsyncIterator[bytes]:
        """The body, with a deadline for every piece of it, and one for the answer behind the last."""
        loop = asyncio.get_running_loop()
        idle_s = self._limits.upload_idle_max_s + self._limits.fetch_idle_max_s
        watch.reschedule(loop.time() + idle_s)
        async for piece in sent.pieces():
            yield piece
            watch.reschedule(loop.time() + idle_s)
        watch.reschedule(loop.time() + self._limits.interzone_put_wait_max_s)

    async def withdraw(self, zone: str, key: str) -> None:
        """Give up what was put into the zone. Nothing there, or an image that owns it, are as good as done."""
        endpoint = await self._first_ready(zone)
        try:
            async with self._http().delete(f"{endpoint}{DATA_PATH}/{key}", ssl=self._ssl or True) as answer:
                if answer.status not in (204, 404, 409):
                    raise DataUnavailable(f"zone {zone} answered {answer.status}: {await answer.text()}")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise DataUnavailable(f"zone {zone} can't be reached: {error or type(error).__name__}") from error

    async def reaches(self, zone: str) -> bool:
        """Whether a gateway of the zone answers now."""
        try:
            async with asyncio.timeout(self._limits.store_probe_max_s):
                await self._first_ready(zone)
        except (TimeoutError, DataUnavailable):
            return False
        return True

    async def _first_ready(self, zone: str) -> str:
        problem = f"zone {zone} has told the registry no endpoint for its data"
        for endpoint in self._endpoints(zone):
            try:
                async with self._ready(endpoint.rstrip("/"), zone) as ready:
                    return ready
            except (TimeoutError, aiohttp.ClientError, OSError, DataUnavailable) as error:
                problem = f"zone {zone} can't be reached: {error or type(error).__name__}"
        raise DataUnavailable(problem)

    @asynccontextmanager
    async def _ready(self, endpoint: str, zone: str) -> AsyncIterator[str]:
        async with self._http().get(endpoint + READY_PATH, ssl=self._ssl or True) as answer:
            self._check_zone(answer, endpoint, zone)
            told = await answer.json() if answer.status == 200 else {}
            if told.get("zone") != zone:
                raise DataUnavailable(f"{endpoint} is not ready for zone {zone}")
            self.stores_told[zone] = told.get("stores", [DEFAULT_STORE])
            yield endpoint

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            idle = self._limits.fetch_idle_max_s
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=idle, sock_read=idle)
            self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


class _Sent:
    """A body on its way out: what was sent of it, and what ended it early on this side."""

    def __init__(self, key: str, body: AsyncIterator[bytes]) -> None:
        self._key = key
        self._digests = Digests()
        self._body = self._digests.passing(body)
        self.problem: Exception | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._body:
                yield piece
        except Exception as error:
            self.problem = error
            raise

    def stored(self, store: str) -> Stored:
        return self._digests.stored(self._key, store)
