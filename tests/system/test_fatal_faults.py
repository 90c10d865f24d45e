"""What must stop a peer stops it at once, and that peer only; what must be refused is refused, and nothing is lost."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from ops.dev.cluster import Cluster
from ops.dev.processes import Process, wait_until
from ops.dev.readout import client_of
from raftreg import errors
from raftreg.client import Client
from raftreg.peer import EXIT_FATAL
from tests.system.conftest import MakeCluster
from tests.system.peer_with_fault import UNLUCKY

DEADLINE_S = 10.0
END_WAIT_S = 30.0
SHIM = Path(__file__).with_name("failing_sync.c")


def give_fault(cluster: Cluster, peer: str, fault: str) -> None:
    """Let a peer that doesn't run yet start with a fault built in."""
    genuine: Process = cluster.processes[peer]
    config = cluster.wiring.peer_dir(peer) / "raftreg.toml"
    genuine.command = [sys.executable, "-m", "tests.system.peer_with_fault", str(config), fault]


def assert_ended_fatally(process: Process, *said: str) -> None:
    assert wait_until(lambda: process.exit_status is not None, END_WAIT_S), process.ending()
    assert process.exit_status == EXIT_FATAL, process.ending()
    for sentence in ("stopping at once", *said):
        assert sentence in process.log.read_text(), process.ending()


async def start(cluster: Cluster, faults: dict[str, str] | None = None) -> None:
    cluster.prepare()
    for peer, fault in (faults or {}).items():
        give_fault(cluster, peer, fault)
    await asyncio.to_thread(cluster.start_processes, cluster.peers)
    await asyncio.to_thread(cluster.wait_ready, cluster.peers)


async def test_an_error_in_a_command_handler_stops_that_peer_and_the_others_go_on(make_cluster: MakeCluster) -> None:
    """The bug is in peer b's build only: it must not skip the entry, and the others must not notice but its absence."""
    cluster = make_cluster(gateways={})
    await start(cluster, {"b": "handler-error"})
    key = uuid.uuid4().hex
    async with client_of(cluster, DEADLINE_S) as client:
        issued = await client.allocate_ids(UNLUCKY, key=key)
        assert_ended_fatally(cluster.processes["b"], "cannot be applied", "a bug in a command handler")
        assert await client.allocate_ids(UNLUCKY, key=key) == issued
        after = await client.allocate_ids(1)
        assert after[0] > issued[1]


async def test_an_entry_that_this_release_cannot_read_stops_the_peer_at_every_start(make_cluster: MakeCluster) -> None:
    """Skipping it would part this peer from the others, so it stays down and says why."""
    cluster = make_cluster(gateways={}, peers=("a",))
    await start(cluster, {"a": "undecodable-entry"})
    async with client_of(cluster, 2.0) as client:
        await client.allocate_ids(1)
        with pytest.raises(errors.RegistryError) as unknown:
            await client.allocate_ids(UNLUCKY)
        assert not unknown.value.definite
    assert_ended_fatally(cluster.processes["a"], "upgrade this peer")
    cluster.start_process("a")
    assert_ended_fatally(cluster.processes["a"], "upgrade this peer")


async def test_a_turn_that_does_not_end_ends_the_process_and_the_others_go_on(make_cluster: MakeCluster) -> None:
    """A peer whose disk hangs must not lead in name only; once restarted it resumes without the fault."""
    cluster = make_cluster(gateways={})
    await start(cluster, {"b": "hanging-turn"})
    async with client_of(cluster, DEADLINE_S) as client:
        first = await client.allocate_ids(UNLUCKY)
        assert_ended_fatally(cluster.processes["b"], "a turn has taken more than")
        assert (await client.allocate_ids(1))[0] > first[1]


@pytest.fixture
def failing_sync(tmp_path: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("a failing disk is played by a preloaded library: needs Linux and a C compiler")
    library = tmp_path / "failing_sync.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"], check=True)
    return library


async def test_a_failed_fsync_ends_the_process_before_it_answers(
    make_cluster: MakeCluster, failing_sync: Path, tmp_path: Path
) -> None:
    cluster = make_cluster(gateways={}, peers=("a",))
    cluster.prepare()
    broken = tmp_path / "the disk is broken"
    cluster.start_process("a", {"LD_PRELOAD": str(failing_sync), "FAIL_SYNC_WHEN": str(broken)})
    await asyncio.to_thread(cluster.wait_ready, ["a"])
    async with client_of(cluster, 2.0) as client:
        created = await asyncio.gather(*(client.create_image(**image(f"before-{number}")) for number in range(20)))
        acknowledged = [made["uuid"] for made in created]
        broken.touch()
        with pytest.raises(errors.RegistryError) as unknown:
            await client.create_image(**image("never"))
        assert not unknown.value.definite
    assert_ended_fatally(cluster.processes["a"])
    broken.unlink()
    cluster.start_process("a")
    await asyncio.to_thread(cluster.wait_ready, ["a"])
    async with client_of(cluster, DEADLINE_S) as client:
        for uuid_ in acknowledged:
            await client.get_image(uuid_)


def image(name: str, metadata_bytes: int = 0) -> dict[str, Any]:
    return {
        "uuid": str(uuid.uuid4()),
        "attributes": {"name": name, "disk_format": "raw", "container_format": "bare", "owner": "demo"},
        "properties": {"filler": "x" * metadata_bytes} if metadata_bytes else {},
    }


async def fill(client: Client) -> tuple[list[str], str]:
    """Create images until the registry refuses one for lack of room; the UUIDs of those that it took, and why."""
    stored: list[str] = []
    while len(stored) < 4000:
        try:
            created = await client.create_image(**image(f"fill-{len(stored)}", 30_000))
        except errors.StorageFull as refusal:
            return stored, refusal.message
        stored.append(created["uuid"])
    raise AssertionError("the database took 4000 images of 30 KB with a limit of 4 MiB")


async def test_a_full_database_refuses_growth_and_takes_it_again_after_deletes_without_restart(
    make_cluster: MakeCluster,
) -> None:
    limits = {
        "db_soft_limit_bytes": 4 << 20,
        "log_keep_entries": 50,
        "log_keep_bytes": 256 << 10,
        "changes_keep_rows": 100,
        "changes_keep_full_rows": 10,
    }
    cluster = make_cluster(gateways={}, peer_limits=limits)
    await start(cluster)
    async with client_of(cluster, DEADLINE_S) as client:
        stored, refusal = await fill(client)
        assert "delete images" in refusal
        pids = {peer: cluster.processes[peer].identity for peer in cluster.peers}
        for uuid_ in stored[: len(stored) // 2]:
            await client.delete_image(uuid_)
        async with asyncio.timeout(60):
            while True:
                try:
                    await client.create_image(**image("after the deletes"))
                    break
                except errors.StorageFull:
                    await asyncio.sleep(0.2)  # compaction of changes and log runs once a second
        for uuid_ in stored[len(stored) // 2 :]:
            assert (await client.get_image(uuid_))["properties"]["filler"]
        assert pids == {peer: cluster.processes[peer].identity for peer in cluster.peers}
