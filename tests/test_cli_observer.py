"""`raftreg observer add`, `init --observer` and `serve --observer` as their users run them."""

from __future__ import annotations

import contextlib
import json
import shutil
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from raftreg import config
from raftreg.certificates import Subject, subject_of
from raftreg.store import read_identity
from tests.registry import free_ports
from tests.test_cli import READY_S, peer_arguments, raftreg, serving, status, wait_until_ready


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """With a space in its name, as users have."""
    return tmp_path / "my registry"


def address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


def wait_until_caught_up(directory: Path, url: str) -> dict[str, Any]:
    """Until an observer knows a leader and how old its state is; what it says of itself."""
    deadline = time.monotonic() + READY_S
    while True:
        shown = raftreg("status", "--config", directory, "--endpoint", url, "--json", status=None)
        answer: dict[str, Any] = json.loads(shown)[url]
        if answer.get("staleness_s") is not None and answer["leader"]:
            assert answer["role"] == "observer"
            return answer
        assert time.monotonic() < deadline, shown


def certificate(directory: Path) -> Subject | None:
    import ssl

    decoded: Any = ssl._ssl._test_decode_cert(str(directory / "tls" / "cert.pem"))  # type: ignore[attr-defined]
    return subject_of(decoded)


@pytest.mark.slow
def test_an_observer_is_added_to_a_cluster_served_and_shown(directory: Path) -> None:
    raftreg("init", directory, *peer_arguments("a"))
    where = address()
    with serving(directory / "a"):
        voter = wait_until_ready(directory, "a")["a"]
        output = raftreg("observer", "add", directory, f"ams={where}")
        assert f"raftreg serve --observer {directory / 'ams'}" in output
        assert certificate(directory / "ams") == Subject("ams", "observer")
        assert stat.S_IMODE((directory / "ams" / "tls" / "key.pem").stat().st_mode) == 0o600
        assert "is there already" in raftreg("observer", "add", directory, f"ams={address()}", status=1)
        with serving(directory / "ams", "--observer"):
            assert wait_until_caught_up(directory, f"https://{where}")["cluster_id"] == voter["cluster_id"]
            assert status(directory)["a"]["observers"]["ams"]["connected"]
            assert "ams" in raftreg("status", "--config", directory)
            assert "image_not_found" in raftreg(
                "image", "show", "7", "--config", directory, "--endpoint", f"https://{where}", status=1
            )
        identity = read_identity(directory / "ams")
        assert (identity.observer, identity.cluster_id, identity.peers) == (True, voter["cluster_id"], ("a",))


@pytest.mark.slow
def test_an_observer_is_added_where_no_voter_s_directory_is_left(directory: Path, tmp_path: Path) -> None:
    peers = peer_arguments("a")
    raftreg("init", directory, *peers)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(directory / "a", elsewhere)
    assert "list the voters with --peer" in raftreg("observer", "add", directory, f"ams={address()}", status=1)
    assert "says who it is" in raftreg("observer", "add", directory, f"ams={address()}", *peers, status=1)
    assert not (directory / "ams").exists()
    where = address()
    with serving(elsewhere):
        wait_until_ready(elsewhere, "a")
        raftreg("observer", "add", directory, f"ams={where}", *peers)
        with serving(directory / "ams", "--observer"):
            wait_until_caught_up(directory, f"https://{where}")


@pytest.mark.slow
def test_init_makes_observers_and_a_wiped_one_is_made_anew_with_one_command(directory: Path) -> None:
    where = address()
    output = raftreg("init", directory, *peer_arguments("abc"), "--observer", f"ams={where}")
    assert "raftreg serve --observer" in output
    settings = config.load(directory / "ams")
    assert settings.observer
    assert set(settings.raft_peers) == set(settings.api_peers) == set("abc")
    with contextlib.ExitStack() as stack:
        for name in "abc":
            stack.enter_context(serving(directory / name))
        wait_until_ready(directory, "abc")
        shutil.rmtree(directory / "ams" / "store")
        assert "raftreg rejoin" in raftreg("serve", "--observer", directory / "ams", status=1)
        assert "serve --observer" in raftreg("rejoin", directory / "ams")
        with serving(directory / "ams", "--observer"):
            wait_until_caught_up(directory, f"https://{where}")


def test_a_voter_is_not_served_as_an_observer_nor_the_other_way_round(directory: Path) -> None:
    raftreg("init", directory, *peer_arguments("a"), "--observer", f"ams={address()}")
    assert f"raftreg serve --observer {directory / 'ams'}" in raftreg("serve", directory / "ams", status=1)
    assert "is a voter" in raftreg("serve", "--observer", directory / "a", status=1)


@pytest.mark.parametrize(
    ("observer", "sentence"),
    [
        ("ams", "NAME=API_HOST:PORT"),
        ("ams=h:1,h:2", "NAME=API_HOST:PORT"),
        ("ams=x", "HOST:PORT"),
        ("../ams=h:1", "use up to 63"),
        ("a=127.0.0.1:1", "is listed twice|is there already"),
        ("gateways=h:1", "cannot be called|is there already"),
    ],
)
def test_an_observer_that_makes_no_sense_is_refused_and_leaves_nothing(
    directory: Path, observer: str, sentence: str
) -> None:
    planned = ["init", directory, *peer_arguments("a"), "--gateway", "x=ams"]
    refused = raftreg(*planned, "--observer", observer, "--offline", status=1)
    assert any(part in refused for part in sentence.split("|"))
    assert not directory.exists()
    raftreg(*planned)
    before = sorted(directory.rglob("*"))
    refused = raftreg("observer", "add", directory, observer, "--offline", status=1)
    assert any(part in refused for part in sentence.split("|"))
    assert sorted(directory.rglob("*")) == before


def test_an_observer_needs_the_authority_and_an_address_of_its_own(directory: Path, tmp_path: Path) -> None:
    raftreg("init", directory, *peer_arguments("a"))
    with serving(directory / "a"):
        wait_until_ready(directory, "a")
        taken = config.load(directory / "a").api_listen
        assert "somebody answers" in raftreg("observer", "add", directory, f"ams={taken}", status=1)
    (directory / "ca.key").rename(tmp_path / "ca.key")
    assert "no ca.key" in raftreg("observer", "add", directory, f"ams={address()}", status=1)
