"""`make deps`: what tests can use and Python packages don't bring. The only code here that installs system packages.

Standard library only, and no environment needed. What can't be had is skipped and named at the end with its reason:
tests that need it skip too. Exit status 0 then as well; 1 only if what set-up itself needs is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.dev import environment, setup

TOXIPROXY_VERSION = "v2.12.0"
TOXIPROXY_MODULE = "github.com/Shopify/toxiproxy/v2/cmd/server"
BIN_DIR = setup.RUN_DIR / "bin"
TOXIPROXY = BIN_DIR / "toxiproxy-server"

# Compiling on one busy core, with the download of the modules, takes a fraction of it.
BUILD_TIMEOUT_S = 600
# One Debian package and its dependencies over a slow line.
INSTALL_TIMEOUT_S = 600
COMPLAINT_LINES_MAX = 5
# Where Go's own installer and packagers put it, for callers whose PATH is short.
GO_DIRECTORIES = ("/usr/local/go/bin", "/usr/lib/go/bin", "/opt/homebrew/bin", "/snap/bin")


class Skipped(Exception):
    """This dependency can't be had here. The message is the reason, with what to do where something can be done."""


@dataclass(frozen=True)
class Dependency:
    """One thing to have: its name, what it is for, and the function that gets it and says how (or raises Skipped)."""

    name: str
    purpose: str
    get: Callable[[], str]
    needed: bool = False


def main(arguments: Sequence[str]) -> int:
    """Get everything that can be had, then say what was skipped and why."""
    if arguments:
        raise setup.SetupError(f"make deps takes no arguments, but got: {' '.join(arguments)}")
    skipped, lacking = [], False
    for dependency in DEPENDENCIES:
        try:
            print(f"deps: {dependency.name}: {dependency.get()}", flush=True)
        except Skipped as reason:
            skipped.append(f"deps: skipped {dependency.name} ({dependency.purpose}): {reason}")
            lacking |= dependency.needed
    print("\n".join(skipped) if skipped else "deps: nothing was skipped", flush=True)
    return 1 if lacking else 0


def environments() -> str:
    """Python's modules for virtual environments, which Debian packages apart."""
    modules = "import ssl, venv, ensurepip"
    if _succeeds([sys.executable, "-I", "-c", modules]):
        return f"{sys.executable} has them"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    _install_package(f"python{version}-venv", or_else="dnf install python3, apk add python3 or brew install python")
    if not _succeeds([sys.executable, "-I", "-c", modules]):
        raise Skipped(f"python{version}-venv is installed, but {sys.executable} still lacks the modules")
    return "installed"


def c_compiler() -> str:
    """A C compiler that can build a shared library against the C library's headers."""
    if compiler := _working_compiler():
        return f"{compiler} works"
    if sys.platform == "darwin":
        raise Skipped("run: xcode-select --install")
    _install_package("gcc", "libc6-dev", or_else="dnf install gcc, or apk add build-base")
    if compiler := _working_compiler():
        return f"installed {compiler}"
    raise Skipped("gcc is installed but can't compile")


def toxiproxy() -> str:
    """A Toxiproxy server in .run/bin, built from its source by Go."""
    marker = BIN_DIR / "toxiproxy-server.version"
    if TOXIPROXY.exists() and marker.exists() and marker.read_text(encoding="utf-8") == TOXIPROXY_VERSION:
        return f"{TOXIPROXY_VERSION} is already built"
    go = shutil.which("go", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *GO_DIRECTORIES]))
    if go is None:
        raise Skipped("there is no Go in PATH; our own proxy is used instead")
    building = BIN_DIR / f"building-{os.getpid()}"
    building.mkdir(parents=True)
    try:
        _build(go, building)
        os.replace(building / "server", TOXIPROXY)
        marker.write_text(TOXIPROXY_VERSION, encoding="utf-8")
    finally:
        shutil.rmtree(building)
    return f"built {TOXIPROXY_VERSION}"


def _build(go: str, directory: Path) -> None:
    """`go install` into `directory`; caches go below .run where the caller has no home directory to keep them in."""
    # Go fetches modules, so it gets the caller's proxies and certificates, as pip does.
    env = environment.for_pip(os.environ) | {"GOBIN": str(directory), "CGO_ENABLED": "0"}
    if not os.access(env.get("HOME", ""), os.W_OK):
        cache = setup.RUN_DIR / "go"
        env |= {"GOPATH": str(cache / "path"), "GOCACHE": str(cache / "build")}
    # Modules are otherwise kept read-only, and make clean could not remove them.
    env["GOFLAGS"] = f"{env.get('GOFLAGS', '')} -modcacherw".strip()
    _run([go, "install", f"{TOXIPROXY_MODULE}@{TOXIPROXY_VERSION}"], env, BUILD_TIMEOUT_S)


def _install_package(*packages: str, or_else: str) -> None:
    """Install Debian packages as root, or through a sudo that asks for nothing. Raises Skipped."""
    line = f"apt-get install {' '.join(packages)}"
    if shutil.which("apt-get") is None:
        raise Skipped(f"there is no apt-get here; install by hand: {or_else}")
    as_root: list[str] = []
    if os.geteuid() != 0:
        if not (shutil.which("sudo") and _succeeds(["sudo", "-n", "true"])):
            raise Skipped(f"that needs root: {line}")
        as_root = ["sudo", "-n", "--preserve-env=DEBIAN_FRONTEND,http_proxy,https_proxy"]
    env = environment.for_pip(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"}
    install = [*as_root, "apt-get", "install", "--yes", "--no-install-recommends", *packages]
    try:
        _run(install, env, INSTALL_TIMEOUT_S)
    except Skipped:
        # The package lists may be missing or old: fetch them, then try once more.
        _run([*as_root, "apt-get", "update"], env, INSTALL_TIMEOUT_S)
        _run(install, env, INSTALL_TIMEOUT_S)


def _working_compiler() -> str | None:
    """The C compiler that builds a shared library from a program with system headers; None if there is none."""
    source = "#include <stdio.h>\n#include <pthread.h>\nint raftreg_probe(void) { return 0; }\n"
    for name in ("cc", "gcc", "clang"):
        if (path := shutil.which(name)) and _succeeds(
            [path, "-shared", "-fPIC", "-x", "c", "-", "-o", "/dev/null"], source
        ):
            return path
    return None


def _succeeds(command: Sequence[str], given: str = "") -> bool:
    try:
        done = subprocess.run(command, input=given.encode(), capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _run(command: Sequence[str], env: dict[str, str], timeout_s: float) -> None:
    """Run a command that may fail for reasons outside; then raises Skipped with the end of what it said."""
    try:
        done = subprocess.run(
            command,
            env=env,
            cwd=setup.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Skipped(f"'{' '.join(command)}' took longer than {timeout_s} s") from error
    if done.returncode != 0:
        said = done.stdout.decode("utf-8", "replace").strip().splitlines()[-COMPLAINT_LINES_MAX:]
        raise Skipped(" | ".join([f"'{' '.join(command)}' failed ({done.returncode})", *said]))


DEPENDENCIES = (
    Dependency("venv modules", "every target needs them", environments, needed=True),
    Dependency("C compiler", "tests that record what reached the disk", c_compiler),
    Dependency("Toxiproxy", "tests of links with the proxy that others use", toxiproxy),
)
