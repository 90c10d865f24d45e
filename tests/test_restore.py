"""`raftreg restore` as operators run it, on stopped peers: what it refuses, what it says, what it makes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raftreg import backup, cluster_init, config, stored_peer
from raftreg.cli import main
from raftreg.commands import EPOCH_IDS_SKIPPED
from raftreg.config import BackupSchedule
from raftreg.stored_peer import StoredPeer
from tests.registry import free_ports
from tests.test_backup import fill
from tests.test_cli import peer_arguments

IMAGES = 5
Restore = Callable[..., str]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three peers that are stopped; a holds some images."""
    directory = tmp_path / "my registry"
    ports = iter(free_ports(8))
    peers = [cluster_init.PlannedPeer(name, f"127.0.0.1:{next(ports)}", f"127.0.0.1:{next(ports)}") for name in "abc"]
    observer = cluster_init.PlannedObserver("ams", f"127.0.0.1:{next(ports)}")
    cluster_init.initialise(directory, cluster_init.Plan(peers, observers=[observer]), offline=True)
    fill(config.load(directory / "a"), IMAGES)
    return directory


@pytest.fixture
def file(directory: Path) -> Path:
    """A backup of a; no store is left."""
    file = directory.parent / "registry.backup"
    backup.create(config.load(directory / "a"), file)
    for name in "abc":
        shutil.rmtree(directory / name / "store")
    return file


@pytest.fixture
def restore(capsys: pytest.CaptureFixture[str]) -> Restore:
    """Runs the command; what it says. It must end with `status`."""

    def run(*arguments: object, status: int = 0, verb: tuple[object, ...] = ("restore",)) -> str:
        capsys.readouterr()
        assert main([*map(str, (*verb, *arguments))]) == status
        out, err = capsys.readouterr()
        return out + err

    return run


def stored(directory: Path) -> StoredPeer:
    return stored_peer.read(stored_peer.below(directory)[0])


def test_all_voters_are_restored_at_once_from_their_directories(directory: Path, file: Path, restore: Restore) -> None:
    said = restore(file, *(directory / name for name in "abc"), "--yes")
    assert "a begins epoch 2" in said
    assert "voter set of generation 3: a, b, c (was a)" in said
    for name in "abc":
        found = stored(directory / name)
        assert (found.identity.epoch, found.identity.peers) == (2, ("a", "b", "c"))
        assert config.load(directory / name).cluster_peers == ("a", "b", "c")
    assert stored(directory / "b").last[1] == 0
    # It may be run again as long as nobody was started.
    assert "is recovered already" in restore(file, *(directory / name for name in "abc"), "--yes")


def test_directories_on_disks_of_their_own_are_restored_as_well(directory: Path, file: Path, restore: Restore) -> None:
    """None of them lies beside the authority's key; a command that broke off after the first one is completed."""
    disks = [directory.parent / f"disk {name}" / "peer" for name in "abc"]
    for disk, name in zip(disks, "abc", strict=True):
        disk.parent.mkdir()
        (directory / name).rename(disk)
    restore(file, disks[0], "--yes")
    assert stored(disks[0]).identity.peers == ("a",)
    peers = [
        argument
        for disk, name in zip(disks, "abc", strict=True)
        for argument in ("--peer", f"{name}={config.load(disk).raft_listen},{config.load(disk).api_listen}")
    ]
    said = restore(file, *disks, *peers, "--yes")
    assert "is recovered already" in said
    assert all(f"{name} is done" in said for name in "abc")
    assert "on the machine of" not in said
    assert [stored(disk).identity.peers for disk in disks] == [("a", "b", "c")] * 3


def test_voters_elsewhere_are_named_with_what_to_run_there(directory: Path, file: Path, restore: Restore) -> None:
    disk = directory.parent / "a on its own"
    (directory / "a").rename(disk)
    own = config.load(disk)
    more = peer_arguments("bc")
    said = restore(file, disk, "--peer", f"a={own.raft_listen},{own.api_listen}", *more, "--yes")
    assert "where ca.key is, to make b, c: raftreg peer replace CLUSTER-DIR" in said


def test_the_loss_is_said_with_numbers_and_nothing_is_done_without_consent(
    directory: Path, file: Path, restore: Restore
) -> None:
    said = restore(file, directory / "a", status=1)
    label = backup.verify(file)[0]
    assert "hours ago" in said
    assert "acknowledged after that moment is lost" in said
    assert f"image numbers below {label.next_id + EPOCH_IDS_SKIPPED} are not issued again" in said
    assert "repeat it with --yes" in said
    assert not (directory / "a" / "store").exists()
    assert "below 900000000 are" in restore(file, directory / "a", "--id-floor", 900_000_000, status=1)


def test_numbers_go_on_where_no_earlier_life_can_have_been(directory: Path, file: Path, restore: Restore) -> None:
    """The command that skips them is the last of the log; a peer that starts applies it first of all."""
    restore(file, directory / "a", "--yes", "--id-floor", 50_000_000)
    with stored_peer.opened(config.load(directory / "a")) as store:
        last = store.last_log_entry()
    assert last is not None
    assert b"begin_epoch" in last[0]
    assert b"id_floor" in last[0]


def test_the_schedule_of_backups_outlives_a_restore(directory: Path, file: Path, restore: Restore) -> None:
    toml = directory / "a" / config.FILE_NAME
    toml.write_text(toml.read_text() + '\n[backup]\ndirectory = "saved"\nevery_s = 3600\n')
    restore(file, directory / "a", "--yes")
    assert config.load(toml).backup == BackupSchedule((directory / "a" / "saved").resolve(), 3600.0)


def test_what_would_lose_more_than_it_must_is_refused(directory: Path, file: Path, restore: Restore) -> None:
    def refused(sentence: str, *arguments: object) -> None:
        assert sentence in restore(*arguments, "--yes", status=1)
        assert not any((directory / name / "store").exists() for name in "abc")

    a, b, c = (directory / name for name in "abc")
    refused("an odd number", file, a, b)
    refused("both of peer a", file, a, b, a)
    refused("is an observer's", file, directory / "ams")
    refused("--epoch must be higher", file, a, "--epoch", 1)
    refused("1 or more", file, a, "--id-floor", 0)
    refused("--peer must list a", file, a, *peer_arguments("bcd"))
    refused("--peer must list b", file, a, b, *peer_arguments("acd"))
    refused("No such file", directory / "nowhere", a)
    other = directory.parent / "other"
    cluster_init.initialise(other, cluster_init.Plan([cluster_init.PlannedPeer("x", "h:1", "h:2")]), offline=True)
    refused("certificates of another cluster", file, a, b, other / "x")
    # Another one of those that are named has a store: nothing is begun.
    (c / "store").mkdir()
    (c / "store" / "data.mdb").touch()
    assert "has a store" in restore(file, a, b, c, "--yes", status=1)
    assert not any((directory / name / "store").exists() for name in "ab")


def test_recover_from_a_backup_is_the_same_command(directory: Path, file: Path, restore: Restore) -> None:
    said = restore(file, directory / "a", "--yes", verb=("recover", "--from-backup"))
    assert "a begins epoch 2" in said
    assert "name the peer's directory" in restore(file, status=1, verb=("recover", "--from-backup"))


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["restore", "--help"])
    assert "raftreg restore /backup/registry.backup /srv/registry/a" in capsys.readouterr().out
