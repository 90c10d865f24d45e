"""Run one Makefile target: make what it needs, then become its program in a clean environment.

    python3 -I ops/dev/targets.py TARGET [ARGUMENT...]        (ops/dev/start.sh finds the Python)

Standard library only. Exit status 3: set-up failed, and the message says what to do.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ops.dev import environment, setup

# Stopping the cluster waits for each process once; longer means that something hangs.
DOWN_TIMEOUT_S = 120

# Of the development cluster, and of a story that was killed before it could stop its own.
STATE_FILES = ("cluster.json", "story/cluster.json")
CACHES = (".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache", "build", "dist")


@dataclass(frozen=True)
class Target:
    """A program of ours: its module and arguments, the environments it needs, and whether it opens many files."""

    module: str
    arguments: tuple[str, ...] = ()
    environments: tuple[setup.Environment, ...] = (setup.DEVELOPMENT,)
    many_files: bool = True


# State file of a cluster, below .run -> what the environment's Python is given to stop it. A story that was killed
# leaves its cluster behind.
STOPPING = {
    "cluster.json": ("-m", "ops.dev.cluster", "down"),
    "story/cluster.json": (
        "-c",
        "from ops.dev.cluster import RUN_DIR, stop_left; stop_left(RUN_DIR / 'story' / 'cluster.json')",
    ),
}

WITH_CLIENTS = (setup.DEVELOPMENT, setup.CLIENTS)

TARGETS = {
    "run": Target("ops.dev.story", environments=WITH_CLIENTS),
    "up": Target("ops.dev.cluster", ("up",)),
    "down": Target("ops.dev.cluster", ("down",), many_files=False),
    "test": Target("ops.dev.test", environments=WITH_CLIENTS),
    "test-all": Target("ops.dev.test", ("--slow-too",), environments=(*WITH_CLIENTS, setup.CONTRACT, setup.SWIFT)),
    "check": Target("ops.dev.check", many_files=False),
    "sim": Target("chaos.simulation"),
    "chaos": Target("chaos"),
    "bench": Target("ops.bench"),
    "soak": Target("ops.soak"),
    "backup-load": Target("ops.dev.backup_load"),
}


def main(arguments: Sequence[str]) -> int:
    name, *rest = arguments
    if name in PLAIN:
        return PLAIN[name](rest)
    target = TARGETS[name]
    if name == "down" and not any((setup.RUN_DIR / state).exists() for state in STATE_FILES):
        print("No development cluster is running.")
        return 0
    limit = environment.raise_open_files_limit()
    if target.many_files and limit < environment.OPEN_FILES_MIN:
        raise setup.SetupError(environment.open_files_advice(limit))
    setup.prepare(*target.environments)
    _become(setup.DEVELOPMENT, ["-m", target.module, *target.arguments, *rest])
    return 0


def _become(env: setup.Environment, arguments: Sequence[str]) -> None:
    """Replace this process, so that signals reach the program itself and its exit status is ours."""
    sys.stdout.flush()
    os.chdir(setup.ROOT)
    python = str(env.python)
    os.execve(python, [python, *arguments], environment.clean(os.environ))


def _deps(arguments: Sequence[str]) -> int:
    from ops.dev import deps

    environment.raise_open_files_limit()
    return deps.main(arguments)


def _lock(arguments: Sequence[str]) -> int:
    from ops.dev import lock

    return lock.main(arguments)


def _clean(arguments: Sequence[str]) -> int:
    """Stop the clusters, then remove what make made. Not while a story is told or a cluster can't be stopped."""
    if arguments:
        raise setup.SetupError(f"make clean takes no arguments, but got: {' '.join(arguments)}")
    if _is_held(setup.RUN_DIR / "story.lock"):
        raise setup.SetupError("make run is at work in this checkout; end it with Ctrl-C, then run make clean again.")
    for state_file, arguments_to_stop in STOPPING.items():
        if (setup.RUN_DIR / state_file).exists():
            _stop_cluster(state_file, arguments_to_stop)
    for name in (".run", ".venv", *CACHES):
        _remove(setup.ROOT / name)
    for package in ("raftreg", "zonegw", "chaos", "ops", "tests"):
        for cache in (setup.ROOT / package).rglob("__pycache__"):
            _remove(cache)
    return 0


def _is_held(lock_file: Path) -> bool:
    """Whether another process holds this lock."""
    if not lock_file.exists():
        return False
    with lock_file.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _stop_cluster(state_file: str, arguments: Sequence[str]) -> None:
    python = setup.DEVELOPMENT.python
    advice = f"Stop its processes (their pids are in .run/{state_file}), remove that file, and run make clean again."
    if not python.exists():
        raise setup.SetupError(f"A cluster was started, but .venv, which can stop it, is gone.\n{advice}")
    done = subprocess.run(
        [str(python), *arguments],
        cwd=setup.ROOT,
        env=environment.clean(os.environ),
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=DOWN_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise setup.SetupError(f"A cluster could not be stopped.\n{advice}")


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


PLAIN: dict[str, Callable[[Sequence[str]], int]] = {"deps": _deps, "lock": _lock, "clean": _clean}


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except setup.SetupError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    except PermissionError as error:
        print(f"No permission: {error}. Run make as the user who owns this checkout.", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        sys.exit(130)
