"""The suite itself: what a seed decides, what is refused, and what faults do to disks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from chaos import config, schedule
from chaos.__main__ import main
from chaos.cluster import ClusterUnderTest
from chaos.disturbances import Disturbances
from chaos.faults.known import FAULTS, faults
from chaos.faults.pause import Pause
from chaos.names import UnknownName
from chaos.scenarios import Plan, fitting_faults
from chaos.small_disks import SmallDisks
from chaos.workloads.known import workloads

TOGETHER, ALONE = ("kill", "pause", "latency"), ("wiped-disk", "restart-all")


def test_a_seed_gives_the_same_faults_at_the_same_time_again() -> None:
    first, again, other = (list(islice(schedule.steps(seed, TOGETHER, ALONE), 60)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_every_fault_comes_once_before_any_comes_again() -> None:
    names = {*TOGETHER, *ALONE}
    steps = list(islice(schedule.steps(1, TOGETHER, ALONE), 4 * len(names)))
    for start in range(0, len(steps), len(names)):
        assert {step.faults[0] for step in steps[start : start + len(names)]} == names


def test_two_faults_come_together_but_never_beside_one_that_takes_data_away() -> None:
    steps = list(islice(schedule.steps(1, TOGETHER, ALONE), 200))
    pairs = [step.faults for step in steps if len(step.faults) == 2]
    assert pairs
    assert all(one != other and not {one, other} & set(ALONE) for one, other in pairs)


@pytest.mark.parametrize("option", ["--faults", "--workload"])
def test_an_unknown_name_is_refused_with_those_that_there_are(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([option, "kill,nonsense" if option == "--faults" else "nonsense", "--directory", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "'nonsense'" in said
    assert ("partition-leader" if option == "--faults" else "register") in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("zones", ["", "ams,fra,ams"])
def test_zones_that_make_no_cluster_are_refused(zones: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--zones", zones, "--directory", str(tmp_path)])
    assert ended.value.code == 2
    assert "--zones needs one zone or more" in capsys.readouterr().err


def test_a_name_stands_for_all_that_begin_with_it() -> None:
    assert {fault.name for fault in faults(["partition"])} == {name for name in FAULTS if name.startswith("partition-")}
    assert [fault.name for fault in faults(["partition-zone"])] == ["partition-zone"]
    assert len(faults([])) == len(FAULTS)
    with pytest.raises(UnknownName, match="kill"):
        faults(["part"])


def test_a_fault_that_would_spoil_a_workload_is_left_out_with_the_reason(tmp_path: Path) -> None:
    class Spoiling(Pause):
        name = "spoiling"
        spoils = ("register",)

    plan = Plan(tmp_path, 1, 1.0, [Spoiling, *faults(["kill"])], workloads(["register", "set"]))
    fitting, left_out = fitting_faults(plan, ClusterUnderTest(tmp_path / "cluster"))
    assert fitting == faults(["kill"])
    assert left_out == {"spoiling": "it would spoil register"}


def test_a_small_disk_is_full_for_good_and_gives_back_what_it_holds(tmp_path: Path) -> None:
    disks, store = SmallDisks(tmp_path / "disks"), tmp_path / "store"
    if disks.missing:
        pytest.skip(disks.missing)
    store.mkdir()
    (store / "row").write_bytes(b"kept")
    disks.put_under(store, config.SMALL_DISK_BYTES_MIN)
    try:
        disks.fill(store, 0)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (store / "more").write_bytes(bytes(config.SMALL_DISK_BYTES_MIN))
        assert os.path.ismount(store)
        (store / "more").unlink()
    finally:
        disks.take_away(store)
    assert not os.path.ismount(store)
    assert [(path.name, path.read_bytes()) for path in store.iterdir()] == [("row", b"kept")]
    assert list((tmp_path / "disks").iterdir()) == []


_LOOK = "import os, time; print(time.time(), os.statvfs('.').f_bavail, time.monotonic()); input(); print(time.time())"


def test_disk_and_clock_of_a_process_are_disturbed_while_it_runs(tmp_path: Path) -> None:
    disturbances = Disturbances(tmp_path / "disturbances")
    if disturbances.missing:
        pytest.skip(disturbances.missing)
    environment = {**disturbances.environment("one")}
    disturbances.set("one", clock_ahead_s=5000, disk_full=True)
    with subprocess.Popen(
        [sys.executable, "-c", _LOOK], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        wall, free, _ = map(float, process.stdout.readline().split())
        disturbances.set("one")
        said, _ = process.communicate("\n")
    assert free == 0
    assert wall - float(said) > 4000
