"""What a data store is to the gateway: bytes under opaque keys, each written once and whole."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

KEY_CHARS = frozenset("0123456789abcdef")
# The store of a zone that is configured with none, and of what was stored before stores had names.
DEFAULT_STORE = "default"


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes that are durable under `key` in the store of this name."""

    key: str
    size: int
    md5: str
    sha512: str
    store: str = DEFAULT_STORE


class DataStore(Protocol):
    """Nothing can be read under a key before all of its bytes are durable. A store that does not answer, or refuses the
    gateway, raises DataUnavailable that names it; nothing here waits for it without a bound."""

    name: str
    # As the Images API tells it to administrators.
    kind: str

    async def write(self, key: str, body: AsyncIterator[bytes], size: int | None = None) -> Stored:
        """Store what `body` yields, of which `size` bytes were announced. What ends this early leaves nothing that can
        be read, and nothing at all once `delete` was called. Raises StorageFull, and what `body` raises."""
        ...

    def path(self, key: str) -> Path | None:
        """The file that holds the bytes, if this store has files."""
        ...

    def read(self, key: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """The bytes from `start` up to `end`. Raises NotFound before the first one where there are none."""
        ...

    async def size(self, key: str) -> int | None:
        """Of the bytes; None where there are none."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the bytes, and what an unfinished write left; what is gone already is no error."""
        ...

    async def reachable(self) -> bool:
        """Whether it answers now."""
        ...

    async def properties(self) -> dict[str, Any]:
        """What an operator wants to know of it."""
        ...

    async def close(self) -> None: ...


def mint_key() -> str:
    """A key that names bytes for ever; it says nothing about the image."""
    return uuid4().hex


def is_key(text: str) -> bool:
    return len(text) == 32 and set(text) <= KEY_CHARS


async def gather(body: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """Pieces of about `size`: few trips to the worker threads, bounded memory."""
    held = bytearray()
    async for piece in body:
        held += piece
        if len(held) >= size:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


class Digests:
    """Size and digests of bytes as they pass."""

    def __init__(self) -> None:
        self.size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha512 = hashlib.sha512()

    async def passing(self, body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """`body`, counted; a worker thread computes, for a piece of some size keeps the loop for too long."""
        async for piece in body:
            await asyncio.to_thread(self.add, piece)
            yield piece

    def add(self, piece: bytes) -> None:
        self._md5.update(piece)
        self._sha512.update(piece)
        self.size += len(piece)

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    def stored(self, key: str, store: str) -> Stored:
        return Stored(key, self.size, self.md5, self._sha512.hexdigest(), store)
