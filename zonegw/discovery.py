"""What clients ask before they use the API: versions, schemas, metadata definitions, the OpenAPI document."""

import importlib.resources
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from zonegw.errors import BadRequest, NotFound
from zonegw.http_frame import OTHER_PATHS, OTHER_PATHS_BESIDE_V1, Links, identity, json_response
from zonegw.images_schema import SCHEMAS
from zonegw.metadefs import Metadefs
from zonegw.policy import Policy

CURRENT = "v2.17"
SUPPORTED = tuple(f"v2.{minor}" for minor in (15, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0))
NAMESPACES_DEFAULT, NAMESPACES_LIMIT = 25, 1000
# Written by hand; tests compare it with the routes and with answers.
OPENAPI = importlib.resources.files("zonegw") / "openapi.json"


@dataclass(slots=True)
class Discovery:
    """Handlers; `versions_v1` are the IDs of v1's versions where it is served."""

    links: Links
    policy: Policy
    metadefs: Metadefs
    versions_v1: tuple[str, ...] = field(default=())
    # Read at the start: a release that is being replaced on disk must not describe the next one.
    described: bytes = field(default_factory=OPENAPI.read_bytes)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/", self.choice, allow_head=False)
        router.add_get("/versions", self.versions, allow_head=False)
        router.add_get("/v2", self.into_v2, allow_head=False)
        router.add_get("/v2/schemas/{name:.+}", self.schema, allow_head=False)
        router.add_get("/v2/metadefs/namespaces", self.namespaces, allow_head=False)
        router.add_get("/v2/metadefs/namespaces/{name}", self.namespace, allow_head=False)
        router.add_get("/zonegw/v1/openapi.json", self.openapi, allow_head=False)
        router.add_route("*", OTHER_PATHS_BESIDE_V1 if self.versions_v1 else OTHER_PATHS, self.choice)

    # Versions.

    async def choice(self, request: web.Request) -> web.Response:
        return json_response(self._versions(request), status=300)

    async def versions(self, request: web.Request) -> web.Response:
        return json_response(self._versions(request))

    async def into_v2(self, request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": f"{self.links.base(request)}/v2/"})

    def _versions(self, request: web.Request) -> dict[str, Any]:
        base = self.links.base(request)
        rows = [(CURRENT, "CURRENT", "v2"), *((name, "SUPPORTED", "v2") for name in SUPPORTED)]
        rows += [(name, "DEPRECATED", "v1") for name in self.versions_v1]
        return {
            "versions": [
                {"id": name, "status": status, "links": [{"rel": "self", "href": f"{base}/{path}/"}]}
                for name, status, path in rows
            ]
        }

    # Descriptions.

    async def openapi(self, request: web.Request) -> web.Response:
        return web.Response(body=self.described, content_type="application/json")

    async def schema(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in SCHEMAS:
            raise NotFound(f"there is no schema {name}; there are: {', '.join(SCHEMAS)}")
        return json_response(SCHEMAS[name])

    async def namespaces(self, request: web.Request) -> web.Response:
        self.policy.require("get_metadef_namespaces", identity(request))
        limit = request.query.get("limit", str(NAMESPACES_DEFAULT))
        if not (limit.isascii() and limit.isdigit()) or len(limit) > 9:
            raise BadRequest(f"limit must be a whole number, not {limit!r:.60}")
        found, marker = self.metadefs.page(min(int(limit), NAMESPACES_LIMIT), request.query.get("marker"))
        path = "/v2/metadefs/namespaces"
        body: dict[str, Any] = {"namespaces": found, "first": path, "schema": "/v2/schemas/metadefs/namespaces"}
        if marker is not None:
            body["next"] = f"{path}?limit={limit}&marker={marker}"
        return json_response(body)

    async def namespace(self, request: web.Request) -> web.Response:
        self.policy.require("get_metadef_namespaces", identity(request))
        return json_response(self.metadefs.namespace(request.match_info["name"]))
