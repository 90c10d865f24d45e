"""Images API v2 over HTTP: a thin translation between requests and use cases."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from zonegw import image_list, image_query
from zonegw.data_transfer import STORE_HEADER, Downloads, announced_md5, announced_size, received
from zonegw.errors import UnsupportedMediaType
from zonegw.http_frame import OCTETS, Links, asking, identity, json_body, json_response
from zonegw.image_data import ImageData
from zonegw.image_patch import parse_create, parse_patch
from zonegw.images import Image, Images
from zonegw.images_schema import present
from zonegw.limits import Limits


@dataclass(slots=True)
class ImagesV2:
    """Handlers of the Images API v2."""

    images: Images
    data: ImageData
    limits: Limits
    links: Links
    downloads: Downloads
    # Tell the answer to a create which import methods and stores there are.
    import_headers: Callable[[], dict[str, str]]

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/v2/images", self.list, allow_head=False)
        router.add_post("/v2/images", self.create)
        router.add_get("/v2/images/{id}", self.show, allow_head=False)
        router.add_patch("/v2/images/{id}", self.update)
        router.add_delete("/v2/images/{id}", self.delete)
        router.add_get("/v2/images/{id}/file", self.download, allow_head=False)
        router.add_put("/v2/images/{id}/file", self.upload)

    # Metadata.

    async def list(self, request: web.Request) -> web.Response:
        query = image_query.parse(request.query.items(), self.limits)
        found = await image_list.page(self.images, identity(request), query)
        pairs = [(name, value) for name, value in request.query.items() if name != "marker"]
        body: dict[str, Any] = {
            "images": [self._present(request, image) for image in found.images],
            "first": _link(pairs),
            "schema": "/v2/schemas/images",
        }
        if found.next_marker is not None:
            body["next"] = _link([*pairs, ("marker", found.next_marker)])
        return json_response(body)

    async def create(self, request: web.Request) -> web.Response:
        uuid, attributes, properties, tags = parse_create(await json_body(request, self.limits))
        image = await self.images.create(asking(request), uuid, attributes, properties, tags)
        headers = {"Location": f"{self.links.base(request)}/v2/images/{image['uuid']}", **self.import_headers()}
        return json_response(self._present(request, image), status=201, headers=headers)

    async def show(self, request: web.Request) -> web.Response:
        image = self.images.show(identity(request), request.match_info["id"])
        return json_response(self._present(request, image))

    async def update(self, request: web.Request) -> web.Response:
        uuid = request.match_info["id"]
        current = self.images.show(identity(request), uuid)
        body = await json_body(request, self.limits, any_type=True)
        changes = parse_patch(request.content_type, body, current, self.limits)
        image = await self.images.update(asking(request), current["uuid"], changes)
        return json_response(self._present(request, image))

    def _present(self, request: web.Request, image: Image) -> dict[str, Any]:
        """For services and administrators with the places of its data."""
        shown = present(image)
        if image["locations"] and self.images.policy.allows("get_image_location", identity(request), image):
            places = self.data.by_reference(image)
            shown |= {"locations": places, "direct_url": places[0]["url"]}
        return shown

    async def delete(self, request: web.Request) -> web.Response:
        await self.images.delete(asking(request), request.match_info["id"])
        return web.Response(status=204)

    # Data.

    async def upload(self, request: web.Request) -> web.Response:
        if request.content_type != OCTETS:
            raise UnsupportedMediaType(f"send image data as {OCTETS}, not {request.content_type}")
        body, store = received(request, self.limits), request.headers.get(STORE_HEADER)
        uuid, size = request.match_info["id"], announced_size(request)
        await self.data.upload(asking(request), uuid, body, size, announced_md5(request), store)
        return web.Response(status=204)

    async def download(self, request: web.Request) -> web.StreamResponse:
        source = await self.data.source(identity(request), request.match_info["id"])
        if source is None:
            return web.Response(status=204)
        headers = {"Content-Type": OCTETS}
        if source.image["checksum"]:
            headers["Content-MD5"] = source.image["checksum"]
        return await self.downloads.send(request, source, headers)


def _link(pairs: list[tuple[str, str]]) -> str:
    return f"/v2/images?{urlencode(pairs)}" if pairs else "/v2/images"
