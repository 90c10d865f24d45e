"""Images API v1 over HTTP: images by their numbers. A thin translation, as images_v2 is, to the same use cases.

An image without a number is none here. Its UUID is shown as a property, and never taken back from a client.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from zonegw import image_list, v1_headers, v1_query
from zonegw.data_transfer import Downloads, received
from zonegw.errors import BadRequest, Conflict, NotFound
from zonegw.http_frame import OCTETS, asking, identity, json_body, json_response
from zonegw.id_pool import NUMBER_MAX
from zonegw.image_data import ImageData
from zonegw.images import Image, Images
from zonegw.limits import Limits
from zonegw.members import Members
from zonegw.metrics import GatewayMetrics
from zonegw.stores import Stores
from zonegw.v1_headers import Meta

VERSIONS = ("v1.1", "v1.0")
# The list with details is no image: its other methods are wrong ones.
_IMAGE = "/v1/images/{id:(?!detail$)[^/]+}"
_MEMBER = _IMAGE + "/members/{member}"


@dataclass(slots=True)
class ImagesV1:
    """Handlers of the Images API v1."""

    images: Images
    data: ImageData
    members: Members
    limits: Limits
    stores: Stores
    downloads: Downloads
    metrics: GatewayMetrics

    def add_routes(self, router: web.UrlDispatcher) -> None:
        for method, path, handler in (
            ("GET", "/v1/", self.index),
            ("GET", "/v1/images", self.index),
            ("POST", "/v1/images", self.create),
            ("GET", "/v1/images/detail", self.detail),
            ("HEAD", _IMAGE, self.head),
            ("GET", _IMAGE, self.download),
            ("PUT", _IMAGE, self.update),
            ("DELETE", _IMAGE, self.delete),
            ("GET", _IMAGE + "/members", self.list_members),
            ("PUT", _IMAGE + "/members", self.replace_members),
            ("PUT", _MEMBER, self.put_member),
            ("DELETE", _MEMBER, self.remove_member),
            ("GET", "/v1/shared-images/{member}", self.shared_images),
        ):
            router.add_route(method, path, self._counted(handler))

    def _counted(self, handler: Handler) -> Handler:
        async def counted(request: web.Request) -> web.StreamResponse:
            self.metrics.count_v1(request.headers.get("User-Agent", ""), self.limits.v1_user_agents_max)
            return await handler(request)

        return counted

    # Lists.

    async def index(self, request: web.Request) -> web.StreamResponse:
        return json_response({"images": [v1_headers.summary(image) for image in await self._listed(request)]})

    async def detail(self, request: web.Request) -> web.StreamResponse:
        return json_response({"images": [v1_headers.document(image) for image in await self._listed(request)]})

    async def _listed(self, request: web.Request) -> list[Image]:
        query = v1_query.parse(request.query.items(), identity(request), self.limits)
        return await image_list.full_page(self.images, identity(request), query)

    # One image.

    async def head(self, request: web.Request) -> web.StreamResponse:
        image = await self._image(request)
        return web.Response(headers=v1_headers.to_headers(image) | _place(image))

    async def download(self, request: web.Request) -> web.StreamResponse:
        image = await self._image(request)
        source = await self.data.source(identity(request), image["uuid"])
        if source is None:
            raise NotFound(f"Image {image['number']} is {image['status']}: it has no data yet")
        headers = v1_headers.to_headers(image) | _place(image) | {"Content-Type": OCTETS}
        return await self.downloads.send(request, source, headers)

    async def create(self, request: web.Request) -> web.StreamResponse:
        meta = self._meta(request)
        attributes, properties = v1_headers.new_image(meta)
        body = await self._body(request)
        if body is None:
            image = await self.images.create(asking(request), None, attributes, properties, [], numbered=True)
        else:
            size = _announced_size(request, meta)
            given = (body, size, meta.checksum, meta.store)
            image = await self.data.create(asking(request), attributes, properties, *given)
        return _answer(image, status=201)

    async def update(self, request: web.Request) -> web.StreamResponse:
        image = await self._image(request)
        meta = self._meta(request)
        purge = request.headers.get("x-glance-registry-purge-props", "true").lower() in v1_headers.TRUE_WORDS
        changes = v1_headers.changes(meta, image, purge=purge)
        body = await self._body(request)
        if body is not None and image["status"] != "queued":
            raise Conflict("Cannot upload to an unqueued image")
        image = await self.images.update(asking(request), image["uuid"], changes)
        if body is not None:
            size = _announced_size(request, meta)
            await self.data.upload(asking(request), image["uuid"], body, size, meta.checksum, meta.store)
            image = self.images.show(identity(request), image["uuid"])
        return _answer(image)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        await self.images.delete(asking(request), (await self._image(request))["uuid"])
        return web.Response()

    async def _image(self, request: web.Request) -> Image:
        text = request.match_info["id"]
        if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) > NUMBER_MAX:
            raise NotFound(f"No image found with ID {text}")
        return self.images.numbered(identity(request), int(text))

    def _meta(self, request: web.Request) -> Meta:
        meta = v1_headers.from_headers(request.headers.items())
        if meta.source is not None:
            raise BadRequest(f"{meta.source} is not taken here: send the image's data, or import them with the API v2")
        self.stores.choose(meta.store)  # also where no data come
        return meta

    async def _body(self, request: web.Request) -> AsyncIterator[bytes] | None:
        """The image data in the request, None without any: an empty body is what glanceclient makes of no input."""
        if not request.can_read_body:
            return None
        pieces = received(request, self.limits)
        first = await anext(pieces, b"")
        if not first:
            return None
        if request.content_type != OCTETS:
            raise BadRequest(f"send image data as {OCTETS}, not {request.content_type}")
        return _behind(first, pieces)

    # Members.

    async def list_members(self, request: web.Request) -> web.StreamResponse:
        image = await self._image(request)
        shared = image["visibility"] == "shared"
        found = await self.members.of(identity(request), image["uuid"]) if shared else []
        return json_response(
            {"members": [{"member_id": one["member_id"], "can_share": one["can_share"]} for one in found]}
        )

    async def replace_members(self, request: web.Request) -> web.StreamResponse:
        image = await self._image(request)
        wanted = _memberships(await json_body(request, self.limits, any_type=True))
        await self.members.replace(asking(request), image["uuid"], wanted)
        return web.Response(status=204)

    async def put_member(self, request: web.Request) -> web.StreamResponse:
        image = await self._image(request)
        body = await json_body(request, self.limits, any_type=True) if request.can_read_body else {}
        member = _object(body).get("member", {})
        await self.members.put(asking(request), image["uuid"], request.match_info["member"], _can_share(member))
        return web.Response(status=204)

    async def remove_member(self, request: web.Request) -> web.StreamResponse:
        image = await self._image(request)
        await self.members.remove(asking(request), image["uuid"], request.match_info["member"])
        return web.Response(status=204)

    async def shared_images(self, request: web.Request) -> web.StreamResponse:
        found = await self.members.shared_with(identity(request), request.match_info["member"])
        rows = [(image["number"], member["can_share"]) for image, member in found if image["number"] is not None]
        return json_response({"shared_images": [{"image_id": number, "can_share": can} for number, can in rows]})


def _place(image: Image) -> dict[str, str]:
    headers = {"Location": f"/v1/images/{image['number']}"}
    return headers | {"ETag": image["checksum"]} if image["checksum"] else headers


def _answer(image: Image, *, status: int = 200) -> web.Response:
    return json_response({"image": v1_headers.document(image)}, status=status, headers=_place(image))


def _announced_size(request: web.Request, meta: Meta) -> int | None:
    return request.content_length if meta.size is None else meta.size


async def _behind(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in pieces:
        yield piece


def _memberships(body: Any) -> dict[str, bool]:
    """{project: may share on} of a body that replaces all members."""
    rows = _object(body).get("memberships")
    if not isinstance(rows, list) or not all(isinstance(_object(row).get("member_id"), str) for row in rows):
        raise BadRequest('send {"memberships": [{"member_id": PROJECT, "can_share": false}, ...]} as the body')
    return {row["member_id"]: bool(_can_share(row)) for row in rows}


def _can_share(member: Any) -> bool | None:
    value = _object(member).get("can_share")
    if not isinstance(value, bool | None):
        raise BadRequest(f"can_share must be true or false, not {value!r:.60}")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value
