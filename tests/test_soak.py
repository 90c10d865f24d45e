"""What measured runs say: a target that was missed is a failure in the verdict, the JSON line and the exit status."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ops.soak import __main__ as program
from ops.soak.outcome import Outcome, spread_ms
from ops.soak.plain_clients import PlainClients


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs of a test are recorded."""
    monkeypatch.setattr(program, "RUN_DIR", tmp_path)
    return tmp_path / "soak" / "results.jsonl"


def run_of(outcome: Outcome | Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    async def run() -> Outcome:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(program, "RUNS", {"one": run})
    monkeypatch.setattr(sys, "argv", ["soak", "one"])
    return program.main()


def test_a_run_that_keeps_its_targets_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    outcome = Outcome("one", spread_ms("pause", [0.1, 0.3, 0.2]))
    outcome.require(True, "never said")
    assert run_of(outcome, monkeypatch) == 0
    line, verdict = capsys.readouterr().out.splitlines()
    document = json.loads(line)
    assert (document["soak"], document["pass"], document["problems"]) == ("one", True, [])
    assert (document["pause_count"], document["pause_median_ms"], document["pause_most_ms"]) == (3, 200.0, 300.0)
    assert document["commit"]
    assert results.read_text() == line + "\n"
    assert verdict.startswith("soak one: PASS")


@pytest.mark.parametrize("broken", [False, True])
def test_a_run_that_misses_a_target_or_breaks_off_fails_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: bool
) -> None:
    outcome = Outcome("one")
    outcome.require(False, "two writes were lost")
    assert run_of(RuntimeError("two writes were lost") if broken else outcome, monkeypatch) == 1
    line, verdict = capsys.readouterr().out.splitlines()
    assert json.loads(line)["pass"] is False
    assert verdict.startswith("soak one: FAIL")
    assert "two writes were lost" in verdict


def test_a_run_that_measured_nothing_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_of(Outcome("one", skipped="there are no observers"), monkeypatch) == 0
    assert "SKIPPED, there are no observers" in capsys.readouterr().out


def test_the_longest_pause_is_found_between_writes_and_at_both_ends() -> None:
    clients = PlainClients.__new__(PlainClients)
    clients.written_at = [1.0, 1.5, 1.6, 3.0]
    assert clients.longest_pause_s(0.9, 1.7) == pytest.approx(0.5)
    assert clients.longest_pause_s(0.0, 1.7) == pytest.approx(1.0)
    assert clients.longest_pause_s(1.55, 2.9) == pytest.approx(1.3)


@pytest.mark.parametrize(("any_speed", "status"), [(False, 1), (True, 0)])
def test_a_missed_target_of_time_passes_only_where_any_speed_will_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], any_speed: bool, status: int
) -> None:
    outcome = Outcome("one", {"pause": 3})
    outcome.within(False, "too slow")

    async def run() -> Outcome:
        return outcome

    monkeypatch.setattr(program, "RUNS", {"one": run})
    monkeypatch.setattr(sys, "argv", ["soak", "one", *(["--any-speed"] if any_speed else [])])
    assert program.main() == status
    assert "FAIL: too slow" in capsys.readouterr().out
