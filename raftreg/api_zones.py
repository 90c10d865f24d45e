"""Zones, gateways, sessions and IDs over HTTP: what zone gateways ask of the registry."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from raftreg import errors, queries, wire
from raftreg.api_context import Caller, Context, Document, Kinds, number_parameter, take
from raftreg.commands import IDENTIFIER_CHARS_MAX

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_ZONE = {"endpoint": str, "capabilities": dict}
_GATEWAY = {"endpoint": str}
_HEARTBEAT = {"gateway": str, "level": int}
_IDS = {"count": int}
_BLOCK = {"gateway": str, "session": str, "size": int, "token": int}
_SEAL = {"gateway": str, "session": str}
_BYTES = (bytes, str)
_SESSION: Kinds = {
    "gateway": str,
    "zone": str,
    "session": str,
    "highest_sequence": int,
    "acked_sequence": int,
    "acked_hash": _BYTES,
    "epoch": int,
    "epoch_began": int,
    "highest_number": int,
}
_SESSION_REQUIRED = ("gateway", "zone", "session", "highest_sequence", "acked_sequence", "acked_hash")
_OPERATIONS = {"operations": list, "gateway": str}
_OPERATION: Kinds = {"sequence": int, "previous_hash": _BYTES, "payload": _BYTES}


class Zones:
    """Handlers of /registry/v1/zones, sessions, ids and blocks."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        prefix = wire.PREFIX
        return [
            web.get(f"{prefix}/zones", self.list, allow_head=False),
            web.get(f"{prefix}/zones/{{zone}}", self.show, allow_head=False),
            web.put(f"{prefix}/zones/{{zone}}", self.register),
            web.put(f"{prefix}/zones/{{zone}}/gateways/{{gateway}}", self.register_gateway),
            web.post(f"{prefix}/zones/{{zone}}/heartbeat", self.heartbeat),
            web.post(f"{prefix}/ids", self.allocate),
            web.get(f"{prefix}/blocks", self.blocks, allow_head=False),
            web.post(f"{prefix}/blocks", self.grant),
            web.post(f"{prefix}/blocks/seal", self.seal),
            web.post(f"{prefix}/sessions", self.open_session),
            web.get(f"{prefix}/sessions", self.sessions, allow_head=False),
            web.get(f"{prefix}/sessions/{{session}}", self.session, allow_head=False),
            web.post(f"{prefix}/sessions/{{session}}/operations", self.operate),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """{"zones": {name: zone}, "next": name to give as `after`, or null at the end}"""
        rows_max, after = self._context.page_rows(request), request.query.get("after")
        if after is not None and len(after) > IDENTIFIER_CHARS_MAX:
            raise errors.BadRequest(f"after={after[:60]!r} must be the name of a zone")
        view = await self._context.view(request)
        zones, following = queries.list_zones(view, after, rows_max)
        return self._context.answer(request, {"zones": {zone["zone"]: zone for zone in zones}, "next": following})

    async def show(self, request: web.Request) -> web.Response:
        """{"zone": zone}"""
        name = request.match_info["zone"]
        view = await self._context.view(request)
        zone = queries.get_zone(view, name) if len(name) <= IDENTIFIER_CHARS_MAX else None
        if zone is None:
            raise errors.NotFound(f"zone {name[:80]!r} is not registered", code="zone_not_found")
        return self._context.answer(request, {"zone": zone})

    async def register(self, request: web.Request) -> web.Response:
        """Idempotent: registers the zone, or changes what is said about it."""
        context, zone = self._context, request.match_info["zone"]
        caller = context.caller(request)
        caller.require_zone(zone)
        fields = take(await self._optional_body(request), _ZONE)
        return context.answer(
            request, await context.propose(request, caller, {"op": "register_zone", "zone": zone, **fields})
        )

    async def register_gateway(self, request: web.Request) -> web.Response:
        """Idempotent: where the other zones' gateways reach this one."""
        context, zone, gateway = self._context, request.match_info["zone"], request.match_info["gateway"]
        caller = context.caller(request)
        caller.require_gateway(gateway, zone)
        fields = take(await self._optional_body(request), _GATEWAY)
        command = {"op": "register_gateway", "zone": zone, "gateway": gateway, **fields}
        return context.answer(request, await context.propose(request, caller, command))

    async def heartbeat(self, request: web.Request) -> web.Response:
        """Renews the zone's lease in the leader's memory; `level` is the highest feature level the gateway supports."""
        context, zone = self._context, request.match_info["zone"]
        caller = context.caller(request)
        fields = take(await self._optional_body(request), _HEARTBEAT)
        gateway = fields.get("gateway", caller.subject.name)
        caller.require_gateway(gateway, zone)
        await context.leadership.known()
        return context.answer(request, await context.leases.heartbeat(zone, gateway, fields.get("level", 1)))

    async def allocate(self, request: web.Request) -> web.Response:
        """{"first", "last"}: IDs that nobody else ever gets."""
        context = self._context
        caller = context.caller(request)
        caller.require_role("operator", "client", "gateway")
        count = take(await context.body(request), _IDS, ("count",))["count"]
        if not 0 < count <= context.limits.id_count_max:
            raise errors.BadRequest(f"count must be 1 to {context.limits.id_count_max}, not {count}")
        return context.answer(
            request, await context.propose(request, caller, {"op": "allocate_ids", "count": count}), 201
        )

    async def blocks(self, request: web.Request) -> web.Response:
        """{"blocks": [...], "next": where to go on or null}, for operators: ID blocks by number, sealed ones included.

        `gateway` leaves out the others', so that a page may be short although `next` says that there is more.
        """
        context = self._context
        context.caller(request).require_role("operator", "peer")
        rows_max, after = context.page_rows(request), number_parameter(request.query, "after")
        view = await context.view(request)
        page, following = queries.blocks(view, gateway=request.query.get("gateway"), after=after or 0, limit=rows_max)
        return context.answer(request, {"blocks": page, "next": following})

    async def grant(self, request: web.Request) -> web.Response:
        """{"first", "last", "token"}: an ID block for a gateway's session."""
        return await self._for_gateway(request, "grant_block", _BLOCK, tuple(_BLOCK), 201)

    async def seal(self, request: web.Request) -> web.Response:
        """No number of the gateway's blocks is accepted any more."""
        return await self._for_gateway(request, "seal_blocks", _SEAL, ("gateway",), 200)

    async def _for_gateway(
        self, request: web.Request, op: str, allowed: Kinds, required: tuple[str, ...], status: int
    ) -> web.Response:
        context = self._context
        caller = context.caller(request)
        fields = take(await context.body(request), allowed, required)
        caller.require_gateway(fields["gateway"])
        return context.answer(request, await context.propose(request, caller, {"op": op, **fields}), status)

    async def sessions(self, request: web.Request) -> web.Response:
        """{"sessions": {uuid: session}, "next": UUID to give as `after`, or null at the end}, for operators: all that
        are remembered, fenced ones included."""
        self._context.caller(request).require_role("operator", "peer")
        rows_max, after = self._context.page_rows(request), request.query.get("after")
        if after is not None and not _UUID.fullmatch(after):
            raise errors.BadRequest(f"after={after[:60]!r} must be the UUID of a session")
        view = await self._context.view(request)
        sessions, following = queries.list_sessions(view, after and after.lower(), rows_max)
        found = {session["session"]: session for session in sessions}
        return self._context.answer(request, {"sessions": found, "next": following})

    async def session(self, request: web.Request) -> web.Response:
        """{"session": session}, for operators: one session by its UUID."""
        self._context.caller(request).require_role("operator", "peer")
        name = request.match_info["session"]
        view = await self._context.view(request)
        session = queries.get_session(view, name.lower()) if _UUID.fullmatch(name) else None
        if session is None:
            raise errors.NotFound(f"no session {name[:80]!r} is remembered", code="session_unknown")
        return self._context.answer(request, {"session": session})

    async def open_session(self, request: web.Request) -> web.Response:
        """Opens the session or says how far it got; a new one fences the gateway's older one."""
        context = self._context
        caller = context.caller(request)
        fields = take(await context.body(request), _SESSION, _SESSION_REQUIRED)
        caller.require_gateway(fields["gateway"], fields["zone"])
        fields["acked_hash"] = wire.as_bytes(fields["acked_hash"], "acked_hash")
        return context.answer(request, await context.propose(request, caller, {"op": "open_session", **fields}))

    async def operate(self, request: web.Request) -> web.Response:
        """{"results": [...]}, one per operation: {"ok": {"sequence", "result"}} or the session's refusal."""
        context = self._context
        caller = context.caller(request)
        body = take(await context.body(request), _OPERATIONS, ("operations",))
        gateway: str = body.get("gateway") or caller.actor.get("gateway") or caller.subject.name
        caller.require_gateway(gateway)
        operations = body["operations"]
        if not 0 < len(operations) <= context.limits.session_operations_max:
            raise errors.TooLarge(f"one request carries 1 to {context.limits.session_operations_max} operations")
        session = request.match_info["session"]
        proposed = [_session_operation(operation, session, gateway, caller) for operation in operations]
        return context.answer(request, {"results": await context.propose_all(request, proposed)})

    async def _optional_body(self, request: web.Request) -> Document:
        return await self._context.body(request) if request.can_read_body else {}


def _session_operation(operation: Any, session: str, gateway: str, caller: Caller) -> Document:
    if not isinstance(operation, dict):
        raise errors.BadRequest("an operation must be a map of sequence, previous_hash and payload")
    fields = take(operation, _OPERATION, tuple(_OPERATION))
    return {
        "op": "session_operation",
        "actor": caller.actor,
        "gateway": gateway,
        "session": session,
        "sequence": fields["sequence"],
        "previous_hash": wire.as_bytes(fields["previous_hash"], "previous_hash"),
        "payload": wire.as_bytes(fields["payload"], "payload"),
    }
