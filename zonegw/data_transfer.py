"""Image data over HTTP, in both directions, as both versions of the Images API move it."""

import asyncio
import binascii
from base64 import b64decode
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

from zonegw.errors import BadRequest, Unavailable
from zonegw.file_response import send_file, send_stream
from zonegw.image_data import Source
from zonegw.limits import Limits

# Chooses the store that data are uploaded to.
STORE_HEADER = "X-Image-Meta-Store"


@dataclass(slots=True)
class Downloads:
    """Answers with an image's bytes, at most `downloads_max` of them at a time."""

    limits: Limits
    running: int = 0

    async def send(self, request: web.Request, source: Source, headers: dict[str, str]) -> web.StreamResponse:
        """Raises Unavailable where too many are under way."""
        if self.running >= self.limits.downloads_max:
            raise Unavailable("too many downloads at once (limits.downloads_max)")
        self.running += 1
        try:
            if source.file is not None:
                return await send_file(request, source.file, headers, self.limits)
            if source.fetch is None:
                raise AssertionError("a source has a file or a fetch")
            return await send_stream(request, source.fetch.size, headers, source.fetch.read, self.limits)
        finally:
            self.running -= 1


async def received(request: web.Request, limits: Limits) -> AsyncIterator[bytes]:
    """The body as it comes; a client that goes silent is given up."""
    while True:
        try:
            async with asyncio.timeout(limits.upload_idle_max_s):
                piece = await request.content.readany()
        except TimeoutError:
            raise BadRequest(f"no data came for {limits.upload_idle_max_s} s; nothing was kept of them") from None
        if not piece:
            return
        yield piece


def announced_size(request: web.Request) -> int | None:
    """Size that the client says the data has: glanceclient and the SDK send it beside a chunked body."""
    text = request.headers.get("x-openstack-image-size")
    if text is None:
        return request.content_length
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise BadRequest(f"x-openstack-image-size must be a whole number, not {text!r:.60}")
    return int(text)


def announced_md5(request: web.Request) -> str | None:
    """Checksum that the client says the data have: in base64 as HTTP has it, or in hexadecimal as Glance does."""
    text = request.headers.get("Content-MD5")
    if text is None:
        return None
    try:
        digest = bytes.fromhex(text) if len(text) == 32 else b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        digest = b""
    if len(digest) != 16:
        raise BadRequest(f"Content-MD5 must be an md5 in base64 or in hexadecimal, not {text!r:.60}")
    return digest.hex()
