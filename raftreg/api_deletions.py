"""Deletions over HTTP: what has become of images, and the zones' word that bytes of deleted ones are gone."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from raftreg import errors, queries, wire
from raftreg.api_context import Context, Document, take
from raftreg.commands import CONFIRMATIONS_MAX, Invalid, check_reference

_FATES = {"images": list}
_CONFIRMATION = {"numbers": list}


class Deletions:
    """Handlers of /registry/v1/images/fates and /registry/v1/zones/{zone}/deletions."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post(f"{wire.PREFIX}/images/fates", self.fates),
            web.post(f"{wire.PREFIX}/zones/{{zone}}/deletions", self.confirm),
        ]

    async def fates(self, request: web.Request) -> web.Response:
        """{"fates": [{"fate": live, deleted or unknown, …}...]}, one for each image, in order."""
        context = self._context
        images = take(await context.body(request), _FATES, ("images",))["images"]
        if not 0 < len(images) <= context.limits.fates_max:
            raise errors.TooLarge(f"one request asks for 1 to {context.limits.fates_max} images")
        named = [_reference(image) for image in images]
        view = await context.view(request)
        return context.answer(request, {"fates": [queries.fate(view, ref) for ref in named]})

    async def confirm(self, request: web.Request) -> web.Response:
        """{"confirmed": how many of these images the zone was still listed for}. May be repeated."""
        context, zone = self._context, request.match_info["zone"]
        caller = context.caller(request)
        caller.require_zone(zone)
        numbers = take(await context.body(request), _CONFIRMATION, ("numbers",))["numbers"]
        if not 0 < len(numbers) <= CONFIRMATIONS_MAX:
            raise errors.TooLarge(f"one request confirms 1 to {CONFIRMATIONS_MAX} deletions")
        command = {"op": "confirm_deletions", "zone": zone, "numbers": numbers}
        return context.answer(request, await context.propose(request, caller, command))


def _reference(image: Any) -> Document:
    """An image named by number and UUID: both must be the same image's."""
    try:
        check_reference(image, "an image")
    except Invalid as invalid:
        raise errors.BadRequest(str(invalid)) from None
    if set(image) != {"number", "uuid"}:
        raise errors.BadRequest("an image whose fate is asked for is named by number and uuid")
    named: Document = image
    return named
