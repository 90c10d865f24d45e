"""`make chaos TIME=60 SEED= FAULTS= WORKLOAD=`: break a real cluster under load, heal it, and judge what clients saw.

FAULTS and WORKLOAD are lists with commas; all that fit by default. The last line is the verdict, and so is the exit
status: 0 all promises kept, 1 not, 2 wrong usage, 3 the run could not be made.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from chaos import report, verdict
from chaos.cluster import Shape
from chaos.faults.known import FAULTS, faults
from chaos.names import UnknownName
from chaos.scenarios import Plan, Ran, run, tidy
from chaos.workloads.known import WORKLOADS, workloads
from ops.dev.cluster import RUN_DIR, ClusterError, forget_caller
from ops.soak.outcome import commit

DEFAULT_TIME_S = 60.0
REPORT_FILE = "report.html"
KEPT, BROKEN, USAGE, NOT_MADE = 0, 1, 2, 3


def main(arguments: Sequence[str]) -> int:
    try:
        plan = _plan(arguments)
    except UnknownName as error:
        print(error, file=sys.stderr)
        return USAGE
    forget_caller()
    print(f"seed {plan.seed}; {plan.directory}", flush=True)
    try:
        ran = asyncio.run(_shown(plan))
    except (ClusterError, TimeoutError, asyncio.CancelledError) as error:
        print(f"the run was not made, or not to its end: {type(error).__name__} {error}")
        print(f"verdict: none; to repeat: {repeating(plan)}")
        return NOT_MADE
    return _told(ran)


def _plan(arguments: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--time", type=float, default=DEFAULT_TIME_S, metavar="S", help="how long faults are injected")
    parser.add_argument("--seed", type=int, default=None, help="decides faults and clients; another one in each run")
    parser.add_argument("--faults", default="", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--workload", default="", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--peers", type=int, choices=(3, 5), default=3, help="voters of the registry")
    parser.add_argument("--observers", type=int, choices=(0, 1, 2), default=1)
    parser.add_argument("--zones", default="ams,fra", help="a gateway in each")
    parser.add_argument("--each-once", action="store_true", help="go on until every fault has come")
    parser.add_argument("--directory", type=Path, default=RUN_DIR / "chaos", help="where runs are kept")
    given = parser.parse_args(arguments)
    zones = _names(given.zones)
    if not zones or len(set(zones)) < len(zones):
        parser.error(f"--zones needs one zone or more, each once, such as ams,fra; not {given.zones!r}")
    seed = secrets.randbelow(10**9) if given.seed is None else given.seed
    return Plan(
        directory=given.directory / f"{time.strftime('%Y%m%dT%H%M%S')}-{seed}",
        seed=seed,
        time_s=given.time,
        faults=faults(_names(given.faults)),
        workloads=workloads(_names(given.workload)),
        shape=Shape(given.peers, given.observers, tuple(zones)),
        each_once=given.each_once,
    )


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


async def _shown(plan: Plan) -> Ran:
    """The run, with a bar of its time and what goes on, where there is a terminal. SIGTERM ends it and its cluster."""
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    columns = (SpinnerColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=plan.time_s)
        return await run(plan, lambda what, done_s: progress.update(task, description=what, completed=done_s))


def _told(ran: Ran) -> int:
    """Print what was checked and write the report; the exit status."""
    acknowledged = sum(operation.acknowledged for operation in ran.operations)
    print(f"{len(ran.operations)} operations, {acknowledged} acknowledged; {len(ran.faults)} faults; {ran.proxy}")
    for name, reason in ran.left_out.items():
        print(f"fault {name} was left out: {reason}")
    Console().print(report.table(ran.checks))
    for check in ran.checks:
        for sentence in [*(breach.sentence for breach in check.shown), *check.unknown]:
            print(f"{check.name}: {sentence}")
    page = ran.plan.directory / REPORT_FILE
    page.write_text(report.page(ran.checks, ran.operations, _facts(ran)), encoding="utf-8")
    print(f"report: {page}")
    tidy(ran)
    said = verdict.overall(ran.checks)
    if said != verdict.PASS:
        print(f"to repeat: {repeating(ran.plan)}")
    print(f"verdict: {said}")
    return KEPT if said == verdict.PASS else BROKEN


def _facts(ran: Ran) -> report.Facts:
    shape = ran.plan.shape
    details = {
        "cluster": f"{shape.peers} peers, {shape.observers} observers, zones {', '.join(shape.zones)}",
        "links through": ran.proxy,
        "workloads": ", ".join(workload.name for workload in ran.plan.workloads),
        "faults": ", ".join(f"{name} {count}" for name, count in Counter(one.name for one in ran.faults).items()),
        "left out": "; ".join(f"{name}: {reason}" for name, reason in ran.left_out.items()) or "nothing",
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.release()}, {os.cpu_count()} cores",
    }
    return report.Facts(ran.plan.seed, repeating(ran.plan), commit(), ran.plan.directory.name.split("-")[0], details)


def repeating(plan: Plan) -> str:
    """The command that makes the same run again: the same faults in the same order, the same choices of clients."""
    chosen = ",".join(fault.name for fault in plan.faults)
    work = ",".join(workload.name for workload in plan.workloads)
    shape = f"--peers {plan.shape.peers} --observers {plan.shape.observers} --zones {','.join(plan.shape.zones)}"
    shape += " --each-once" if plan.each_once else ""
    return f'make chaos TIME={plan.time_s:g} SEED={plan.seed} FAULTS={chosen} WORKLOAD={work} ARGS="{shape}"'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
