"""`raftreg recover` and `raftreg backup` as operators run them: quorum lost for good, a new epoch from what is left."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from raftreg import config, errors, state_machine, stored_peer
from raftreg.cli import main
from raftreg.commands import EPOCH_IDS_SKIPPED
from raftreg.engine import regular_entry
from raftreg.recovery import begin_life
from raftreg.store import Store
from raftreg.stored_peer import in_use
from tests.serving_peers import READY_S, client, wait_until_ready
from tests.test_cli import peer_arguments, raftreg, serving
from tests.test_cli_peer import UUIDS, arguments_of, create, end, listed, numbers


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "my registry"


@contextlib.contextmanager
def ran_before(directory: Path, names: str) -> Any:
    """A cluster whose peers are up inside the block, and stopped behind it."""
    raftreg("init", directory, *peer_arguments(names))
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(serving(directory / name)) for name in names]
        wait_until_ready(directory, names)
        yield
        end(*processes)


def offline(directory: Path) -> dict[str, Any]:
    return listed("--config", directory, "--offline")["a"]


async def old_cursor_is_gone(directory: Path, cursor: str) -> None:
    async with client(directory) as registry:
        with pytest.raises(errors.WrongEpoch):
            await anext(registry.changes(cursor))


@pytest.mark.slow
async def test_a_survivor_begins_a_new_epoch_with_all_that_it_holds_and_grows_again(directory: Path) -> None:
    with ran_before(directory, "abc"):
        assert await create(directory, UUIDS[0]) == 1
    for name in "bc":
        shutil.rmtree(directory / name / "store")
    said = raftreg("recover", "--from-survivor", directory / "a", status=1)
    assert "b was last known to hold index" in said
    assert "--yes" in said
    assert "epoch 1" in offline(directory / "a")["note"]
    peers = arguments_of(directory, "abc")
    said = raftreg("recover", "--from-survivor", directory / "a", "--yes", *peers)
    assert "a begins epoch 2" in said
    again = raftreg("recover", "--from-survivor", directory / "a", "--yes", *peers)
    assert "is recovered already" in again
    rows = listed("--config", directory, "--offline")
    assert {row["generation"] for row in rows.values()} == {3}
    with contextlib.ExitStack() as stack:
        for name in "abc":
            stack.enter_context(serving(directory / name))
        answers = wait_until_ready(directory, "abc")
        assert {answer["epoch"] for answer in answers.values()} == {2}
        assert await create(directory, UUIDS[1]) == 2 + EPOCH_IDS_SKIPPED
        assert await numbers(directory) == [1, 2 + EPOCH_IDS_SKIPPED]
        await old_cursor_is_gone(directory, "1.1")


@pytest.mark.slow
async def test_a_backup_of_a_running_peer_becomes_a_new_epoch_on_an_empty_disk(directory: Path) -> None:
    file = directory.parent / "registry.backup"
    with ran_before(directory, "a"):
        assert await create(directory, UUIDS[0]) == 1
        # At once: what was acknowledged just now is in the log, and not yet in the state on disk.
        raftreg("backup", "create", file, "--config", directory / "a")
        assert "never overwritten" in raftreg("backup", "create", file, "--config", directory / "a", status=1)
        assert await create(directory, UUIDS[1]) == 2
    label = json.loads(raftreg("backup", "verify", file, "--json"))
    assert label["log_last"] >= label["log_index"] > 1
    restore = ["recover", "--from-backup", file, directory / "a"]
    assert "has a store" in raftreg(*restore, "--yes", status=1)
    shutil.rmtree(directory / "a" / "store")
    said = raftreg(*restore, status=1)
    assert "hours ago" in said
    assert "--yes" in said
    assert not (directory / "a" / "store").exists()
    assert "--epoch must be higher" in raftreg(*restore, "--yes", "--epoch", 1, status=1)
    raftreg(*restore, "--yes", "--epoch", 5, "--id-floor", 50_000_000)
    assert "is recovered already" in raftreg(*restore, "--yes")
    with serving(directory / "a"):
        assert wait_until_ready(directory, "a")["a"]["epoch"] == 5
        assert await numbers(directory) == [1]
        assert await create(directory, UUIDS[1]) == 50_000_000
        await old_cursor_is_gone(directory, "1.1")


def used(directory: Path, name: str) -> None:
    """As if this peer had been started once: a log of three entries, two applied, and what it knew of the others."""
    store = Store(directory / name, map_size_bytes=1 << 30)
    entry = msgpack.packb([1, 1_700_000_000_000_000, [{"op": "register_zone", "zone": "ams"}]])
    for index, term, command in ((1, 0, b"\1"), (2, 3, regular_entry(entry))):
        store.put_log(index, term, command)
    state_machine.apply(store.view(), 2, entry)
    store.put_hard_state(3, name)
    store.put_log(3, 3, regular_entry(entry))  # not applied yet
    store.put_commit_index(2)
    store.put_positions({"b": (3, 7, "store-of-b"), "c": (4, 1, "store-of-c")})
    store.commit()
    store.close()


@pytest.fixture
def survivor(directory: Path) -> Path:
    raftreg("init", directory, *peer_arguments("abc"))
    used(directory, "a")
    return directory / "a"


def test_what_may_be_lost_is_said_before_anything_is_done(survivor: Path) -> None:
    said = raftreg("recover", "--from-survivor", survivor, status=1)
    assert "a holds the log up to term 3, index 3" in said
    assert "b was last known to hold index 7 in term 3: a lacks at least 4 entries of it" in said
    assert "c was last known to hold index 1 in term 4: a has not seen that term" in said
    assert "repeat it with --yes" in said
    assert "epoch 1" in offline(survivor)["note"]


@pytest.mark.parametrize(("typed", "epoch"), [("the right one", 2), ("another", 1)])
def test_a_person_confirms_with_the_cluster_s_id(
    survivor: Path, monkeypatch: pytest.MonkeyPatch, typed: str, epoch: int
) -> None:
    cluster_id = stored_peer.read(stored_peer.below(survivor)[0]).identity.cluster_id
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _question: cluster_id if typed == "the right one" else typed)
    assert main(["recover", "--from-survivor", str(survivor)]) == (0 if epoch == 2 else 1)
    assert stored_peer.read(stored_peer.below(survivor)[0]).identity.epoch == epoch


def test_recover_refuses_what_would_lose_more_than_it_must(
    directory: Path, survivor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(sentence: str, *arguments: object) -> None:
        assert main(["recover", *map(str, arguments), "--yes"]) == 1
        assert sentence in capsys.readouterr().err

    refused("has never been started", "--from-survivor", directory / "b")
    refused("--peer must list a", "--from-survivor", survivor, *arguments_of(directory, "b"))
    refused("has a store", "--from-backup", "nowhere", survivor)
    refused("--epoch go with --from-backup", "--from-survivor", survivor, "--epoch", 7)
    refused("1 or more", "--from-survivor", survivor, "--id-floor", 0)
    host, port = config.load(survivor).raft_peers["b"].split(":")
    with socket.create_server((host, int(port))):
        refused("somebody answers", "--from-survivor", survivor)
    with serving(survivor):
        wait_until(lambda: in_use(survivor))
        refused("is running", "--from-survivor", survivor)
    assert "epoch 1" in offline(survivor)["note"]


def test_a_recovery_cut_off_before_its_configuration_is_completed_by_the_same_command(survivor: Path) -> None:
    """The store is of the new epoch already, raftreg.toml still names three voters. It was recovering, too."""
    store = Store(survivor, map_size_bytes=1 << 30)
    store.put_recovering(True)
    store.commit()
    store.close()
    toml = survivor / "raftreg.toml"
    before = toml.read_text()
    assert "was recovering" in raftreg("recover", "--from-survivor", survivor, "--yes")
    toml.write_text(before)
    assert "run it again" in raftreg("serve", survivor, status=1)
    assert "is recovered already" in raftreg("recover", "--from-survivor", survivor, "--yes")
    assert "epoch 2" in offline(survivor)["note"]
    assert config.load(toml).cluster_peers == ("a",)
    with serving(survivor):
        answer = wait_until_ready(survivor, "a")["a"]
        assert (answer["role"], answer["revision"], answer["term"]) == ("leader", 2, 5)


def test_a_survivor_is_in_the_new_epoch_wholly_or_not_at_all(survivor: Path) -> None:
    """The transaction is not committed, as when the power fails: the peer is as it was."""
    store = Store(survivor, map_size_bytes=1 << 30)
    begin_life(store, 2, id_floor=None, now_us=1)
    store.close()
    found = stored_peer.read(stored_peer.below(survivor)[0])
    assert (found.identity.epoch, found.last, found.term) == (1, (3, 3), 3)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)
