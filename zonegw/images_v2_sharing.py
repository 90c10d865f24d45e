"""Images API v2 over HTTP: members of images, their tags, and the two actions. Thin, as images_v2 is."""

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from zonegw.errors import BadRequest
from zonegw.http_frame import asking, identity, json_body, json_response
from zonegw.images import Images
from zonegw.images_schema import timestamp
from zonegw.members import Member, Members

_IMAGE = "/v2/images/{id}"


@dataclass(slots=True)
class SharingV2:
    """Handlers of what surrounds an image: who it is shared with, its tags, whether it is active."""

    images: Images
    members: Members

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get(_IMAGE + "/members", self.list, allow_head=False)
        router.add_post(_IMAGE + "/members", self.add)
        router.add_get(_IMAGE + "/members/{member}", self.show, allow_head=False)
        router.add_put(_IMAGE + "/members/{member}", self.answer)
        router.add_delete(_IMAGE + "/members/{member}", self.remove)
        router.add_put(_IMAGE + "/tags/{tag}", self.add_tag)
        router.add_delete(_IMAGE + "/tags/{tag}", self.remove_tag)
        router.add_post(_IMAGE + "/actions/deactivate", self.deactivate)
        router.add_post(_IMAGE + "/actions/reactivate", self.reactivate)

    async def list(self, request: web.Request) -> web.Response:
        found = await self.members.of(identity(request), request.match_info["id"])
        return json_response({"members": [present(member) for member in found], "schema": "/v2/schemas/members"})

    async def add(self, request: web.Request) -> web.Response:
        project = _text_of(await json_body(request, self.images.limits), "member")
        return json_response(present(await self.members.add(asking(request), request.match_info["id"], project)))

    async def show(self, request: web.Request) -> web.Response:
        where = request.match_info
        return json_response(present(await self.members.show(identity(request), where["id"], where["member"])))

    async def answer(self, request: web.Request) -> web.Response:
        status = _text_of(await json_body(request, self.images.limits), "status")
        where = request.match_info
        member = await self.members.answer(asking(request), where["id"], where["member"], status)
        return json_response(present(member))

    async def remove(self, request: web.Request) -> web.Response:
        where = request.match_info
        await self.members.remove(asking(request), where["id"], where["member"])
        return web.Response(status=204)

    async def add_tag(self, request: web.Request) -> web.Response:
        await self.images.add_tag(asking(request), request.match_info["id"], request.match_info["tag"])
        return web.Response(status=204)

    async def remove_tag(self, request: web.Request) -> web.Response:
        await self.images.remove_tag(asking(request), request.match_info["id"], request.match_info["tag"])
        return web.Response(status=204)

    async def deactivate(self, request: web.Request) -> web.Response:
        await self.images.activate(asking(request), request.match_info["id"], active=False)
        return web.Response(status=204)

    async def reactivate(self, request: web.Request) -> web.Response:
        await self.images.activate(asking(request), request.match_info["id"], active=True)
        return web.Response(status=204)


def _text_of(body: Any, name: str) -> str:
    """The one text that the body must hold."""
    value = body.get(name) if isinstance(body, dict) else None
    if not isinstance(value, str) or not value:
        raise BadRequest(f'send {{"{name}": TEXT}} as the body')
    return value


def present(member: Member) -> dict[str, Any]:
    """The member as the API shows it."""
    return {
        "member_id": member["member_id"], "image_id": member["image_id"], "status": member["status"],
        "created_at": timestamp(member["created_at"]), "updated_at": timestamp(member["updated_at"]),
        "schema": "/v2/schemas/member",
    }  # fmt: skip
