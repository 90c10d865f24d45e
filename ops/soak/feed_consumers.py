"""Many consumers of one peer's changefeed in a process of their own:
`python -m ops.soak.feed_consumers URL TLS_DIR COUNT CURSOR`.

Prints "ready" when all of them have caught up. Whoever started it writes a revision to its standard input; when all
have reached it, or after a while, it prints {"consumers", "complete", "wrong", "lag_p50_ms", "lag_p99_ms"} as JSON.
`wrong` holds a sentence for each consumer that missed, repeated or disordered a change, or lost its connection. The lag
is from the time of a change to its arrival. A consumer reads no more of a message than that: it shares the cores with
what is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from ops.bench.load import tls_files
from raftreg import certificates, wire

_CONNECT_AT_ONCE = 16
_CAUGHT_UP_MAX_S, _COMPLETE_MAX_S, _LOOK_S = 60.0, 15.0, 0.05
_NICE = 10
_MESSAGE = re.compile(rb'\{"type":"(\w+)",(?:"cursor":"\d+\.(\d+)")?(?:,"revision":\d+,"time":(\d+))?')


class Consumer(asyncio.Protocol):
    """One connection. `revision` is that of the last change; `wrong` says what was not as promised."""

    def __init__(self, request: bytes, revision: int, lags: list[float]) -> None:
        self._request, self._lags = request, lags
        self._rest = b""
        self.revision, self.heard, self.wrong = revision, False, ""
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended:
            self.wrong = self.wrong or f"lost its connection at revision {self.revision}: {error!r}"

    def data_received(self, data: bytes) -> None:
        # A message is one line.
        whole, _, self._rest = (self._rest + data).rpartition(b"\n")
        now = time.time()
        for kind, revision, at_us in _MESSAGE.findall(whole):
            if kind == b"heartbeat":
                self.heard = True
            elif kind == b"change" and int(revision) == self.revision + 1:
                self.revision += 1
                self._lags.append(now - int(at_us) / 1e6)
            else:
                self.wrong = self.wrong or f"got {kind.decode()} {revision.decode()} behind revision {self.revision}"


async def run(url: str, tls_dir: Path, count: int, cursor: str) -> dict[str, Any]:
    """Connect, follow until told where the end is, and judge."""
    parts = urlsplit(url)
    context = certificates.api_client_context(tls_files(tls_dir))
    request = f"GET {wire.PREFIX}/changes?after={cursor} HTTP/1.1\r\nHost: registry\r\nAccept: {wire.NDJSON}\r\n\r\n"
    lags: list[float] = []
    consumers = [Consumer(request.encode(), wire.parse_cursor(cursor).revision, lags) for _ in range(count)]
    gate, loop = asyncio.Semaphore(_CONNECT_AT_ONCE), asyncio.get_running_loop()

    async def connect(consumer: Consumer) -> None:
        async with gate:
            await loop.create_connection(lambda: consumer, parts.hostname or "", parts.port or 443, ssl=context)

    await asyncio.gather(*(connect(consumer) for consumer in consumers))
    await _until_all(_CAUGHT_UP_MAX_S, consumers, lambda consumer: consumer.heard)
    lags.clear()
    print("ready", flush=True)
    end = int(await loop.run_in_executor(None, sys.stdin.readline))
    await _until_all(_COMPLETE_MAX_S, consumers, lambda consumer: consumer.revision >= end)
    for consumer in consumers:
        consumer.ended = True
        if consumer.revision < end:
            consumer.wrong = consumer.wrong or f"was at revision {consumer.revision} instead of {end} in the end"
    cuts = statistics.quantiles(lags, n=100)
    return {
        "consumers": count,
        "complete": sum(not consumer.wrong for consumer in consumers),
        "wrong": [consumer.wrong for consumer in consumers if consumer.wrong],
        "lag_p50_ms": round(cuts[49] * 1000, 1),
        "lag_p99_ms": round(cuts[98] * 1000, 1),
    }


async def _until_all(most_s: float, consumers: list[Consumer], holds: Any) -> None:
    deadline = time.monotonic() + most_s
    while time.monotonic() < deadline:
        if all(consumer.wrong or holds(consumer) for consumer in consumers):
            return
        await asyncio.sleep(_LOOK_S)


if __name__ == "__main__":
    os.nice(_NICE)  # consumers live elsewhere: here they must not take the cores from what is measured
    peer_url, directory, how_many, after = sys.argv[1:]
    print(json.dumps(uvloop.run(run(peer_url, Path(directory), int(how_many), after))))
