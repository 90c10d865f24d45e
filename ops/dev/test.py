"""`make test` and `make test-all`: pytest with the choice of tests and the bounds that belong to the target.

    python -m ops.dev.test [--slow-too | --slow-only] [PYTEST ARGUMENT...]

Of several choices the last counts; without one, everything but the tests marked slow is run. The
exit status is pytest's, except that there being no slow tests is no failure. Modules of tests are spread over
processes, one per core; `-n 0` runs them in one, for a debugger.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import subprocess
import sys
from collections.abc import Sequence

import pytest

# The promise is six minutes (slow tests: ten) on two idle cores. Past four times that, something hangs or has grown.
SESSION_TIMEOUT_S = 24 * 60
SLOW_SESSION_TIMEOUT_S = 40 * 60
SLOWEST_SHOWN_MAX = 10
# Each test may start a dozen processes of its own.
PROCESSES_MAX = 4
COLLECT_TIMEOUT_S = 300
# A test's own time limit can't end what holds the interpreter: then the run ends this much past its bound.
GRACE_S = 240
# Memory of one process, without what it maps from files. A test that leaks fails by its own name; without this the
# kernel would kill the run, or somebody else's program.
MEMORY_MAX_BYTES = 4 << 30

CHOICES: dict[str, tuple[list[str], int]] = {
    "": (["-m", "not slow"], SESSION_TIMEOUT_S),
    "--slow-too": ([], SESSION_TIMEOUT_S + SLOW_SESSION_TIMEOUT_S),
    "--slow-only": (["-m", "slow"], SLOW_SESSION_TIMEOUT_S),
}


def pytest_arguments(choice: str, rest: Sequence[str]) -> list[str]:
    """The arguments for pytest: the target's own, then the caller's, which win."""
    selection, session_timeout_s = CHOICES[choice]
    bounds = [f"--session-timeout={session_timeout_s}", f"--durations={SLOWEST_SHOWN_MAX}", "--durations-min=1"]
    # Tests of a module share what takes long to make, so a module stays in one process.
    # A process that a hanging test has ended is not replaced: the new one would begin with that test.
    spread = ["-n", "auto", f"--maxprocesses={PROCESSES_MAX}", "--dist", "loadfile", "--max-worker-restart=0"]
    return [*selection, *bounds, *spread, *rest]


def limit_memory() -> None:
    """Bound the memory of this process and of those that it starts (Linux; elsewhere the limit has little effect)."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_MAX_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_MAX_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def has_slow_tests(rest: Sequence[str]) -> bool:
    """Whether a test that the caller chose is marked slow. Errors of collection count as yes: the run shows them."""
    collect = [sys.executable, "-m", "pytest", "-m", "slow", *rest, "--collect-only", "-q"]
    done = subprocess.run(
        collect, stdin=subprocess.DEVNULL, capture_output=True, timeout=COLLECT_TIMEOUT_S, check=False
    )
    return done.returncode != pytest.ExitCode.NO_TESTS_COLLECTED


def main(arguments: Sequence[str]) -> int:
    """Run the chosen tests and return the exit status."""
    choice, rest = "", list(arguments)
    while rest and rest[0] in CHOICES:
        choice = rest.pop(0)
    if choice == "--slow-only" and not has_slow_tests(rest):
        print("No test is marked slow.")
        return 0
    limit_memory()
    # To a descriptor of its own: pytest redirects the standard ones while a test runs.
    faulthandler.dump_traceback_later(CHOICES[choice][1] + GRACE_S, exit=True, file=os.dup(2))
    return int(pytest.main(pytest_arguments(choice, rest)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
