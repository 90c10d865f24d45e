"""Waiting for peers that run as processes, from within the test's own process: on a busy machine a command of its own
for every look takes longer than what it looks for."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from raftreg import errors, stored_peer
from raftreg.client import Client, client_ssl_context

READY_S = 90.0
ANSWER_S = 10.0
POLL_S = 0.2


def client(directory: Path, **options: Any) -> Client:
    """A client of the cluster in `directory` (or of the peer whose directory it is), as operator."""
    settings = stored_peer.below(directory)[0].settings
    cluster = directory if (directory / "clients").is_dir() else directory.parent
    tls = cluster / "clients" / "operator" / "tls"
    context = client_ssl_context(tls / "ca.pem", tls / "cert.pem", tls / "key.pem")
    return Client(list(settings.api_peers.values()), ssl=context, **options)


async def answers(directory: Path) -> dict[str, dict[str, Any]]:
    """What the peers that answer say of themselves, by name."""
    async with client(directory) as registry:
        told = await registry.peer_status(ANSWER_S)
    return {said["name"]: said for said in told.values() if not isinstance(said, errors.RegistryError)}


def wait_until_ready(directory: Path, names: str) -> dict[str, dict[str, Any]]:
    """Until all of these peers answer, know a leader and vote. Blocks; inside a loop too."""
    deadline = time.monotonic() + READY_S
    with ThreadPoolExecutor(1) as own_loop:
        while True:
            told = own_loop.submit(asyncio.run, answers(directory)).result()
            if set(told) >= set(names) and all(told[n]["leader"] and not told[n]["recovering"] for n in names):
                return told
            assert time.monotonic() < deadline, f"not ready: {told}"
            time.sleep(POLL_S)
