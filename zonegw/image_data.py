"""Use cases on image data: upload, download, removal of one of several copies.

An image becomes active only after its bytes are on the disk of their store under their final key (`placement`).
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from zonegw.data_cache import DataCache, Fetch
from zonegw.data_stores.interface import is_key
from zonegw.errors import BadRequest, Conflict, Forbidden, NotFound, Unavailable
from zonegw.identity import Identity
from zonegw.images import Changes, Image, Images, Request
from zonegw.inspection import Inspection
from zonegw.inspection_rules import InspectionRules
from zonegw.limits import Limits
from zonegw.own_stores import Held, OwnStores
from zonegw.placement import Location, Placement, data_attributes
from zonegw.store import Txn
from zonegw.stores import Stores, store_name


@dataclass(frozen=True, slots=True)
class Source:
    """Where an image's bytes come from: a complete file, or a stream, which is a fetch from another zone that is under
    way, or what one of this zone's stores holds elsewhere."""

    image: Image
    file: Path | None = None
    fetch: Fetch | Held | None = None


class ImageData:
    """Data use cases of one gateway."""

    def __init__(
        self, images: Images, own: OwnStores, cache: DataCache, placement: Placement, stores: Stores, limits: Limits,
        inspection: InspectionRules,
    ) -> None:  # fmt: skip
        self._inspection = inspection
        self._images = images
        self._own = own
        self._cache = cache
        self._placement = placement
        self._stores = stores
        self._limits = limits
        self._uploading: set[str] = set()
        images.is_uploading = self._uploading.__contains__

    async def upload(
        self, request: Request, uuid: str, body: AsyncIterator[bytes], size: int | None, md5: str | None = None,
        store: str | None = None,
    ) -> None:  # fmt: skip
        """Bring `body`, of which `size` and `md5` were announced, into the store; the image is active then."""
        uuid = uuid.lower()
        image = self._images.writable(self._images.store.read(), request.who, uuid, "upload_image")
        self._check_uploadable(image)
        chosen = self._stores.choose(store)
        inspection = self.inspection(image)
        body = self._room(image, inspection.of(body), size)
        with self._marked(uuid, image["owner"]):
            placed = await self._placement.place(uuid, chosen, body, size, md5)
            with self._placement.kept([placed["key"]]):
                image, position = self._activate(request, uuid, placed, inspection)
        await self._images.settle(image, position, request)

    async def create(
        self, request: Request, attributes: dict[str, Any], properties: dict[str, str], body: AsyncIterator[bytes],
        size: int | None, md5: str | None = None, store: str | None = None,
    ) -> Image:  # fmt: skip
        """A new image with a number and with data, as `upload` takes them: there is none before these are on the disk,
        and none if they don't come whole."""
        images, uuid = self._images, str(uuid4())
        attributes = images.check_create(request.who, attributes, properties, [])
        self._check_formats(attributes)
        images.policy.require("upload_image", request.who, attributes | {"members": {}})
        images.check_numbers(images.store.read())
        chosen = self._stores.choose(store)
        inspection = self.inspection(attributes)
        images.quotas.check_create(images.store.read(), attributes["owner"])
        body = self._room(attributes, inspection.of(body), size)
        with self._marked(uuid, attributes["owner"]):
            placed = await self._placement.place(uuid, chosen, body, size, md5)
            with self._placement.kept([placed["key"]]):
                virtual_size = inspection.virtual_size(placed["size"])
                image, position = self._create_active(request, uuid, attributes, properties, placed, virtual_size)
        await images.settle(image, position, request)
        return images.show(request.who, uuid)

    def _room(self, image: Image, body: AsyncIterator[bytes], size: int | None) -> AsyncIterator[bytes]:
        """The body, within what the owner may still have. Raises QuotaExceeded."""
        read = self._images.store.read()
        self._images.quotas.check_size(read, image["owner"], size or 0)
        return self._images.quotas.sized(read, image["owner"], body)

    @contextmanager
    def _marked(self, uuid: str, owner: str | None) -> Iterator[None]:
        """The image shows as saving meanwhile. Raises Unavailable where too many do, QuotaExceeded."""
        if len(self._uploading) >= self._limits.uploads_max:
            raise Unavailable("too many uploads at once (limits.uploads_max)")
        self._uploading.add(uuid)
        try:
            with self._images.quotas.uploading(self._images.store.read(), uuid, owner):
                yield
        finally:
            self._uploading.discard(uuid)

    @staticmethod
    def _check_formats(image: Image) -> None:
        if image["disk_format"] is None or image["container_format"] is None:
            raise BadRequest("Properties disk_format, container_format must be set prior to saving data.")

    def _check_uploadable(self, image: Image, *, status: str = "queued") -> None:
        self._check_formats(image)
        if image["status"] != status:
            raise Conflict(f"Image status transition from {image['status']} to saving is not allowed")

    def inspection(self, image: Image) -> Inspection:
        """Of data that are to become the image's."""
        return Inspection(self._inspection, image)

    def _activate(self, request: Request, uuid: str, placed: Location, inspection: Inspection) -> tuple[Image, int]:
        """The image owns its bytes: one transaction with the pending write that makes it active."""
        with self._images.store.transaction() as txn:
            image = self._images.writable(txn, request.who, uuid, "upload_image")
            self._check_uploadable(image, status="saving")  # another gateway's upload may have been first
            inspection.check_same(image)
            return image, self._append_data(txn, request, image, placed, inspection.virtual_size(placed["size"]))

    def _create_active(
        self,
        request: Request,
        uuid: str,
        attributes: dict[str, Any],
        properties: dict[str, str],
        placed: Location,
        virtual_size: int | None,
    ) -> tuple[Image, int]:
        with self._images.store.transaction(grows=True) as txn:
            image = self._images.append_create(txn, request, uuid, attributes, properties, [], numbered=True)
            return image, self._append_data(txn, request, image, placed, virtual_size)

    def _append_data(self, txn: Txn, request: Request, image: Image, placed: Location, virtual_size: int | None) -> int:
        self._images.quotas.check_size(txn, image["owner"], placed["size"])
        self._placement.owned(txn, [placed["key"]])
        return self._images.append_update(
            txn,
            request,
            image,
            Changes(data_attributes(placed, virtual_size)),
            add_locations=[placed],
            conditional=False,
        )

    async def source(self, who: Identity, uuid: str) -> Source | None:
        """Where to read the image's bytes, or None for an image without data yet."""
        image = self._images.show(who, uuid)
        policy = self._images.policy
        policy.require("download_image", who, image)
        if image["status"] == "deactivated":
            said = "The requested image has been deactivated. Image data download is forbidden."
            policy.require("download_deactivated_image", who, image, said)
        return await self.open(image) if image["locations"] else None

    async def open(self, image: Image) -> Source:
        """Where to read the bytes of an image that has some: here, or else from another zone. Raises Unavailable."""
        problem: Unavailable | None = None
        for location in image["locations"]:
            try:
                found = await self._held(location) if location["zone"] == self._images.zone else None
            except Unavailable as error:
                problem = error
                continue
            if found is not None:
                return self._source(image, found)
        if not image["locations"]:
            raise NotFound("the image's data is not to be found")
        try:
            return self._source(image, await self._cache.open(image["uuid"], image["locations"]))
        except Unavailable as error:
            raise problem or error from None

    @staticmethod
    def _source(image: Image, found: Path | Fetch | Held) -> Source:
        return Source(image, file=found) if isinstance(found, Path) else Source(image, fetch=found)

    async def _held(self, location: Location) -> Path | Held | None:
        store, key, size = location["store"], location["key"], location["size"]
        return await self._own.held(store, key, size) if is_key(key) else None

    async def remove_copy(self, request: Request, uuid: str, store: str) -> None:
        """Remove the image's data from one of its stores; the bytes go when the registry has done it. Raises Forbidden
        for the last copy."""
        images = self._images
        with images.store.transaction(reserved=True) as txn:
            image = images.writable(txn, request.who, uuid, "delete_image_location")
            if image["protected"]:
                raise Forbidden(f"Image {uuid} is protected and cannot be deleted.")
            keys = [location["key"] for location in image["locations"] if store_name(location) == store]
            if not keys:
                raise NotFound(f"Image {uuid} has no data in store {store!r:.80}")
            if len(keys) == len(image["locations"]):
                raise Forbidden(f"Store {store} holds the only copy of image {uuid}: delete the image instead")
            position = images.append_update(txn, request, image, Changes(), remove_locations=keys, conditional=False)
        await images.settle(image, position, request)

    def by_reference(self, image: Image) -> list[dict[str, Any]]:
        """Where the bytes lie, for a service that reads them there itself: a file of this zone, or only a name."""
        return [
            {"url": self._url(location), "metadata": {"store": store_name(location)}} for location in image["locations"]
        ]

    def _url(self, location: Location) -> str:
        own = location["zone"] == self._own.zone and is_key(location["key"])
        if own and (path := self._own.file(location["store"], location["key"])):
            return path.absolute().as_uri()
        return f"zonegw://{location['zone']}/{location['store']}/{location['key']}"

    def cached(self) -> dict[str, Any]:
        """What is kept here of other zones' data."""
        return {"cached_bytes": self._cache.used_bytes}
