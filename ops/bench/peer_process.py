"""A registry voter with submitters inside: `python -m ops.bench.peer_process DIR`, steered by JSON lines on stdin.

{"do": "status"} -> the voter's status. {"do": "submit", "submitters": n, "seconds": s, "command": "allocate_ids" |
"create_image"} -> {"committed", "seconds", "p50_ms", "p99_ms", "entries"}: each submitter proposes one command, waits
for its commit and proposes the next. One JSON line is answered for each one read; end of input ends the process.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import uvloop

from raftreg import state_machine
from raftreg.client import new_key
from raftreg.config import load
from raftreg.peer import Peer

_ACTOR = {"user": "bench", "project": "bench", "zone": None, "gateway": None, "request_id": None}


def command(kind: str) -> dict[str, Any]:
    """One command as the API would build it, with an idempotency key or a UUID of its own."""
    if kind == "allocate_ids":
        return {"op": "allocate_ids", "actor": _ACTOR, "key": new_key(), "count": 1}
    attributes = {
        "name": "bench image",
        "disk_format": "qcow2",
        "container_format": "bare",
        "visibility": "private",
        "owner": "bench",
        "min_disk": 0,
        "min_ram": 0,
        "protected": False,
        "os_hidden": False,
    }
    return {
        "op": "create_image",
        "actor": _ACTOR,
        "uuid": str(uuid.uuid4()),
        "attributes": attributes,
        "properties": {"os_type": "linux"},
        "tags": [],
        "home_zone": None,
    }


async def submit(peer: Peer, submitters: int, seconds: float, kind: str) -> dict[str, Any]:
    """Run the submitters for `seconds`; latencies in milliseconds."""
    latencies: list[float] = []
    entries = peer.proposer.proposed
    started = time.perf_counter()
    end = started + seconds

    async def one() -> None:
        while (before := time.perf_counter()) < end:
            (result,) = await peer.proposer.propose([command(kind)])
            if "ok" not in result:
                raise RuntimeError(f"refused: {result}")
            latencies.append(time.perf_counter() - before)

    await asyncio.gather(*(one() for _ in range(submitters)))
    took = time.perf_counter() - started
    cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [latencies[0]] * 99
    return {
        "committed": len(latencies),
        "seconds": took,
        "p50_ms": cuts[49] * 1000,
        "p99_ms": cuts[98] * 1000,
        "entries": peer.proposer.proposed - entries,
    }


async def answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "status":
        return peer.status()
    return await submit(peer, request["submitters"], request["seconds"], request["command"])


async def serve(directory: Path) -> None:
    peer = Peer(load(directory), apply=state_machine.apply, applied_index=state_machine.applied_index)
    await peer.start()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(await answer(peer, json.loads(line))), flush=True)
    await peer.stop()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
