"""Set-up: real environments, made by the real pip from packages on this disk, in checkouts made for the test."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ops.dev import setup

ROOT = Path(setup.__file__).resolve().parents[2]
# Making an environment takes some ten seconds on a busy core.
SETUP_TIMEOUT_S = 150


class Checkout:
    """A checkout with set-up, one lock, and a source of packages; its path has a space."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "a checkout"
        self.wheels = directory / "wheels"
        self.wheels.mkdir(parents=True)
        (self.root / "ops" / "locks").mkdir(parents=True)
        for path in ("ops/__init__.py", "ops/dev/__init__.py", "ops/dev/setup.py", "ops/dev/environment.py"):
            (self.root / path).parent.mkdir(exist_ok=True)
            (self.root / path).write_bytes((ROOT / path).read_bytes())
        (self.root / "ops" / "locks" / "build.txt").touch()
        self.env = self.root / ".run" / "env"

    def offer(self, name: str, version: str) -> str:
        """Put a wheel into the package source; the line of a lock that asks for it."""
        path = self.wheels / f"{name}-{version}-py3-none-any.whl"
        info = f"{name}-{version}.dist-info"
        files = {
            f"{name}.py": f"VERSION = {version!r}\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{file},sha256={_record_hash(text)},{len(text)}\n" for file, text in files.items())
        with zipfile.ZipFile(path, "w") as wheel:
            for file, text in (files | {f"{info}/RECORD": record + f"{info}/RECORD,,\n"}).items():
                wheel.writestr(file, text)
        return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"

    def lock(self, *lines: str) -> None:
        (self.root / "ops" / "locks" / "test.txt").write_text("".join(lines))

    def start(self, **variables: str) -> subprocess.Popen[str]:
        """Start set-up in a process of its own, with this package source only."""
        code = (
            f"import sys; sys.path.insert(0, {str(self.root)!r})\n"
            "from ops.dev import setup\n"
            "env = setup.Environment(setup.RUN_DIR / 'env', ('build.txt', 'test.txt'), with_product=False)\n"
            "try:\n"
            "    setup.prepare(env)\n"
            "except setup.SetupError as error:\n"
            "    sys.exit(str(error))\n"
        )
        source = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": self.wheels.as_uri(), "PIP_CONFIG_FILE": os.devnull}
        return subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            env=os.environ | source | variables,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def prepare(self, **variables: str) -> tuple[int, str]:
        """Run set-up to its end: exit status and what it said."""
        process = self.start(**variables)
        _, said = process.communicate(timeout=SETUP_TIMEOUT_S)
        return process.returncode, said

    def installed(self, name: str) -> str | None:
        """Version of the package in the environment, None if it isn't there."""
        code = f"import {name}; print({name}.VERSION)"
        done = subprocess.run(
            [self.env / "bin" / "python", "-I", "-c", code], capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip() if done.returncode == 0 else None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose environment was made once; each test leaves it up to date."""
    checkout = Checkout(tmp_path_factory.mktemp("setup"))
    checkout.lock(checkout.offer("alpha", "1.0"))
    with (checkout.root / "ops" / "locks" / "build.txt").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        both = checkout.start(), checkout.start()
        assert all("waiting for it" in _next_line(process) for process in both)
    said = [process.communicate(timeout=SETUP_TIMEOUT_S)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    # Whichever had its turn first installed; the other then had nothing to do.
    assert sorted("installing" in text for text in said) == [False, True], said
    return checkout


@pytest.mark.slow
def test_two_set_ups_at_once_make_one_environment(made: Checkout) -> None:
    assert made.installed("alpha") == "1.0"


@pytest.mark.slow
def test_an_environment_that_is_up_to_date_is_left_alone_and_needs_no_package_source(made: Checkout) -> None:
    assert made.prepare(PIP_FIND_LINKS="/nonexistent") == (0, "")


@pytest.mark.slow
def test_a_changed_lock_installs_the_new_version_and_removes_what_it_names_no_more(made: Checkout) -> None:
    made.lock(made.offer("alpha", "2.0"), made.offer("beta", "1.0"))
    assert made.prepare()[0] == 0
    assert (made.installed("alpha"), made.installed("beta")) == ("2.0", "1.0")
    made.lock(made.offer("alpha", "2.0"))
    assert made.prepare()[0] == 0
    assert (made.installed("alpha"), made.installed("beta")) == ("2.0", None)


@pytest.mark.slow
def test_a_package_that_is_not_what_was_locked_is_refused_and_set_up_starts_again_next_time(made: Checkout) -> None:
    before = (made.root / "ops" / "locks" / "test.txt").read_text()
    good = made.offer("gamma", "1.0")
    made.lock(before, good.split("sha256:")[0] + "sha256:" + "0" * 64 + "\n")
    status, said = made.prepare()
    assert status == 1
    assert "DO NOT MATCH" in said
    made.lock(before)
    assert made.prepare()[0] == 0
    assert made.installed("gamma") is None


@pytest.mark.slow
def test_settings_of_pip_and_python_that_point_elsewhere_do_not_divert_it(made: Checkout, tmp_path: Path) -> None:
    before = (made.root / "ops" / "locks" / "test.txt").read_text()
    made.lock(before, made.offer("delta", "1.0"))
    hostile = {"PIP_TARGET": str(tmp_path / "there"), "PIP_USER": "1", "PYTHONHOME": "/nonexistent", "LC_ALL": "C"}
    status, said = made.prepare(**hostile)
    assert (status, made.installed("delta")) == (0, "1.0"), said
    assert not (tmp_path / "there").exists()


@pytest.mark.slow
def test_an_environment_whose_interpreter_is_gone_is_made_anew(made: Checkout) -> None:
    before = made.installed("alpha")
    assert before is not None
    (made.env / "bin" / "python").unlink()
    status, said = made.prepare()
    assert (status, made.installed("alpha")) == (0, before), said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.slow
def test_a_checkout_of_another_user_is_named_with_what_to_do(made: Checkout) -> None:
    (made.env / "made-from").unlink()
    made.env.chmod(0o500)
    try:
        status, said = made.prepare()
    finally:
        made.env.chmod(0o700)
    assert (status, "as the user who owns" in said) == (1, True)


class TestStart:
    """ops/dev/start.sh, which finds the Python for set-up."""

    def test_a_machine_without_python_is_told_what_to_install(self, tmp_path: Path) -> None:
        status, said = self._start(tmp_path)
        assert status == 3
        assert "apt-get install python3 python3-venv" in said

    def test_a_python_that_is_too_old_is_passed_over(self, tmp_path: Path) -> None:
        self._fake(tmp_path, "python3.13", "exit 1")
        self._fake(
            tmp_path,
            "python3.12",
            f'case "$*" in *ops/dev/targets.py*) echo chosen;; *) exec "{sys.executable}" "$@";; esac',
        )
        assert self._start(tmp_path) == (0, "chosen\n")

    def test_a_python_without_venv_is_told_the_package_of_its_version(self, tmp_path: Path) -> None:
        self._fake(tmp_path, "python3", f'case "$*" in *ensurepip*) exit 1;; *) exec "{sys.executable}" "$@";; esac')
        status, said = self._start(tmp_path)
        assert status == 3
        assert f"apt-get install python{sys.version_info.major}.{sys.version_info.minor}-venv" in said

    def test_a_python_that_was_named_but_does_not_run_is_refused(self, tmp_path: Path) -> None:
        status, said = self._start(tmp_path, RAFTREG_SETUP_PYTHON="/no such/python")
        assert status == 3
        assert "'/no such/python' does not run" in said

    @staticmethod
    def _fake(directory: Path, name: str, script: str) -> None:
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)

    @staticmethod
    def _start(path: Path, **variables: str) -> tuple[int, str]:
        """Run start.sh with the programs in `path` and the shell's own tools only."""
        for tool in ("sh",):
            if not (path / tool).exists():
                (path / tool).symlink_to(f"/usr/bin/{tool}")
        done = subprocess.run(
            ["/bin/sh", "ops/dev/start.sh", "check"],
            cwd=ROOT,
            env={"PATH": str(path)} | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


def _next_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def _record_hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
