"""Plain HTTP clients that repeat nothing: what fails for them fails for curl. Each writes and reads without pause.

A client belongs to one peer. Only when that peer refuses the connection, so that nothing was sent, the client takes the
next peer for this request, as a load balancer would.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import aiohttp

from ops.dev.cluster import Cluster
from raftreg import certificates, wire
from raftreg.http_once import send_once

# More than any request may take: longer than the deadline that the registry gives a write.
_PATIENCE_S = 15.0
_WRITE = ("POST", "ids", {"count": 1})
_READ = ("GET", "images?limit=1", None)
_PACE_S = 0.002


class PlainClients:
    """`per_peer` clients for each peer, for as long as the block lasts. `failures` holds one sentence for each."""

    def __init__(self, cluster: Cluster, per_peer: int = 2) -> None:
        self.failures: list[str] = []
        self.written_at: list[float] = []
        self.requests = 0
        self._context = certificates.api_client_context(cluster.wiring.operator_tls())
        self._urls = cluster.registry_urls * per_peer
        self._peers = len(cluster.registry_urls)
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> PlainClients:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(len(self._urls))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def progress(self, writes: int, timeout_s: float = 30.0) -> None:
        """Wait until so many more writes were answered. Raises TimeoutError."""
        goal = len(self.written_at) + writes
        async with asyncio.timeout(timeout_s):
            while len(self.written_at) < goal:  # noqa: ASYNC110 - counted by many tasks
                await asyncio.sleep(_PACE_S)

    def longest_pause_s(self, since: float, until: float) -> float:
        """The longest time between two answered writes of all clients together."""
        moments = [since, *(at for at in self.written_at if since < at < until), until]
        return max(later - earlier for earlier, later in itertools.pairwise(moments))

    async def _client(self, number: int) -> None:
        urls = [self._urls[(number + step) % len(self._urls)] for step in range(self._peers)]
        connector = aiohttp.TCPConnector(ssl=self._context)
        timeout = aiohttp.ClientTimeout(total=_PATIENCE_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, middlewares=(send_once,)) as session:
            for count in itertools.count(number):
                if self._stop.is_set():
                    return
                asked = _READ if count % 2 else _WRITE
                if await self._ask(session, urls, *asked) and asked is _WRITE:
                    self.written_at.append(time.monotonic())
                await asyncio.sleep(_PACE_S)

    async def _ask(
        self, session: aiohttp.ClientSession, urls: Sequence[str], method: str, path: str, body: Any
    ) -> bool:
        self.requests += 1
        for url in urls:
            try:
                async with session.request(method, f"{url}{wire.PREFIX}/{path}", json=body) as answer:
                    text = await answer.text()
            except aiohttp.ClientConnectorError:
                continue
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failures.append(f"{method} {path} at {url}: {error!r}")
                return False
            if answer.status < 300:
                return True
            self.failures.append(f"{method} {path} at {url}: {answer.status} {text[:200]}")
            return False
        self.failures.append(f"{method} {path}: no peer accepts a connection")
        return False
