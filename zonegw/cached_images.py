"""Cached images: what is remembered of images whose bytes were fetched from other zones, pins above all.

The rows are few, and kept in memory too: whatever makes room in the cache looks here.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from uuid import UUID

from zonegw.store import Store, unpack

OPERATOR, POLICY = "operator", "policy"


@dataclass(slots=True)
class CachedImage:
    """`key` of the bytes, while they are cached. `pinned` by whom: the image's bytes are to be kept here. `prefetched`:
    they came by policy once, and come so again only if the policy says it."""

    uuid: str
    size: int
    since_us: int
    key: str | None = None
    pinned: str | None = None
    prefetched: bool = False


class CachedImages:
    """`cache` by UUID."""

    def __init__(self, store: Store, now_us: Callable[[], int]) -> None:
        self._store = store
        self._now_us = now_us
        found = (CachedImage(**unpack(row)) for _, row in store.read().scan("cache"))
        self._by_uuid = {image.uuid: image for image in found}
        self._by_key = {image.key: image for image in self._by_uuid.values() if image.key is not None}

    def found(self, keys: Collection[str]) -> None:
        """At start: these files are there, and no others."""
        for key in [key for key in self._by_key if key not in keys]:
            self.evicted(key)

    def get(self, uuid: str) -> CachedImage | None:
        return self._by_uuid.get(uuid)

    def of(self, key: str) -> CachedImage | None:
        """The image whose bytes are cached under the key."""
        return self._by_key.get(key)

    def all(self) -> list[CachedImage]:
        return list(self._by_uuid.values())

    def is_pinned(self, uuid: str) -> bool:
        image = self._by_uuid.get(uuid)
        return image is not None and image.pinned is not None

    @property
    def pinned_bytes(self) -> int:
        """Of all pins, also of those whose bytes are still to come."""
        return sum(image.size for image in self._by_uuid.values() if image.pinned is not None)

    def fetched(self, uuid: str, key: str, size: int) -> None:
        image = self._known(uuid, size)
        if image.key is not None:
            del self._by_key[image.key]
        image.key = key
        self._by_key[key] = image
        self._save(image)

    def evicted(self, key: str) -> None:
        image = self._by_key.pop(key, None)
        if image is not None:
            image.key = None
            self._save(image)

    def pin(self, uuid: str, size: int, by: str) -> None:
        image = self._known(uuid, size)
        image.pinned = by
        self._save(image)

    def unpin(self, uuid: str) -> None:
        image = self._by_uuid.get(uuid)
        if image is not None:
            image.pinned = None
            self._save(image)

    def mark_prefetched(self, uuid: str, size: int) -> None:
        image = self._known(uuid, size)
        if not image.prefetched:
            image.prefetched = True
            self._save(image)

    def forget(self, uuid: str) -> None:
        """The image is deleted."""
        image = self._by_uuid.pop(uuid, None)
        if image is None:
            return
        if image.key is not None:
            del self._by_key[image.key]
        with self._store.transaction() as txn:
            txn.delete("cache", UUID(uuid).bytes)

    def _known(self, uuid: str, size: int) -> CachedImage:
        return self._by_uuid.setdefault(uuid, CachedImage(uuid, size, self._now_us()))

    def _save(self, image: CachedImage) -> None:
        """Rows that say nothing any more go."""
        if image.key is None and image.pinned is None and not image.prefetched:
            return self.forget(image.uuid)
        with self._store.transaction() as txn:
            row = {name: getattr(image, name) for name in CachedImage.__slots__}
            txn.put_row("cache", UUID(image.uuid).bytes, row)
        return None
