"""The environment that our programs run in: the caller's settings change nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.dev import environment

ROOT = Path(environment.__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "name",
    [
        "OS_USERNAME",
        "PYTHONPATH",
        "PYTHONHOME",
        "http_proxy",
        "HTTPS_PROXY",
        "NO_PROXY",
        "LC_CTYPE",
        "LANG",
        "RAFTREG_CONFIG",
    ],
)
def test_settings_of_the_caller_do_not_reach_our_programs(name: str) -> None:
    assert name not in environment.clean({name: "hostile", "PATH": "/bin"})


def test_what_programs_need_is_kept() -> None:
    kept = {
        "PATH": "/bin",
        "HOME": "/h",
        "TMPDIR": "/t",
        "TOXIPROXY_URL": "http://127.0.0.1:8474",
        "SSL_CERT_FILE": "/c",
    }
    assert kept.items() <= environment.clean(kept).items()


def test_pip_keeps_proxies_certificates_and_sources_but_installs_where_it_is_told() -> None:
    kept = {"https_proxy": "http://127.0.0.1:3128", "PIP_CERT": "/c", "PIP_FIND_LINKS": "/w", "SSL_CERT_FILE": "/c"}
    env = environment.for_pip(kept | {"PIP_USER": "1", "PIP_TARGET": "/elsewhere", "PYTHONHOME": "/x"})
    assert kept.items() <= env.items()
    assert env["PIP_USER"] == "0"
    assert not {"PIP_TARGET", "PYTHONHOME"} & env.keys()


def test_text_is_utf8_under_any_locale() -> None:
    env = environment.clean({"PATH": os.environ["PATH"], "LANG": "C", "LC_ALL": "xx_YY.ISO-8859-1"})
    said = subprocess.run(
        [sys.executable, "-c", "print('zone Ü → €')"], env=env, capture_output=True, check=True, timeout=30
    )
    assert said.stdout.decode("utf-8") == "zone Ü → €\n"


@pytest.mark.parametrize(("soft", "hard"), [(64, 4096), (1000, 1024)])
def test_the_soft_limit_of_open_files_is_raised_as_far_as_the_hard_one_allows(soft: int, hard: int) -> None:
    assert _limit_reached(soft, hard) == hard


def test_a_hard_limit_that_is_too_low_is_raised_where_privileges_allow_and_reported_where_not() -> None:
    may_raise = _succeeds(
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (64, 64)); r.setrlimit(r.RLIMIT_NOFILE, (64, 65))"
    )
    reached = _limit_reached(64, 64)
    assert reached >= environment.OPEN_FILES_MIN if may_raise else reached == 64


def test_a_person_is_told_how_to_raise_a_limit_that_we_can_not() -> None:
    advice = environment.open_files_advice(64)
    assert "64 files" in advice
    assert str(environment.OPEN_FILES_MIN) in advice


def _succeeds(code: str) -> bool:
    return (
        subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=False, timeout=30).returncode == 0
    )


def _limit_reached(soft: int, hard: int) -> int:
    """What raise_open_files_limit says in a process that starts with these limits."""
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from ops.dev import environment\n"
        "limit = environment.raise_open_files_limit()\n"
        "assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]\n"
        "print(limit)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True, timeout=30)
    return int(done.stdout)
