"""Power failure of all peers at once, or of a gateway: what was not synced may be gone, and nothing else is."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.power_loss import recorder
from chaos.power_loss.rebuild import rebuild
from ops.dev.cluster import Cluster
from tests.system.conftest import MakeCluster
from tests.system.workload import Workload, judged
from tests.system.zones import SOON_S, Zones

MOMENT_MAX_S = 0.5


@pytest.fixture(scope="module")
def library() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="recorder-") as directory:
        try:
            yield recorder.compile_recorder(Path(directory))
        except recorder.NoRecorder as reason:
            pytest.skip(str(reason))


class Disks:
    """The disks of some processes: recorded while the processes run, rebuilt after the power has failed."""

    def __init__(self, cluster: Cluster, library: Path, names: list[str]) -> None:
        self._cluster, self._library, self._names = cluster, library, names
        self._bases: dict[str, bytes] = {}
        self.drawn: list[str] = []

    def start(self, *names: str) -> None:
        """Start processes, or all, on what their disks hold, with new records."""
        for name in names or self._names:
            file = self._file(name)
            self._bases[name] = file.read_bytes() if file.exists() else b""
            self._record(name).unlink(missing_ok=True)
            self._cluster.start_process(name, recorder.preload(self._library, self._record(name)))

    def lose_power(self, chance: random.Random, *names: str) -> None:
        """End processes, or all, at one moment and leave on each disk what it may have kept."""
        self._cluster.kill(*(names or self._names))
        for name in names or self._names:
            file = self._file(name)
            self.drawn.append(rebuild(self._record(name), self._bases[name], file, seed=chance.getrandbits(32)))
            file.with_name("lock.mdb").unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._cluster.processes[name].data_dir / "store" / "data.mdb"

    def _record(self, name: str) -> Path:
        return self._cluster.base / f"record-{name}"


async def power_failures(cluster: Cluster, library: Path, path: Path, seed: int, count: int) -> None:
    chance = random.Random(seed)
    await asyncio.to_thread(cluster.prepare)
    disks = Disks(cluster, library, cluster.peers)
    await asyncio.to_thread(disks.start)
    async with Workload(cluster, path, seed=seed) as workload:
        for _ in range(count):
            await workload.progress(chance.randint(20, 100))
            await asyncio.sleep(chance.uniform(0, MOMENT_MAX_S))
            await asyncio.to_thread(disks.lose_power, chance)
            await asyncio.to_thread(disks.start)
        await workload.progress(30)
    verdict, _ = await judged(workload)
    assert verdict.ok, f"seed {seed}: {verdict.problems}\n" + "\n".join(disks.drawn)
    assert verdict.acknowledged > 10 * count, "the clients have hardly written anything"


async def test_power_failures_of_all_peers_lose_no_acknowledged_write(
    make_cluster: MakeCluster, library: Path, tmp_path: Path, seed: int
) -> None:
    await power_failures(make_cluster(gateways={}), library, tmp_path / "history.jsonl", seed, count=3)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_many_power_failures_of_all_peers_lose_no_acknowledged_write(
    make_cluster: MakeCluster, library: Path, tmp_path: Path, seed: int
) -> None:
    await power_failures(make_cluster(gateways={}), library, tmp_path / "history.jsonl", seed, count=30)


@pytest.mark.slow
async def test_a_peer_whose_power_failed_rejoins_the_others_and_nothing_is_lost(
    make_cluster: MakeCluster, library: Path, tmp_path: Path, seed: int
) -> None:
    cluster, chance = make_cluster(gateways={}), random.Random(seed)
    await asyncio.to_thread(cluster.prepare)
    disks = Disks(cluster, library, cluster.peers)
    await asyncio.to_thread(disks.start)
    async with Workload(cluster, tmp_path / "history.jsonl", seed=seed) as workload:
        for victim in ("leader", *cluster.peers):
            await workload.progress(chance.randint(20, 60))
            chosen = await asyncio.to_thread(cluster.wait_leader) if victim == "leader" else victim
            await asyncio.to_thread(disks.lose_power, chance, chosen)
            await workload.progress(30)
            await asyncio.to_thread(disks.start, chosen)
            await asyncio.to_thread(cluster.wait_ready, cluster.peers)
    verdict, _ = await judged(workload)
    assert verdict.ok, f"seed {seed}: {verdict.problems}\n" + "\n".join(disks.drawn)


@pytest.mark.slow
async def test_power_failures_of_a_gateway_lose_no_acknowledged_backup(
    make_cluster: MakeCluster, library: Path, tmp_path: Path, seed: int
) -> None:
    cluster, chance = make_cluster(proxied=True), random.Random(seed)
    await asyncio.to_thread(cluster.prepare)
    for name in (*cluster.peers, "ams-1"):
        await asyncio.to_thread(cluster.start_process, name)
    disks = Disks(cluster, library, ["fra-1"])
    await asyncio.to_thread(disks.start)
    await asyncio.to_thread(cluster.wait_ready, cluster.gateways)
    zones = Zones(cluster, tmp_path / "history.jsonl", seed)
    async with zones.ams, zones.fra, asyncio.TaskGroup() as tasks:
        tasks.create_task(zones.job.run())
        await zones.job.allow(zones.job.count)
        for quarter in (1, 2, 3):
            await zones.job.reached(zones.job.count * quarter // 4, SOON_S)
            await asyncio.to_thread(disks.lose_power, chance)
            await asyncio.to_thread(disks.start)
        await zones.job.reached(zones.job.count, SOON_S)
        await zones.drained()
        await zones.read_all_in_ams()
        await zones.judge()


@pytest.mark.slow
async def test_a_registry_whose_disks_lose_synced_writes_is_found_out(
    make_cluster: MakeCluster, library: Path, tmp_path: Path, seed: int
) -> None:
    """The whole chain of recorder, load and judge can fail: here the disks go back to where they began."""
    cluster = make_cluster(gateways={})
    await asyncio.to_thread(cluster.prepare)
    for peer in cluster.peers:
        shutil.copytree(cluster.wiring.peer_dir(peer) / "store", tmp_path / peer)
    disks = Disks(cluster, library, cluster.peers)
    await asyncio.to_thread(disks.start)
    async with Workload(cluster, tmp_path / "history.jsonl", seed=seed) as workload:
        await workload.progress(50)
        await asyncio.to_thread(cluster.kill, *cluster.peers)
        for peer in cluster.peers:
            shutil.copyfile(tmp_path / peer / "data.mdb", cluster.wiring.peer_dir(peer) / "store" / "data.mdb")
        await asyncio.to_thread(disks.start)
        await workload.progress(30)
    verdict, _ = await judged(workload)
    assert verdict.lost > 0
    assert verdict.duplicate_numbers > 0
