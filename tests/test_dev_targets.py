"""The Makefile: what it offers, and what each target hands to its program."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from ops.dev import setup, targets

ROOT = setup.ROOT
PHONY = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[0].split()


def test_plain_make_lists_every_target() -> None:
    said = subprocess.run(
        ["make"], cwd=ROOT, env=_environment(), capture_output=True, text=True, check=True, timeout=60
    )
    assert set(re.findall(r"^make (\S+)", said.stdout, re.MULTILINE)) == set(PHONY) - {"help"}


@pytest.mark.parametrize("name", [name for name in PHONY if name != "help"])
def test_each_target_is_known_to_the_program_that_runs_it(name: str) -> None:
    assert name in targets.TARGETS or name in targets.PLAIN


@pytest.mark.parametrize("name", targets.TARGETS)
def test_each_target_runs_a_module_that_exists(name: str) -> None:
    path = ROOT / targets.TARGETS[name].module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def test_a_failing_program_fails_its_target_and_says_why() -> None:
    done = _make("check", "ARGS=no-such-check")
    assert done.returncode != 0
    assert "No such check: no-such-check. There are: types" in done.stdout


def test_a_target_works_under_a_hostile_environment() -> None:
    hostile = {
        "PYTHONPATH": "/nonexistent",
        "PYTHONHOME": "/nonexistent",
        "PYTHON": "/bin/false",
        "ARGS": "no-such-check",
        "LC_ALL": "xx_YY",
        "OS_USERNAME": "somebody",
        "https_proxy": "http://127.0.0.1:1",
        "VIRTUAL_ENV": "/nonexistent",
        "CDPATH": "/",
    }
    done = _make("check", "ARGS=locks", variables=hostile)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "check passed" in done.stdout


@pytest.mark.parametrize("state", ["cluster.json", "story/cluster.json"])
def test_a_cluster_that_can_not_be_stopped_is_not_removed_nor_one_in_use(tmp_path: Path, state: str) -> None:
    checkout = tmp_path / "checkout"
    state_file = checkout / ".run" / state
    for path in ("Makefile", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "ops").glob("dev/*.*")))):
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_bytes((ROOT / path).read_bytes())
    (checkout / "ops" / "__init__.py").touch()
    state_file.parent.mkdir(parents=True)
    state_file.write_text("{}")
    refused = _make("clean", directory=checkout)
    assert refused.returncode != 0
    assert f"pids are in .run/{state}" in refused.stderr
    assert state_file.exists()
    state_file.unlink()
    with (checkout / ".run" / "story.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "make run is at work" in _make("clean", directory=checkout).stderr
    (checkout / "ops" / "__pycache__").mkdir(exist_ok=True)
    assert _make("clean", directory=checkout).returncode == 0
    assert not (checkout / ".run").exists()
    assert not (checkout / "ops" / "__pycache__").exists()


def _environment() -> dict[str, str]:
    """Without a make around this one, which would add its own lines; the running Python is found first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return kept | {"PATH": os.pathsep.join([str(Path(sys.base_prefix) / "bin"), os.environ["PATH"]])}


def _make(
    *arguments: str, directory: Path = ROOT, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=directory,
        env=_environment() | dict(variables or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
