"""The lead over HTTP: operators give it to another voter."""

from __future__ import annotations

from aiohttp import web

from raftreg import wire
from raftreg.api_context import Context, take

_TRANSFER = {"to": str}


class Leader:
    """Handlers of /registry/v1/leader."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        return [web.post(f"{wire.PREFIX}/leader/transfer", self.transfer)]

    async def transfer(self, request: web.Request) -> web.Response:
        """{"to": NAME}, or nothing for the voter that is furthest: {"from", "to", "took_s"} once that one leads."""
        context = self._context
        context.caller(request).require_role("operator")
        fields = take(await context.body(request), _TRANSFER) if request.can_read_body else {}
        await context.leadership.known()
        return context.answer(request, await context.leadership.transfer(fields.get("to")))
