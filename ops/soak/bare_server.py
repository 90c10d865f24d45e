"""The least that an HTTP server of aiohttp does with image data: read and drop an upload, send a file.

python -m ops.soak.bare_server PORT FILE
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop
from aiohttp import web


async def _drop(request: web.Request) -> web.Response:
    while await request.content.readany():
        pass
    return web.Response(status=204)


async def _serve(port: int, path: Path) -> None:
    async def send(request: web.Request) -> web.FileResponse:
        return web.FileResponse(path)

    app = web.Application()
    app.add_routes([web.put("/", _drop), web.get("/", send)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), Path(sys.argv[2])))
