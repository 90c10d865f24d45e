"""Images over HTTP: create, show, list, update, delete, and batches of those."""

from __future__ import annotations

import hashlib
import re
import uuid as uuids
from typing import Any

from aiohttp import web
from multidict import MultiMapping

from raftreg import errors, listing, queries, wire
from raftreg.api_context import (
    Caller,
    Context,
    Document,
    fill_page,
    flag_parameter,
    number_parameter,
    refuse_unknown,
    take,
    wants_msgpack,
)
from raftreg.commands import PROPERTY_PREFIX
from raftreg.listing import BETWEEN, EQUAL

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,16}", re.ASCII)
_NUMBER_MAX = 2**53 - 1

_CREATE = {
    "uuid": str,
    "attributes": dict,
    "properties": dict,
    "tags": list,
    "home_zone": str,
    "number": int,
    "locations": list,
}
_UPDATE = {
    "base_version": int,
    "set": dict,
    "unset": list,
    "add_locations": list,
    "remove_locations": list,
    "set_members": dict,
    "remove_members": list,
    "force": bool,
}
_BATCH = {"operations": list, "atomic": bool}
_BATCH_OPS = ("create_image", "update_image", "delete_image", "allocate_ids")
_WRITERS = ("operator", "client", "gateway")
_NUMBERS_FILTERED = ("size", "min_disk", "min_ram", *(f"{name}_{end}" for name in BETWEEN for end in ("min", "max")))
_FLAGS_FILTERED = ("protected", "os_hidden", "lost")
_TEXTS_FILTERED = tuple(name for name in EQUAL if name not in (*_NUMBERS_FILTERED, *_FLAGS_FILTERED, "tag"))
_TAGS_FILTERED_MAX = _PROPERTIES_FILTERED_MAX = 16
_LIST_PARAMETERS = {
    *_TEXTS_FILTERED, *_NUMBERS_FILTERED, *_FLAGS_FILTERED,
    "tag", "sort", "limit", "marker", "consistency", "max_staleness",
}  # fmt: skip


class Images:
    """Handlers of /registry/v1/images and /registry/v1/batch."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        images, image = f"{wire.PREFIX}/images", f"{wire.PREFIX}/images/{{image}}"
        return [
            web.post(images, self.create),
            web.get(images, self.list, allow_head=False),
            web.get(image, self.show, allow_head=False),
            web.patch(image, self.update),
            web.delete(image, self.delete),
            web.post(f"{wire.PREFIX}/batch", self.batch),
        ]

    async def create(self, request: web.Request) -> web.Response:
        """The image is there when this answers; the registry mints a UUID and a number where none is given."""
        context = self._context
        caller = context.caller(request)
        caller.require_role(*_WRITERS)
        command = _creation(take(await context.body(request), _CREATE), caller, context.key(request))
        ok = await context.propose(request, caller, command)
        location = {"Location": f"{wire.PREFIX}/images/{ok['number']}"}
        return context.answer(request, ok, 201, location)

    async def show(self, request: web.Request) -> web.Response:
        """{"image": PUBLIC}"""
        ref = reference(request)
        view = await self._context.view(request)
        return self._context.answer(request, {"image": _found(queries.get_image(view, ref), ref)})

    async def update(self, request: web.Request) -> web.Response:
        """Per-attribute compare-and-set against `base_version` (or If-Match); unconditional without one."""
        context = self._context
        caller = context.caller(request)
        caller.require_role(*_WRITERS)
        changes = take(await context.body(request), _UPDATE)
        command = {"op": "update_image", "image": reference(request), "set": {}, "unset": [], **changes}
        command.update(_base_version(request))
        return context.answer(request, await context.propose(request, caller, command))

    async def delete(self, request: web.Request) -> web.Response:
        """Leaves a tombstone: number and UUID are never used again."""
        context = self._context
        caller = context.caller(request)
        caller.require_role(*_WRITERS)
        command = {"op": "delete_image", "image": reference(request), **_base_version(request)}
        if flag_parameter(request.query, "force"):
            command["force"] = True
        return context.answer(request, await context.propose(request, caller, command))

    async def batch(self, request: web.Request) -> web.Response:
        """{"results": [{"ok"} or {"error"}...]}, in order; with `atomic` all happen or none does."""
        context = self._context
        caller = context.caller(request)
        caller.require_role(*_WRITERS)
        body = take(await context.body(request), _BATCH, ("operations",))
        operations = self._operations(body["operations"], caller)
        if body.get("atomic"):
            return context.answer(
                request, await context.propose(request, caller, {"op": "atomic", "operations": operations})
            )
        if wire.HEADER_KEY in request.headers:
            raise errors.BadRequest(f"{wire.HEADER_KEY} goes with atomic batches; give each operation its own `key`")
        return context.answer(request, {"results": await context.propose_all(request, operations)})

    def _operations(self, operations: list[Any], caller: Caller) -> list[Document]:
        if not 0 < len(operations) <= self._context.limits.batch_operations_max:
            raise errors.TooLarge(f"a batch has 1 to {self._context.limits.batch_operations_max} operations")
        return [_operation(operation, position, caller) for position, operation in enumerate(operations)]

    async def list(self, request: web.Request) -> web.Response:
        """{"images": [PUBLIC...], "next": marker or null}: a page ends at its limit of rows or bytes.

        With filters that no index serves alone, a page may be short or empty although `next` says that there is more.
        """
        query = request.query
        filters = _filters(query)
        limits = self._context.limits
        limit = number_parameter(query, "limit")
        rows_max = min(limits.page_rows_default if limit is None else limit, limits.page_rows_max)
        marker = number_parameter(query, "marker")
        sort, descending = _order(query.get("sort", "created_at:desc"))
        view = await self._context.view(request)

        def read(marker: int | None, count: int) -> tuple[list[Document], int | None]:
            return listing.list_images(view, **filters, sort=sort, descending=descending, marker=marker, limit=count)

        as_msgpack = wants_msgpack(request)
        rows, marker = fill_page(read, marker, rows_max, limits.page_bytes_max, as_msgpack=as_msgpack)
        return self._context.encoded(
            wire.encode_page("images", rows, {"next": marker}, as_msgpack=as_msgpack), as_msgpack
        )


def _filters(query: MultiMapping[str]) -> Document:
    """The filters of a list as `listing` takes them. Raises BadRequest."""
    properties = {name[len(PROPERTY_PREFIX) :]: query[name] for name in query if name.startswith(PROPERTY_PREFIX)}
    others = {name: query[name] for name in query if not name.startswith(PROPERTY_PREFIX)}
    refuse_unknown(others, _LIST_PARAMETERS, ", and properties.NAME")
    tags = query.getall("tag", [])
    for count, most, what in (
        (len(tags), _TAGS_FILTERED_MAX, "tags"), (len(properties), _PROPERTIES_FILTERED_MAX, "properties"),
    ):  # fmt: skip
        if count > most:
            raise errors.BadRequest(f"{count} {what}; at most {most} can be asked for at once")
    filters: Document = {name: query[name] for name in _TEXTS_FILTERED if name in query}
    filters |= {name: number_parameter(query, name) for name in _NUMBERS_FILTERED if name in query}
    filters |= {name: flag_parameter(query, name) for name in _FLAGS_FILTERED if name in query}
    return {**filters, "tags": tags, "properties": properties}


def _creation(fields: Document, caller: Caller, key: str | None) -> Document:
    """The command for a create; an image that a gateway creates is at home in its zone."""
    zone = caller.actor.get("zone")
    home = fields.setdefault("home_zone", zone)
    if zone is not None and home != zone:
        raise errors.Forbidden(f"a gateway of zone {zone} cannot create an image at home in {home}")
    if "uuid" not in fields:
        fields["uuid"] = _minted_uuid(caller, key)
    fields.setdefault("attributes", {})
    fields["op"] = "create_image"
    return fields


def _minted_uuid(caller: Caller, key: str | None) -> str:
    """A random UUID; with an idempotency key one that follows from it, since a retry must send the same command."""
    if key is None:
        return str(uuids.uuid4())
    scope = [caller.actor.get(name) for name in ("user", "project", "gateway")]
    digest = hashlib.blake2b(wire.pack([*scope, key]), digest_size=16, person=b"raftreg uuid").digest()
    return str(uuids.UUID(bytes=digest, version=4))


def _operation(operation: Any, position: int, caller: Caller) -> Document:
    """One operation of a batch as a command with the caller's actor, whatever actor it came with."""
    if not isinstance(operation, dict) or operation.get("op") not in _BATCH_OPS:
        raise errors.BadRequest(f"operation {position}: `op` must be one of {', '.join(_BATCH_OPS)}")
    command = {name: value for name, value in operation.items() if name != "actor"}
    if command["op"] == "create_image":
        command = _creation(command, caller, command.get("key"))
    command["actor"] = caller.actor
    return command


def reference(request: web.Request) -> Document:
    """The image that path and query name: by number, by UUID, or by both. Raises BadRequest."""
    names = [
        request.match_info["image"],
        *(request.query[name] for name in ("number", "uuid") if name in request.query),
    ]
    ref: Document = {}
    for name in names:
        kind, value = _name(name)
        if ref.setdefault(kind, value) != value:
            raise errors.BadRequest(
                f"the request names two images: {kind} {ref[kind]} and {value}", code="image_mismatch"
            )
    return ref


def _name(name: str) -> tuple[str, int | str]:
    if _NUMBER.fullmatch(name) and 0 < int(name) <= _NUMBER_MAX:
        return "number", int(name)
    if _UUID.fullmatch(name):
        return "uuid", name.lower()
    raise errors.BadRequest(f"{name[:60]!r} is neither an image number (1 to {_NUMBER_MAX}) nor a UUID")


def _found(image: Document | None, ref: Document) -> Document:
    """The image, or the error that says why there is none."""
    named = " and ".join(f"{kind} {value}" for kind, value in ref.items())
    if image is None:
        raise errors.ImageNotFound(f"no image with {named}")
    if image.get("deleted"):
        raise errors.ImageDeleted(f"the image with {named} was deleted{_held(image['holders'])}", **image)
    for kind, value in ref.items():
        if image[kind] != value:
            raise errors.BadRequest(f"{named} are not the same image", code="image_mismatch")
    return image


def _held(holders: list[str]) -> str:
    return f"; bytes of it may still be in {', '.join(holders)}" if holders else ""


def _base_version(request: web.Request) -> Document:
    text = request.headers.get("If-Match")
    if text is None or text == "*":
        return {}
    bare = text.strip('"')
    if not (_NUMBER.fullmatch(bare) and int(bare) > 0):
        raise errors.BadRequest(f"If-Match must be the image's version, a whole number, not {text[:40]!r}")
    return {"base_version": int(bare)}


def _order(text: str) -> tuple[str, bool]:
    """KEY, KEY:asc or KEY:desc; an unknown key is refused by the query, which knows the indexes."""
    key, _, direction = text.partition(":")
    if direction not in ("", "asc", "desc"):
        raise errors.BadRequest(f"sort={text[:60]!r}: use KEY, KEY:asc or KEY:desc")
    return key, direction == "desc"
