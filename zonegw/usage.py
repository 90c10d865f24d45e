"""What a project uses, as far as this gateway knows."""

import asyncio
from dataclasses import dataclass

from zonegw import listing
from zonegw.images import Images
from zonegw.staging import Staging


@dataclass(slots=True)
class Used:
    """Sums over the images of one project; an image with several copies counts as often."""

    images: int = 0
    size_bytes: int = 0
    staged_bytes: int = 0
    uploading: int = 0


class Usage:
    """Adds up a project's images, a bounded number of them, with a pause between the rows of two turns."""

    def __init__(self, images: Images, staging: Staging) -> None:
        self._images = images
        self._staging = staging

    async def of(self, project: str) -> Used:
        used = Used()
        scope = listing.owner_scope(project)
        after: bytes | None = b""
        while after is not None and used.images < self._images.limits.usage_images_max:
            after = self._add(used, scope, after or None)
            await asyncio.sleep(0)
        await self._images.store.durable()
        return used

    def _add(self, used: Used, scope: bytes, after: bytes | None) -> bytes | None:
        """Add one turn's rows; returns where to go on, None at the end."""
        txn = self._images.store.read()
        walker = listing.walk(txn, [scope], "created_at", reverse=False, after=after)
        for rows, (place, uuid) in enumerate(walker, 1):
            image = self._images.catalogue.get(txn, uuid)
            if image is not None:
                image = self._images.present(image)
                staged = self._staging.get(uuid)
                used.images += 1
                used.size_bytes += (image["size"] or 0) * len(image["locations"])
                used.staged_bytes += staged["size"] if staged else 0
                used.uploading += image["status"] in ("saving", "uploading", "importing")
            if rows >= self._images.limits.list_chunk_rows:
                return place
        return None
