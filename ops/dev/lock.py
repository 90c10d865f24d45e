"""The lock files: every package that an environment gets, with version and hashes, for all our Pythons and platforms.

    python -m ops.dev.lock            renews them from pyproject.toml (needs uv in PATH and the network)
    python -m ops.dev.lock --check    says whether they fit pyproject.toml (needs neither)

The command behind each: uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --upgrade
--group GROUP [pyproject.toml] --output-file ops/locks/GROUP.txt
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from typing import Any

from ops.dev import environment, setup

# The dependency groups of pyproject.toml that have a lock; dev's includes the run-time dependencies.
GROUPS = ("build", "dev", "clients", "contract", "swift")
WITH_RUN_TIME = "dev"
OLDEST_PYTHON = "3.11"
LOCK_TIMEOUT_S = 600


def command(group: str) -> list[str]:
    """The command that renews the group's lock file."""
    project = ["pyproject.toml"] if group == WITH_RUN_TIME else []
    options = ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes", "--no-header", "--upgrade"]
    return ["uv", "pip", "compile", *options, "--group", group, *project, "--output-file", f"ops/locks/{group}.txt"]


def renew() -> None:
    """Write all lock files anew. Raises SetupError when uv is missing or fails."""
    if shutil.which("uv") is None:
        raise setup.SetupError("uv is needed to renew the locks and is not in PATH. Install it: pip install uv")
    # No package source of the caller's may get into the locks.
    env = {
        name: value for name, value in environment.for_pip(os.environ).items() if not name.startswith(("UV_", "PIP_"))
    }
    for group in GROUPS:
        done = subprocess.run(
            command(group),
            cwd=setup.ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=LOCK_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise setup.SetupError(f"'{' '.join(command(group))}' failed; what it said stands above.")


def problems(project: dict[str, Any], group: str, text: str) -> list[str]:
    """What is wrong with the text of the group's lock file, as sentences."""
    blocks = [block for block in re.split(r"\n(?=[A-Za-z0-9])", text) if "==" in block]
    versions = {
        setup.normal_name(block.split("==")[0]): re.split(r"[\s;]", block.split("==")[1])[0] for block in blocks
    }
    found = [f"lacks {name}, which pyproject.toml asks for" for name in wanted(project, group) if name not in versions]
    found += [
        f"has {name} {versions[name]}, but pyproject.toml asks for {version}"
        for name, version in exact(project, group)
        if versions.get(name, version) != version
    ]
    found += [f"has no hash for {block.splitlines()[0]}" for block in blocks if "--hash=sha256:" not in block]
    if re.search(r"https?:|--(extra-)?index-url|--find-links", text):
        found.append("names a package source")
    return [f"ops/locks/{group}.txt {problem}" for problem in found]


def wanted(project: dict[str, Any], group: str) -> list[str]:
    """Names of the packages that the group's lock must have."""
    return [setup.normal_name(re.split(r"[<>=!~;\[ ]", text, maxsplit=1)[0]) for text in _requirements(project, group)]


def exact(project: dict[str, Any], group: str) -> list[tuple[str, str]]:
    """(name, version) of each requirement that allows one version only."""
    pairs = (text.split("==") for text in _requirements(project, group) if "==" in text)
    return [(setup.normal_name(name), version.strip()) for name, version in pairs]


def _requirements(project: dict[str, Any], group: str) -> list[str]:
    requirements: list[str] = list(project["dependency-groups"][group])
    if group == WITH_RUN_TIME:
        requirements += project["project"]["dependencies"]
    return requirements


def check() -> int:
    """Print what is wrong with the locks; 1 if something is."""
    project = tomllib.loads((setup.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = []
    for group in GROUPS:
        found += problems(project, group, (setup.LOCKS / f"{group}.txt").read_text(encoding="utf-8"))
    print("\n".join(found) if found else f"{len(GROUPS)} locks fit pyproject.toml")
    return 1 if found else 0


def main(arguments: Sequence[str]) -> int:
    """Renew the locks, or check them."""
    if list(arguments) == ["--check"]:
        return check()
    if arguments:
        raise setup.SetupError(f"lock takes --check or nothing, but got: {' '.join(arguments)}")
    renew()
    return check()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
