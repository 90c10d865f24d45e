"""Staging: bytes that a client gave for an image, on this zone's disk, and that an import will make the image's own.

Such an image shows as `uploading`. The rows are kept in memory too: whatever shows an image looks here.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from zonegw.errors import Conflict, Unavailable
from zonegw.images import Image, Images, Request
from zonegw.limits import Limits
from zonegw.placement import Location, Placement
from zonegw.store import Txn, unpack

HOUR_US = 3_600_000_000


class Staging:
    """`staged` by UUID: a location of this zone, with "since_us"."""

    def __init__(self, images: Images, placement: Placement, limits: Limits) -> None:
        self._images = images
        self._placement = placement
        self._limits = limits
        self._under_way: set[str] = set()
        rows = images.store.read().scan("staged")
        self._staged: dict[str, dict[str, Any]] = {str(UUID(bytes=key)): unpack(row) for key, row in rows}

    def shows(self, uuid: str) -> bool:
        """Whether bytes of the image are staged or on their way."""
        return uuid in self._staged or uuid in self._under_way

    def get(self, uuid: str) -> Location | None:
        """Where the image's staged bytes are, once they are complete."""
        row = self._staged.get(uuid)
        return None if row is None else {name: value for name, value in row.items() if name != "since_us"}

    async def stage(
        self, request: Request, uuid: str, body: AsyncIterator[bytes], size: int | None, md5: str | None = None
    ) -> None:
        """Keep `body` for an import. Raises Conflict for an image that is not queued."""
        uuid = uuid.lower()
        read, quotas = self._images.store.read(), self._images.quotas
        image = self._images.writable(read, request.who, uuid, "stage_image")
        self._check(image, "queued")
        quotas.check_stage(read, image["owner"], size or 0)
        if len(self._staged) + len(self._under_way) >= self._limits.staged_images_max:
            raise Unavailable("too many images wait for their import (limits.staged_images_max)")
        with quotas.uploading(read, uuid, image["owner"]), self._marked(uuid):
            body = quotas.staging(read, image["owner"], body)
            placed = await self._placement.stage(uuid, body, size, md5)
            with self._placement.kept([placed["key"]]), self._images.store.transaction(grows=True) as txn:
                image = self._images.writable(txn, request.who, uuid, "stage_image")
                self._check(image, "uploading")  # another gateway's upload may have been first
                self.put(txn, image, placed)
            await self._images.store.durable()

    @contextmanager
    def _marked(self, uuid: str) -> Iterator[None]:
        self._under_way.add(uuid)
        try:
            yield
        finally:
            self._under_way.discard(uuid)

    @staticmethod
    def _check(image: Image, status: str) -> None:
        if image["status"] != status:
            raise Conflict(f"Image status transition from {image['status']} to uploading is not allowed")

    def sizes(self) -> dict[str, int]:
        """Bytes by image."""
        return {uuid: row["size"] for uuid, row in self._staged.items()}

    def put(self, txn: Txn, image: Image, placed: Location) -> None:
        """Bytes that were placed are the image's staged ones from now on. Raises QuotaExceeded."""
        self._images.quotas.check_stage(txn, image["owner"], placed["size"])
        uuid = image["uuid"]
        row = placed | {"since_us": self._images.catalogue.now_us()}
        self._placement.owned(txn, [placed["key"]])
        txn.put_row("staged", UUID(uuid).bytes, row)
        self._staged[uuid] = row

    def take(self, txn: Txn, uuid: str) -> None:
        """The staged bytes are the image's own from now on."""
        txn.delete("staged", UUID(uuid).bytes)
        self._staged.pop(uuid, None)

    def drop(self, txn: Txn, uuid: str) -> None:
        """The staged bytes, where there are any, are not needed any more."""
        placed = self.get(uuid)
        if placed is not None:
            self._images.discard_bytes(txn, [placed])
            self.take(txn, uuid)

    def expired(self) -> list[str]:
        """Images whose bytes have waited for too long."""
        oldest = self._images.catalogue.now_us() - int(self._limits.staged_keep_h * HOUR_US)
        return [uuid for uuid, row in self._staged.items() if row["since_us"] < oldest]
