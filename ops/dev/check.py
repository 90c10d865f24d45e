"""`make check`: lint, format, types, import rules and locks. All run, then the exit status says whether one failed.

Each tool runs as a process of its own, two at a time; what it said is printed in one piece, failures last.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from ops.dev import environment

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("raftreg", "zonegw", "chaos", "ops", "tests")

# The slowest, mypy without a cache, takes a fraction of it on two busy cores.
TOOL_TIMEOUT_S = 300
TOOLS_AT_ONCE_MAX = 2


@dataclass(frozen=True)
class Tool:
    """One check: its name, its module and arguments, and how to mend what it finds, where a command can."""

    name: str
    arguments: tuple[str, ...]
    mend: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a tool said, and whether it was content."""

    tool: Tool
    passed: bool
    said: str
    took_s: float


def tools(root: Path) -> list[Tool]:
    """The checks, longest first, over the packages that exist."""
    packages = [name for name in PACKAGES if (root / name).is_dir()]
    ruff_cache = "--cache-dir=.run/check/ruff"
    return [
        Tool("types", ("mypy", "--strict", "--cache-dir=.run/check/mypy", "--no-sqlite-cache", *packages)),
        Tool("lint", ("ruff", "check", ruff_cache, *packages), mend=".venv/bin/ruff check --fix"),
        Tool("format", ("ruff", "format", "--check", ruff_cache, *packages), mend=".venv/bin/ruff format"),
        Tool("import rules", ("ops.dev.imports",)),
        Tool("locks", ("ops.dev.lock", "--check"), mend="make lock"),
    ]


def run(tool: Tool) -> Outcome:
    """Run one tool at the top of the checkout."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", *tool.arguments],
            cwd=ROOT,
            env=environment.clean(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TOOL_TIMEOUT_S,
            check=False,
        )
        passed, said = done.returncode == 0, done.stdout.decode("utf-8", "replace").strip()
    except subprocess.TimeoutExpired:
        passed, said = False, f"ended after {TOOL_TIMEOUT_S} s"
    return Outcome(tool, passed, said, time.monotonic() - began)


def report(outcome: Outcome) -> str:
    """One line for a tool that was content, else all that it said."""
    if outcome.passed:
        last = outcome.said.splitlines()[-1] if outcome.said else ""
        return f"ok      {outcome.tool.name:<13}{outcome.took_s:5.1f} s  {last}"
    mend = f"\n(to mend what can be mended: {outcome.tool.mend})" if outcome.tool.mend else ""
    return f"FAILED  {outcome.tool.name:<13}{outcome.took_s:5.1f} s\n{outcome.said}{mend}"


def main(arguments: Sequence[str]) -> int:
    """Run the checks named in `arguments`, or all; print their outcomes; 1 if one failed."""
    known = tools(ROOT)
    if unknown := sorted(set(arguments) - {tool.name for tool in known}):
        print(f"No such check: {', '.join(unknown)}. There are: {', '.join(tool.name for tool in known)}.")
        return 2
    chosen = [tool for tool in known if not arguments or tool.name in arguments]
    failed = []
    with ThreadPoolExecutor(TOOLS_AT_ONCE_MAX) as pool:
        for future in as_completed([pool.submit(run, tool) for tool in chosen]):
            outcome = future.result()
            print(report(outcome), flush=True)
            failed += [] if outcome.passed else [outcome.tool.name]
    print(f"check failed: {', '.join(failed)}" if failed else "check passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
