"""Load on the registry's HTTP API from a process of its own:
`python -m ops.bench.load URL TLS_DIR KIND CLIENTS SECONDS`.

KIND is `allocate_ids`, `create_image` (writes with an idempotency key or a UUID of their own) or `get_image` (a
linearizable read). Each client keeps one connection and sends its next request when the last one was answered. The
HTTP client is a few lines on purpose: the load shares the cores with what it measures.
Prints {"requests", "seconds", "p50_ms", "p99_ms"} as JSON. Any answer but a success ends it with that answer.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgpack
import uvloop

from raftreg import certificates, wire
from raftreg.client import new_key
from raftreg.config import TlsFiles

_CONNECT_AT_ONCE = 16


def tls_files(directory: Path) -> TlsFiles:
    return TlsFiles(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request on it at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the peer closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator or self._answer is None:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self._buffer = body[length:]
        if head[9:10] == b"2":
            self._answer.set_result(body[:length])
        else:
            self._answer.set_exception(RuntimeError(f"{head[:15]!r}: {body[:500]!r}"))

    async def ask(self, request: bytes) -> bytes:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _request(method: str, path: str, body: Any = None, key: str | None = None) -> bytes:
    data = b"" if body is None else msgpack.packb(body)
    head = f"{method} {wire.PREFIX}{path} HTTP/1.1\r\nHost: registry\r\nAccept: {wire.MSGPACK}\r\n"
    if body is not None:
        head += f"Content-Type: {wire.MSGPACK}\r\nContent-Length: {len(data)}\r\n"
    if key is not None:
        head += f"{wire.HEADER_KEY}: {key}\r\n"
    return head.encode() + b"\r\n" + data


def _create() -> bytes:
    body = {
        "uuid": str(uuid.uuid4()),
        "attributes": {"name": "bench image", "disk_format": "qcow2", "container_format": "bare", "owner": "bench"},
        "properties": {"os_type": "linux"},
    }
    return _request("POST", "/images", body)


async def _requests(kind: str, connection: Connection) -> Callable[[], bytes]:
    """What one client sends again and again."""
    if kind == "allocate_ids":
        return lambda: _request("POST", "/ids", {"count": 1}, new_key())
    if kind == "create_image":
        return _create
    created = msgpack.unpackb(await connection.ask(_create()))
    read = _request("GET", f"/images/{created['uuid']}")
    return lambda: read


async def _connect(url: str, tls: TlsFiles, clients: int) -> list[Connection]:
    """All connections, some at a time: a client that comes by itself would not meet a burst of handshakes."""
    parts = urlsplit(url)
    context = certificates.api_client_context(tls)
    gate = asyncio.Semaphore(_CONNECT_AT_ONCE)

    async def one() -> Connection:
        async with gate:
            _, connection = await asyncio.get_running_loop().create_connection(
                Connection, parts.hostname or "", parts.port or 443, ssl=context
            )
            return connection

    return await asyncio.gather(*(one() for _ in range(clients)))


async def run(url: str, tls: TlsFiles, kind: str, clients: int, seconds: float) -> dict[str, Any]:
    latencies: list[float] = []
    connections = await _connect(url, tls, clients)
    request = await _requests(kind, connections[0])
    started = time.perf_counter()
    end = started + seconds

    async def client(connection: Connection) -> None:
        while (before := time.perf_counter()) < end:
            await connection.ask(request())
            latencies.append(time.perf_counter() - before)

    await asyncio.gather(*(client(connection) for connection in connections))
    took = time.perf_counter() - started
    for connection in connections:
        connection.close()
    cuts = statistics.quantiles(latencies, n=100)
    return {"requests": len(latencies), "seconds": took, "p50_ms": cuts[49] * 1000, "p99_ms": cuts[98] * 1000}


if __name__ == "__main__":
    target, directory, what, count, duration = sys.argv[1:]
    print(json.dumps(uvloop.run(run(target, tls_files(Path(directory)), what, int(count), float(duration)))))
