"""The feature level over HTTP: operators raise it; `level` in a peer's status shows it."""

from __future__ import annotations

import time
from typing import Protocol

from aiohttp import web

from raftreg import errors, queries, wire
from raftreg.api_context import Context, take

_RAISE = {"level": int}


class Raising(Protocol):
    """What this route needs of the peer."""

    def target(self, wanted: int | None) -> int: ...


class Level:
    """Handlers of /registry/v1/level."""

    def __init__(self, context: Context, levels: Raising) -> None:
        self._context, self._levels = context, levels

    def routes(self) -> list[web.RouteDef]:
        return [web.post(f"{wire.PREFIX}/level/raise", self.raise_)]

    async def raise_(self, request: web.Request) -> web.Response:
        """{"level": N}, or nothing for the highest that voters support: {"level": the one in force, "more"}.

        A migration takes many commands, each of a bounded number of rows; `more` says that the deadline came before the
        last one: ask again. Asking twice is harmless, so no idempotency key is kept for it.
        """
        context = self._context
        caller = context.caller(request)
        caller.require_role("operator")
        fields = take(await context.body(request), _RAISE) if request.can_read_body else {}
        ends = time.monotonic() + context.deadline_s(request) / 2
        await context.leadership.known()
        target = self._levels.target(fields.get("level"))
        while (level := queries.level(context.reads.view())) < target and time.monotonic() < ends:
            command = {"op": "raise_level", "actor": caller.actor, "level": level + 1}
            (result,) = await context.propose_all(request, [command])
            if "error" in result:
                raise errors.refusal(result["error"])
        return context.answer(request, {"level": level, "more": level < target})
