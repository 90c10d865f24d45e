"""Digests and scrubs over HTTP: what `raftreg verify` asks of every peer."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from raftreg import errors, wire
from raftreg.api_context import Context, Document, number_parameter


class Soundness(Protocol):
    """What these routes need of the peer."""

    def report(self, wanted: int | None = None) -> Document: ...

    def scrub(self) -> int | None: ...


class Integrity:
    """Handlers of /registry/v1/digest and scrub; both are about this very peer and never forwarded."""

    def __init__(self, context: Context, soundness: Soundness) -> None:
        self._context, self._soundness = context, soundness

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(f"{wire.PREFIX}/digest", self.digest, allow_head=False),
            web.post(f"{wire.PREFIX}/scrub", self.scrub),
        ]

    async def digest(self, request: web.Request) -> web.Response:
        """{"name", "applied", "version", "digests": {index: digest}, "scrub", "damage" ...}

        `index` asks to note the digest there; one that is to come is among `digests` of a later answer.
        """
        self._context.caller(request).require_role("operator", "peer")
        wanted = number_parameter(request.query, "index", int)
        return self._context.answer(request, self._soundness.report(wanted))

    async def scrub(self, request: web.Request) -> web.Response:
        """{"pass": its number}: all rows are read again at once; `scrub.finished` of a digest tells when it is over."""
        self._context.caller(request).require_role("operator", "peer")
        number = self._soundness.scrub()
        if number is None:
            raise errors.NotFound("this peer has nothing to scrub", code="unknown_route")
        return self._context.answer(request, {"pass": number})
