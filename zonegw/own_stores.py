"""This zone's data stores by name, and the ways to read stores that other zones share.

The store `default` is the one that a zone without [[stores]] has: files below `data_dir`. Where the entries have other
names, it takes nothing new, but what lies in it is read and deleted as before. Bytes that wait for an import always lie
in files of this gateway.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zonegw.config import Config
from zonegw.data_stores.filesystem import FilesystemStore
from zonegw.data_stores.interface import DEFAULT_STORE, DataStore
from zonegw.data_stores.opening import opened
from zonegw.errors import BadRequest, DataUnavailable, NotFound, Unavailable
from zonegw.store_config import STAGING, FilesystemConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that a store holds but not as a file."""

    store: DataStore
    key: str
    size: int

    def read(self, start: int, end: int, chunk_bytes: int) -> AsyncGenerator[bytes]:
        return self.store.read(self.key, start, end)


class OwnStores:
    """`local` is the one with files that staging uses, `offered` are the names of those that take data."""

    def __init__(self, config: Config) -> None:
        self.zone = config.zone
        entries = [entry for entry in config.stores if entry.zone is None]
        made = {entry.name: opened(entry, config.limits) for entry in entries}
        self.local = self._local(made, config)
        self.offered = list(made) or [DEFAULT_STORE]
        self.default = next((entry.name for entry in entries if entry.default), self.offered[0])
        # Files first: they answer without a round trip.
        self._stores: dict[str, DataStore] = {self.local.name: self.local, **made}
        self.shared: dict[str, list[DataStore]] = {}
        for entry in config.stores:
            if entry.zone is not None:
                self.shared.setdefault(entry.zone, []).append(opened(entry, config.limits))

    @staticmethod
    def _local(made: dict[str, DataStore], config: Config) -> FilesystemStore:
        there = made.get(DEFAULT_STORE)
        if isinstance(there, FilesystemStore):
            return there
        entry = FilesystemConfig(name=STAGING if there else DEFAULT_STORE, directory=config.data_dir / "data")
        local = opened(entry, config.limits)
        assert isinstance(local, FilesystemStore)
        return local

    def get(self, name: str) -> DataStore:
        """Raises DataUnavailable for one that is not configured any more."""
        if name not in self._stores:
            raise DataUnavailable(f"zone {self.zone} has no store {name!r:.80} any more: put it back into zonegw.toml")
        return self._stores[name]

    def files(self) -> list[FilesystemStore]:
        """The stores that have files."""
        return [store for store in self._stores.values() if isinstance(store, FilesystemStore)]

    def chosen(self, name: str | None) -> DataStore:
        """The store for new data. Raises BadRequest for one that takes none."""
        if name is not None and name not in self.offered:
            raise BadRequest(f"zone {self.zone} has no store {name!r:.80}; there are: {', '.join(self.offered)}")
        return self._stores[name or self.default]

    def file(self, store: str, key: str) -> Path | None:
        """The file that holds the bytes, in a store that has files."""
        found = self._stores.get(store)
        return None if found is None else found.path(key)

    async def find(self, key: str) -> Path | Held | None:
        """The bytes, in whichever store they are. Raises Unavailable where one that may have them is away."""
        problem: Unavailable | None = None
        for name in self._stores:
            try:
                if (found := await self.held(name, key)) is not None:
                    return found
            except Unavailable as error:
                problem = error
        if problem is not None:
            raise problem
        return None

    async def held(self, name: str, key: str, size: int | None = None) -> Path | Held | None:
        """The bytes in this store. Those of another `size` than they had are damaged, and as good as none: a client
        could take them for the whole."""
        store = self.get(name)
        there = await store.size(key)
        if there is None or size not in (None, there):
            if there is not None:
                log.error("bytes %s in store %s are damaged: there are %d of %s", key, name, there, size)
            return None
        return store.path(key) or Held(store, key, there)

    async def close(self) -> None:
        for store in (*self._stores.values(), *(store for stores in self.shared.values() for store in stores)):
            await store.close()


class Gateways(Protocol):
    """The other way to bytes of other zones."""

    def read(self, zone: str, key: str, offset: int) -> AsyncGenerator[bytes]: ...


class Origins:
    """Bytes of other zones: from a store that the zone shares, whatever became of its gateways, else from these."""

    def __init__(self, shared: dict[str, list[DataStore]], gateways: Gateways) -> None:
        self._shared = shared
        self._gateways = gateways

    async def read(self, zone: str, key: str, offset: int) -> AsyncGenerator[bytes]:
        """The bytes from `offset` on. Raises DataUnavailable when there is no way to them now."""
        for store in self._shared.get(zone, ()):
            begun = False
            try:
                async with aclosing(_rest(store, key, offset)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
            except (NotFound, DataUnavailable) as error:
                if begun:
                    raise
                log.warning("store %s of zone %s can't be read directly: %s", store.name, zone, error.message)
            if begun:
                return
        async with aclosing(self._gateways.read(zone, key, offset)) as pieces:
            async for piece in pieces:
                yield piece


async def _rest(store: DataStore, key: str, offset: int) -> AsyncGenerator[bytes]:
    """Of bytes whose size only the store knows; nothing where it has none."""
    size = await store.size(key)
    if size is not None and offset < size:
        async with aclosing(store.read(key, offset, size)) as pieces:
            async for piece in pieces:
                yield piece
