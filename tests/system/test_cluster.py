"""The development cluster: it starts, comes back on other ports with its data, and stops exactly itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from ops.dev import cluster as clusters
from ops.dev import environment, processes
from ops.dev.cluster import Cluster, ClusterError
from ops.dev.readout import client_of, registry_images
from tests.system.conftest import MakeCluster

ROOT = Path(__file__).resolve().parents[2]
STORY_TIMEOUT_S = 170


@pytest.mark.slow
async def test_a_cluster_comes_back_on_other_ports_with_everything_that_it_held(make_cluster: MakeCluster) -> None:
    first = make_cluster(proxied=True)
    await asyncio.to_thread(first.start)
    async with client_of(first) as registry:
        attributes = {"name": "kept", "disk_format": "raw", "container_format": "bare", "owner": "demo"}
        image = await registry.create_image(uuid=str(uuid.uuid4()), attributes=attributes)
    urls = first.registry_urls
    await asyncio.to_thread(first.stop)
    assert not first.state_file.exists()
    again = Cluster(first.base)
    try:
        await asyncio.to_thread(again.start)
        assert again.registry_urls != urls
        async with client_of(again) as registry:
            assert [found["uuid"] for found in await registry_images(registry)] == [image["uuid"]]
    finally:
        await asyncio.to_thread(again.stop)


def test_the_state_file_says_where_everything_is_and_only_its_owner_may_read_it(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(proxied=True)
    cluster.start()
    state = json.loads(cluster.state_file.read_text())
    assert stat.S_IMODE(cluster.state_file.stat().st_mode) == 0o600
    assert len(state["registry"]) == 3
    assert set(state["zones"]) == {"ams", "fra"}
    names = [entry["name"] for entry in state["processes"]]
    assert names == [clusters.PROXY, "a", "b", "c", "ams-1", "fra-1"]
    assert len(clusters.running_processes(state)) == len(names)
    # Another program, which has nothing but this file, stops them; gateways first, the proxy last.
    stopped = clusters.stop_left(cluster.state_file)
    assert set(stopped[:2]) == {"ams-1", "fra-1"}
    assert stopped[-1] == clusters.PROXY
    assert not any(process.running for process in cluster.processes.values())


def test_a_peer_that_fails_to_start_is_named_with_its_log_and_nothing_is_left_running(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(gateways={})
    cluster.prepare()
    (cluster.wiring.peer_dir("b") / "store" / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(ClusterError, match=r"(?s)b is not ready.*b\.log"):
        cluster.start()
    assert not any(process.running for process in cluster.processes.values())


def test_links_of_a_cluster_without_proxy_can_not_be_cut_and_that_is_said(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    with pytest.raises(ClusterError, match="proxied=True"):
        cluster.cut_zone("fra")


def test_two_programs_do_not_start_one_cluster(tmp_path: Path) -> None:
    with (
        clusters.alone(tmp_path / "lock"),
        pytest.raises(ClusterError, match="another program"),
        clusters.alone(tmp_path / "lock"),
    ):
        pass


def test_an_interrupted_init_is_done_again(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(gateways={}, peers=("a",))
    cluster.wiring.registry.mkdir(parents=True)
    (cluster.wiring.registry / "ca.pem").write_text("half a file")
    cluster.start()
    assert cluster.leader() == "a"


@pytest.mark.slow
def test_the_story_is_told_and_ends_well() -> None:
    told = run_story("ONCE=1")
    said, _ = told.communicate(timeout=STORY_TIMEOUT_S)
    assert told.returncode == 0, said.decode()
    assert "images acknowledged" in said.decode()


@pytest.mark.slow
def test_a_story_that_is_ended_early_leaves_nothing_running() -> None:
    told = run_story("ONCE=1")
    state_file = clusters.RUN_DIR / "story" / "cluster.json"

    def is_up() -> bool:
        state = clusters.read_state(state_file)
        return state is not None and len(clusters.running_processes(state)) == 6

    assert processes.wait_until(is_up, STORY_TIMEOUT_S)
    state = clusters.read_state(state_file)
    assert state is not None
    told.send_signal(signal.SIGTERM)
    said, _ = told.communicate(timeout=STORY_TIMEOUT_S)
    assert told.returncode == 128 + signal.SIGTERM, said.decode()
    assert clusters.running_processes(state) == []


def run_story(*settings: str) -> subprocess.Popen[bytes]:
    env = environment.clean(os.environ) | dict(setting.split("=") for setting in settings)
    return subprocess.Popen(
        [sys.executable, "-m", "ops.dev.story"],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
