"""The nouns of the `raftreg` command against a running registry: what administrators and their scripts see."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import io
import json
import signal
import socket
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftreg import cli, wire
from raftreg.certificates import api_client_context
from raftreg.client import Client
from raftreg.cluster_init import operator_files
from tests.registry import free_ports
from tests.test_cli import COMMAND, peer_arguments, raftreg, serving, wait_until_ready

UUID = "0b1c2d3e-0000-4000-8000-00000000000a"
SESSION = "5e551017-0000-4000-8000-000000000001"
NOUNS = ("image", "id", "block", "zone", "session", "change")
PATIENCE_S = 30


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One peer that serves; its directory."""
    directory = tmp_path_factory.mktemp("nouns") / "registry"
    raftreg("init", directory, *peer_arguments("a"))
    with serving(directory):
        wait_until_ready(directory, "a")
        yield directory


@pytest.fixture(autouse=True)
def configured(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFTREG_CONFIG", str(running))


def said(*arguments: object, status: int = 0) -> str:
    """The output of a command, errors included; in this process, since starting one for each costs a second."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            ended = cli.main([str(argument) for argument in arguments])
        except SystemExit as stopped:  # argparse ends so.
            ended = int(stopped.code or 0)
    assert ended == status, output.getvalue()
    return output.getvalue()


def documented(*arguments: object) -> Any:
    """The document that a command prints with --json."""
    return json.loads(said(*arguments, "--json"))


def cursor(directory: Path) -> str:
    (told,) = documented("status", "--config", directory).values()
    return f"1.{told['revision']}"


# -- images -------------------------------------------------------------------------------------------------------


def test_an_image_is_created_changed_and_deleted(running: Path) -> None:
    made = documented(
        *("image", "create", "--id", UUID.upper(), "--name", "cirros", "--visibility", "public", "--min-ram", 64),
        *("--disk-format", "qcow2", "--container-format", "bare", "--protected", "--tag", "a", "--tag", "b"),
        *("--property", "os_distro=cirros", "--property", "motto=a=b"),
    )
    assert (made["uuid"], made["name"], made["visibility"], made["protected"]) == (UUID, "cirros", "public", True)
    assert made["properties"] == {"os_distro": "cirros", "motto": "a=b"}
    assert (made["tags"], made["min_ram"], made["status"]) == (["a", "b"], 64, "queued")
    assert documented("image", "show", UUID) == made

    changed = documented(
        *("image", "update", made["number"], "--name", "new", "--visibility", "private", "--hidden"),
        *(
            "--property",
            "os_distro=other",
            "--remove-property",
            "motto",
            "--tag",
            "c",
            "--tag",
            "b",
            "--remove-tag",
            "a",
        ),
    )
    assert (changed["name"], changed["visibility"], changed["os_hidden"]) == ("new", "private", True)
    assert (changed["properties"], changed["tags"]) == ({"os_distro": "other"}, ["b", "c"])
    assert (changed["min_ram"], changed["protected"]) == (64, True)

    refused = said("image", "delete", UUID, status=1)
    assert refused == f"raftreg: image {made['number']} is protected; unprotect it first [protected]\n"
    said("image", "update", UUID, "--unprotected")
    assert said("image", "delete", UUID) == f"image {made['number']} ({UUID}) is deleted\n"
    assert "[image_deleted]" in said("image", "show", UUID, status=1)


def test_an_update_on_an_old_version_is_refused_where_the_same_attribute_changed(running: Path) -> None:
    made = documented("image", "create", "--name", "first")
    said("image", "update", made["number"], "--name", "second")
    assert "[conflict]" in said("image", "update", made["number"], "--name", "x", "--base-version", 1, status=1)
    assert documented("image", "update", made["number"], "--min-disk", 3, "--base-version", 1)["min_disk"] == 3


def test_tables_show_names_as_they_are(running: Path) -> None:
    made = documented("image", "create", "--name", "[bold]x[/]", "--owner", "tables")
    listed = said("image", "list", "--owner", "tables")
    assert "[bold]" in listed
    assert str(made["number"]) in listed
    assert "[bold]x[/]" in said("image", "show", made["number"])


def test_a_page_of_a_list_says_how_to_go_on(running: Path) -> None:
    numbers = [documented("image", "create", "--owner", "pages")["number"] for _ in range(2)]
    assert f"more: --marker {numbers[1]}" in said("image", "list", "--owner", "pages", "--limit", 1)
    rest = documented("image", "list", "--owner", "pages", "--marker", numbers[1])
    assert [image["number"] for image in rest["images"]] == [numbers[0]]


def test_a_list_takes_any_filter_and_order(running: Path) -> None:
    for name, tags in (("b", ["x", "y"]), ("a", ["x", "y"]), ("c", ["x"])):
        tagged = [argument for tag in tags for argument in ("--tag", tag)]
        said("image", "create", "--name", name, "--owner", "filters", "--property", "kind=test", *tagged)
    filters = [f"--filter={one}" for one in ("tag=x", "tag=y", "properties.kind=test", "protected=false")]
    listed = documented("image", "list", *filters, "--owner", "filters", "--sort", "name:asc")["images"]
    assert [image["name"] for image in listed] == ["a", "b"]
    assert "unknown parameter 'colour'" in said("image", "list", "--filter", "colour=red", status=1)


def test_a_write_that_is_repeated_with_its_key_happens_once(running: Path) -> None:
    first, second = (documented("image", "create", "--name", "once", "--key", "the-key") for _ in range(2))
    assert (first["number"], first["uuid"]) == (second["number"], second["uuid"])
    assert "[idempotency_mismatch]" in said("image", "create", "--name", "other", "--key", "the-key", status=1)


@pytest.mark.slow
def test_a_write_without_an_answer_ends_with_3_and_the_key_to_repeat_it_with() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        answer = raftreg("id", "allocate", "--endpoint", url, "--key", "my-key", status=3)
    assert "[outcome_unknown]" in answer
    assert answer.endswith("repeat it with --key my-key\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("image", "update", "1"), "name what is to be changed"),
        (("image", "update", "1", "--tag", "x", "--key", "k"), "without --key"),
        (("image", "update", "1", "--property", "x"), "NAME=VALUE"),
        (("image", "update", "1", "--protected", "--unprotected"), "not allowed with"),
        (("id", "allocate", "--count", "0"), "whole number of 1 or more"),
        (("compact",), "--floor"),
        (("compact", "--age", "1w"), "is no age"),
        (("block", "seal"), "--gateway"),
    ],
)
def test_wrong_usage_is_2_and_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in said(*arguments, status=2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("image", "create", "--visibility", "secret"), "visibility must be one of"),
        (("image", "create", "--id", "7"), "uuid must be a UUID"),
        (("image", "create", "--home-zone", "nowhere"), "is not registered"),
        (("image", "show", "x y"), "neither an image number"),
        (("zone", "show", "no/where"), "is not registered"),
        (("zone", "add", "no where"), "must be 1 to 63"),
        (("session", "show", "x"), "is remembered"),
        (("session", "show", SESSION.replace("5", "6")), "is remembered"),
        (("block", "seal", "--gateway", "nobody"), "has no such session"),
        (("change", "tail", "--after", "7"), "is no cursor"),
    ],
)
def test_what_the_registry_refuses_is_1_and_its_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    answer = said(*arguments, status=1)
    assert sentence in answer
    assert answer.startswith("raftreg: ")
    assert answer.count("\n") == 1


# -- numbers, zones, sessions, blocks -----------------------------------------------------------------------------


def test_numbers_are_allocated_once(running: Path) -> None:
    first = documented("id", "allocate", "--count", 10)
    assert first["last"] == first["first"] + 9
    assert said("id", "allocate") == f"{first['last'] + 1}\n"
    assert said("id", "allocate", "--count", 2) == f"{first['last'] + 2} {first['last'] + 3}\n"


def test_a_zone_is_added_shown_and_listed(running: Path) -> None:
    added = documented(
        "zone", "add", "lon", "--zone-endpoint", "https://lon.example:9292", "--capability", "arch=arm64"
    )
    assert (added["zone"], added["capabilities"], added["live"]) == ("lon", {"arch": "arm64"}, False)
    assert documented("zone", "add", "lon", "--zone-endpoint", "https://lon.example:9292") == added
    assert documented("zone", "show", "lon") == added
    assert documented("zone", "list")["zones"]["lon"] == added
    assert "lon.example" in said("zone", "list")
    assert "lon.example" in said("zone", "show", "lon")


def test_quotas_of_a_project_are_set_one_by_one_and_shown(running: Path) -> None:
    name = "a project/of 100%"
    assert documented("project", "set", name, "--images", 5, "--bytes", 100)["bytes_max"] == 100
    changed = documented("project", "set", name, "--bytes", "none")
    assert changed == {"project": name, "images": 0, "bytes": 0, "images_max": 5, "bytes_max": None}
    assert documented("project", "show", name) == changed
    assert "no bound" in said("project", "show", name)
    page = documented("project", "list", "--limit", 1)
    assert len(page["projects"]) == 1
    said("project", "set", "zzz", "--images", 0)
    said("image", "create", "--owner", "zzz", status=1)
    assert f"more: --after {page['projects'][0]['project']}" in said("project", "list", "--limit", 1)
    assert "name what is to be bounded" in said("project", "set", name, status=2)
    assert "must be a whole number" in said("project", "set", name, "--images", "-1", status=2)


def test_images_whose_data_nobody_can_get_are_listed_with_who_holds_them(running: Path) -> None:
    (url,) = status_urls(running)
    place = {"zone": "away", "store": "away", "key": "k-lost"}

    async def make() -> int:
        files = operator_files(running)
        assert files is not None
        async with Client([url], ssl=api_client_context(files)) as client:
            attributes = {"name": "gone", "owner": "losers", "status": "active"}
            made = [await client.create_image(attributes=attributes, locations=[place]) for _ in range(2)]
            await client.update_image(made[1]["number"], {"status": "deactivated"}, remove_locations=["k-lost"])
            return int(made[0]["number"])

    number = asyncio.run(make())
    page = documented("image", "lost", "--owner", "losers")
    assert [image["number"] for image in page["images"]] == [number, number + 1]
    listed = said("image", "lost", "--owner", "losers", "--limit", 1)
    assert "held by" in listed
    assert "away" in listed
    assert f"more: --marker {number}" in listed
    assert "away" not in said("image", "lost", "--owner", "losers", "--marker", number)


def test_the_feature_level_is_shown_and_raising_it_to_what_nobody_supports_is_refused(running: Path) -> None:
    assert documented("level", "show") == {
        "in_force": 1, "raising": False, "highest": 1, "held_back_by": [],
        "members": [{"kind": "voter", "name": "a", "level": 1}],
    }  # fmt: skip
    assert said("level", "show").startswith("feature level 1 is in force\n")
    assert said("level", "raise") == "feature level 1 is in force\n"
    assert documented("level", "raise", "--to", 1) == {"level": 1}
    answer = said("level", "raise", "--to", 2, status=1)
    assert answer == "raftreg: feature level 2 is held back by voter a (supports 1) [level_held_back]\n"


def granted(directory: Path, gateway: str, session: str) -> dict[str, Any]:
    """A block for a session of this gateway, as the gateway itself gets one."""
    (url,) = status_urls(directory)

    async def grant() -> dict[str, Any]:
        files = operator_files(directory)
        assert files is not None
        async with Client([url], ssl=api_client_context(files)) as client:
            opened = await client.open_session(
                gateway=gateway, zone="fra", session=session, highest_sequence=0, acked_sequence=0,
                acked_hash=wire.CHAIN_START,
            )  # fmt: skip
            return await client.grant_block(gateway=gateway, session=session, size=100, token=opened["token"])

    return asyncio.run(grant())


def status_urls(directory: Path) -> list[str]:
    return list(documented("status", "--config", directory))


def test_sessions_and_blocks_are_listed_and_a_gateways_blocks_are_sealed(running: Path) -> None:
    block = granted(running, "fra-1", SESSION)
    other = granted(running, "fra-2", SESSION.replace("5", "7"))
    shown = documented("session", "show", SESSION)
    assert (shown["gateway"], shown["zone"], shown["blocks"], shown["fenced"]) == (
        "fra-1",
        "fra",
        [block["first"]],
        None,
    )
    assert documented("session", "list", "--gateway", "fra-1", "--live") == {"sessions": [shown]}
    assert SESSION[:8] in said("session", "list")
    page = documented("block", "list", "--gateway", "fra-1")
    assert page["next"] is None
    assert [(b["first"], b["last"], b["sealed"]) for b in page["blocks"]] == [(block["first"], block["last"], False)]
    assert f"more: --after {block['first']}" in said("block", "list", "--limit", 1)
    behind = documented("block", "list", "--after", block["first"])["blocks"]
    assert [b["first"] for b in behind] == [other["first"]]
    assert said("block", "seal", "--gateway", "fra-1") == "1 blocks of gateway fra-1 are sealed\n"
    sealed = {b["gateway"]: b["sealed"] for b in documented("block", "list")["blocks"]}
    assert sealed == {"fra-1": True, "fra-2": False}


def test_the_digest_of_every_peer_is_shown_and_one_that_is_away_is_1(running: Path) -> None:
    (told,) = documented("digest").values()
    assert (told["name"], told["role"]) == ("a", "leader")
    assert told["applied"] > 0
    assert len(told["digest"]) >= 32
    assert "leader" in said("digest")
    (url,) = status_urls(running)
    dead = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert "cannot be reached" in said("digest", "--endpoint", url, "--endpoint", dead, status=1)


# -- changes ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tailing(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """`raftreg change tail --json` with its output in pipes."""
    process = subprocess.Popen(
        [*COMMAND, "change", "tail", "--json", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def next_change(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    change: dict[str, Any] = json.loads(process.stdout.readline())
    return change


def last_words(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    return process.stderr.read().decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_changes_come_as_they_happen_until_a_signal_and_go_on_at_the_cursor(
    running: Path, number: signal.Signals
) -> None:
    with tailing("--after", cursor(running)) as tail:
        made = documented("image", "create", "--name", "tailed")
        change = next_change(tail)
        assert (change["op"], change["number"], change["image"]["name"]) == ("create_image", made["number"], "tailed")
        assert change["actor"] == {"admin": True}
        tail.send_signal(number)
        assert tail.wait(PATIENCE_S) == 0
        assert last_words(tail) == f"raftreg: go on with --after {change['cursor']}\n"
    said("image", "delete", made["number"])
    line = raftreg("change", "tail", "--after", change["cursor"], "--count", 1)
    assert f"delete_image number {made['number']} uuid {made['uuid']}" in line


def test_a_tail_with_filters_tells_what_is_in_them_and_what_is_gone(running: Path) -> None:
    before = cursor(running)
    documented("image", "create", "--name", "other", "--visibility", "private")
    made = documented("image", "create", "--name", "seen", "--visibility", "public")
    documented("image", "update", made["number"], "--visibility", "private")
    filters = ("--kind", "image", "--visibility", "public", "--after", before)
    with tailing(*filters) as tail:
        assert next_change(tail)["number"] == made["number"]
        assert next_change(tail) == {
            "type": "gone", "cursor": cursor(running), "number": made["number"], "uuid": made["uuid"], "version": 2,
        }  # fmt: skip
        tail.send_signal(signal.SIGTERM)
        assert tail.wait(PATIENCE_S) == 0
    lines = raftreg("change", "tail", *filters, "--count", 2).splitlines()
    assert lines[1] == f"{cursor(running)} gone from the filter: number {made['number']} uuid {made['uuid']}"


def test_a_tail_ends_when_the_reader_of_its_pipe_goes_away_although_nothing_happens(running: Path) -> None:
    before = cursor(running)
    said("id", "allocate")
    said("zone", "add", f"pipe{before.replace('.', '-')}")
    with tailing("--after", before) as tail:
        next_change(tail)
        assert tail.stdout is not None
        tail.stdout.close()
        assert tail.wait(PATIENCE_S) == 0
        assert last_words(tail).startswith("raftreg: go on with --after 1.")


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="only Linux tells and sets how much a pipe holds")
def test_a_tail_whose_reader_takes_nothing_still_ends_at_a_signal(running: Path) -> None:
    before = cursor(running)
    with tailing("--after", before) as tail:
        assert tail.stdout is not None
        size = fcntl.fcntl(tail.stdout.fileno(), fcntl.F_SETPIPE_SZ, 4096)
        for _ in range(3):
            said("image", "create", "--property", f"p={'x' * size}")
        blocked_in_write(tail)
        tail.send_signal(signal.SIGTERM)
        assert tail.wait(PATIENCE_S) == 0
        assert last_words(tail) == f"raftreg: go on with --after {before}\n"


def blocked_in_write(process: subprocess.Popen[bytes]) -> None:
    """Until the pipe is full: only what could not be written whole is left then."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    size = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)

    async def full() -> None:
        async with asyncio.timeout(PATIENCE_S):
            while waiting(descriptor) < size:  # noqa: ASYNC110 - a full pipe has no event
                await asyncio.sleep(0.02)

    asyncio.run(full())


def waiting(descriptor: int) -> int:
    """How many bytes wait in a pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]


def test_a_cursor_below_the_compaction_floor_is_4_and_says_what_to_do(running: Path) -> None:
    for _ in range(3):
        documented("image", "create")
    here = cursor(running)
    revision = int(here.removeprefix("1."))
    assert documented("compact", "--age", "1h") == {"floor": 1}
    assert said("compact", "--floor", revision) == f"the changefeed begins at revision {revision}\n"
    answer = raftreg("change", "tail", "--after", "1.0", status=4)
    assert f"then follow with --after {here}" in answer
    assert answer.endswith("[compacted]\n")
    assert "[wrong_epoch]" in raftreg("change", "tail", "--after", "7.0", status=4)
    with tailing("--after", f"1.{revision - 1}") as tail:
        assert next_change(tail)["cursor"] == here
    assert documented("compact", "--age", "0") == {"floor": revision + 1}
