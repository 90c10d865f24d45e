"""Operator's view of the own data store: bytes that nobody owns, and those of deleted images that are kept."""

from typing import Any

from aiohttp import web

from zonegw import control
from zonegw.errors import BadRequest, NotFound
from zonegw.graves import Grave, Graves
from zonegw.images import Images
from zonegw.orphans import Orphan, Orphans
from zonegw.undelete import Undelete


class ControlData:
    """/data/orphans and /data/deleted."""

    def __init__(self, images: Images, orphans: Orphans, graves: Graves, undelete: Undelete) -> None:
        self._images = images
        self._orphans = orphans
        self._graves = graves
        self._undelete = undelete

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/data/orphans", self.orphans)
        router.add_post("/data/orphans/delete", self.delete_orphans)
        router.add_get("/data/deleted", self.deleted)
        router.add_post("/data/deleted/{image}/undelete", self.undelete)
        router.add_post("/data/deleted/{image}/purge", self.purge)

    async def orphans(self, request: web.Request) -> web.Response:
        """?older_than_h=HOURS"""
        text = request.query.get("older_than_h")
        found, more = await self._orphans.find(None if text is None else _hours(text))
        return control.answer({"orphans": [_orphan(one) for one in found], "more": more})

    async def delete_orphans(self, request: web.Request) -> web.Response:
        """{"keys": [...]}, or {"all": true, "older_than_h": HOURS}"""
        asked = await control.asked(request)
        keys, hours = asked.get("keys"), asked.get("older_than_h")
        if keys is None and (asked.get("all") is not True or hours is None):
            raise BadRequest("name the keys, or say all and older_than_h")
        if keys is not None and (not isinstance(keys, list) or not all(isinstance(key, str) for key in keys)):
            raise BadRequest("keys must be a list of texts")
        deleted = await self._orphans.delete(keys, None if hours is None else _hours(hours))
        return control.answer({"deleted": [_orphan(one) for one in deleted]})

    async def deleted(self, request: web.Request) -> web.Response:
        """Those first whose bytes go first."""
        graves = self._graves.all(self._images.store.read())
        return control.answer({"images": [self._grave(grave) for grave in graves]})

    async def undelete(self, request: web.Request) -> web.Response:
        deleted = _uuid(request)
        image = await self._undelete.undelete(deleted)
        return control.answer({"image": image["uuid"], "number": image["number"], "undeleted_from": deleted})

    async def purge(self, request: web.Request) -> web.Response:
        return control.answer(self._grave(await self._undelete.purge(_uuid(request))))

    def _grave(self, grave: Grave) -> dict[str, Any]:
        image = grave["image"]
        named = {"image": image["uuid"], **{name: image[name] for name in ("number", "name", "owner", "size")}}
        return {**named, "deleted_us": grave["since_us"], "left_s": self._graves.left_s(grave)}


def _orphan(orphan: Orphan) -> dict[str, Any]:
    image = orphan.image or {}
    of_image = {"image": image.get("uuid"), "number": image.get("number"), "name": image.get("name")}
    return {"store": orphan.store, "key": orphan.key, "bytes": orphan.size, "age_s": orphan.age_s, **of_image}


def _hours(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadRequest(f"older_than_h must be a number of hours, not {value!r:.40}") from None


def _uuid(request: web.Request) -> str:
    text: str = request.match_info["image"].lower()
    if not (len(text) == 36 and text.replace("-", "").isalnum() and text.isascii()):
        raise NotFound(f"{text!r:.60} is no image's UUID")
    return text
