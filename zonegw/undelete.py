"""Undelete: a new image from the bytes and the metadata of one that was deleted, while its bytes are kept.

Number and UUID of the deleted image are never used again, so the new one has its own, and says in the property
`undeleted_from` whose bytes it has. It comes into being as any image does, through the queue; the bytes stay where they
are, under their key.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from zonegw.deletions import Deletions
from zonegw.errors import Conflict, NotFound
from zonegw.graves import Grave, Graves
from zonegw.identity import Identity
from zonegw.images import WRITABLE, Changes, Image, Images, Request, check_attributes
from zonegw.placement import Location
from zonegw.store import Txn

PROPERTY = "undeleted_from"
_OF_THE_BYTES = ("size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value")


class Undelete:
    """`has` tells whether the bytes of an own location are there."""

    def __init__(
        self, images: Images, graves: Graves, deletions: Deletions, has: Callable[[Location], Awaitable[bool]]
    ) -> None:
        self._images = images
        self._graves = graves
        self._deletions = deletions
        self._has = has

    async def undelete(self, uuid: str) -> Image:
        """The new image. Raises NotFound, and Conflict where the bytes are gone."""
        locations = self._grave(self._images.store.read(), uuid)["locations"]
        own = [location for location in locations if await self._has(location)]
        if not own:
            raise Conflict(f"the bytes of image {uuid} are gone: there is nothing to undelete")
        with self._images.store.transaction(grows=True) as txn:
            grave = self._grave(txn, uuid)
            image, position = self._create(txn, grave["image"], own)
            for location in own:
                txn.put_row("undeleted", location["key"].encode(), {"uuid": image["uuid"]})
            self._deletions.confirm(txn, grave["image"]["number"])
            self._graves.take(txn, grave)
        await self._images.settle(image, position)
        return image

    async def purge(self, uuid: str) -> Grave:
        """Do not wait for the end of the delay: the bytes go now."""
        with self._images.store.transaction() as txn:
            grave = self._grave(txn, uuid)
            self._graves.take(txn, grave)
            self._deletions.release(txn, grave["image"], grave["locations"])
        await self._images.store.durable()
        return grave

    def _grave(self, txn: Txn, uuid: str) -> Grave:
        grave = self._graves.get(txn, uuid)
        if grave is None:
            raise NotFound(f"no bytes of a deleted image {uuid} are kept here: see `zonegw data deleted list`")
        return grave

    def _create(self, txn: Txn, deleted: Image, own: list[Location]) -> tuple[Image, int]:
        images = self._images
        attributes = {name: deleted[name] for name in WRITABLE}
        properties = deleted["properties"] | {PROPERTY: deleted["uuid"]}
        check_attributes(attributes, properties, deleted["tags"], images.limits)
        request = Request(Identity("operator", deleted["owner"] or "", frozenset({"admin"})))
        image = images.append_create(txn, request, str(uuid4()), attributes, properties, deleted["tags"])
        position = images.append_update(
            txn, request, image, self._changes(deleted), add_locations=own, conditional=False
        )
        if deleted["status"] == "deactivated":
            position = images.append_update(txn, request, image, Changes({"status": "deactivated"}), conditional=False)
        return image, position

    @staticmethod
    def _changes(deleted: Image) -> Changes:
        data: dict[str, Any] = {name: deleted[name] for name in _OF_THE_BYTES if deleted[name] is not None}
        members = {
            project: {"status": member["status"], "can_share": member["can_share"]}
            for project, member in deleted["members"].items()
        }
        return Changes({"status": "active"} | data, set_members=members)
