"""Deposits: bytes that gateways of other zones put into this zone's data store.

Whoever put bytes here answers for them: it writes a location that names their key, or withdraws them. Until the
catalogue shows an image with that location, a row says whose they are; from then on they are an image's bytes like any
other, and go with its tombstone or the removal of the location. Bytes whose sender fell silent stay: it may have
registered them in a registry that this zone can't see yet.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator
from itertools import islice
from uuid import UUID

from zonegw.data_stores.interface import DEFAULT_STORE, DataStore, Stored
from zonegw.errors import BadRequest, Conflict, DataUnavailable, Forbidden, GatewayError, NotFound
from zonegw.images import Images
from zonegw.own_stores import OwnStores
from zonegw.store import Txn


class Deposits:
    """`deposits` by key: {"uuid", "from": zone, "store", "since_us"}."""

    def __init__(self, images: Images, own: OwnStores) -> None:
        self._images = images
        self._store = images.store
        self._own = own
        self._withdrawn: OrderedDict[str, None] = OrderedDict()
        self._next = b""

    async def accept(
        self, zone: str, uuid: str, key: str, body: AsyncIterator[bytes], store: str | None = None
    ) -> Stored:
        """Keep `body` under `key` for image `uuid`, durably, in the store of that name or in the default one. What ends
        it early leaves nothing behind."""
        if not _is_uuid(uuid):
            raise BadRequest("the request does not name the image that the data are of")
        into = self._own.chosen(store)
        await self._note(uuid, key, into)
        try:
            stored = await into.write(key, body)
            with self._store.transaction() as txn:
                if key in self._withdrawn:
                    raise Conflict("the sender has given these data up")
                txn.delete("uploads", key.encode())
                now_us = self._images.catalogue.now_us()
                row = {"uuid": uuid, "from": zone, "store": into.name, "since_us": now_us}
                txn.put_row("deposits", key.encode(), row)
        except BaseException:
            self._give_up(key)
            raise
        await self._store.durable()
        return stored

    async def _note(self, uuid: str, key: str, into: DataStore) -> None:
        self.settle()
        there = await into.size(key) is not None
        with self._store.transaction(grows=True) as txn:
            if there or any(txn.get(table, key.encode()) is not None for table in ("uploads", "deposits")):
                raise Conflict("there are data under this key already")
            txn.put_row("uploads", key.encode(), {"uuid": uuid, "store": into.name})
        await self._store.durable()

    def _give_up(self, key: str) -> None:
        with self._store.transaction() as txn:
            row = txn.row("uploads", key.encode())
            if row is not None:
                txn.delete("uploads", key.encode())
                txn.put_row("garbage", key.encode(), {"since_us": 0, "store": row["store"]})
        self._images.on_garbage()

    def withdraw(self, zone: str, key: str) -> None:
        """The sender gives its bytes up. Raises NotFound, Forbidden, and Conflict once an image owns them."""
        with self._store.transaction() as txn:
            row = txn.row("deposits", key.encode())
            if row is None:
                raise self._missing(txn, key)
            if row["from"] != zone:
                raise Forbidden("another zone put these data here")
            if self._owned(txn, row["uuid"], key):
                raise Conflict("an image owns these data")
            txn.delete("deposits", key.encode())
            garbage = {"since_us": self._images.catalogue.now_us(), "store": row.get("store", DEFAULT_STORE)}
            txn.put_row("garbage", key.encode(), garbage)
        self._images.on_garbage()

    def _missing(self, txn: Txn, key: str) -> GatewayError:
        """A sender that gave up may be faster than what it sent: that is refused when it comes."""
        if txn.get("uploads", key.encode()) is not None:
            return DataUnavailable("the data are still coming in; ask again")
        self._withdrawn[key] = None
        while len(self._withdrawn) > self._images.limits.withdrawn_keys_max:
            self._withdrawn.popitem(last=False)
        return NotFound("no such deposit here")

    def settle(self) -> None:
        """Forget the rows of deposits that an image owns by now: a bounded number is looked at, then the next ones."""
        read = self._store.read()
        batch = self._images.limits.prune_batch_max
        keys = [key for key, _ in islice(read.scan("deposits", self._next), batch)]
        self._next = keys[-1] + b"\x00" if len(keys) == batch else b""
        if owned := [key for key in keys if self._is_settled(read, key)]:
            with self._store.transaction() as txn:
                for key in owned:
                    txn.delete("deposits", key)

    def _is_settled(self, txn: Txn, key: bytes) -> bool:
        row = txn.row("deposits", key)
        return self._owned(txn, row["uuid"], key.decode())

    def _owned(self, txn: Txn, uuid: str, key: str) -> bool:
        image = self._images.catalogue.get(txn, uuid)
        return image is not None and any(location["key"] == key for location in image["locations"])


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
