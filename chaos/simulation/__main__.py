"""`python -m chaos.simulation`: run schedules of faults by seed and say what they found.

The last line is the verdict, and the exit status agrees with it. A seed that fails is printed with the command that
repeats it and the last events before the violation; its whole trace lies in .run/sim.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from chaos.simulation.ablations import RULES
from chaos.simulation.faults import FAULTS
from chaos.simulation.runs import Job, Totals, run_all
from chaos.simulation.schedule import Outcome

DIRECTORY = Path(".run") / "sim"
TRACE_LINES_SHOWN = 40
# More than that tell the same story.
FAILURES_SHOWN_MAX = 5
# Schedules between two lines where no bar can be shown: a few minutes.
TOLD_EVERY = 500
BOTH = (3, 5)


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    peers = BOTH if options.peers is None else (options.peers,)
    jobs = [
        Job(seed, peers[seed % len(peers)], options.observers, tuple(options.faults), options.without)
        for seed in range(options.base, options.base + options.seeds)
    ]
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    started, totals = time.monotonic(), Totals()
    try:
        _run(jobs, options, totals)
    except BaseException:
        print(f"stopped after {totals.schedules} of {len(jobs)} schedules; nothing is said of the others", flush=True)
        raise
    finally:
        _print_table(totals, time.monotonic() - started)
    for job, outcome in totals.failed[:FAILURES_SHOWN_MAX]:
        _print_failure(job, outcome)
    return _verdict_without(options.without, totals) if options.without else _verdict(totals)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos.simulation", description="Schedules of faults on simulated clusters of the real code."
    )
    parser.add_argument("--seeds", type=_count, default=50, help="how many schedules (default %(default)s)")
    parser.add_argument("--base", type=int, default=0, help="the first seed (default %(default)s)")
    parser.add_argument("--peers", type=int, choices=BOTH, help="voters; default: by seed, one after the other")
    parser.add_argument("--observers", type=int, help="how many observers beside them; default: drawn by the seed")
    parser.add_argument("--faults", nargs="*", default=[], choices=sorted(FAULTS), metavar="KIND", help="only these")
    parser.add_argument("--without", choices=sorted(RULES), metavar="RULE", help="switch a rule off until a seed fails")
    parser.add_argument("--trace", action="store_true", help="print a hash of each seed's events, to compare runs")
    parser.add_argument("--jobs", type=_count, help="processes at a time (default: one per core)")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _run(jobs: list[Job], options: argparse.Namespace, totals: Totals) -> None:
    columns = (TextColumn("schedules"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("schedules", total=len(jobs))
        for job, outcome in run_all(jobs, DIRECTORY, options.jobs):
            totals.add(job, outcome)
            if options.trace:
                print(f"events of seed {job.seed}: {outcome.events}")
            bar.advance(task)
            if totals.schedules % TOLD_EVERY == 0 and not sys.stderr.isatty():
                said = f"{totals.schedules:,} of {len(jobs):,} schedules, {len(totals.failed)} violations"
                print(said, file=sys.stderr, flush=True)
            if options.without and totals.failed:
                break
    totals.failed.sort(key=lambda failed: failed[0].seed)


def _print_table(totals: Totals, seconds: float) -> None:
    table = Table("what", "how many", title=f"{totals.schedules} schedules in {seconds:.0f} s")
    rows = [
        ("events", totals.steps), ("acknowledged writes", totals.acknowledged), ("answered reads", totals.reads),
        ("snapshots installed", totals.installs),
    ]  # fmt: skip
    for name, count in [*rows, *(("fault: " + kind, count) for kind, count in sorted(totals.faults.items()))]:
        table.add_row(name, f"{count:,}")
    table.add_row("violations", f"{len(totals.failed):,}")
    Console(width=80).print(table)


def _print_failure(job: Job, outcome: Outcome) -> None:
    path = DIRECTORY / f"seed-{job.seed}.txt"
    path.write_text("\n".join([*outcome.trace, outcome.violation or ""]) + "\n", encoding="utf-8")
    print(f"\nseed {job.seed}, {job.voters} voters: {outcome.violation}")
    print("\n".join(outcome.trace[-TRACE_LINES_SHOWN:]))
    print(f"the last {len(outcome.trace)} events: {path}\nto repeat it: {_command(job)}")


def _command(job: Job) -> str:
    parts = [f"make sim SEEDS=1 BASE={job.seed} PEERS={job.voters}"]
    more = [] if job.observers is None else [f"--observers {job.observers}"]
    more += ["--faults " + " ".join(job.kinds)] if job.kinds else []
    more += [f"--without {job.without}"] if job.without else []
    return parts[0] + (f' ARGS="{" ".join(more)}"' if more else "")


def _verdict(totals: Totals) -> int:
    said = (
        f"sim: {totals.schedules} schedules, {totals.acknowledged:,} acknowledged writes, "
        f"{totals.installs:,} installs, "
        f"{sum(totals.faults.values()):,} faults of {len(totals.faults)} kinds, {totals.stuck} stuck, "
        f"{len(totals.failed)} violations"
    )
    print(f"{said}: {'FAIL' if totals.failed else 'PASS'}")
    return 1 if totals.failed else 0


def _verdict_without(rule: str, totals: Totals) -> int:
    """A rule that nobody misses is no rule, or no test."""
    if totals.failed:
        print(f"sim: without {rule}, {totals.schedules} schedules were needed to find a violation: PASS")
        return 0
    print(f"sim: without {rule}, {totals.schedules} schedules found nothing: FAIL")
    return 1


if __name__ == "__main__":
    # An end by SIGTERM takes the workers along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of names are walked in the order of their hashes, which Python draws anew for every process.
        command = [sys.executable, "-m", "chaos.simulation", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | {"PYTHONHASHSEED": "0"})
    sys.exit(main(sys.argv[1:]))
