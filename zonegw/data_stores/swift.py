"""Data store in one container of Swift.

An object appears when Swift has all of it. What is larger than `swift_segment_bytes`, or of unknown size, is put into
the container's `_segments` neighbour first, as KEY/00000000 and so on, and appears with its manifest (a static large
object). Segments without a manifest belong to an upload that was cut off: `delete` finds them by the key, and whoever
writes has noted the key before.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from zonegw.data_stores.interface import Digests, Stored, gather
from zonegw.data_stores.resuming import resumed
from zonegw.data_stores.swift_connection import Body, SwiftConnection
from zonegw.errors import BadRequest, BodyTooLarge, DataUnavailable
from zonegw.limits import Limits
from zonegw.store_config import SwiftConfig


class SwiftStore:
    """Objects named by their keys."""

    kind = "swift"

    def __init__(self, config: SwiftConfig, limits: Limits) -> None:
        self.name = config.name
        self._container = config.container
        self._segments = f"{config.container}_segments"
        self._limits = limits
        self._swift = SwiftConnection(config, limits)
        self._made: set[str] = set()

    def path(self, key: str) -> Path | None:
        return None

    # Writing.

    async def write(self, key: str, body: AsyncIterator[bytes], size: int | None = None) -> Stored:
        digests = Digests()
        async with aclosing(digests.passing(gather(body, self._limits.data_chunk_bytes))) as pieces:
            whole = _Pieces(pieces, size)
            if size is not None and size <= self._limits.swift_segment_bytes:
                await self._put(self._container, key, whole, size)
                await whole.check_end()
            else:
                await self._put_segments(key, whole, size)
        return digests.stored(key, self.name)

    async def _put(self, container: str, name: str, pieces: "_Pieces", size: int) -> dict[str, Any]:
        """Up to `size` bytes as one object, and how a manifest names it."""
        await self._make(container)
        digests = Digests()
        limits = self._limits
        idle_s = limits.upload_idle_max_s + limits.store_idle_max_s
        sent = Body(digests.passing(pieces.next(size)), idle_s, limits.store_put_wait_max_s)
        headers = {"Content-Type": "application/octet-stream"}
        if pieces.announced:
            headers["Content-Length"] = str(pieces.left(size))
        async with self._swift.ask("PUT", f"{container}/{name}", headers=headers, body=sent) as answer:
            found = answer.headers.get("ETag", "").strip('"')
        if found != digests.md5:
            raise DataUnavailable(
                f"store {self.name} stored other bytes than were sent (md5 {found}): they are dropped"
            )
        return {"path": f"/{container}/{name}", "etag": digests.md5, "size_bytes": digests.size}

    async def _put_segments(self, key: str, pieces: "_Pieces", size: int | None) -> None:
        """Segment after segment, then the manifest, by which the object appears."""
        await self._make(self._container)
        rows: list[dict[str, Any]] = []
        while not rows or await pieces.more():
            if len(rows) >= self._limits.swift_segments_max:
                raise BodyTooLarge(f"store {self.name} takes no larger image (limits.swift_segments_max)")
            rows.append(
                await self._put(self._segments, _segment(key, len(rows)), pieces, self._limits.swift_segment_bytes)
            )
        await pieces.check_end()
        manifest, params = json.dumps(rows).encode(), {"multipart-manifest": "put"}
        headers = {"Content-Type": "application/octet-stream"}
        async with self._swift.ask("PUT", f"{self._container}/{key}", params=params, headers=headers, data=manifest):
            pass

    async def _make(self, container: str) -> None:
        """The container, once in this process's life."""
        if container not in self._made:
            async with self._swift.ask("PUT", container):
                self._made.add(container)

    # Reading.

    async def size(self, key: str) -> int | None:
        async with self._swift.ask("HEAD", f"{self._container}/{key}", also=(404,)) as answer:
            if answer.status != 404 and answer.content_length is None:
                raise DataUnavailable(f"store {self.name} does not tell the size of what it has")
            return None if answer.status == 404 else answer.content_length

    def read(self, key: str, start: int, end: int) -> AsyncGenerator[bytes]:
        failures_max = self._limits.fetch_attempts_max
        return resumed(self.name, lambda at: self._range(key, at, end), start, end, failures_max)

    async def _range(self, key: str, start: int, end: int) -> AsyncGenerator[bytes]:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        async with self._swift.ask("GET", f"{self._container}/{key}", headers=headers, also=(416,)) as answer:
            if answer.status != 206:
                raise DataUnavailable(f"store {self.name} does not have the bytes from {start} on ({answer.status})")
            try:
                async for piece in answer.content.iter_chunked(self._limits.data_chunk_bytes):
                    yield piece
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                raise DataUnavailable(f"store {self.name} broke off: {error or type(error).__name__}") from error

    # Removal.

    async def delete(self, key: str) -> None:
        """The object first: what has no manifest can't be read, and segments are found again by the key."""
        await self._gone(f"{self._container}/{key}")
        listed = await self._listed(key)
        for name in listed:
            await self._gone(f"{self._segments}/{name}")
        # The list may be behind: go on until there is none.
        following = (f"{self._segments}/{_segment(key, index)}" for index in count(len(listed)))
        for path in following:
            if not await self._gone(path):
                return

    async def _gone(self, path: str) -> bool:
        """Whether there was something to delete."""
        async with self._swift.ask("DELETE", path, also=(404,)) as answer:
            return answer.status != 404

    async def _listed(self, key: str) -> list[str]:
        params = {"prefix": f"{key}/", "format": "json"}
        async with self._swift.ask("GET", self._segments, params=params, also=(404,)) as answer:
            return [row["name"] for row in await answer.json()] if answer.status == 200 else []

    # State.

    async def reachable(self) -> bool:
        try:
            async with self._swift.ask("HEAD", self._container, also=(404,), attempts=1):
                return True
        except DataUnavailable:
            return False

    async def properties(self) -> dict[str, Any]:
        found: dict[str, Any] = {"container": self._container}
        async with self._swift.ask("HEAD", self._container, also=(404,)) as answer:
            for name, header in (("used_bytes", "Bytes-Used"), ("quota_bytes", "Meta-Quota-Bytes")):
                if value := answer.headers.get(f"X-Container-{header}"):
                    found[name] = int(value)
        return found

    async def close(self) -> None:
        await self._swift.close()


def _segment(key: str, index: int) -> str:
    return f"{key}/{index:08}"


class _Pieces:
    """A stream that is taken in parts of a given size, and must have the announced size in the end."""

    def __init__(self, body: AsyncIterator[bytes], size: int | None) -> None:
        self._body = body
        self._size = size
        self._taken = 0
        self._held = b""
        self.announced = size is not None

    def left(self, most: int) -> int:
        return most if self._size is None else min(most, self._size - self._taken)

    async def next(self, size: int) -> AsyncGenerator[bytes]:
        """The next `size` bytes, or as many as there are. Raises BadRequest where more come than were announced, or
        fewer, so that the store is never told that the part is whole."""
        wanted = size
        while wanted and await self.more():
            piece, self._held = self._held[:wanted], self._held[wanted:]
            wanted -= len(piece)
            self._taken += len(piece)
            yield piece
        if wanted:
            await self.check_end()

    async def more(self) -> bool:
        """Whether bytes are left."""
        while not self._held:
            piece = await anext(self._body, None)
            if piece is None:
                return False
            self._held = piece
        if self._size is not None and self._taken + len(self._held) > self._size:
            raise BadRequest(f"Size mismatch: {self._size} bytes were announced, more came; nothing was kept of them")
        return True

    async def check_end(self) -> None:
        """Raises BadRequest unless the stream ends here, with the size that was announced."""
        await self.more()
        if self._size not in (None, self._taken):
            raise BadRequest(
                f"Size mismatch: {self._size} bytes were announced, {self._taken} came; nothing was kept of them"
            )
