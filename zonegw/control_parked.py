"""Operator socket: parked writes."""

from typing import Any

from aiohttp import web

from zonegw.control import answer, asked
from zonegw.errors import BadRequest
from zonegw.parked import ParkedWrites

ROWS_MAX = 1000


class ControlParked:
    """List, show, retry, discard."""

    def __init__(self, parked: ParkedWrites) -> None:
        self._parked = parked

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/parked", self.list)
        router.add_post("/parked/retry", self.retry_all)
        router.add_get("/parked/{position:[0-9]+}", self.show)
        router.add_post("/parked/{position:[0-9]+}/retry", self.retry)
        router.add_post("/parked/{position:[0-9]+}/discard", self.discard)

    async def list(self, request: web.Request) -> web.Response:
        rows = self._parked.listed(number_of(request, "after", 0), min(number_of(request, "limit", ROWS_MAX), ROWS_MAX))
        return answer({"parked": rows, "retrying": self._parked.retries.under_way()})

    async def show(self, request: web.Request) -> web.Response:
        return answer(self._parked.shown(_position(request)))

    async def retry(self, request: web.Request) -> web.Response:
        body = await asked(request)
        return answer(await self._parked.retry(_position(request), new_uuid=body.get("new_uuid") is True))

    async def retry_all(self, request: web.Request) -> web.Response:
        body = await asked(request)
        return answer(self._parked.retry_all(str(body.get("reason") or "session_lost")))

    async def discard(self, request: web.Request) -> web.Response:
        body = await asked(request)
        return answer(await self._parked.discard(_position(request), confirmed=body.get("yes") is True))


def _position(request: web.Request) -> int:
    return min(int(request.match_info["position"][:20]), 2**63)


def number_of(request: web.Request, name: str, default: int) -> int:
    """A whole number of the query. Raises BadRequest."""
    text: Any = request.query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest(f"{name} must be a whole number, not {text!r:.60}")
    return int(text)
