"""`make sim` as its users run it: the verdict, the same again from one seed, and rules that schedules must miss."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.simulation import __main__ as simulation
from chaos.simulation.runs import Job
from chaos.simulation.schedule import Outcome

ROOT = Path(__file__).resolve().parents[2]
FAILED_STATUS, USAGE_STATUS = 1, 2
# Rule -> a seed of three voters that shows at once what is missing without it.
MISSED_BY = {
    "reads-have-a-barrier": 0,
    "restart-resumes": 3,
    "older-snapshots-are-refused": 7,
}


def simulate(directory: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a directory of its own, where its traces go."""
    return subprocess.run(
        [sys.executable, "-m", "chaos.simulation", *map(str, arguments)],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


@pytest.mark.slow
def test_schedules_end_with_a_verdict_that_counts_what_they_did(tmp_path: Path) -> None:
    done = simulate(tmp_path, "--seeds", 4, "--base", 40)
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.fullmatch(
        r"sim: 4 schedules, ([\d,]+) acknowledged writes, .* faults of \d+ kinds, 0 stuck, 0 violations: PASS",
        done.stdout.splitlines()[-1],
    )
    assert said is not None, done.stdout
    assert int(said[1].replace(",", "")) >= 400


def test_a_run_that_is_stopped_says_what_it_did_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(jobs: list[Job], *_: object) -> Iterator[tuple[Job, Outcome]]:
        yield jobs[0], Outcome(jobs[0].seed, acknowledged=1234)
        raise SystemExit(143)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(simulation, "run_all", stopped)
    with pytest.raises(SystemExit):
        simulation.main(["--seeds", "4"])
    said = capsys.readouterr().out
    assert "stopped after 1 of 4 schedules" in said
    assert "1,234" in said
    assert "PASS" not in said


@pytest.mark.slow
def test_a_seed_gives_the_same_events_again(tmp_path: Path) -> None:
    """Also in another process, and beside other seeds."""
    alone = simulate(tmp_path, "--seeds", 1, "--base", 51, "--peers", 5, "--observers", 1, "--trace")
    again = simulate(tmp_path, "--seeds", 2, "--base", 50, "--peers", 5, "--observers", 1, "--trace", "--jobs", 1)
    assert (alone.returncode, again.returncode) == (0, 0), alone.stdout + again.stdout
    digest = re.compile(r"^events of seed 51: (\w+)$", re.MULTILINE)
    assert digest.findall(alone.stdout) == digest.findall(again.stdout) != []


@pytest.mark.slow
def test_a_violation_is_told_with_its_last_events_and_the_command_that_repeats_it(tmp_path: Path) -> None:
    done = simulate(tmp_path, "--seeds", 1, "--base", MISSED_BY["reads-have-a-barrier"], "--peers", 3, "--without",
                    "reads-have-a-barrier")  # fmt: skip
    assert "read revision" in done.stdout
    assert "make sim SEEDS=1 BASE=0 PEERS=3" in done.stdout
    trace = re.search(r"the last \d+ events: (\S+)", done.stdout)
    assert trace is not None
    assert "client-" in (tmp_path / trace[1]).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "seed"), MISSED_BY.items())
def test_without_a_rule_a_schedule_ends_in_a_violation(tmp_path: Path, rule: str, seed: int) -> None:
    done = simulate(tmp_path, "--seeds", 1, "--base", seed, "--peers", 3, "--without", rule)
    assert done.stdout.splitlines()[-1].endswith("1 schedules were needed to find a violation: PASS"), done.stdout
    assert simulate(tmp_path, "--seeds", 1, "--base", seed, "--peers", 3).returncode == 0


@pytest.mark.slow
def test_a_rule_that_no_schedule_misses_fails_the_run(tmp_path: Path) -> None:
    done = simulate(tmp_path, "--seeds", 1, "--base", 40, "--peers", 3, "--without", "chunks-commit-nothing",
                    "--faults", "lost-request", "flap", "clock-jump")  # fmt: skip
    assert done.returncode == FAILED_STATUS
    assert done.stdout.splitlines()[-1].endswith("found nothing: FAIL")


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--peers", "4"], ["--faults", "plague"], ["--without", "x"]])
def test_what_cannot_be_run_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        simulation.main(arguments)
    assert refused.value.code == USAGE_STATUS
    assert arguments[1] in capsys.readouterr().err
