"""The `raftreg` command as its users run it: real processes, their output and exit status."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import pytest

from raftreg import cli
from raftreg.records import seal, unseal
from tests.registry import free_ports

COMMAND = [sys.executable, "-m", "raftreg.cli"]
READY_S = 30.0


def raftreg(*arguments: object, status: int | None = 0) -> str:
    """Run one command to its end, whatever its status if that is None; its output, errors included.

    A traceback is never an answer to a user.
    """
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert status in (done.returncode, None), done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


@contextlib.contextmanager
def serving(directory: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A peer as a process of its own; killed at the end if it has not ended by itself."""
    with (directory.parent / f"{directory.name}.log").open("ab") as log:
        process = subprocess.Popen([*COMMAND, "serve", *options, str(directory)], stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10)


def peer_arguments(names: str) -> list[str]:
    ports = iter(free_ports(2 * len(names)))
    return [part for n in names for part in ("--peer", f"{n}=127.0.0.1:{next(ports)},127.0.0.1:{next(ports)}")]


def status(directory: Path) -> dict[str, dict[str, Any]]:
    """What `raftreg status --json` tells, by name of the peers that answer."""
    done = subprocess.run(
        [*COMMAND, "status", "--config", str(directory), "--json"], capture_output=True, timeout=60, check=False
    )
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return {answer["name"]: answer for answer in answers.values() if "name" in answer}


def wait_until_ready(directory: Path, names: str) -> dict[str, dict[str, Any]]:
    """Until all of these peers answer, know a leader and vote."""
    deadline = time.monotonic() + READY_S
    while True:
        answers = status(directory)
        if set(answers) >= set(names) and all(a["leader"] and not a["recovering"] for a in answers.values()):
            return answers
        assert time.monotonic() < deadline, f"not ready: {answers}"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """With a space in its name, as users have."""
    return tmp_path / "my registry"


def test_a_single_peer_is_initialised_served_asked_and_stopped(directory: Path) -> None:
    output = raftreg("init", directory, *peer_arguments("a"), "--gateway", "ams-1=ams", "--client", "app")
    assert "raftreg serve" in output
    for key in (directory / "ca.key", *directory.rglob("key.pem")):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    for tls in ("a/tls", "gateways/ams-1/tls", "clients/app/tls", "clients/operator/tls"):
        assert {file.name for file in (directory / tls).iterdir()} == {"ca.pem", "cert.pem", "key.pem"}
    with serving(directory) as process:
        assert wait_until_ready(directory, "a")["a"]["role"] == "leader"
        table = raftreg("status", "--config", directory)
        assert "leader a" in table
        assert raftreg("image", "list", "--config", directory, "--json") == '{"images":[],"next":null}\n'
        assert "[image_not_found]" in raftreg("image", "show", "7", "--config", directory, status=1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    assert "cannot be reached" in raftreg("status", "--config", directory, status=1)


def test_a_cluster_is_initialised_once(directory: Path) -> None:
    arguments = ["init", directory, *peer_arguments("abc")]
    raftreg(*arguments)
    before = sorted(directory.rglob("*"))
    identity = (directory / "b" / "store" / "data.mdb").read_bytes()
    assert "is there already" in raftreg(*arguments, status=1)
    shutil.rmtree(directory / "a")
    assert "is there already" in raftreg(*arguments, status=1)
    assert (directory / "b" / "store" / "data.mdb").read_bytes() == identity
    assert [path for path in before if "a" not in path.relative_to(directory).parts[0:1]] == [
        path for path in sorted(directory.rglob("*")) if "a" not in path.relative_to(directory).parts[0:1]
    ]


def test_init_is_refused_where_somebody_answers(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        peer = f"a=127.0.0.1:{taken.getsockname()[1]},127.0.0.1:{free_ports(1)[0]}"
        assert "somebody answers" in raftreg("init", directory, "--peer", peer, status=1)
        assert not directory.exists()
        raftreg("init", directory, "--peer", peer, "--offline")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--peer", "a"], "NAME=RAFT_HOST:PORT,API_HOST:PORT"),
        (["--peer", "a=x,y"], "HOST:PORT"),
        (["--peer", "../a=h:1,h:2"], "use up to 63"),
        (["--peer", "gateways=h:1,h:2"], "cannot be called"),
        (["--peer", "a=h:1,h:2", "--peer", "b=h:3,h:4"], "odd number"),
        (["--peer", "a=h:1,h:2", "--peer", "a=h:3,h:4", "--peer", "c=h:5,h:6"], "listed twice"),
        (["--peer", "a=h:1,h:1"], "listed twice"),
        (["--gateway", "x"], "NAME=ZONE"),
        (["--gateway", "x=a;b"], "use up to 63"),
        (["--gateway", "x=a", "--gateway", "x=b"], "listed twice"),
        (["--client", "a/b"], "use up to 63"),
        (["--client", "operator"], "is made in any case"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_and_leaves_nothing(
    directory: Path, arguments: list[str], sentence: str
) -> None:
    assert sentence in raftreg("init", directory, *arguments, "--offline", status=1)
    assert not directory.exists()


def test_serve_refuses_a_directory_that_is_not_its_own(directory: Path) -> None:
    raftreg("init", directory, *peer_arguments("abc"))
    swapped = directory / "a" / "store"
    shutil.rmtree(swapped)
    assert "raftreg rejoin" in raftreg("serve", directory / "a", status=1)
    shutil.copytree(directory / "b" / "store", swapped)
    assert "belongs to peer 'b'" in raftreg("serve", directory / "a", status=1)


def test_serve_refuses_a_store_of_a_newer_release(directory: Path) -> None:
    raftreg("init", directory, *peer_arguments("a"))
    with lmdb.open(str(directory / "a" / "store"), max_dbs=4) as env:
        meta = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            identity = msgpack.unpackb(unseal(b"identity", bytes(txn.get(b"identity", db=meta) or b"")))
            newer = msgpack.packb({**identity, "format": identity["format"] + 1})
            txn.put(b"identity", seal(b"identity", newer), db=meta)
    assert "newer release" in raftreg("serve", directory, status=1)


def test_without_a_configuration_every_command_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAFTREG_CONFIG", raising=False)
    for command in (["serve"], ["status"], ["rejoin"], ["image", "list"]):
        assert "--config" in raftreg(*command, status=1)
    assert "raftreg init" in raftreg("serve", tmp_path, status=1)
    monkeypatch.setenv("RAFTREG_CONFIG", str(tmp_path / "nowhere"))
    assert "nowhere" in raftreg("serve", status=1)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A command and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_the_help_of_every_command_ends_with_examples_that_are_right_and_exit_statuses() -> None:
    top = cli._parser()
    assert len(list(parsers(top))) > 40
    for parser in parsers(top):
        head, _, statuses = (parser.epilog or "").partition("\nexit status: 0 done")
        assert statuses, f"{parser.prog} --help"
        lines = head.removeprefix("examples:\n").replace("\\\n", "").splitlines()
        examples = [line for line in lines if line.startswith("  raftreg ")]
        assert any(example.strip().startswith(parser.prog) for example in examples), f"{parser.prog} --help"
        for example in examples:
            # What a shell does around it, and the remark behind it, are not the command's.
            words = shlex.split(re.split(r" \||   ", example.strip())[0])
            top.parse_args(words[1:])


def test_wrong_usage_is_2_and_version_is_told() -> None:
    assert "usage" in raftreg("sevre", status=2)
    assert re.fullmatch(r"raftreg \d+\.\d+\.\d+\S*\n", raftreg("version"))


@pytest.mark.slow
def test_a_peer_whose_disk_was_replaced_rejoins_and_catches_up(directory: Path) -> None:
    raftreg("init", directory, *peer_arguments("abc"))
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(serving(directory / name)) for name in "abc"}
        wait_until_ready(directory, "abc")
        assert "already holds" in raftreg("rejoin", directory / "c", status=1)
        processes["c"].kill()
        processes["c"].wait(10)
        shutil.rmtree(directory / "c" / "store")
        assert "has an empty store" in raftreg("rejoin", directory / "c")
        stack.enter_context(serving(directory / "c"))
        answers = wait_until_ready(directory, "abc")
        assert answers["c"]["cluster_id"] == answers["a"]["cluster_id"]
        for name in "ab":
            processes[name].send_signal(signal.SIGTERM)
            assert processes[name].wait(15) == 0
