"""Image data between zones, the listener: it serves this zone's bytes to gateways of others, and takes theirs.

Every caller needs a gateway's certificate of the cluster's CA. Bytes are named by their opaque key, which only a
gateway learns, from the registry, or mints for what it puts here.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from zonegw import tls
from zonegw.data_stores.interface import is_key
from zonegw.deposits import Deposits
from zonegw.errors import DataUnavailable, GatewayError
from zonegw.file_response import send_file, send_stream
from zonegw.limits import Limits
from zonegw.own_stores import OwnStores

DATA_PATH = "/zonegw/v1/data"
READY_PATH = "/zonegw/v1/ready"
# Names the image that bytes are put here for.
IMAGE_HEADER = "X-Zonegw-Image"
# Names the store that they are put into, unless that is the zone's to choose.
STORE_HEADER = "X-Zonegw-Store"
CALLER = web.RequestKey("caller", str)


def build_app(own: OwnStores, deposits: Deposits, limits: Limits) -> web.Application:
    """The listener's application."""
    app = web.Application(middlewares=[_gateways_only])
    _Handlers(own, deposits, limits).add_routes(app.router)
    return app


@web.middleware
async def _gateways_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Puts the caller's zone into the request; refusals as text, for the log of the other gateway."""
    certificate = request.transport.get_extra_info("peercert") if request.transport else None
    if not tls.is_gateway(certificate):
        raise web.HTTPForbidden(text="only gateways are answered here: the certificate needs OU=gateway")
    request[CALLER] = tls.subject(certificate).get("organizationName", "")
    try:
        return await handler(request)
    except GatewayError as error:
        headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else None
        return web.Response(status=error.http_status, text=error.message, headers=headers)


class _Handlers:
    def __init__(self, own: OwnStores, deposits: Deposits, limits: Limits) -> None:
        self._own = own
        self._deposits = deposits
        self._limits = limits
        self._streams = 0

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get(READY_PATH, self.ready, allow_head=False)
        router.add_get(DATA_PATH + "/{key}", self.read, allow_head=False)
        router.add_put(DATA_PATH + "/{key}", self.put)
        router.add_delete(DATA_PATH + "/{key}", self.withdraw)

    async def ready(self, request: web.Request) -> web.Response:
        told = {"zone": self._own.zone, "stores": self._own.offered}
        return web.Response(body=orjson.dumps(told), content_type="application/json")

    async def read(self, request: web.Request) -> web.StreamResponse:
        key = _key(request)
        found = await self._own.find(key)
        if found is None:
            raise web.HTTPNotFound(text="no such data here")
        with self._stream():
            headers = {"Content-Type": "application/octet-stream"}
            if isinstance(found, Path):
                return await send_file(request, found, headers, self._limits)
            return await send_stream(request, found.size, headers, found.read, self._limits)

    async def put(self, request: web.Request) -> web.Response:
        with self._stream():
            uuid = request.headers.get(IMAGE_HEADER, "")
            body, store = self._received(request), request.headers.get(STORE_HEADER)
            stored = await self._deposits.accept(request[CALLER], uuid, _key(request), body, store)
        found = {"size": stored.size, "md5": stored.md5, "sha512": stored.sha512, "store": stored.store}
        return web.Response(status=201, body=orjson.dumps(found), content_type="application/json")

    async def withdraw(self, request: web.Request) -> web.Response:
        self._deposits.withdraw(request[CALLER], _key(request))
        return web.Response(status=204)

    @contextmanager
    def _stream(self) -> Iterator[None]:
        if self._streams >= self._limits.interzone_streams_max:
            raise DataUnavailable("too many streams (limits.interzone_streams_max)", retry_after_s=1)
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def _received(self, request: web.Request) -> AsyncIterator[bytes]:
        """The body; the other gateway may itself wait for a slow client, but not for longer than we would."""
        idle_s = self._limits.upload_idle_max_s + self._limits.fetch_idle_max_s
        while True:
            try:
                async with asyncio.timeout(idle_s):
                    piece = await request.content.readany()
            except TimeoutError:
                raise DataUnavailable(f"no data came for {idle_s} s; nothing was kept") from None
            if not piece:
                return
            yield piece


def _key(request: web.Request) -> str:
    key = request.match_info["key"]
    if not is_key(key):
        raise web.HTTPNotFound(text="no such data here")
    return key
