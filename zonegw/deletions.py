"""Deletions: bytes go only where somebody said that their image was deleted, and the registry hears when they are gone.

Said by a tombstone of the feed, by the ack of an own delete, or, of images that a resync did not find any more, by the
registry when it is asked for their fate. Images that it does not know keep their bytes: it may have been restored from
a backup, and will know them again. An operator sees such bytes as orphans.
"""

import asyncio
import logging
from itertools import islice
from typing import Any, Protocol
from uuid import UUID

from zonegw.catalogue import Catalogue
from zonegw.errors import RegistryAway, RegistryRefused
from zonegw.graves import Graves
from zonegw.limits import Limits
from zonegw.placement import Placement
from zonegw.store import Store, Txn, u64

log = logging.getLogger(__name__)

Image = dict[str, Any]
DELETED, LIVE, UNKNOWN = "deleted", "live", "unknown"


class Registry(Protocol):
    """Who knows what has become of images, and is told what was done."""

    @property
    def up(self) -> bool: ...

    async def fates(self, images: list[dict[str, Any]]) -> list[dict[str, Any]]: ...

    async def confirm_deletions(self, numbers: list[int]) -> None: ...


class Deletions:
    """`unseen` by UUID: {"image", "since_us", "fate"}; `confirmations` by number; `undeleted` by
    key: {"uuid"} of the image that bytes of a deleted one belong to now."""

    def __init__(
        self, store: Store, catalogue: Catalogue, placement: Placement, graves: Graves, registry: Registry, zone: str,
        limits: Limits,
    ) -> None:  # fmt: skip
        self._store = store
        self._catalogue = catalogue
        self._placement = placement
        self._graves = graves
        self._registry = registry
        self._zone = zone
        self._limits = limits
        self._now_us = catalogue.now_us
        self._wake = asyncio.Event()
        self._asking = True
        self._asked_at = 0.0
        self.last_error: str | None = None
        placement.on_removed = self.removed

    # What is said of images.

    def bury(self, txn: Txn, image: Image) -> None:
        """The image is deleted: its bytes here go, where a delay is set after that. May be said again."""
        here = [location for location in image["locations"] if location["zone"] == self._zone]
        own = [location for location in here if self._owns(txn, image, location)]
        if here and not own:
            self.confirm(txn, image["number"])
        if own and not self._graves.keep(txn, image, own, self._now_us()):
            self.release(txn, image, own)

    @staticmethod
    def _owns(txn: Txn, image: Image, location: dict[str, Any]) -> bool:
        row = txn.row("undeleted", location["key"].encode())
        return row is None or row["uuid"] == image["uuid"]

    def release(self, txn: Txn, image: Image, own: list[dict[str, Any]]) -> None:
        """List the bytes for removal; when the last of them is gone, the registry hears of it."""
        keys = [location["key"] for location in own]
        row = {"since_us": self._now_us(), "number": image["number"], "keys": keys}
        for location in own:
            key = location["key"].encode()
            txn.put_row("garbage", key, row | {"store": location["store"]})
            txn.delete("deposits", key)
            txn.delete("undeleted", key)
        self._placement.wake()

    def unseen(self, txn: Txn, image: Image) -> None:
        """A resync did not find the image any more: its bytes stay until the registry says what became of it."""
        if any(location["zone"] == self._zone for location in image["locations"]):
            row = {"image": image, "since_us": self._now_us(), "fate": None}
            txn.put_row("unseen", UUID(image["uuid"]).bytes, row)

    def removed(self, txn: Txn, key: bytes, row: dict[str, Any]) -> None:
        """Bytes are gone."""
        others = (other for other in row.get("keys", ()) if other.encode() != key)
        if not any(txn.get("garbage", other.encode()) is not None for other in others):
            self.confirm(txn, row.get("number"))

    def confirm(self, txn: Txn, number: int | None) -> None:
        """No bytes of this deleted image are here. Without a number there is no tombstone yet, which will come."""
        if number is not None:
            txn.put("confirmations", u64(number), b"")
            self._wake.set()

    # The work beside.

    def ask(self) -> None:
        """There may be images to ask for, or somebody to ask."""
        self._asking = True
        self._wake.set()

    def link_changed(self, up: bool) -> None:
        if up:
            self.ask()

    async def run(self) -> None:
        """For ever: end delays, ask what became of unseen images, confirm what is gone."""
        while True:
            self._wake.clear()
            self._end_delays()
            try:
                await self._tell()
                self.last_error = None
            except (RegistryAway, RegistryRefused) as error:
                self.last_error = str(error)
                self._asking = True
                await asyncio.sleep(self._limits.retry_delay_max_s)
                continue
            await self._idle()

    async def _idle(self) -> None:
        try:
            async with asyncio.timeout(self._limits.deletions_look_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _end_delays(self) -> None:
        if not self._store.read().count("graves"):
            return
        with self._store.transaction() as txn:
            self._graves.clock.save(txn)
            for grave in self._graves.expired(txn, self._limits.prune_batch_max):
                self._graves.take(txn, grave)
                self.release(txn, grave["image"], grave["locations"])
                self._wake.set()  # there may be more

    async def _tell(self) -> None:
        if not self._registry.up:
            return
        now = asyncio.get_running_loop().time()
        if self._asking or now - self._asked_at > self._limits.fates_ask_s:
            self._asking, self._asked_at = False, now
            await self._ask_all()
        await self._confirm_all()

    async def _ask_all(self) -> None:
        after = b""
        while keys := self._keys("unseen", after):
            await self._ask(keys)
            after = keys[-1] + b"\x00"

    def _keys(self, table: str, after: bytes = b"") -> list[bytes]:
        rows = self._store.read().scan(table, after)
        return [key for key, _ in islice(rows, self._limits.deletions_batch_max)]

    async def _ask(self, keys: list[bytes]) -> None:
        await self._store.durable()
        read = self._store.read()
        images = [read.row("unseen", key)["image"] for key in keys]
        fates = await self._registry.fates([{name: image[name] for name in ("number", "uuid")} for image in images])
        with self._store.transaction() as txn:
            for key, fate in zip(keys, fates, strict=True):
                self._settle(txn, key, fate["fate"])

    def _settle(self, txn: Txn, key: bytes, fate: str) -> None:
        row = txn.row("unseen", key)
        uuid = row["image"]["uuid"]
        if fate == DELETED:
            log.info("image %s was deleted while this zone did not hear of it", uuid)
            self.bury(txn, row["image"])
        elif fate == UNKNOWN and row["fate"] is None:
            log.warning("the registry does not know image %s: its bytes stay (zonegw data orphan list)", uuid)
        # One that is live without being in the catalogue is outside of what the catalogue holds.
        if fate == DELETED or (fate == LIVE and self._catalogue.get(txn, uuid) is not None):
            txn.delete("unseen", key)
        elif row["fate"] != fate:
            txn.put_row("unseen", key, row | {"fate": fate})

    async def _confirm_all(self) -> None:
        while keys := self._keys("confirmations"):
            await self._store.durable()
            await self._registry.confirm_deletions([int.from_bytes(key, "big") for key in keys])
            with self._store.transaction() as txn:
                for key in keys:
                    txn.delete("confirmations", key)
