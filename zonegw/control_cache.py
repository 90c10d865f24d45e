"""Operator's view of the data cache: what of other zones' images is here, and what is to be."""

from typing import Any
from uuid import UUID

from aiohttp import web

from zonegw import control
from zonegw.cached_images import OPERATOR, CachedImages
from zonegw.data_cache import DataCache
from zonegw.errors import Conflict, NotFound
from zonegw.images import Image, Images
from zonegw.prefetch import Prefetch


class ControlCache:
    """/cache and /cache/{image}/VERB."""

    def __init__(self, images: Images, cache: DataCache, cached: CachedImages, prefetch: Prefetch) -> None:
        self._images = images
        self._cache = cache
        self._cached = cached
        self._prefetch = prefetch

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/cache", self.list)
        for verb in (self.pin, self.unpin, self.evict, self.prefetch):
            router.add_post(f"/cache/{{image}}/{verb.__name__}", verb)

    async def list(self, request: web.Request) -> web.Response:
        """Images with bytes here, on their way, or pinned; then files that belong to no image that is remembered."""
        fetching = {fetch.uuid: fetch.received for fetch in self._cache.fetching().values()}
        known = {image.uuid: image for image in self._cached.all()}
        rows = [self._row(uuid, fetching.get(uuid)) for uuid in [*known, *(u for u in fetching if u not in known)]]
        nameless = {key: size for key, size in self._cache.files().items() if self._cached.of(key) is None}
        rows += [
            _described(None, size, "cached", last_used_us=self._cache.last_used_us(key))
            for key, size in nameless.items()
        ]
        return control.answer(
            {"images": rows, "used_bytes": self._cache.used_bytes, "pinned_bytes": self._cached.pinned_bytes}
        )

    def _row(self, uuid: str, received: int | None) -> dict[str, Any]:
        image, known = self._images.catalogue.get(self._images.store.read(), uuid), self._cached.get(uuid)
        key = known.key if known else None
        state = "fetching" if received is not None else "cached" if key else "missing"
        size = known.size if known else (image or {}).get("size")
        return _described(
            uuid, size, state, name=(image or {}).get("name"), gone=image is None, received=received,
            pinned=known.pinned if known else None, prefetched=bool(known and known.prefetched),
            last_used_us=self._cache.last_used_us(key) if key and self._cache.files().get(key) is not None else None,
        )  # fmt: skip

    async def pin(self, request: web.Request) -> web.Response:
        """Kept here from now on; what is missing is fetched."""
        image = self._far(request)
        self._cache.pin(image["uuid"], image["size"], OPERATOR)
        self._want(image)
        await self._images.store.durable()
        return control.answer(self._row(image["uuid"], None))

    async def unpin(self, request: web.Request) -> web.Response:
        uuid = self._uuid(request)
        if not self._cached.is_pinned(uuid):
            raise NotFound(f"image {uuid} is not pinned here")
        self._cache.unpin(uuid)
        await self._images.store.durable()
        return control.answer({"image": uuid, "pinned": None})

    async def evict(self, request: web.Request) -> web.Response:
        """Its bytes go; a client or the policy may bring them again."""
        uuid = self._uuid(request)
        known = self._cached.get(uuid)
        if known is not None and known.pinned is not None:
            raise Conflict(f"image {uuid} is pinned: `zonegw cache unpin {uuid}` first")
        if known is None or known.key is None:
            raise NotFound(f"no bytes of image {uuid} are cached here")
        self._cache.evict(known.key)
        await self._images.store.durable()
        return control.answer({"image": uuid, "bytes": known.size})

    async def prefetch(self, request: web.Request) -> web.Response:
        """Fetched in the background, behind what clients wait for."""
        image = self._far(request)
        self._want(image)
        return control.answer(self._row(image["uuid"], None))

    def _want(self, image: Image) -> None:
        if not self._cache.has(image["locations"]):
            self._prefetch.want(image["uuid"])

    def _far(self, request: web.Request) -> Image:
        """The image, whose bytes are in other zones alone. Raises NotFound, Conflict."""
        uuid = self._uuid(request)
        image = self._images.catalogue.get(self._images.store.read(), uuid)
        if image is None:
            raise NotFound(f"there is no image {uuid}")
        if not image["locations"]:
            raise Conflict(f"image {uuid} has no data yet")
        if any(location["zone"] == self._images.zone for location in image["locations"]):
            raise Conflict(f"this zone holds a copy of image {uuid} of its own: there is nothing to cache")
        return image

    def _uuid(self, request: web.Request) -> str:
        text = request.match_info["image"]
        try:
            return str(UUID(text))
        except ValueError:
            raise NotFound(f"{text!r:.60} is no image's UUID") from None


def _described(uuid: str | None, size: int | None, state: str, **more: Any) -> dict[str, Any]:
    default = {"name": None, "gone": False, "received": None, "pinned": None, "prefetched": False, "last_used_us": None}
    return {"image": uuid, "bytes": size, "state": state} | default | more
