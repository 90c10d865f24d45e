"""The Python environments, made from the lock files alone. Standard library only: it runs before anything is installed.

An environment carries a stamp, a hash of what it was made from. It is written last, so a set-up that was interrupted is
done again; while it matches, nothing is installed and no network is needed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.dev import environment

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "ops" / "locks"
RUN_DIR = ROOT / ".run"

# pip retries by itself; a set-up that takes longer hangs.
INSTALL_TIMEOUT_S = 900
# pip's complaint is at the end of what it says.
COMPLAINT_LINES_MAX = 25


class SetupError(Exception):
    """Set-up can't go on. The message is for a person and says what to do."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment: where it is, the locks it is made from (in this order), and whether ours is installed."""

    path: Path
    locks: tuple[str, ...]
    with_product: bool

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.path / "made-from"

    def command(self, name: str) -> Path:
        """Path of an installed console command."""
        return self.path / "bin" / name


DEVELOPMENT = Environment(ROOT / ".venv", ("build.txt", "dev.txt"), with_product=True)
# The OpenStack client, unmodified: its dependencies must not mix with ours.
CLIENTS = Environment(RUN_DIR / "clients" / "venv", ("build.txt", "clients.txt"), with_product=False)
# Schemathesis, for the slow test of the gateway against its OpenAPI document.
CONTRACT = Environment(RUN_DIR / "contract" / "venv", ("build.txt", "contract.txt"), with_product=False)
# Servers of Swift, for the slow tests of the data stores; its setuptools replaces the one that builds.
SWIFT = Environment(RUN_DIR / "swift" / "venv", ("build.txt", "swift.txt"), with_product=False)


def prepare(*environments: Environment) -> None:
    """Make each environment, or bring it up to date. Runs at the same time wait for each other. Raises SetupError."""
    try:
        RUN_DIR.mkdir(exist_ok=True)
        with _alone():
            for env in environments:
                _make(env)
    except PermissionError as error:
        raise SetupError(
            f"No permission: {error.filename or error}. Set-up writes .venv and .run in {ROOT}: run make as the user "
            f"who owns them, or have that user run 'make clean' first."
        ) from error


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold the set-up lock. It is on a file of the checkout, because `make clean` removes everything else."""
    with (LOCKS / "build.txt").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another make is setting up this checkout; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(env: Environment) -> None:
    runs = _answers(env.python) and not _other_python_demanded(env)
    wanted = _stamp(env, str(env.python) if runs else sys.executable)
    if runs and _read(env.stamp) == wanted:
        return
    _must_be_writable(env.path)
    began = time.monotonic()
    name = env.path.relative_to(ROOT)
    say(f"installing {_locked_count(env)} locked packages into {name} (Python {sys.version.split()[0]})")
    env.stamp.unlink(missing_ok=True)
    if not runs or _made_for(env) != str(ROOT):
        _create(env)
        wanted = _stamp(env, str(env.python))
    for lock in env.locks:
        _pip(env, "install", "--require-hashes", "--no-deps", "--no-build-isolation", "-r", str(LOCKS / lock))
    _remove_strays(env)
    if env.with_product:
        _pip(env, "install", "--no-deps", "--no-build-isolation", "--no-index", "--editable", str(ROOT))
    (env.path / "made-for").write_text(str(ROOT), encoding="utf-8")
    env.stamp.write_text(wanted, encoding="utf-8")
    say(f"{name} is ready after {time.monotonic() - began:.0f} s")


def _must_be_writable(path: Path) -> None:
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not os.access(nearest, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))


def _create(env: Environment) -> None:
    if env.path.is_symlink():
        env.path.unlink()
    env.path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(env.path, ignore_errors=True)
    _run(
        [sys.executable, "-I", "-m", "venv", str(env.path)],
        environment.clean(os.environ),
        "The virtual environment can't be made. On Debian and Ubuntu: apt-get install python3-venv",
    )


def _pip(env: Environment, *arguments: str) -> None:
    _run(
        [str(env.python), "-I", "-m", "pip", "--quiet", *arguments],
        environment.for_pip(os.environ),
        "pip failed. Without a network, only an environment that is already up to date can be used.\n"
        "Behind a proxy, set https_proxy, and PIP_CERT for a certificate authority of your own.\n"
        "What can't be built may need a C compiler and headers (Debian, Ubuntu: apt-get install gcc python3-dev).",
    )


def _run(command: Sequence[str], env: dict[str, str], advice: str) -> None:
    try:
        done = subprocess.run(
            command,
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"'{' '.join(command)}' took longer than {INSTALL_TIMEOUT_S} s.\n{advice}") from error
    if done.returncode != 0:
        said = done.stdout.decode("utf-8", "replace").strip().splitlines()[-COMPLAINT_LINES_MAX:]
        raise SetupError("\n".join([*said, f"'{' '.join(command)}' failed ({done.returncode}).", advice]))


def _remove_strays(env: Environment) -> None:
    """Uninstall what no lock names: left by an older lock or put there by hand, it would hide a missing dependency."""
    allowed = {normal_name(name) for lock in env.locks for name in locked(lock)} | {"pip", "raftreg"}
    listed = subprocess.run(
        [str(env.python), "-I", "-m", "pip", "list", "--format=freeze"],
        env=environment.for_pip(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        timeout=INSTALL_TIMEOUT_S,
    )
    installed = {normal_name(line.split("==")[0]) for line in listed.stdout.splitlines() if "==" in line}
    if strays := sorted(installed - allowed):
        _pip(env, "uninstall", "--yes", *strays)


def locked(lock: str) -> dict[str, str]:
    """Name -> version of each package in the lock file."""
    text = (LOCKS / lock).read_text(encoding="utf-8")
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE))


def normal_name(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _locked_count(env: Environment) -> int:
    return len({name for lock in env.locks for name in locked(lock)})


def _stamp(env: Environment, python: str) -> str:
    """Hash of what `env` is made from: its locks, our own metadata, the checkout's path and the Python version."""
    parts = [(LOCKS / lock).read_bytes() for lock in env.locks]
    parts += [str(ROOT).encode("utf-8", "surrogateescape"), _version_of(python).encode()]
    if env.with_product:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        ours = {name: project[name] for name in ("build-system", "project")} | {"hatch": project["tool"]["hatch"]}
        parts.append(repr(ours).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _version_of(python: str) -> str:
    code = "import sys; print(sys.version, sys.base_prefix)"
    answer = subprocess.run([python, "-I", "-c", code], capture_output=True, check=False, timeout=60)
    return answer.stdout.decode("utf-8", "replace") if answer.returncode == 0 else ""


def _answers(python: Path) -> bool:
    """Whether the environment's interpreter is still there, runs, and has pip (its base may have been removed)."""
    return python.exists() and python.with_name("pip").exists() and _version_of(str(python)) != ""


def _other_python_demanded(env: Environment) -> bool:
    """Whether the caller named a Python (make PYTHON=...), which is the one that runs now, and `env` has another."""
    named = os.environ.get("RAFTREG_SETUP_PYTHON", "") != ""
    return named and _version_of(str(env.python)) != _version_of(sys.executable)


def _made_for(env: Environment) -> str:
    """The checkout that `env` was made for; its scripts name that path, so a moved checkout needs a new one."""
    return _read(env.path / "made-for")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def say(message: str) -> None:
    """Tell the person at the terminal what set-up does."""
    print(f"set-up: {message}", file=sys.stderr, flush=True)
