"""`raftreg peer list|replace` and `raftreg rejoin` as operators run them, right and wrong."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftreg import config
from raftreg.cli import main
from raftreg.store import Store
from raftreg.voter_change import change_store
from tests.serving_peers import READY_S, client, wait_until_ready
from tests.test_cli import COMMAND, peer_arguments, raftreg, serving


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "my registry"


def arguments_of(directory: Path, names: str) -> list[str]:
    """--peer arguments with the addresses that the peers have, and free ones for new peers."""
    found: list[str] = []
    for name in names:
        if (directory / name).exists():
            own = config.load(directory / name)
            found += ["--peer", f"{name}={own.raft_listen},{own.api_listen}"]
        else:
            found += peer_arguments(name)
    return found


def listed(*arguments: object, status: int = 0) -> dict[str, dict[str, Any]]:
    rows = json.loads(raftreg("peer", "list", *arguments, "--json", status=status))["peers"]
    return {row["name"]: row for row in rows}


def end(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        assert process.wait(20) == 0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


async def create(directory: Path, uuid: str) -> int:
    async with client(directory) as registry:
        image = await registry.create_image(uuid=uuid, attributes={"name": uuid})
        return int(image["number"])


async def numbers(directory: Path) -> list[int]:
    async with client(directory) as registry:
        return sorted(image["number"] for image in (await registry.list_images(limit=100))["images"])


UUIDS = [f"{number}0000000-0000-4000-8000-000000000000" for number in range(1, 5)]


@pytest.mark.slow
async def test_three_peers_become_five_and_keep_what_they_have(directory: Path) -> None:
    raftreg("init", directory, *peer_arguments("abc"))
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(serving(directory / name)) for name in "abc"}
        wait_until_ready(directory, "abc")
        assert await create(directory, UUIDS[0]) == 1
        change = ["peer", "replace", directory, *arguments_of(directory, "abcde")]
        assert "is running" in raftreg(*change, status=1)
        end(*processes.values())
        done = raftreg(*change)
        assert "generation 2: a, b, c, d, e (was a, b, c)" in done
        assert f"move {directory / 'd'} to its machine" in done
        assert {row["generation"] for row in listed("--config", directory, "--offline").values()} == {2}
        for name in "abcde":
            processes[name] = stack.enter_context(serving(directory / name))
        answers = wait_until_ready(directory, "abcde")
        assert answers["d"]["voters"]["names"] == list("abcde")
        assert await create(directory, UUIDS[1]) == 2
        rows = listed("--config", directory)
        assert set(rows) == set("abcde")
        assert [row["connected"] for row in rows.values()] == [True] * 5
        assert sorted(row["role"] for row in rows.values()) == ["follower"] * 4 + ["leader"]
        assert all(row["match"] and row["raft"] and row["api"] for row in rows.values())
        # A disk of the new set that is replaced later is of the new set too.
        end(processes["e"])
        raftreg("rejoin", directory / "e", "--replace")
        stack.enter_context(serving(directory / "e"))
        assert wait_until_ready(directory, "abcde")["e"]["voters"]["generation"] == 2
        # Two may go now: the new ones count.
        end(*(processes[name] for name in "ab"))
        wait_until_ready(directory, "cde")
        assert await create(directory, UUIDS[2]) == 3
        assert await numbers(directory) == [1, 2, 3]


@pytest.mark.slow
async def test_an_address_changes_and_the_set_stays(directory: Path) -> None:
    raftreg("init", directory, *peer_arguments("abc"))
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(serving(directory / name)) for name in "abc"]
        wait_until_ready(directory, "abc")
        assert await create(directory, UUIDS[0]) == 1
        end(*processes)
        moved = [*arguments_of(directory, "ab"), *peer_arguments("c")]
        assert "the voters stay a, b, c" in raftreg("peer", "replace", directory, *moved)
        assert config.load(directory / "a").raft_peers["c"] == moved[-1].split("=")[1].split(",")[0]
        assert config.load(directory / "c").api_listen == moved[-1].split(",")[1]
        for name in "abc":
            stack.enter_context(serving(directory / name))
        answers = wait_until_ready(directory, "abc")
        assert {answer["voters"]["generation"] for answer in answers.values()} == {1}
        assert await numbers(directory) == [1]


@pytest.mark.slow
async def test_a_single_peer_becomes_three(directory: Path) -> None:
    raftreg("init", directory, *peer_arguments("a"))
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(serving(directory / "a"))
        wait_until_ready(directory, "a")
        assert await create(directory, UUIDS[0]) == 1
        end(alone)
        raftreg("peer", "replace", directory, *arguments_of(directory, "abc"))
        for name in "abc":
            stack.enter_context(serving(directory / name))
        wait_until_ready(directory, "abc")
        assert await create(directory, UUIDS[1]) == 2
        assert await numbers(directory) == [1, 2]


@pytest.mark.slow
def test_machines_are_changed_one_by_one_with_what_the_first_one_printed(directory: Path) -> None:
    """c is replaced by d: a and b on machines of their own, the authority on a third."""
    raftreg("init", directory, *peer_arguments("abc"))
    machines = {name: directory.parent / f"machine {name}" for name in "ab"}
    for name, machine in machines.items():
        (directory / name).rename(machine)
    shutil.rmtree(directory / "c")
    wanted = [part for name in "ab" for part in ("--peer", peer_of(machines[name]))] + peer_arguments("d")
    said = raftreg("peer", "replace", machines["a"], *wanted)
    assert "a is done" in said
    assert "c is no voter any more" in said
    commands = {
        words[words.index("replace") + 1]: words
        for line in said.splitlines()
        if ": raftreg peer replace " in line
        for words in [shlex.split(line.split(": ", 1)[1])[1:]]
    }
    assert set(commands) == {"DIR-OF-b", "CLUSTER-DIR"}
    for place, path in (("DIR-OF-b", machines["b"]), ("CLUSTER-DIR", directory)):
        assert "is done" in raftreg(*(str(path) if word == place else word for word in commands[place]))
    stored = [listed("--config", path, "--offline") for path in (*machines.values(), directory / "d")]
    assert [row["generation"] for rows in stored for row in rows.values()] == [2, 2, 2]
    assert stored[2]["d"]["role"] == "recovering"
    with contextlib.ExitStack() as stack:
        for path in (*machines.values(), directory / "d"):
            stack.enter_context(serving(path))
        operator = ["--tls", directory / "clients" / "operator" / "tls"]
        endpoints = [part for url in config.load(machines["a"]).api_peers.values() for part in ("--endpoint", url)]

        def all_vote() -> bool:
            done = subprocess.run(
                [*COMMAND, *map(str, ("peer", "list", *endpoints, *operator, "--json"))],
                capture_output=True,
                timeout=60,
                check=False,
            )
            roles = [row["role"] for row in json.loads(done.stdout)["peers"]]
            return sorted(map(str, roles)) == ["follower", "follower", "leader"]

        until(all_vote)


def peer_of(machine: Path) -> str:
    own = config.load(machine)
    return f"{own.name}={own.raft_listen},{own.api_listen}"


@pytest.mark.slow
def test_a_change_that_was_cut_off_is_visible_and_done_again(directory: Path) -> None:
    """The power fails between the store and the configuration of a; b and c are untouched."""
    raftreg("init", directory, *peer_arguments("abc"))
    change = ["peer", "replace", directory, *arguments_of(directory, "abcde")]
    store = Store(directory / "a", map_size_bytes=1 << 26)
    change_store(store, "abcde")
    store.close()
    assert "peer replace" in raftreg("serve", directory / "a", status=1)
    rows = listed("--config", directory, "--offline")
    assert [rows[name]["generation"] for name in "abc"] == [2, 1, 1]
    assert "run `raftreg peer replace` again" in rows["a"]["note"]
    raftreg(*change)
    first = {name: (directory / name / "raftreg.toml").read_text() for name in "abcde"}
    rows = listed("--config", directory, "--offline")
    assert {row["generation"] for row in rows.values()} == {2}
    assert {row["role"] for row in rows.values()} == {"stored", "recovering"}
    raftreg(*change)
    assert {name: (directory / name / "raftreg.toml").read_text() for name in "abcde"} == first
    assert {row["generation"] for row in listed("--config", directory, "--offline").values()} == {2}


def test_wrong_changes_are_refused_and_change_nothing(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raftreg("init", directory, *peer_arguments("abc"))
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != "lock.mdb"}

    def refused(sentence: str, *arguments: object) -> None:
        assert main(["peer", "replace", *map(str, arguments)]) == 1
        assert sentence in capsys.readouterr().err
        assert {path: path.read_bytes() for path in directory.rglob("*") if path in before} == before

    refused("--peer", directory)
    refused("odd number", directory, *arguments_of(directory, "abcd"))
    refused("no majority", directory, *arguments_of(directory, "ade"))
    refused("raftreg recover", directory, *arguments_of(directory, "a"))
    refused("present directory", directory, *arguments_of(directory, "abd"), "--after", "other/1/1/a,b,c")
    refused("as the first", directory, *arguments_of(directory, "abd"), "--after", "nonsense")
    empty = directory.parent / "empty"
    empty.mkdir()
    refused("run the command on a machine with one first", empty, *arguments_of(directory, "abd"))


def test_a_second_change_waits_until_the_first_one_is_finished(directory: Path) -> None:
    raftreg("init", directory, *peer_arguments("abcde"))
    raftreg("peer", "replace", directory, *arguments_of(directory, "abc"))
    said = raftreg("peer", "replace", directory, *arguments_of(directory, "abf"), status=1)
    assert "has not finished the change to generation 2" in said


def test_somebody_who_answers_stops_a_change(directory: Path) -> None:
    """A copy of a directory, as on another machine whose peer still runs."""
    raftreg("init", directory, *peer_arguments("a"))
    copy = directory.parent / "copy"
    shutil.copytree(directory, copy)
    wanted = arguments_of(directory, "abc")
    with serving(directory / "a"):
        wait_until_ready(directory, "a")
        assert "somebody answers" in raftreg("peer", "replace", copy, *wanted, status=1)
    assert "generation 2" in raftreg("peer", "replace", copy, *wanted)


# -- rejoin -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_rolled_back_disk_rejoins_with_one_command_and_keeps_the_old_store_aside(directory: Path) -> None:
    raftreg("init", directory, *peer_arguments("abc"))
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(serving(directory / name)) for name in "abc"}
        wait_until_ready(directory, "abc")
        assert "--replace moves it aside" in raftreg("rejoin", directory / "c", status=1)
        assert "is running" in raftreg("rejoin", directory / "c", "--replace", status=1)
        end(processes["c"])
        said = raftreg("rejoin", directory / "c", "--replace")
        assert "store.replaced-1" in said
        assert (directory / "c" / "store.replaced-1" / "data.mdb").exists()
        stack.enter_context(serving(directory / "c"))
        wait_until_ready(directory, "abc")


def test_rejoin_says_what_is_wrong_and_changes_nothing(directory: Path) -> None:
    raftreg("init", directory, *peer_arguments("abc"))
    stranger = directory.parent / "stranger"
    raftreg("init", stranger, *peer_arguments("x"))
    shutil.rmtree(directory / "c" / "store")
    assert "no other peer of c's cluster answers" in raftreg("rejoin", directory / "c", status=1)
    with serving(stranger / "x"):
        wait_until_ready(stranger, "x")
        file = directory / "c" / "raftreg.toml"
        made = config.load(file)
        elsewhere = config.load(stranger / "x").api_listen
        changed = file.read_text().replace(made.api_peers["a"], f"https://{elsewhere}")
        file.write_text(changed.replace(made.api_peers["b"], f"https://{elsewhere}"))
        assert "no other peer of c's cluster answers" in raftreg("rejoin", directory / "c", status=1)
        # Even with certificates that the stranger accepts, its cluster is not ours.
        shutil.rmtree(directory / "c" / "tls")
        shutil.copytree(stranger / "x" / "tls", directory / "c" / "tls")
        assert "the cluster's voters are x" in raftreg("rejoin", directory / "c", status=1)
    assert not (directory / "c" / "store").exists()


def test_a_single_peer_has_nobody_to_rejoin(directory: Path) -> None:
    raftreg("init", directory, *peer_arguments("a"))
    shutil.rmtree(directory / "a" / "store")
    assert "`raftreg restore` starts it from a backup" in raftreg("rejoin", directory / "a", status=1)
