"""Load on the registry's HTTP API from a process of its own:
`python -m ops.bench.load URL TLS_DIR KIND CLIENTS SECONDS`.

KIND is `allocate_ids`, `create_image` (writes with an idempotency key or a UUID of their own) or `get_image` (a
linearizable read). Each client keeps one connection and sends its next request when the last one was answered.
Prints {"requests", "seconds", "p50_ms", "p99_ms"} as JSON. Any answer but a success ends it with that answer.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import uvloop

from raftreg import certificates, wire
from raftreg.config import TlsFiles

_HEADERS = {"Content-Type": wire.MSGPACK, "Accept": wire.MSGPACK}


def tls_files(directory: Path) -> TlsFiles:
    return TlsFiles(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")


async def _send(session: aiohttp.ClientSession, method: str, path: str, body: Any, key: str | None) -> Any:
    headers = {wire.HEADER_KEY: key} if key else {}
    data = None if body is None else msgpack.packb(body)
    async with session.request(method, wire.PREFIX + path, data=data, headers=headers) as answer:
        content = await answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{answer.status}: {content[:500]!r}")
        return msgpack.unpackb(content)


async def _request(session: aiohttp.ClientSession, kind: str) -> Callable[[], Awaitable[Any]]:
    """What one client does again and again."""
    if kind == "allocate_ids":
        return lambda: _send(session, "POST", "/ids", {"count": 1}, uuid.uuid4().hex)
    if kind == "create_image":
        return lambda: _send(session, "POST", "/images", _image(), None)
    created = await _send(session, "POST", "/images", _image(), None)
    path = f"/images/{created['uuid']}"
    return lambda: _send(session, "GET", path, None, None)


def _image() -> dict[str, Any]:
    return {
        "uuid": str(uuid.uuid4()),
        "attributes": {"name": "bench image", "disk_format": "qcow2", "container_format": "bare", "owner": "bench"},
        "properties": {"os_type": "linux"},
    }


async def run(url: str, tls: TlsFiles, kind: str, clients: int, seconds: float) -> dict[str, Any]:
    latencies: list[float] = []
    connector = aiohttp.TCPConnector(limit=clients, ssl=certificates.api_client_context(tls))
    async with aiohttp.ClientSession(url, connector=connector, headers=_HEADERS) as session:
        request = await _request(session, kind)
        started = time.perf_counter()
        end = started + seconds

        async def client() -> None:
            while (before := time.perf_counter()) < end:
                await request()
                latencies.append(time.perf_counter() - before)

        await asyncio.gather(*(client() for _ in range(clients)))
        took = time.perf_counter() - started
    cuts = statistics.quantiles(latencies, n=100)
    return {"requests": len(latencies), "seconds": took, "p50_ms": cuts[49] * 1000, "p99_ms": cuts[98] * 1000}


if __name__ == "__main__":
    target, directory, what, count, duration = sys.argv[1:]
    print(json.dumps(uvloop.run(run(target, tls_files(Path(directory)), what, int(count), float(duration)))))
