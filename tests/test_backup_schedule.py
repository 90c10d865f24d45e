"""Backups that a peer makes by itself: when, what stays of them, and what it says when there is none."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from raftreg import backup, backup_file, backup_retention, backup_run, cli, cluster_init, config, stored_peer
from raftreg.backup import NoRoom
from raftreg.backup_retention import Kept, file_name
from raftreg.backup_run import Job
from raftreg.backup_schedule import BackupKeeper
from raftreg.cli_connection import moment
from raftreg.config import MIB, BackupSchedule, ConfigError, PeerConfig
from tests.gateway.running import until
from tests.registry import free_ports, registry
from tests.registry import until as asked_until
from tests.test_backup import made
from tests.test_cli import raftreg, serving
from tests.test_cli_peer import end
from tests.test_cli_peer import until as wait_until

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
NOON_US = 1_800_000_000_000_000 // DAY_US * DAY_US + 12 * HOUR_US


# -- which stay ---------------------------------------------------------------------------------------------------


def kept_at(*hours: float) -> list[Kept]:
    """Backups so many hours after a noon."""
    return [Kept(Path(f"{hour}"), NOON_US + int(hour * HOUR_US), 1) for hour in hours]


def staying(backups: list[Kept], made: Kept, *, keep: int, keep_daily: int) -> list[str]:
    gone = backup_retention.expired(backups, made, keep=keep, keep_daily=keep_daily)
    return [one.file.name for one in [*backups, made] if one not in gone]


def test_the_newest_stay_and_one_of_each_of_the_last_days_that_have_some() -> None:
    *before, newest = kept_at(-100, -99, -52, -50, -2, -1, 0)
    assert staying(before, newest, keep=2, keep_daily=0) == ["-1", "0"]
    # Days with backups, the last first: 0, then -50 and -52, then -99 and -100; the newest of each.
    assert staying(before, newest, keep=1, keep_daily=3) == ["-99", "-50", "0"]
    assert staying(before, newest, keep=2, keep_daily=2) == ["-50", "-1", "0"]
    assert staying(before, newest, keep=100, keep_daily=0) == [one.file.name for one in [*before, newest]]


def test_the_one_just_made_stays_even_if_clocks_were_ahead_before() -> None:
    ahead, newest = kept_at(500, 0)
    assert staying([ahead], newest, keep=1, keep_daily=0) == ["500", "0"]


# -- one run ------------------------------------------------------------------------------------------------------


class Runs:
    """A stopped peer whose backups are made one by one, each at a time of its own."""

    def __init__(self, directory: Path) -> None:
        self.peer = made(directory / "my registry", images=3)
        self.directory = directory / "backups"
        self.cluster_id = backup.create(self.peer, directory / "by hand").cluster_id

    def job(self, **changed: Any) -> Job:
        limits = dataclasses.replace(self.peer.limits, **changed.pop("limits", {}))
        fields = {"every_s": 3600.0, "keep": 2, "keep_daily": 0} | changed
        return Job(
            str(self.peer.data_dir),
            self.cluster_id,
            "a",
            str(self.directory),
            limits=dataclasses.asdict(limits),
            **fields,
        )

    def run(self, hour: float, **changed: Any) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = []
        now_us = NOON_US + int(hour * HOUR_US)
        backup_run.run(
            self.job(**changed), lambda event, **facts: said.append({"event": event, **facts}), lambda: True, now_us
        )
        return said

    def hours(self) -> list[float]:
        """When those that lie there are of."""
        found = backup_retention.own(self.directory, self.cluster_id, "a")
        return [(one.created_us - NOON_US) / HOUR_US for one in found]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def events(said: list[dict[str, Any]]) -> list[str]:
    return [one["event"] for one in said]


def test_a_run_makes_a_whole_backup_says_so_and_keeps_what_is_to_be_kept(runs: Runs) -> None:
    copied, done, removed = runs.run(0)
    assert (copied["event"], removed) == ("copied", {"event": "removed", "count": 0})
    assert backup.verify(Path(done["file"]))[0].created_us == NOON_US == done["created_us"]
    assert done["bytes"] == Path(done["file"]).stat().st_size
    assert done["seconds"] > 0
    assert (Path(done["file"]).stat().st_mode & 0o777, runs.directory.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [events(runs.run(hour)) for hour in (1, 2)] == [["found", "copied", "done", "removed"]] * 2
    assert runs.hours() == [1, 2]


def test_none_is_made_before_it_is_due_also_by_a_peer_that_was_started_again(runs: Runs) -> None:
    (_, done, _) = runs.run(0)
    found = {"event": "found", **{name: done[name] for name in ("file", "created_us", "bytes")}}
    assert runs.run(0.9) == [found, {"event": "not_due"}]
    assert events(runs.run(1)) == ["found", "copied", "done", "removed"]
    # A clock that was ahead once must not put the next one off for ever.
    assert events(runs.run(-30)) == ["copied", "done", "removed"]


def test_only_files_of_this_schedule_are_ever_removed(runs: Runs) -> None:
    runs.run(0)
    (own,) = runs.directory.iterdir()
    older = NOON_US - 100 * HOUR_US
    strange = {
        "by hand.backup": own.read_bytes(),
        file_name("f" * 16, "a", older): own.read_bytes(),
        file_name(runs.cluster_id, "b", older): own.read_bytes(),
        file_name(runs.cluster_id, "a-b", older): own.read_bytes(),
        file_name(runs.cluster_id, "a", older): b"damaged" + own.read_bytes()[7:],
        file_name(runs.cluster_id, "a", older)[:-1]: own.read_bytes(),
    }
    for name, content in strange.items():
        (runs.directory / name).write_bytes(content)
    # The right name, and the label of another cluster or peer: somebody has copied it here.
    for later, change in ((1, {"cluster_id": "f" * 16}), (2, {"peer": "b"})):
        foreign = runs.directory / file_name(runs.cluster_id, "a", older + later)
        _relabel(own, foreign, change)
        strange[foreign.name] = foreign.read_bytes()
    for hour in (1, 2, 3):
        runs.run(hour, keep=1)
    assert runs.hours() == [3]
    assert {name: (runs.directory / name).read_bytes() for name in strange} == strange


def _relabel(source: Path, target: Path, change: dict[str, Any]) -> None:
    """A whole backup like `source`, with another label."""
    with backup_file.Backup(source) as opened:
        label = dataclasses.replace(opened.label, **change)
    content = source.read_bytes()
    frames = content[16 : int.from_bytes(content[-12:-4], "big")]
    with target.open("wb") as file:
        writer = backup_file.BackupWriter(file, MIB)
        file.write(frames)
        writer.finish(label)
    backup.verify(target)


def test_what_a_killed_process_left_is_removed_by_the_next_run(runs: Runs) -> None:
    runs.directory.mkdir()
    left = backup.partial_of(runs.directory / file_name(runs.cluster_id, "a", NOON_US - DAY_US))
    others = [backup.partial_of(runs.directory / name) for name in ("mine", file_name(runs.cluster_id, "b", NOON_US))]
    for file in (left, *others):
        file.write_bytes(b"half of it")
    runs.run(0)
    assert not left.exists()
    assert all(file.exists() for file in others)


def test_a_disk_without_room_keeps_the_old_ones_and_says_why(runs: Runs) -> None:
    runs.run(0)
    before = sorted(runs.directory.iterdir())
    with pytest.raises(NoRoom, match="bytes free") as refused:
        runs.run(2, keep=1, limits={"disk_reserve_bytes": 1 << 60})
    assert backup_run.reason_of(refused.value) == backup_run.NO_ROOM
    assert backup_run.reason_of(OSError(errno.ENOSPC, "full")) == backup_run.NO_ROOM
    with pytest.raises(TimeoutError) as late:
        runs.run(2, keep=1, limits={"snapshot_reader_max_s": 1e-9})
    assert backup_run.reason_of(late.value) == backup_run.TOO_SLOW
    assert sorted(runs.directory.iterdir()) == before


def test_one_that_cannot_be_read_back_goes_and_the_old_ones_stay(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.run(0)
    before = sorted(runs.directory.iterdir())

    def spoilt(*arguments: Any, **named: Any) -> Any:
        label = backup.create_at(*arguments, **named)
        with Path(arguments[3]).open("r+b") as file:  # the disk has lost a bit
            file.seek(100)
            byte = file.read(1)
            file.seek(100)
            file.write(bytes((byte[0] ^ 1,)))
        return label

    class Spoilt:
        create_at, verify = staticmethod(spoilt), staticmethod(backup.verify)

    monkeypatch.setattr("raftreg.backup_run.backup", Spoilt)
    with pytest.raises(backup.BackupError, match="not read back") as refused:
        runs.run(2, keep=1)
    assert backup_run.reason_of(refused.value) == backup_run.UNREADABLE
    assert sorted(runs.directory.iterdir()) == before


def test_the_process_says_each_thing_in_a_line(runs: Runs) -> None:
    command = [sys.executable, "-m", "raftreg.backup_run"]
    done = subprocess.run([*command, runs.job().to_json()], capture_output=True, timeout=60, check=True)
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["copied", "done", "removed"]
    reserve = runs.job(every_s=1e-6, limits={"disk_reserve_bytes": 1 << 60}).to_json()
    failed = subprocess.run([*command, reserve], capture_output=True, timeout=60, check=False)
    assert failed.returncode == 1
    *_, said = map(json.loads, failed.stdout.splitlines())
    assert (said["event"], said["reason"]) == ("failed", "no_room")


# -- the schedule of a running peer -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def keeping(settings: PeerConfig) -> AsyncIterator[tuple[BackupKeeper, list[str]]]:
    """The schedule of a stopped peer, running; and the reasons of its failures."""
    failures: list[str] = []
    cluster_id = backup_cluster_id(settings)
    keeper = BackupKeeper(settings, cluster_id, applied=lambda: 2, failed=failures.append)
    task = asyncio.create_task(keeper.run())
    try:
        yield keeper, failures
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def backup_cluster_id(settings: PeerConfig) -> str:
    identity = stored_peer.identity_of(settings)
    assert identity is not None
    return identity.cluster_id


def scheduled(settings: PeerConfig, directory: Path, *, every_s: float = 0.05, **limits: Any) -> PeerConfig:
    schedule = BackupSchedule(directory, every_s=every_s, keep=2, keep_daily=0)
    changed = {"backup_retry_s": 0.05} | limits
    return dataclasses.replace(settings, backup=schedule, limits=dataclasses.replace(settings.limits, **changed))


async def test_backups_follow_each_other_and_a_later_start_knows_the_last(tmp_path: Path) -> None:
    peer = made(tmp_path / "my registry", images=3)
    seen: set[str] = set()

    def third_is_there() -> bool:
        seen.update(file.name for file in directory.glob("*.backup"))
        return len(seen) >= 3

    directory = tmp_path / "backups"
    async with keeping(scheduled(peer, directory)) as (keeper, failures):
        await until(third_is_there, "three backups")
    assert failures == []
    assert keeper.errors() == []
    assert keeper.status()["last"]["seconds"] > 0
    *_, newest = sorted(str(file) for file in directory.glob("*.backup"))
    assert len(list(directory.glob("*.backup"))) <= 3
    async with keeping(scheduled(peer, directory, every_s=3600.0)) as (later, _):
        await until(lambda: later.status()["last"] is not None, "the last backup to be known")
        assert later.status()["last"]["seconds"] is None
        assert later.status()["last"]["file"] == newest
        await until(lambda: later.reader_age_s() == 0.0, "it to be found recent enough")
    full = scheduled(peer, directory, disk_reserve_bytes=1 << 60)
    async with keeping(full) as (later, failures):
        await until(lambda: failures != [], "a failure")
        assert newest in later.errors()[0]


async def test_failures_are_told_and_the_next_success_ends_them(tmp_path: Path) -> None:
    peer = made(tmp_path / "my registry", images=3)
    directory = tmp_path / "in the way" / "backups"
    directory.parent.write_bytes(b"a file")
    async with keeping(scheduled(peer, directory)) as (keeper, failures):
        await until(lambda: len(failures) >= 2, "two failures")
        (error,) = keeper.errors()
        assert "there is none yet" in error
        assert "in the way" in error
        directory.parent.unlink()
        directory.parent.mkdir()
        await until(lambda: keeper.status()["last"] is not None, "a backup")
        await until(lambda: keeper.errors() == [], "no trouble any more")
    assert set(failures) == {backup_run.OTHER}
    assert keeper.status()["failures"] == len(failures)


async def test_a_process_that_is_killed_or_hangs_is_a_failure_and_leaves_the_peer_alone(tmp_path: Path) -> None:
    peer = made(tmp_path / "my registry", images=3)
    async with keeping(scheduled(peer, tmp_path / "backups", snapshot_reader_max_s=60.0, every_s=3600.0)) as (
        keeper,
        failures,
    ):
        pid = await _child_pid()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: failures == [backup_run.DIED], "a failure")
        assert "lost" in keeper.errors()[0]
    # Stopped as a process is whose disk hangs; nothing is heard of it, so it is killed.
    hurried = scheduled(peer, tmp_path / "others", snapshot_reader_max_s=1.0, every_s=3600.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raftreg.backup_schedule._OVERDUE_S", 0.0)
        async with keeping(hurried) as (keeper, failures):
            pid = await _child_pid()
            os.kill(pid, signal.SIGSTOP)
            await until(lambda: failures == [backup_run.DIED], "a failure")
            assert "said nothing" in keeper.errors()[0]
            assert not _lives(pid)


async def _child_pid() -> int:
    found: list[int] = []

    def started() -> bool:
        tasks = Path(f"/proc/{os.getpid()}/task")
        children = " ".join((task / "children").read_text() for task in tasks.iterdir())
        found[:] = [int(pid) for pid in children.split() if b"backup_run" in _command_line(int(pid))]
        return bool(found)

    await until(started, "a process that makes a backup")
    return found[0]


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _lives(pid: int) -> bool:
    return b"backup_run" in _command_line(pid)


# -- the configuration --------------------------------------------------------------------------------------------


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    peer = cluster_init.PlannedPeer("a", *(f"127.0.0.1:{port}" for port in free_ports(2)))
    cluster_init.initialise(tmp_path / "my registry", cluster_init.Plan([peer]), offline=True)
    return tmp_path / "my registry" / "a" / config.FILE_NAME


def with_schedule(toml: Path, text: str) -> PeerConfig:
    plain = toml.read_text().split("\n[backup]")[0]
    toml.write_text(f"{plain}\n[backup]\n{text}\n")
    return config.load(toml)


def test_a_schedule_is_read_and_written_again_as_it_was(toml: Path) -> None:
    assert config.load(toml).backup == BackupSchedule()
    loaded = with_schedule(toml, 'directory = "saved"\nevery_s = 3600\nkeep = 24\nkeep_daily = 30')
    assert loaded.backup == BackupSchedule(toml.parent.resolve() / "saved", 3600.0, 24, 30)
    toml.write_text(config.render(loaded, toml.parent.resolve()))
    assert config.load(toml) == loaded


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("every_s = 3600", "backup.directory is missing"),
        ('directory = "x"\nevery_s = 59', "at least 60"),
        ('directory = "x"\nevery_s = -1', "at least 60"),
        ('directory = "x"\nevery_s = nan', "at least 60"),
        ('directory = "x"\nevery_s = inf', "at least 60"),
        ('directory = "x"\nevery_s = "hourly"', "must be a number"),
        ("keep = 0", "1 to 1000"),
        ("keep = true", "whole number"),
        ("keep_daily = 1001", "0 \\(none\\) to 1000"),
        ("keep_weekly = 4", "not a known setting"),
    ],
)
def test_a_wrong_schedule_is_refused_with_the_setting_s_name(toml: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        with_schedule(toml, text)


# -- a peer that serves -------------------------------------------------------------------------------------------


async def test_a_peer_that_serves_shows_its_backups_in_status_and_metrics(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, cluster.client() as client:
        assert (await client.status())["backup"] is None
        plain = cluster.configs["a"]

        async def restarted(settings: PeerConfig, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
            await cluster.stop("a")
            cluster.configs["a"] = settings
            await cluster.start("a")
            await cluster.leader()
            said: dict[str, Any] = {}

            async def shown() -> bool:
                said.update(await client.status())
                return condition(said["backup"])

            await asked_until(shown)
            return said

        async def metrics() -> dict[str, float]:
            async with cluster.http() as http:
                lines = (await http("GET", "/metrics")).body.splitlines()
            pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("raftreg_backup_"))
            return {name.removeprefix("raftreg_backup_"): float(value) for name, value in pairs}

        full = scheduled(plain, tmp_path / "saved", every_s=3600.0, backup_retry_s=3600.0, disk_reserve_bytes=1 << 60)
        said = await restarted(full, lambda shown: shown["failures"] == 1)
        assert any("bytes free" in error for error in said["errors"])
        assert "none yet" in cli._status_row(said)
        told = await metrics()
        assert (told["failing"], told['failures_total{reason="no_room"}']) == (1, 1)
        assert math.isnan(told["last_success_timestamp_seconds"])

        said = await restarted(scheduled(plain, tmp_path / "saved", every_s=3600.0), lambda shown: shown["last"])
        assert said["errors"] == []
        assert moment(said["backup"]["last"]["created_us"]) in cli._status_row(said)
        told, last = await metrics(), said["backup"]["last"]
        (file,) = (tmp_path / "saved").iterdir()
        label, _ = backup.verify(file)
        assert (str(file), label.created_us, label.cluster_id) == (last["file"], last["created_us"], cluster.cluster_id)
        assert told["last_success_timestamp_seconds"] == pytest.approx(label.created_us / 1e6)
        assert (told["last_size_bytes"], told["failing"]) == (file.stat().st_size, 0)
        assert told["last_duration_seconds"] == pytest.approx(last["seconds"])


def test_a_peer_s_process_reads_its_schedule_and_leaves_no_child_behind(toml: Path) -> None:
    with_schedule(toml, 'directory = "saved"\nevery_s = 3600')
    with serving(toml.parent) as process:
        wait_until(lambda: bool(list((toml.parent / "saved").glob("*.backup"))))
        end(process)
    (file,) = (toml.parent / "saved").glob("*.backup")
    assert "is whole" in raftreg("backup", "verify", file)
