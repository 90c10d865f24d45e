"""`gateways`: what a hundred zones cost the registry, at 12 and at 1,200 creates per second in total. N is how many.

Three peers; the gateways are real, several in each of a few processes, and their stores lie in memory where the machine
has such a file system, for a hundred zones don't share one disk. At 12 creates per second every catalogue follows all
changes. At 1,200 they do again, which is more than one machine can apply a hundred times; then each holds the images of
its own tenants, as zones of that size would be configured. The gateways share the cores with the registry, so how many
creates they manage at that rate is told, and no target. Told are the leader's use of a core, the lag from a change to
its place in the catalogues, and what was refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.dev.cluster import Cluster
from ops.dev.latencies import Latencies
from ops.dev.processes import cpu_s
from ops.dev.wiring import ROOT
from ops.soak import peers
from ops.soak.gateway_crowd import project_of
from ops.soak.outcome import Outcome
from zonegw import config

GATEWAYS, PROCESSES = 100, 4
PHASE_S = 30.0
_MEMORY_DIR = Path("/dev/shm")
_LINE_BYTES_MAX = 1 << 20


@dataclass(frozen=True)
class Phase:
    """So many creates per second in total; `narrow`: each catalogue holds its own tenants' images."""

    name: str
    rate: float
    narrow: bool
    is_target: bool = True


PHASES = (
    Phase("12_all", 12, narrow=False),
    Phase("1200_all", 1200, narrow=False, is_target=False),
    Phase("1200_by_tenants", 1200, narrow=True, is_target=False),
)


async def run(gateways: int = GATEWAYS) -> Outcome:
    """Fewer gateways create as much less, so that each does what it does among a hundred."""
    outcome = Outcome("gateways", {"gateways": gateways, "processes": PROCESSES})
    zones = {f"gw{number}": f"zone{number}" for number in range(gateways)}
    outcome.figures["stores"] = "in memory" if _memory_dir() else "on disk"
    with tempfile.TemporaryDirectory(prefix="soak-", dir=_memory_dir()) as stores:
        async with peers.running(gateways=zones, gateways_run=False) as cluster:
            for phase in PHASES:
                await _measure(outcome, cluster, Path(stores) / phase.name, phase)
    return outcome


def _memory_dir() -> Path | None:
    return _MEMORY_DIR if _MEMORY_DIR.is_dir() else None


async def _measure(outcome: Outcome, cluster: Cluster, stores: Path, phase: Phase) -> None:
    rate = phase.rate * outcome.figures["gateways"] / GATEWAYS
    configs = [_config(cluster, gateway, stores, phase) for gateway in cluster.gateways]
    async with _crowds(configs) as crowds:
        leader = await asyncio.to_thread(cluster.wait_leader)
        before = {peer: _cpu_s(cluster, peer) for peer in cluster.peers}
        asking = asyncio.gather(*(crowd.work(rate / len(crowds), PHASE_S) for crowd in crowds))
        await asyncio.wait((asking,), timeout=PHASE_S)
        used = {peer: (_cpu_s(cluster, peer) - before[peer]) / PHASE_S for peer in cluster.peers}
        said = await asking
    others = [share for peer, share in used.items() if peer != leader]
    figures = {"leader_cpu": round(used[leader], 2), "follower_cpu": round(max(others), 2)}
    _report(outcome, phase, figures, said, rate)


def _report(
    outcome: Outcome, phase: Phase, figures: dict[str, Any], said: Sequence[dict[str, Any]], rate: float
) -> None:
    lags = Latencies()
    for one in said:
        lags.merge(one["lags"])
    created = sum(one["created"] for one in said)
    drained = [one["drained_s"] for one in said]
    figures |= {
        "asked_per_s": rate, "created_per_s": round(created / (PHASE_S + max(one["late_s"] for one in said)), 1),
        **{f"lag_{name}": value for name, value in lags.figures_ms().items()},
        "drained_after_s": None if None in drained else round(max(drained), 1),
        "parked": sum(one["parked"] for one in said), "refused": sum(len(one["refused"]) for one in said),
        "degraded": sum(one["states"].get("degraded", 0) for one in said),
    }  # fmt: skip
    outcome.figures |= {f"{phase.name}_{name}": value for name, value in figures.items()}
    refusals = [message for one in said for message in one["refused"]]
    outcome.require(not refusals, f"{phase.name}: creates were refused: {refusals[:3]}")
    outcome.require(not figures["parked"], f"{phase.name}: {figures['parked']} writes were parked")
    if phase.is_target:
        outcome.within(figures["drained_after_s"] is not None, f"{phase.name}: the queues did not drain")
        outcome.within(figures["created_per_s"] >= 0.95 * rate, f"{phase.name}: fewer creates than asked for")


def _cpu_s(cluster: Cluster, peer: str) -> float:
    identity = cluster.processes[peer].identity
    return 0.0 if identity is None else cpu_s(identity.pid)


def _config(cluster: Cluster, gateway: str, stores: Path, phase: Phase) -> Path:
    """The gateway's file of this phase, with a store that has nothing yet."""
    directory = cluster.wiring.gateway_dir(gateway)
    made = config.load(directory / "zonegw.toml")
    tls = made.tls
    assert tls is not None
    text = config.render(
        zone=made.zone, gateway=made.gateway, data_dir=str(stores / gateway), endpoints=list(made.endpoints),
        listen="127.0.0.1:0", tokens_file=str(made.auth.tokens_file),
        tls={name: str(getattr(tls, name)) for name in ("ca", "cert", "key")},
        tenants=[project_of(gateway)] if phase.narrow else None,
    )  # fmt: skip
    path = directory / f"{phase.name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


class _CrowdProcess:
    """One process of gateways, steered by lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        assert self._process.stdout is not None
        if not (line := await self._process.stdout.readline()):
            raise RuntimeError("a process of gateways ended; what it said is above")
        return line.decode()

    async def work(self, rate: float, seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"rate": rate, "seconds": seconds}).encode() + b"\n")
        said: dict[str, Any] = json.loads(await self.line())
        return said

    async def end(self) -> None:
        """At the end of its input it stops its gateways; killed where it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(60):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def _crowds(configs: Sequence[Path]) -> AsyncIterator[list[_CrowdProcess]]:
    """All gateways, online, for as long as the block lasts."""
    pipe, crowds = asyncio.subprocess.PIPE, []
    try:
        for place in range(min(PROCESSES, len(configs))):
            command = (sys.executable, "-m", "ops.soak.gateway_crowd", *map(str, configs[place::PROCESSES]))
            process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, stdin=pipe, stdout=pipe, limit=_LINE_BYTES_MAX, env=dict(os.environ)
            )
            crowds.append(_CrowdProcess(process))
        for crowd in crowds:
            await crowd.line()
        yield crowds
    finally:
        await asyncio.gather(*(crowd.end() for crowd in crowds))
