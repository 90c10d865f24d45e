"""The description of this API as an OpenAPI 3.1 document, over HTTP and for tests that hold it against the code."""

from __future__ import annotations

import importlib.resources

from aiohttp import web

from raftreg import wire
from raftreg.api_context import Context, Document

FILE = importlib.resources.files("raftreg") / "openapi.json"


def document() -> Document:
    """The document; written by hand, and compared with the routes by tests."""
    described: Document = wire.from_json(FILE.read_bytes())
    return described


class OpenApi:
    """Handler of /registry/v1/openapi.json."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # Read once, at the start: a release that is being replaced on disk must not describe the next one.
        self._body = FILE.read_bytes()

    def routes(self) -> list[web.RouteDef]:
        return [web.get(f"{wire.PREFIX}/openapi.json", self.show, allow_head=False)]

    async def show(self, _request: web.Request) -> web.Response:
        """The document, always in JSON."""
        return self._context.encoded(self._body, as_msgpack=False)
