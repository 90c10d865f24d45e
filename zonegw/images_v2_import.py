"""Images API v2 over HTTP: staging, import, stores, and what a service is told of where data lie."""

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from zonegw.data_transfer import STORE_HEADER, announced_md5, announced_size, received
from zonegw.errors import BadRequest, UnsupportedMediaType
from zonegw.http_frame import OCTETS, asking, identity, json_body, json_response
from zonegw.image_data import ImageData
from zonegw.images import Images
from zonegw.import_rules import WEB_DOWNLOAD
from zonegw.imports import Imports, Wanted
from zonegw.limits import Limits
from zonegw.stores import Stores


@dataclass(slots=True)
class ImportV2:
    """Handlers."""

    images: Images
    data: ImageData
    imports: Imports
    stores: Stores
    limits: Limits

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_put("/v2/images/{id}/stage", self.stage)
        router.add_post("/v2/images/{id}/import", self.start)
        router.add_get("/v2/info/import", self.methods, allow_head=False)
        router.add_get("/v2/info/stores", self.list_stores, allow_head=False)
        router.add_get("/v2/info/stores/detail", self.detail_stores, allow_head=False)
        router.add_get("/v2/info/usage", self.usage, allow_head=False)
        router.add_delete("/v2/stores/{store}/{id}", self.remove_copy)

    def headers(self) -> dict[str, str]:
        """Of the answer to a create: what a client may do next. Left out where there is nothing to choose."""
        found = {"OpenStack-image-store-ids": ",".join(self.stores.names())}
        if self.imports.methods:
            found["OpenStack-image-import-methods"] = ",".join(self.imports.methods)
        return found

    # Import.

    async def stage(self, request: web.Request) -> web.Response:
        if request.content_type != OCTETS:
            raise UnsupportedMediaType(f"send image data as {OCTETS}, not {request.content_type}")
        body, size = received(request, self.limits), announced_size(request)
        uuid, md5 = request.match_info["id"], announced_md5(request)
        await self.imports.staging.stage(asking(request), uuid, body, size, md5)
        return web.Response(status=204)

    async def start(self, request: web.Request) -> web.Response:
        wanted = parse_import(await json_body(request, self.limits), request.headers.get(STORE_HEADER))
        await self.imports.start(asking(request), request.match_info["id"], wanted)
        return web.Response(status=202)

    async def methods(self, request: web.Request) -> web.Response:
        methods = {"description": "Import methods available.", "type": "array", "value": list(self.imports.methods)}
        return json_response({"import-methods": methods})

    # Stores.

    async def list_stores(self, request: web.Request) -> web.Response:
        reachable = await self.stores.reachable()
        return json_response({"stores": [self._store(name, there) for name, there in reachable.items()]})

    def _store(self, name: str, reachable: bool) -> dict[str, Any]:
        zone, store = self.stores.target(name)
        said = f"image data of zone {zone}" + (f", store {store}" if name != zone else "")
        row = {"id": name, "description": said, "reachable": str(reachable).lower()}
        return row | ({"default": "true"} if name == self.stores.default else {})

    async def detail_stores(self, request: web.Request) -> web.Response:
        self.images.policy.require("stores_info_detail", identity(request))
        rows = [
            self._store(name, there)
            | {"type": self.stores.kind(name), "weight": 0, "properties": await self._told(name)}
            for name, there in (await self.stores.reachable()).items()
        ]
        return json_response({"stores": rows})

    async def _told(self, name: str) -> dict[str, Any]:
        return await self.stores.properties(name) | (self.data.cached() if name == self.stores.default else {})

    async def usage(self, request: web.Request) -> web.Response:
        rows = self.images.quotas.table(self.images.store.read(), identity(request).project)
        await self.images.store.durable()
        return json_response({"usage": {name: {"limit": bound, "usage": used} for name, (bound, used) in rows.items()}})

    async def remove_copy(self, request: web.Request) -> web.Response:
        await self.data.remove_copy(asking(request), request.match_info["id"], request.match_info["store"])
        return web.Response(status=204)


def parse_import(body: Any, store: str | None) -> Wanted:
    """An import's body; `store` is the header that chooses one where the body names none. Raises BadRequest."""
    method = body.get("method") if isinstance(body, dict) else None
    name = method.get("name") if isinstance(method, dict) else None
    if not isinstance(name, str) or not isinstance(method, dict):
        raise BadRequest("Import request requires a 'method' field with a 'name'.")
    uri = method.get("uri")
    if not isinstance(uri, str | None) or (uri is not None) != (name == WEB_DOWNLOAD):
        raise BadRequest(f"'uri' is required for the {WEB_DOWNLOAD} method, and for no other")
    stores = _stores(body, store)
    return Wanted(
        name, uri, stores, all_stores=_truth(body, "all_stores", default=False),
        must_succeed=_truth(body, "all_stores_must_succeed", default=True),
    )  # fmt: skip


def _stores(body: dict[str, Any], header: str | None) -> tuple[str, ...]:
    stores = body.get("stores")
    if stores is None:
        return (header,) if header and not body.get("all_stores") else ()
    if body.get("all_stores"):
        raise BadRequest("'stores' and 'all_stores' can't be used together")
    if not isinstance(stores, list) or not stores or not all(isinstance(store, str) for store in stores):
        raise BadRequest("'stores' must be a list of store IDs")
    return tuple(stores)


def _truth(body: dict[str, Any], name: str, *, default: bool) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"'{name}' must be true or false")
    return value
