"""Parked writes, for operators: what the registry refused, and what becomes of it.

A chain is a parked write with those that were to follow it; it is retried or discarded as a whole. What can't be taken
back, a second image or bytes that are gone, waits until the registry has said that the write was not applied after all.
"""

from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any
from uuid import UUID, uuid4

from zonegw import overlay
from zonegw.errors import Conflict, NotFound
from zonegw.images import Images
from zonegw.retries import Retries
from zonegw.store import Txn
from zonegw.write_queue import PendingWrite

Row = dict[str, Any]


class ParkedWrites:
    """Use cases; `confirmed` waits until the catalogue holds what the registry has now."""

    def __init__(self, images: Images, retries: Retries, confirmed: Callable[[], Awaitable[None]]) -> None:
        self._images = images
        self._store = images.store
        self._queue = images.queue
        self._catalogue = images.catalogue
        self._batch_max = images.limits.park_batch_max
        self._confirmed = confirmed
        self.retries = retries

    # Reads.

    def listed(self, after: int, rows: int) -> list[Row]:
        """Parked writes behind a position, in order."""
        return list(islice(self._queue.parked(self._store.read(), after), rows))

    def shown(self, position: int) -> Row:
        """A parked write with the first of those that follow it, and the image as the registry has it."""
        read = self._store.read()
        row = self._at(read, position)
        _, *chain = islice(self._queue.chain(read, row), self._batch_max)
        return row | {"chain": chain, "registered": self._catalogue.registered(read, row["write"]["uuid"])}

    def _at(self, txn: Txn, position: int) -> Row:
        row = self._queue.parked_at(txn, position)
        if row is None:
            raise NotFound(f"no write is parked as position {position}: `zonegw parked list` shows those that are")
        return row

    def _head(self, txn: Txn, position: int) -> Row:
        row = self._at(txn, position)
        if self.retries.waits(txn, row):
            raise Conflict(f"position {position} is to follow position {row['behind']}: name that, and all come along")
        return row

    # Retry.

    async def retry(self, position: int, *, new_uuid: bool = False) -> Row:
        """Put the chain back into the queue; with `new_uuid` as another image's. What was retried, under which UUID."""
        read = self._store.read()
        head = self._head(read, position)
        uuid = await self._renamed(head) if new_uuid else head["write"]["uuid"]
        if not new_uuid and self.retries.names_another(self._store.read(), head):
            raise Conflict(
                f"the UUID {uuid} names another registered image: retry with --new-uuid, or discard the write"
            )
        return {"uuid": uuid, "retried": await self.retries.retry(head, uuid)}

    async def _renamed(self, head: Row) -> str:
        """A UUID for the image of a parked create that the registry does not have."""
        command = head["write"]["command"]
        if command["op"] != "create_image":
            raise Conflict("only the create of an image can be retried with --new-uuid")
        if self._catalogue.registered(self._store.read(), command["uuid"]) is None:
            await self._confirmed()
        read = self._store.read()
        if self._catalogue.registered(read, command["uuid"]) and not self.retries.names_another(read, head):
            raise Conflict("the registry has this very image: retry without --new-uuid")
        if self._is_filling(read, command):
            raise Conflict("data of the image are coming in: wait until they are there, or until that has failed")
        return str(uuid4())

    def _is_filling(self, txn: Txn, command: Row) -> bool:
        """Whether an upload or an import goes on under the present UUID."""
        image = overlay.initial(command)
        return bool(self._images.present(image)["status"] != "queued") or (
            txn.get("staged", UUID(command["uuid"]).bytes) is not None
        )

    def retry_all(self, code: str) -> Row:
        """Put back all that is parked for a reason, in the background."""
        return self.retries.retry_all(code)

    # Discard.

    async def discard(self, position: int, *, confirmed: bool = False) -> Row:
        """Drop the chain; bytes that then belong to nobody are listed for removal. Raises Conflict where there are
        some and that is not `confirmed`."""
        head = self._head(self._store.read(), position)
        rows = list(islice(self._queue.chain(self._store.read(), head), self._batch_max + 1))
        has_data = len(rows) > self._batch_max or any(_locations(row) for row in rows)
        if has_data and not confirmed:
            raise Conflict(
                f"position {position} has image data, which are gone with it: repeat with --yes if they may be"
            )
        if has_data and self._may_be_applied(head):
            await self._confirmed()
        rest: Row | None = head
        count = 0
        while rest is not None:
            dropped, rest = self._discard_some(rest)
            count += dropped
            await self._store.durable()
        self._images.on_garbage()
        return {"uuid": head["write"]["uuid"], "discarded": count}

    @staticmethod
    def _may_be_applied(head: Row) -> bool:
        """Whether the registry may have what it is not known to have: the answer was lost, or an earlier one's was."""
        return head["reason"]["code"] in ("session_lost", "uuid_taken")

    def _discard_some(self, head: Row) -> tuple[int, Row | None]:
        with self._store.transaction(reserved=True) as txn:
            if self._queue.parked_at(txn, head["write"]["position"]) is None:
                return 0, None
            rows = list(islice(self._queue.chain(txn, head), self._batch_max + 1))
            for row in rows[: self._batch_max]:
                self._drop(txn, row)
        return len(rows[: self._batch_max]), rows[self._batch_max] if len(rows) > self._batch_max else None

    def _drop(self, txn: Txn, row: Row) -> None:
        write = PendingWrite(**row["write"])
        self._queue.unpark(txn, write)
        self._catalogue.take_off(txn, write.uuid, write.position)
        registered = self._catalogue.registered(txn, write.uuid)
        owned = {location["key"] for location in registered["locations"]} if registered else set()
        self._images.discard_bytes(txn, [place for place in _locations(row) if place["key"] not in owned])
        if write.command["op"] == "create_image" and registered is None:
            self._images.on_delete(txn, write.uuid)


def _locations(row: Row) -> list[Row]:
    locations: list[Row] = row["write"]["command"].get("add_locations") or []
    return locations
