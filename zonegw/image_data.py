"""Use cases on image data: upload, download, and the removal of bytes whose image was deleted.

An image becomes active only after its bytes are on the disk under their final key. The key is noted before the upload
starts, so that bytes which no image came to own are known as such after a crash and removed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from zonegw.config import Limits
from zonegw.data_cache import DataCache, Fetch
from zonegw.data_stores.filesystem import FilesystemStore, Stored, mint_key
from zonegw.errors import BadRequest, BodyTooLarge, Conflict, NotFound, Unavailable
from zonegw.identity import Identity
from zonegw.images import Changes, Image, Images, Request
from zonegw.store import Txn

log = logging.getLogger(__name__)

DEFAULT_STORE = "default"


@dataclass(frozen=True, slots=True)
class Source:
    """Where an image's bytes come from: a complete file, or a fetch from another zone that is under way."""

    image: Image
    file: Path | None = None
    fetch: Fetch | None = None


class ImageData:
    """Data use cases of one gateway."""

    def __init__(self, images: Images, data: FilesystemStore, cache: DataCache, limits: Limits) -> None:
        self._images = images
        self._data = data
        self._cache = cache
        self._limits = limits
        self._uploading: set[str] = set()
        self._garbage = asyncio.Event()
        images.is_uploading = self._uploading.__contains__
        images.on_garbage = self.wake

    async def upload(
        self, request: Request, uuid: str, body: AsyncIterator[bytes], size: int | None, md5: str | None = None
    ) -> None:
        """Store `body` as the image's data and acknowledge it as active; `size` and `md5` are what the client
        announced."""
        uuid = uuid.lower()
        self._check_uploadable(self._images.writable(self._images.store.read(), request.who, uuid, "upload_image"))
        image, position = await self._receive(
            uuid, body, size, md5, lambda stored: self._activate(request, uuid, stored)
        )
        await self._images.settle(image, position)

    async def create(
        self, request: Request, attributes: dict[str, Any], properties: dict[str, str], body: AsyncIterator[bytes],
        size: int | None, md5: str | None = None,
    ) -> Image:  # fmt: skip
        """A new image with a number and with data, as `upload` takes them: there is none before these are on the disk,
        and none if they don't come whole."""
        images, uuid = self._images, str(uuid4())
        attributes = images.check_create(request.who, attributes, properties, [])
        self._check_formats(attributes)
        images.policy.require("upload_image", request.who, attributes | {"members": {}})
        images.check_numbers(images.store.read())
        image, position = await self._receive(
            uuid, body, size, md5, lambda stored: self._create_active(request, uuid, attributes, properties, stored)
        )
        await images.settle(image, position)
        return await images.show(request.who, uuid)

    async def _receive(
        self, uuid: str, body: AsyncIterator[bytes], size: int | None, md5: str | None,
        own: Callable[[Stored], tuple[Image, int]],
    ) -> tuple[Image, int]:  # fmt: skip
        """Store `body`, then let `own` make it an image's; what ends this early leaves nothing behind."""
        if len(self._uploading) >= self._limits.uploads_max:
            raise Unavailable("too many uploads at once (limits.uploads_max)")
        self._uploading.add(uuid)
        key = mint_key()
        try:
            await self._note_upload(uuid, key)
            return own(await self._store(key, body, size, md5))
        except BaseException:
            self._give_up(key)
            raise
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

    async def _note_upload(self, uuid: str, key: str) -> None:
        with self._images.store.transaction(grows=True) as txn:
            txn.put_row("uploads", key.encode(), {"uuid": uuid})
        await self._images.store.durable()

    async def _store(self, key: str, body: AsyncIterator[bytes], size: int | None, md5: str | None) -> Stored:
        stored = await self._data.write(key, _bounded(body, self._limits.image_max_bytes))
        if size not in (None, stored.size):
            raise BadRequest(
                f"Size mismatch: {size} bytes were announced, {stored.size} came; nothing was kept of them"
            )
        if md5 not in (None, stored.md5):
            raise BadRequest(
                f"Checksum mismatch: md5 {md5} was announced, {stored.md5} came; nothing was kept of the data"
            )
        return stored

    def _activate(self, request: Request, uuid: str, stored: Stored) -> tuple[Image, int]:
        """The image owns its bytes: one transaction with the pending write that makes it active."""
        with self._images.store.transaction() as txn:
            image = self._images.writable(txn, request.who, uuid, "upload_image")
            self._check_uploadable(image, status="saving")  # another gateway's upload may have been first
            return image, self._append_data(txn, request, image, stored)

    def _create_active(
        self, request: Request, uuid: str, attributes: dict[str, Any], properties: dict[str, str], stored: Stored
    ) -> tuple[Image, int]:
        with self._images.store.transaction(grows=True) as txn:
            image = self._images.append_create(txn, request, uuid, attributes, properties, [], numbered=True)
            return image, self._append_data(txn, request, image, stored)

    def _append_data(self, txn: Txn, request: Request, image: Image, stored: Stored) -> int:
        values = {
            "status": "active", "size": stored.size, "checksum": stored.md5, "os_hash_algo": "sha512",
            "os_hash_value": stored.sha512,
        }  # fmt: skip
        location = {
            "zone": self._images.zone, "store": DEFAULT_STORE, "key": stored.key, "size": stored.size,
            "md5": stored.md5, "sha512": stored.sha512, "status": "active",
        }  # fmt: skip
        txn.delete("uploads", stored.key.encode())
        return self._images.append_update(
            txn, request, image, Changes(values), add_locations=[location], conditional=False
        )

    def _give_up(self, key: str) -> None:
        """An upload ended without an owner for its bytes."""
        with self._images.store.transaction() as txn:
            if txn.delete("uploads", key.encode()):
                txn.put_row("garbage", key.encode(), {"since_us": 0})
        self._garbage.set()

    async def source(self, who: Identity, uuid: str) -> Source | None:
        """Where to read the image's bytes, or None for an image without data yet."""
        image = await self._images.show(who, uuid)
        policy = self._images.policy
        policy.require("download_image", who, image)
        if image["status"] == "deactivated":
            said = "The requested image has been deactivated. Image data download is forbidden."
            policy.require("download_deactivated_image", who, image, said)
        if not image["locations"]:
            return None
        for location in image["locations"]:
            if location["zone"] == self._images.zone and self._data.exists(location["key"]):
                return Source(image, file=self._data.path(location["key"]))
        return await self._remote(image)

    async def _remote(self, image: Image) -> Source:
        problem: Exception | None = None
        for location in image["locations"]:
            try:
                found = await self._cache.open(location)
            except Unavailable as error:
                problem = error
                continue
            return Source(image, file=found) if isinstance(found, Path) else Source(image, fetch=found)
        raise problem or NotFound("the image's data is not to be found")

    # Removal of bytes.

    def recover(self, txn: Txn) -> int:
        """At start: bytes of uploads that a crash cut off belong to no image; returns how many there are."""
        keys = [key for key, _ in txn.scan("uploads")]
        for key in keys:
            txn.delete("uploads", key)
            txn.put_row("garbage", key, {"since_us": 0})
        return len(keys)

    def wake(self) -> None:
        self._garbage.set()

    async def remove_garbage(self) -> None:
        """For ever: remove bytes that were listed for it, and only then the note of them."""
        while True:
            self._garbage.clear()
            listed = [key.decode() for key, _ in self._images.store.read().scan("garbage")]
            # What was listed is committed then; what is listed from now on may yet be taken back by a crash.
            await self._images.store.durable()
            for key in listed:
                await self._remove(key)
            await self._garbage.wait()

    async def _remove(self, key: str) -> None:
        try:
            await self._data.delete(key)
        except OSError as error:
            log.error("bytes %s can't be removed (%s); tried again after the next delete", key, error)
            return
        with self._images.store.transaction() as txn:
            txn.delete("garbage", key.encode())


async def _bounded(body: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    total = 0
    async for piece in body:
        total += len(piece)
        if total > max_bytes:
            raise BodyTooLarge(f"an image has at most {max_bytes} bytes here (limits.image_max_bytes)")
        yield piece
