"""Orphans: bytes in the own data stores, those with files, that nothing in the metadata store mentions.

Whatever row mentions a key owns it, so that a table which is new is not forgotten here. Rows move while they are
looked through, a few at a time; the tables are taken in the order in which a key moves through them, and what goes back
is looked at again behind it.
"""

import asyncio
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any
from uuid import UUID

from zonegw.catalogue import Catalogue
from zonegw.data_stores.filesystem import FilesystemStore
from zonegw.data_stores.interface import is_key
from zonegw.errors import BadRequest, Conflict, NotFound
from zonegw.limits import Limits
from zonegw.placement import Placement
from zonegw.store import TABLES, Store, Txn, unpack

_KEY = re.compile(rb"[0-9a-f]{32}")
# Rows that mention keys without owning them, or none at all.
_NO_OWNERS = {
    "meta",
    "numbers",
    "listing",
    "cache",
    "far_garbage",
    "deleted",
    "confirmations",
    "graves_due",
    "undeleted",
}
_IN_ORDER = ("parked", "queue", "parked", "overlay", "catalogue", "unseen", "graves", "garbage")


@dataclass(frozen=True, slots=True)
class Orphan:
    """Bytes without an owner; `image` as it was last known, where a resync missed it and the registry knows it not."""

    store: str
    key: str
    size: int
    age_s: float
    image: dict[str, Any] | None = None


class Orphans:
    """Finds and deletes them."""

    def __init__(
        self, store: Store, catalogue: Catalogue, files: list[FilesystemStore], placement: Placement, limits: Limits,
        *, now_s: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store = store
        self._catalogue = catalogue
        self._files = files
        self._placement = placement
        self._limits = limits
        self._now_s = now_s

    async def find(self, older_than_h: float | None = None) -> tuple[list[Orphan], bool]:
        """Some orphans, and whether there may be more. Raises BadRequest, Conflict."""
        found: list[Orphan] = []
        candidates: dict[str, Orphan] = {}
        for directory in range(256):
            candidates |= await asyncio.to_thread(self._listed, f"{directory:02x}", self._age_s(older_than_h))
            if len(candidates) >= self._limits.orphans_scan_max or directory == 255:
                found += await self._without_owner(candidates)
                candidates = {}
            if len(found) > self._limits.orphans_list_max:
                return found[: self._limits.orphans_list_max], True
        return found, False

    async def delete(self, keys: list[str] | None, older_than_h: float | None = None) -> list[Orphan]:
        """Delete these, or all that are older. Raises NotFound where one key is no orphan: none is deleted then."""
        if keys is None:
            orphans, _ = await self.find(older_than_h)
        else:
            orphans = await self._named(keys, self._age_s(older_than_h))
        orphans = self._settled(orphans)
        with self._store.transaction() as txn:
            for orphan in orphans:
                if orphan.image is not None:
                    txn.delete("unseen", UUID(orphan.image["uuid"]).bytes)
                row = {"since_us": self._catalogue.now_us(), "store": orphan.store}
                txn.put_row("garbage", orphan.key.encode(), row)
        self._placement.wake()
        await self._store.durable()
        return orphans

    async def _named(self, keys: list[str], age_s: float) -> list[Orphan]:
        candidates: dict[str, Orphan] = {}
        for directory in sorted({key[:2] for key in keys if is_key(key)}):
            listed = await asyncio.to_thread(self._listed, directory, age_s)
            candidates |= {key: orphan for key, orphan in listed.items() if key in keys}
        orphans = await self._without_owner(candidates)
        if missing := set(keys) - {orphan.key for orphan in orphans}:
            raise NotFound(
                f"{min(missing)!r:.60} is no orphan that old: see `zonegw data orphan list`; nothing was deleted"
            )
        return orphans

    def _age_s(self, older_than_h: float | None) -> float:
        least = self._limits.orphan_age_min_h
        if older_than_h is not None and older_than_h < least:
            raise BadRequest(f"orphans are bytes of at least {least:g} hours (limits.orphan_age_min_h)")
        return (older_than_h or least) * 3600

    def _listed(self, directory: str, age_s: float) -> dict[str, Orphan]:
        """Old files of one directory of each store; in a worker thread."""
        found = (orphan for store in self._files for orphan in self._listed_in(store, directory))
        return {orphan.key: orphan for orphan in found if orphan.age_s >= age_s}

    def _listed_in(self, store: FilesystemStore, directory: str) -> list[Orphan]:
        path, now = store.directory / directory, self._now_s()
        if not path.is_dir():
            return []
        with os.scandir(path) as entries:
            files = [(entry.name, entry.stat()) for entry in entries if is_key(entry.name)]
        return [Orphan(store.name, name, stat.st_size, now - stat.st_mtime) for name, stat in files]

    async def _without_owner(self, candidates: dict[str, Orphan]) -> list[Orphan]:
        if not candidates:
            return []
        self._check_whole()
        begun = self._catalogue.epoch(self._store.read())
        others = [name for name in TABLES if name not in _NO_OWNERS and name not in _IN_ORDER]
        for table in (*others, *_IN_ORDER):
            await self._drop_owned(candidates, table)
        if self._catalogue.epoch(self._store.read()) != begun:
            raise Conflict("the registry began a new epoch meanwhile: ask again")
        return self._settled(candidates.values())

    def _check_whole(self) -> None:
        if self._catalogue.position(self._store.read()) is None:
            raise Conflict("the catalogue was never read from the registry: without it, no bytes seem to have an owner")

    async def _drop_owned(self, candidates: dict[str, Orphan], table: str) -> None:
        after: bytes | None = b""
        while after is not None and candidates:
            after = self._drop_some(candidates, table, after)
            await asyncio.sleep(0)

    def _drop_some(self, candidates: dict[str, Orphan], table: str, after: bytes) -> bytes | None:
        """Look through one turn's rows; returns where to go on."""
        rows = list(islice(self._store.read().scan(table, after), self._limits.list_chunk_rows))
        for key, row in rows:
            if table == "unseen":
                self._judge_unseen(candidates, unpack(row))
            else:
                _drop(candidates, _mentioned(key, row))
        return rows[-1][0] + b"\x00" if len(rows) == self._limits.list_chunk_rows else None

    @staticmethod
    def _judge_unseen(candidates: dict[str, Orphan], row: dict[str, Any]) -> None:
        """An image that the registry does not know owns nothing; of any other one nobody may say so."""
        image = row["image"]
        for location in image["locations"]:
            orphan = candidates.get(location["key"])
            if orphan is not None and row["fate"] == "unknown":
                candidates[orphan.key] = replace(orphan, image=image)
            else:
                candidates.pop(location["key"], None)

    def _settled(self, candidates: Iterable[Orphan]) -> list[Orphan]:
        """What an undelete took from behind the look is an image's again."""
        read = self._store.read()
        return [orphan for orphan in candidates if not self._is_undeleted(read, orphan.key)]

    def _is_undeleted(self, txn: Txn, key: str) -> bool:
        row = txn.row("undeleted", key.encode())
        return row is not None and self._catalogue.get(txn, row["uuid"]) is not None


def _mentioned(key: bytes, row: bytes) -> Iterator[str]:
    for text in (key, row):
        yield from (found.decode() for found in _KEY.findall(text))


def _drop(candidates: dict[str, Orphan], keys: Iterable[str]) -> None:
    for key in keys:
        candidates.pop(key, None)
