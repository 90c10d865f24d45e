"""Samples of a running cluster: what its databases and processes take, and how long readers pin pages."""

from __future__ import annotations

import asyncio
import contextlib
import re
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

from ops.dev.cluster import Cluster
from raftreg import certificates
from raftreg.store import store_path

_SAMPLE_PERIOD_S = 0.25


class Watch:
    """Samples of every peer: bytes of its database, anonymous memory of its process and of that one's children."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.file: dict[str, list[int]] = defaultdict(list)
        self.memory: dict[str, list[int]] = defaultdict(list)
        self.copier: list[int] = [0]
        self.reader_s: list[float] = [0.0]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Takes samples for as long as the block lasts."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            for peer in self.cluster.peers:
                await asyncio.to_thread(self._sample, peer)
            await asyncio.sleep(_SAMPLE_PERIOD_S)

    def _sample(self, peer: str) -> None:
        process = self.cluster.processes[peer]
        if not process.running or process.identity is None:
            return
        data = self.cluster.wiring.peer_dir(peer)
        with contextlib.suppress(OSError):
            self.file[peer].append((store_path(data) / "data.mdb").stat().st_size)
        pids = [process.identity.pid, *_children(process.identity.pid)]
        sizes = [anonymous_bytes(pid) for pid in pids]
        self.memory[peer].append(sizes[0])
        self.copier.append(sum(sizes[1:]))
        self.reader_s.append(_reader_age_s(self.cluster, peer))


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def anonymous_bytes(pid: int) -> int:
    """Memory of a process's own: what it maps of a database is the page cache's."""
    with contextlib.suppress(OSError):
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def _reader_age_s(cluster: Cluster, peer: str) -> float:
    context = certificates.client_context(cluster.wiring.operator_tls())
    with contextlib.suppress(OSError):
        url = f"https://{cluster.wiring.listen(f'api-{peer}')}/metrics"
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            found = re.search(r"^\w*oldest_reader_seconds (\S+)", answer.read().decode(), re.MULTILINE)
            return float(found[1]) if found else 0.0
    return 0.0
