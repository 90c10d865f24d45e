"""Answers whose body is a file: whole or one range, by sendfile where the connection is plain."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

from aiohttp import web

from zonegw.errors import BadRequest, RangeUnsatisfiable
from zonegw.limits import Limits

# Yields the bytes from start up to end in pieces of at most the third argument.
Reader = Callable[[int, int, int], AsyncGenerator[bytes]]

# One call of sendfile; it may wait for the disk, so it runs in a worker thread.
SENDFILE_BYTES = 4 << 20


def requested_range(request: web.Request, size: int) -> tuple[int, int] | None:
    """(start, end) of the Range header, end exclusive; None for the whole. Raises RangeUnsatisfiable, BadRequest."""
    try:
        wanted = request.http_range
    except ValueError:
        raise BadRequest(f"the Range header is not understood: {request.headers.get('Range')!r}") from None
    if wanted.start is None and wanted.stop is None:
        return None
    start = wanted.start or 0
    if start < 0:
        start = max(0, size + start)
    end = size if wanted.stop is None else min(wanted.stop, size)
    if start >= end:
        raise RangeUnsatisfiable(f"the range lies outside the {size} bytes of the image", size=size)
    return start, end


def begin(request: web.Request, size: int, headers: dict[str, str]) -> tuple[web.StreamResponse, int, int]:
    """The response's head for a file of `size`, and what part of it is the body."""
    part = requested_range(request, size)
    start, end = part or (0, size)
    response = web.StreamResponse(status=206 if part else 200, headers=headers)
    response.headers["Accept-Ranges"] = "bytes"
    response.content_length = end - start
    if part:
        response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return response, start, end


async def send_file(request: web.Request, path: Path, headers: dict[str, str], limits: Limits) -> web.StreamResponse:
    """Answer with the file's bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        response, start, end = begin(request, os.fstat(handle).st_size, headers)
        transport = request.transport
        plain = transport is not None and transport.get_extra_info("sslcontext") is None
        writer = await response.prepare(request)
        with _cut_off(request):
            if plain and transport is not None and writer is not None:
                writer.send_headers()
                await _sendfile(transport, handle, start, end, limits.download_idle_max_s)
            else:
                await _copy(response, handle, start, end, limits)
            await response.write_eof()
        return response
    finally:
        os.close(handle)


async def send_stream(
    request: web.Request, size: int, headers: dict[str, str], read: Reader, limits: Limits
) -> web.StreamResponse:
    """Answer with bytes that come in while they are sent. The first of them are there before the head goes out: a
    source that has none can still be told."""
    response, start, end = begin(request, size, headers)
    async with aclosing(read(start, end, limits.data_chunk_bytes)) as pieces:
        piece = await anext(pieces, None)
        await response.prepare(request)
        with _cut_off(request):
            while piece is not None:
                async with asyncio.timeout(limits.download_idle_max_s):
                    await response.write(piece)
                piece = await anext(pieces, None)
            await response.write_eof()
    return response


@contextmanager
def _cut_off(request: web.Request) -> Iterator[None]:
    """After the head went out, a failure can only be told by breaking the connection short of the last byte."""
    try:
        yield
    except Exception as error:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(f"the body could not be completed: {error}") from error


async def _copy(response: web.StreamResponse, handle: int, start: int, end: int, limits: Limits) -> None:
    while start < end:
        piece = await asyncio.to_thread(os.pread, handle, min(limits.data_chunk_bytes, end - start), start)
        if not piece:
            raise OSError("the file is shorter than it was")
        async with asyncio.timeout(limits.download_idle_max_s):
            await response.write(piece)
        start += len(piece)


async def _sendfile(transport: asyncio.Transport, handle: int, start: int, end: int, idle_max_s: float) -> None:
    """Let the kernel copy; a slow client holds no thread, for the loop waits until its socket takes more."""
    await _flushed(transport, idle_max_s)
    socket = os.dup(transport.get_extra_info("socket").fileno())
    try:
        while start < end:
            if transport.is_closing():
                raise ConnectionResetError("the client is gone")
            try:
                sent = await asyncio.to_thread(_send_piece, socket, handle, start, min(SENDFILE_BYTES, end - start))
            except BlockingIOError:
                await _writable(socket, idle_max_s)
                continue
            if sent == 0:
                raise OSError("the file is shorter than it was")
            start += sent
    finally:
        os.close(socket)


def _send_piece(socket: int, handle: int, start: int, size: int) -> int:
    """One call of sendfile, while the disk brings what comes behind it: by itself it would wait for either in turn."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, start + size, SENDFILE_BYTES, os.POSIX_FADV_WILLNEED)
    return os.sendfile(socket, handle, start, size)


async def _flushed(transport: asyncio.Transport, idle_max_s: float) -> None:
    """Wait until nothing that was written before is still in the transport's buffer."""
    while transport.get_write_buffer_size() > 0 and not transport.is_closing():
        socket = os.dup(transport.get_extra_info("socket").fileno())
        try:
            await _writable(socket, idle_max_s)
        finally:
            os.close(socket)


async def _writable(socket: int, idle_max_s: float) -> None:
    """Wait until the client takes more. Raises TimeoutError for one that takes nothing."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(socket, lambda: None if ready.done() else ready.set_result(None))
    try:
        async with asyncio.timeout(idle_max_s):
            await ready
    finally:
        loop.remove_writer(socket)
