"""The registry's first figures: committed commands per second, and the pause when the leader is killed.

In-process submitters measure consensus and apply (three `peer_process`es); the same over HTTP measures what a client
gets (three real peers, one load process); failover kills the leader with SIGKILL under load. All on this machine, all
durable, all with mutual TLS, one after the other in one run.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.bench.load import tls_files
from ops.dev.cluster import Cluster
from raftreg import certificates, errors
from raftreg.client import Client

CLIENTS = (1, 16, 64, 256)
_LEADER_WAIT_S = 30.0


@dataclass(frozen=True)
class Figure:
    """One cell: what was measured, with how many clients, per second, and its latencies in milliseconds."""

    what: str
    clients: int
    per_second: float
    p50_ms: float
    p99_ms: float


class _Submitters:
    """Three voters that submit to themselves, steered through pipes."""

    def __init__(self, base: Path) -> None:
        cluster = Cluster(base, gateways={})
        cluster.prepare()
        cluster.forget()  # the peers bind their ports themselves
        self._processes = {
            name: subprocess.Popen(
                [sys.executable, "-m", "ops.bench.peer_process", str(cluster.wiring.peer_dir(name))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in cluster.peers
        }

    def ask(self, name: str, **request: Any) -> dict[str, Any]:
        process = self._processes[name]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    def leader(self) -> str:
        deadline = time.monotonic() + _LEADER_WAIT_S
        while time.monotonic() < deadline:
            for name in self._processes:
                if self.ask(name, do="status")["role"] == "leader":
                    return name
        raise RuntimeError(f"no leader in {_LEADER_WAIT_S} s")

    def close(self) -> None:
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes.values():
            process.wait(timeout=_LEADER_WAIT_S)


def in_process(kinds: tuple[str, ...], seconds: float) -> Iterator[Figure]:
    """Submitters inside the leader's process."""
    with tempfile.TemporaryDirectory(prefix="bench-") as base:
        voters = _Submitters(Path(base))
        try:
            leader = voters.leader()
            for kind in kinds:
                for clients in CLIENTS:
                    done = voters.ask(leader, do="submit", submitters=clients, seconds=seconds, command=kind)
                    rate = done["committed"] / done["seconds"]
                    yield Figure(f"{kind}, in process", clients, rate, done["p50_ms"], done["p99_ms"])
        finally:
            voters.close()


@contextmanager
def _real_peers() -> Iterator[tuple[Cluster, Path]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as base:
        cluster = Cluster(Path(base), gateways={})
        cluster.start()
        try:
            yield cluster, Path(cluster.wiring.operator_tls().cert).parent
        finally:
            cluster.stop()


def over_http(kinds: tuple[str, ...], seconds: float) -> Iterator[Figure]:
    """One load process against the leader's HTTP API."""
    with _real_peers() as (cluster, tls):
        leader = cluster.wait_leader()
        url = f"https://{cluster.wiring.listen(f'api-{leader}')}"
        for kind in kinds:
            for clients in CLIENTS:
                command = [sys.executable, "-m", "ops.bench.load", url, str(tls), kind, str(clients), str(seconds)]
                load = subprocess.run(command, capture_output=True, text=True, timeout=60 + seconds, check=False)
                if load.returncode != 0:
                    raise RuntimeError(f"{kind} with {clients} clients failed: {load.stderr[-1000:]}")
                done = json.loads(load.stdout)
                rate = done["requests"] / done["seconds"]
                yield Figure(f"{kind}, HTTP", clients, rate, done["p50_ms"], done["p99_ms"])


def failover(kills: int) -> list[float]:
    """Seconds from SIGKILL of the leader to the next acknowledged write, with four clients writing."""
    with _real_peers() as (cluster, tls):
        return [asyncio.run(_one_failover(cluster, tls)) for _ in range(kills)]


async def _one_failover(cluster: Cluster, tls: Path) -> float:
    leader = await asyncio.to_thread(cluster.wait_leader)
    acknowledged: list[float] = []
    context = certificates.api_client_context(tls_files(tls))
    async with Client(cluster.registry_urls, ssl=context) as client:

        async def write() -> None:
            while True:
                try:
                    await client.allocate_ids(1)
                except errors.RegistryError:
                    continue
                acknowledged.append(time.monotonic())

        writers = [asyncio.create_task(write()) for _ in range(4)]
        await _until(lambda: len(acknowledged) > 200)
        identity = cluster.processes[leader].identity
        assert identity is not None
        killed = time.monotonic()
        os.kill(identity.pid, signal.SIGKILL)
        await _until(lambda: acknowledged[-1] > killed + 0.05)
        pause = next(at for at in acknowledged if at > killed + 0.05) - killed
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
    cluster.processes[leader].kill()
    cluster.start_process(leader)
    await asyncio.to_thread(cluster.wait_ready, [leader])
    return pause


async def _until(condition: Any) -> None:
    async with asyncio.timeout(_LEADER_WAIT_S):
        while not condition():  # noqa: ASYNC110 - the writers set no event
            await asyncio.sleep(0.005)


def spread(pauses: list[float]) -> str:
    return f"{min(pauses):.2f} / {statistics.median(pauses):.2f} / {max(pauses):.2f} s (least / median / most)"
