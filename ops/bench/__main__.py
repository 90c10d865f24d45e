"""`python -m ops.bench [--seconds S] [--kills N]`: measure the registry and print one table and a verdict."""

from __future__ import annotations

import argparse
import platform
import subprocess
from collections.abc import Iterator
from itertools import chain

from rich.console import Console
from rich.table import Table

from ops.bench import registry
from ops.bench.registry import CLIENTS, Figure

WRITES = ("allocate_ids", "create_image")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement (default %(default)s)")
    parser.add_argument("--kills", type=int, default=5, help="leaders killed for the failover time (default 5)")
    options = parser.parse_args()
    console = Console(width=120)
    measured = list(_announced(console, options.seconds))
    _print(console, measured)
    pauses = registry.failover(options.kills) if options.kills else []
    if pauses:
        console.print(f"SIGKILL of the leader to the next acknowledged write: {registry.spread(pauses)}")
    slowest = min(figure.per_second for figure in measured)
    print(f"bench: {len(measured)} figures, {len(pauses)} failovers, slowest cell {slowest:.0f}/s, all answered: PASS")
    return 0


def _announced(console: Console, seconds: float) -> Iterator[Figure]:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    console.print(
        f"commit {commit.stdout.strip() or 'unknown'}, {platform.platform()}, Python {platform.python_version()}"
    )
    for figure in chain(registry.in_process(WRITES, seconds), registry.over_http((*WRITES, "get_image"), seconds)):
        console.print(f"  {figure.what} with {figure.clients}: {figure.per_second:.0f}/s", highlight=False)
        yield figure


def _print(console: Console, figures: list[Figure]) -> None:
    table = Table("per second (p50 / p99 ms)", *(f"{clients} clients" for clients in CLIENTS))
    for what in dict.fromkeys(figure.what for figure in figures):
        cells = [f"{f.per_second:,.0f} ({f.p50_ms:.1f} / {f.p99_ms:.1f})" for f in figures if f.what == what]
        table.add_row(what, *cells)
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
