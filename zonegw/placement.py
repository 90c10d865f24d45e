"""Placement: bring the bytes of an image into a store, which is one of this zone's or another zone's.

The key is noted, durably, before the first byte is written or sent. The note goes in the transaction in which somebody
comes to own the bytes; what is noted and has no owner after a failure or a crash is garbage. Garbage in another zone is
withdrawn there, and its note kept until that zone has answered.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from zonegw.data_stores.interface import DEFAULT_STORE, Stored, gather, is_key, mint_key
from zonegw.errors import BadRequest, BodyTooLarge, DataUnavailable, GatewayError
from zonegw.limits import Limits
from zonegw.own_stores import OwnStores
from zonegw.store import Store, Txn

log = logging.getLogger(__name__)

Location = dict[str, Any]
# A store by its zone and its name there; without a name it is the one that the zone puts data into by default.
Target = tuple[str, str | None]


class Far(Protocol):
    """The way to other zones' data stores."""

    async def write(
        self, zone: str, key: str, uuid: str, body: AsyncIterator[bytes], store: str | None = None
    ) -> Stored: ...

    async def withdraw(self, zone: str, key: str) -> None: ...


class Placement:
    """`uploads`, `garbage` and `far_garbage` by key; rows of other zones' bytes have a "zone", those of own ones the
    "store". `target` tells where the store lies that a client chose by its name."""

    def __init__(self, store: Store, own: OwnStores, far: Far, target: Callable[[str], Target], limits: Limits) -> None:
        self._store = store
        self._own = own
        self._far = far
        self._target = target
        self._limits = limits
        # Gets key and row of own bytes that are gone, in the transaction that forgets them.
        self.on_removed: Callable[[Txn, bytes, Any], None] = lambda txn, key, row: None
        self._garbage = asyncio.Event()
        self._far_garbage = asyncio.Event()

    async def place(
        self, uuid: str, store: str, body: AsyncIterator[bytes], size: int | None = None, md5: str | None = None
    ) -> Location:
        """Bring `body`, of which `size` and `md5` were announced, into the store of that name; returns the location,
        which the caller gives an owner (`owned`). What ends this early leaves nothing behind."""
        return await self._place(uuid, self._target(store), body, size, md5)

    async def stage(
        self, uuid: str, body: AsyncIterator[bytes], size: int | None = None, md5: str | None = None
    ) -> Location:
        """Bring `body` into files of this gateway."""
        return await self._place(uuid, (self._own.zone, self._own.local.name), body, size, md5)

    async def _place(
        self, uuid: str, target: Target, body: AsyncIterator[bytes], size: int | None, md5: str | None
    ) -> Location:
        key = mint_key()
        if size is not None and size > self._limits.image_max_bytes:
            raise _too_large(self._limits.image_max_bytes)
        await self._note(uuid, key, target)
        with self.kept([key]):
            body = bounded(body, self._limits.image_max_bytes)
            stored = await self._write(uuid, target, key, body, size)
            _check_announced(stored, size, md5)
            return location(target[0], stored)

    async def _note(self, uuid: str, key: str, target: Target) -> None:
        zone, store = target
        row = {"uuid": uuid} | ({"store": store} if zone == self._own.zone else {"zone": zone})
        with self._store.transaction(grows=True) as txn:
            txn.put_row("uploads", key.encode(), row)
        await self._store.durable()

    async def _write(self, uuid: str, target: Target, key: str, body: AsyncIterator[bytes], size: int | None) -> Stored:
        zone, store = target
        if zone == self._own.zone:
            return await self._own.get(store or self._own.default).write(key, body, size)
        return await self._far.write(zone, key, uuid, gather(body, self._limits.data_chunk_bytes), store)

    @staticmethod
    def owned(txn: Txn, keys: Iterable[str]) -> None:
        """In the transaction in which somebody comes to own placed bytes."""
        for key in keys:
            txn.delete("uploads", key.encode())

    @contextmanager
    def kept(self, keys: list[str]) -> Iterator[None]:
        """Placed bytes are given up where what follows fails before they have an owner."""
        try:
            yield
        except BaseException:
            with self._store.transaction() as txn:
                for key in keys:
                    self._give_up(txn, key.encode())
            self.wake()
            raise

    @staticmethod
    def _give_up(txn: Txn, key: bytes) -> None:
        row = txn.row("uploads", key)
        if row is None:
            return
        txn.delete("uploads", key)
        if zone := row.get("zone"):
            txn.put_row("far_garbage", key, {"zone": zone})
        else:
            txn.put_row("garbage", key, {"since_us": 0, "store": row.get("store", DEFAULT_STORE)})

    def recover(self, txn: Txn) -> int:
        """At start: bytes of uploads that a crash cut off belong to nobody; returns how many there are."""
        keys = [key for key, _ in txn.scan("uploads")]
        for key in keys:
            self._give_up(txn, key)
        return len(keys)

    # Removal of bytes.

    def wake(self) -> None:
        """Something was listed for removal."""
        self._garbage.set()
        self._far_garbage.set()

    async def remove_garbage(self) -> None:
        """For ever: remove own bytes that were listed for it, and only then the note of them; a store that is away is
        asked again."""
        while True:
            self._garbage.clear()
            away: set[str] = set()
            for key in await self._listed("garbage"):
                await self._remove(key, away)
            await self._woken(self._garbage, retry=bool(away))

    async def _woken(self, listed: asyncio.Event, *, retry: bool) -> None:
        try:
            async with asyncio.timeout(self._limits.far_garbage_retry_s if retry else None):
                await listed.wait()
        except TimeoutError:
            return

    async def _listed(self, table: str) -> list[str]:
        listed = [key.decode() for key, _ in self._store.read().scan(table)]
        # What was listed is committed then; what is listed from now on may yet be taken back by a crash.
        await self._store.durable()
        return listed

    async def _remove(self, key: str, away: set[str]) -> None:
        name = self._store.read().row("garbage", key.encode()).get("store", DEFAULT_STORE)
        if name in away:
            return
        try:
            if is_key(key):
                await self._own.get(name).delete(key)
            else:  # no store can hold it, and one such row must not end the gateway
                log.error("%r was listed for removal and is not a data key; nothing is stored under it", key)
        except (OSError, GatewayError) as error:
            log.error("bytes %s can't be removed from store %s now (%s); tried again", key, name, error)
            away.add(name)
            return
        with self._store.transaction() as txn:
            row = txn.row("garbage", key.encode())
            txn.delete("garbage", key.encode())
            self.on_removed(txn, key.encode(), row)

    async def withdraw_garbage(self) -> None:
        """For ever: have other zones remove what was put there and has no owner; a zone that can't be reached is asked
        again."""
        while True:
            self._far_garbage.clear()
            away: set[str] = set()
            for key in await self._listed("far_garbage"):
                await self._withdraw(key, away)
            if away:
                await asyncio.sleep(self._limits.far_garbage_retry_s)
            else:
                await self._far_garbage.wait()

    async def _withdraw(self, key: str, away: set[str]) -> None:
        zone = self._store.read().row("far_garbage", key.encode())["zone"]
        if zone in away:
            return
        try:
            await self._far.withdraw(zone, key)
        except DataUnavailable as error:
            log.warning("bytes %s are still to be removed in zone %s: %s", key, zone, error.message)
            away.add(zone)
            return
        with self._store.transaction() as txn:
            txn.delete("far_garbage", key.encode())


def location(zone: str, stored: Stored) -> Location:
    """As the registry takes it."""
    return {
        "zone": zone, "store": stored.store, "key": stored.key, "size": stored.size, "md5": stored.md5,
        "sha512": stored.sha512, "status": "active",
    }  # fmt: skip


def data_attributes(placed: Location, virtual_size: int | None) -> dict[str, Any]:
    """What an image has from its bytes, as a command sets it."""
    return {
        "status": "active", "size": placed["size"], "virtual_size": virtual_size, "checksum": placed["md5"],
        "os_hash_algo": "sha512", "os_hash_value": placed["sha512"],
    }  # fmt: skip


def _check_announced(stored: Stored, size: int | None, md5: str | None) -> None:
    if size not in (None, stored.size):
        raise BadRequest(f"Size mismatch: {size} bytes were announced, {stored.size} came; nothing was kept of them")
    if md5 not in (None, stored.md5):
        raise BadRequest(f"Checksum mismatch: md5 {md5} was announced, {stored.md5} came; nothing was kept of the data")


async def bounded(body: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """The body, up to the largest image that is taken. Raises BodyTooLarge."""
    total = 0
    async for piece in body:
        total += len(piece)
        if total > max_bytes:
            raise _too_large(max_bytes)
        yield piece


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"an image has at most {max_bytes} bytes here (limits.image_max_bytes)")
