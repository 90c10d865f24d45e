"""The lock files and what is judged about them."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from ops.dev import lock, setup

PROJECT: dict[str, Any] = {
    "project": {"dependencies": ["pysyncobj==0.3.17"]},
    "dependency-groups": {"dev": ["pytest>=8"], "build": ["hatchling"], "clients": []},
}
GOOD = (
    "pysyncobj==0.3.17 \\\n    --hash=sha256:aa\n    # via x\n"
    "pytest==9.2.0 ; python_version < '4' \\\n    --hash=sha256:bb\n"
)


def test_a_lock_that_fits_has_no_problem() -> None:
    assert lock.problems(PROJECT, "dev", GOOD) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GOOD.split("pytest")[0], "lacks pytest"),
        (GOOD.replace("0.3.17", "0.3.14"), "has pysyncobj 0.3.14, but pyproject.toml asks for 0.3.17"),
        (GOOD.replace("--hash=sha256:bb", ""), "has no hash for pytest==9.2.0"),
        ("--index-url https://packages.example/simple\n" + GOOD, "names a package source"),
    ],
)
def test_a_lock_that_does_not_fit_is_named_with_what_is_wrong(text: str, problem: str) -> None:
    found = lock.problems(PROJECT, "dev", text)
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize("group", lock.GROUPS)
def test_the_locks_of_this_checkout_fit(group: str) -> None:
    project = tomllib.loads((setup.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (setup.LOCKS / f"{group}.txt").read_text(encoding="utf-8")
    assert lock.problems(project, group, text) == []
    assert {setup.normal_name(name) for name in setup.locked(f"{group}.txt")} >= set(lock.wanted(project, group))
