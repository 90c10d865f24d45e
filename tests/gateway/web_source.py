"""A web server for tests of `web-download`: it serves one blob in several ways, and knows who asked for what.

async with web_source(BLOB) as source:
    async with running(tmp_path, more=source.allowed()) as zone: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import web

# Two addresses of loopback, of which tests allow the first.
ALLOWED, INTERNAL = "127.0.0.1", "127.0.0.2"


@dataclass
class WebSource:
    """What the server gives, and what it was asked for."""

    blob: bytes
    port: int = 0
    asked: list[web.BaseRequest] = field(default_factory=list)
    # Set: a `/held` download goes on behind its first half.
    released: asyncio.Event = field(default_factory=asyncio.Event)
    half_sent: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str, host: str = ALLOWED) -> str:
        return f"http://{host}:{self.port}{path}"

    def allowed(self, **more: str) -> str:
        """TOML that lets a gateway fetch from here."""
        lines = [f"{name} = {value}" for name, value in more.items()]
        return "\n".join(
            ["[import.web_download]", f"allowed_ports = [{self.port}]", f'allow_internal = ["{ALLOWED}/32"]', *lines]
        )

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        path = request.path
        if path == "/image":
            return web.Response(body=self.blob)
        if path == "/redirect":
            return web.Response(status=302, headers={"Location": request.query["to"]})
        if path == "/loop":
            return web.Response(status=302, headers={"Location": "/loop"})
        if path in ("/held", "/torn"):
            return await self._half(request)
        return web.Response(status=404)

    async def _half(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(self.blob))})
        await response.prepare(request)
        half = len(self.blob) // 2
        await response.write(self.blob[:half])
        self.half_sent.set()
        if request.path == "/torn":
            if request.transport is not None:
                request.transport.close()
            return response
        await self.released.wait()
        await response.write(self.blob[half:])
        return response


@contextlib.asynccontextmanager
async def web_source(blob: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[WebSource]:
    source = WebSource(blob)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", source.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, ALLOWED, 0, ssl_context=tls).start()
    source.port = runner.addresses[0][1]
    await web.TCPSite(runner, INTERNAL, source.port, ssl_context=tls).start()
    try:
        yield source
    finally:
        source.released.set()
        await runner.cleanup()
