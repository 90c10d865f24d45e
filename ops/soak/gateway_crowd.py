"""Many gateways in one process, whole but for the way in: `python -m ops.soak.gateway_crowd CONFIG...`.

Images are created through their use case, not over HTTP: what is measured is the registry and the feed. Prints "ready"
when all are online. For each line {"rate", "seconds"} on standard input it creates images at that rate, each gateway in
turn, waits until everything is drained, and prints {"created", "refused", "parked", "late_s", "drained_s", "lags",
"states"}: lags are the counts of `Latencies`, of the time from a change at the registry to its place in a catalogue.
End of input ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from ops.dev.latencies import Latencies
from ops.soak.steady_requests import Pace, pace
from zonegw import config
from zonegw.errors import GatewayError
from zonegw.identity import Identity
from zonegw.images import Request
from zonegw.main import Gateway

_ONLINE_MAX_S, _DRAINED_MAX_S, _LOOK_S = 180.0, 120.0, 0.05
# Gateways live elsewhere: here they must not take the cores from the registry that is measured.
_NICE = 10


def project_of(gateway: str) -> str:
    """The tenant of a gateway's zone."""
    return f"tenant-of-{gateway}"


class Crowd:
    """The gateways of this process."""

    def __init__(self, gateways: list[Gateway]) -> None:
        self.gateways = gateways
        self.lags = Latencies()
        for gateway in gateways:
            _listen(gateway, self._applied)

    def _applied(self, change: dict[str, Any]) -> None:
        self.lags.add(time.time() - change["time"] / 1e6)

    async def online(self) -> None:
        async with asyncio.timeout(_ONLINE_MAX_S):
            while any(gateway.status.state != "online" for gateway in self.gateways):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)

    async def work(self, rate: float, seconds: float) -> dict[str, Any]:
        """Create at this rate for a while, then drain."""
        self.lags = Latencies()
        refused: list[str] = []
        ends = time.monotonic() + seconds

        async def create(number: int) -> None:
            try:
                await self._create(self.gateways[number % len(self.gateways)])
            except GatewayError as error:
                refused.append(error.message)

        created = await pace(Pace(rate, ends), create)
        late_s, lags = time.monotonic() - ends, self.lags.counts
        return {
            "created": created - len(refused), "refused": refused[:3], "late_s": late_s, "lags": lags,
            "drained_s": await self._drained(), "parked": sum(self._parked(gateway) for gateway in self.gateways),
            "states": Counter(gateway.status.state for gateway in self.gateways),
        }  # fmt: skip

    @staticmethod
    async def _create(gateway: Gateway) -> None:
        who = Identity("backup", project_of(gateway.config.gateway), frozenset({"member"}))
        attributes = {"name": "nightly", "disk_format": "qcow2", "container_format": "bare", "visibility": "private"}
        properties = {"image_type": "backup", "backup_type": "daily", "os_type": "linux"}
        await gateway.images.create(Request(who), None, attributes, properties, [])

    async def _drained(self) -> float | None:
        """Seconds until nothing is pending; None when that took too long."""
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAINED_MAX_S):
                while any(gateway.queue.depth(gateway.store.read()) for gateway in self.gateways):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
            return time.monotonic() - began
        return None

    @staticmethod
    def _parked(gateway: Gateway) -> int:
        return gateway.queue.parked_count(gateway.store.read())


def _listen(gateway: Gateway, applied: Callable[[dict[str, Any]], None]) -> None:
    """Have each image change that is applied to the catalogue told."""
    apply = gateway.catalogue.apply_change

    def told(txn: Any, change: dict[str, Any]) -> Any:
        applied(change)
        return apply(txn, change)

    gateway.catalogue.apply_change = told  # type: ignore[method-assign]


async def serve(configs: list[Path]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        crowd = Crowd([await stack.enter_async_context(Gateway(config.load(path))) for path in configs])
        await crowd.online()
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await crowd.work(**json.loads(line))), flush=True)


if __name__ == "__main__":
    os.nice(_NICE)
    uvloop.run(serve([Path(argument) for argument in sys.argv[1:]]))
