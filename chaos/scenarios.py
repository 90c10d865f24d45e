"""One run of the suite: a cluster, clients and faults drawn by a seed; then everything heals, drains and is judged.

A run's directory holds history.jsonl, faults.jsonl, evidence.json, the processes' logs and the report.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos import config, final_state, history
from chaos.cluster import ClusterUnderTest, Shape
from chaos.faults.fault import Fault
from chaos.faults.sequence import FaultSequence, Injected
from chaos.history import History, Operation
from chaos.judge import EVIDENCE_FILE, HISTORY_FILE, Evidence, judge
from chaos.verdict import PASS, Check, overall
from chaos.workloads.workload import Site, Workload
from ops.dev.backup_job import BackupError
from ops.dev.cluster import ClusterError
from ops.dev.processes import ProcessError
from raftreg.errors import RegistryError

FAULTS_FILE = "faults.jsonl"


@dataclass
class Plan:
    """What is to be run. `time_s` is how long faults are injected; the run ends GRACE_S after that at the latest.

    `each_once`: faults go on until each has come at least once, for which there is ROUND_MAX_S more.
    """

    directory: Path
    seed: int
    time_s: float
    faults: Sequence[type[Fault]]
    workloads: Sequence[type[Workload]]
    shape: Shape = field(default_factory=Shape)
    each_once: bool = False

    @property
    def longest_s(self) -> float:
        """When the run is given up."""
        return self.time_s + config.GRACE_S + (config.ROUND_MAX_S if self.each_once else 0.0)


@dataclass
class Ran:
    """What a run was, and what the judge says of it. `left_out`: faults that could not be injected, with the reason."""

    plan: Plan
    proxy: str
    operations: list[Operation]
    faults: list[Injected]
    checks: list[Check]
    evidence: Evidence
    left_out: dict[str, str]


Now = Callable[[str, float], None]
"""Told what goes on, and how many seconds of the run's time are over."""


async def run(
    plan: Plan, now: Now = lambda what, done_s: None, *, made_by: Callable[..., ClusterUnderTest] = ClusterUnderTest
) -> Ran:
    """The whole run, bounded in time. Raises ClusterError if the cluster can't start, or be read in the end.

    `made_by`: makes the cluster; tests of the suite give it one with a defect, which the run must find.
    """
    plan.directory.mkdir(parents=True)
    limits = {"id_block_min": config.ID_BLOCK, "runway_h": config.ID_RUNWAY_H}
    cluster = made_by(
        plan.directory / "cluster",
        plan.shape,
        gateway_limits=limits,
        peer_limits={
            "log_keep_entries": config.LOG_KEEP_ENTRIES,
            "changes_keep_full_rows": config.CHANGES_KEEP_FULL_ROWS,
        },
    )
    now("starting the cluster", 0.0)
    await asyncio.to_thread(cluster.start)
    try:
        async with asyncio.timeout(plan.longest_s):
            return await _run(plan, cluster, now)
    finally:
        await asyncio.to_thread(cluster.stop)


def tidy(ran: Ran) -> None:
    """Keep the logs, and the cluster's data only where they may explain a breach."""
    base = ran.plan.directory / "cluster"
    (base / "logs").rename(ran.plan.directory / "logs")
    if overall(ran.checks) == PASS:
        shutil.rmtree(base)


async def _run(plan: Plan, cluster: ClusterUnderTest, now: Now) -> Ran:
    site = Site(cluster, History(plan.directory / HISTORY_FILE), plan.seed)
    workloads = [workload() for workload in plan.workloads]
    fitting, left_out = fitting_faults(plan, cluster)
    sequence = FaultSequence(site, fitting, plan.directory / FAULTS_FILE)
    now("making what clients work on", 0.0)
    for workload in workloads:
        await workload.prepare(site)
    until = time.monotonic() + plan.time_s
    sequence.now = lambda what: now(what, plan.time_s - max(0.0, until - time.monotonic()))
    troubles = await _worked(site, workloads, sequence.run(until, each_once=plan.each_once))
    now("draining", plan.time_s)
    troubles += sequence.troubles
    troubles += await asyncio.to_thread(cluster.mend)
    troubles += await asyncio.to_thread(cluster.settle, config.DRAIN_MAX_S)
    for workload in workloads:
        now(f"the end of {workload.name}", plan.time_s)
        await _noting(f"the end of {workload.name}", workload.finish(site), troubles)
    site.history.close()
    now("reading what is there", plan.time_s)
    evidence = await _evidence(site, troubles)
    evidence.save(plan.directory)
    now("judging", plan.time_s)
    operations = history.read(site.history.path)
    checks = await asyncio.to_thread(judge, operations, evidence)
    return Ran(plan, cluster.proxy, operations, sequence.injected, checks, evidence, left_out)


async def _evidence(site: Site, troubles: list[str]) -> Evidence:
    try:
        return await final_state.read(site, troubles)
    except (RegistryError, ProcessError, BackupError, OSError, TimeoutError) as error:
        raise ClusterError("; ".join([*troubles, f"what is there can't be read: {error!r}"])) from error


async def _worked(site: Site, workloads: Sequence[Workload], faults: Coroutine[Any, Any, None]) -> list[str]:
    """All clients at work for as long as the faults last; what broke clients, which no fault may do."""
    troubles: list[str] = []
    async with asyncio.TaskGroup() as tasks:
        for workload in workloads:
            for client in workload.clients(site):
                tasks.create_task(_noting(workload.name, client, troubles))
        try:
            await _noting("the sequence of faults", faults, troubles)
        finally:
            site.stopped.set()
    return troubles


async def _noting(whose: str, work: Coroutine[Any, Any, None], troubles: list[str]) -> None:
    """Do it; whatever stops it becomes a sentence, and the run goes on to be judged."""
    try:
        await work
    except Exception as error:
        troubles.append(f"{whose} broke: {_causes(error)}")


def _causes(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_causes(one) for one in error.exceptions)
    return f"{type(error).__name__}: {error}"


def fitting_faults(plan: Plan, cluster: ClusterUnderTest) -> tuple[list[type[Fault]], dict[str, str]]:
    """The faults that can be injected here, and for the others why not."""
    fitting, left_out = [], {}
    running = {workload.name for workload in plan.workloads}
    for kind in plan.faults:
        spoilt = sorted(running.intersection(kind.spoils))
        reason = f"it would spoil {', '.join(spoilt)}" if spoilt else kind().available(cluster)
        if reason is None:
            fitting.append(kind)
        else:
            left_out[kind.name] = reason
    return fitting, left_out


__all__ = ["EVIDENCE_FILE", "FAULTS_FILE", "HISTORY_FILE", "Plan", "Ran", "fitting_faults", "run", "tidy"]
