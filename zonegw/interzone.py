"""Image data between zones: the listener that serves this zone's bytes, and the client that fetches those of others.

Both sides need a gateway's certificate of the cluster's CA. Bytes are named by their opaque key, which only a gateway
learns, from the registry.
"""

from collections.abc import AsyncIterator, Callable

import aiohttp
from aiohttp import web

from zonegw import tls
from zonegw.config import Limits, Tls
from zonegw.data_stores.filesystem import FilesystemStore, is_key
from zonegw.errors import DataUnavailable, GatewayError, RangeUnsatisfiable
from zonegw.file_response import send_file

DATA_PATH = "/zonegw/v1/data"


def build_app(data: FilesystemStore, limits: Limits) -> web.Application:
    """The listener's application."""
    streams = 0

    async def read(request: web.Request) -> web.StreamResponse:
        nonlocal streams
        key = request.match_info["key"]
        certificate = request.transport.get_extra_info("peercert") if request.transport else None
        if not tls.is_gateway(certificate):
            raise web.HTTPForbidden(text="only gateways read here: the certificate needs OU=gateway")
        if not is_key(key) or not data.exists(key):
            raise web.HTTPNotFound(text="no such data here")
        if streams >= limits.interzone_streams_max:
            raise web.HTTPServiceUnavailable(text="too many streams", headers={"Retry-After": "1"})
        streams += 1
        try:
            headers = {"Content-Type": "application/octet-stream"}
            return await send_file(request, data.path(key), headers, limits)
        except RangeUnsatisfiable as error:
            raise web.HTTPRequestRangeNotSatisfiable(text=error.message) from error
        except GatewayError as error:
            raise web.HTTPBadRequest(text=error.message) from error
        finally:
            streams -= 1

    app = web.Application()
    app.router.add_get(DATA_PATH + "/{key}", read, allow_head=False)
    return app


class InterzoneClient:
    """Reads bytes from the gateways of other zones; `endpoints` tells a zone's, as the registry last said."""

    def __init__(self, endpoints: Callable[[str], list[str]], files: Tls | None, limits: Limits) -> None:
        self._endpoints = endpoints
        self._limits = limits
        self._ssl = tls.client_context(files) if files else None
        self._session: aiohttp.ClientSession | None = None

    async def read(self, zone: str, key: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes of `key` from `offset` on, from the first gateway of the zone that has them."""
        problem = f"zone {zone} has told the registry no endpoint for its data"
        for endpoint in self._endpoints(zone):
            try:
                response = await self._request(endpoint, zone, key, offset)
            except (TimeoutError, aiohttp.ClientError, OSError, DataUnavailable) as error:
                problem = f"zone {zone} can't be reached: {error or type(error).__name__}"
                continue
            async with response:
                try:
                    async for piece in response.content.iter_chunked(self._limits.data_chunk_bytes):
                        yield piece
                except (TimeoutError, aiohttp.ClientError) as error:
                    raise DataUnavailable(f"zone {zone} broke off: {error or type(error).__name__}") from error
            return
        raise DataUnavailable(problem)

    async def _request(self, endpoint: str, zone: str, key: str, offset: int) -> aiohttp.ClientResponse:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        url = f"{endpoint.rstrip('/')}{DATA_PATH}/{key}"
        response = await self._http().get(url, headers=headers, ssl=self._ssl if self._ssl else True)
        transport = response.connection.transport if response.connection else None
        certificate = transport.get_extra_info("peercert") if transport else None
        if response.status not in (200, 206) or (offset and response.status != 206):
            response.release()
            raise DataUnavailable(f"{endpoint} answered {response.status}")
        if self._ssl and transport is not None and not tls.is_gateway(certificate, zone):
            response.close()
            raise DataUnavailable(f"{endpoint} has no certificate of a gateway of zone {zone}")
        return response

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            idle = self._limits.fetch_idle_max_s
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=idle, sock_read=idle)
            self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
