"""What measured runs say: a target that was missed is a failure in the verdict, the JSON line and the exit status."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chaos.history import History
from ops.dev.backup_job import ImagesApi
from ops.dev.cluster import Zone
from ops.soak import __main__ as program
from ops.soak import offline, uplink_traffic
from ops.soak.counted_links import counted
from ops.soak.image_lives import ImageLives, Life
from ops.soak.outcome import Outcome, quantiles_ms, spread_ms
from ops.soak.plain_clients import PlainClients
from ops.soak.steady_requests import Pace, pace


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


def test_median_and_p99_are_told_in_milliseconds() -> None:
    assert quantiles_ms([0.001] * 90 + [0.1] * 10) == {"p50_ms": 1.0, "p99_ms": 100.0}
    assert quantiles_ms([1.0]) == {"p50_ms": 0.0, "p99_ms": 0.0}


async def test_requests_come_at_their_pace_though_the_answers_are_late() -> None:
    begun: list[int] = []
    answered = asyncio.Event()

    async def ask(number: int) -> None:
        begun.append(number)
        if len(begun) == 10:
            answered.set()
        await answered.wait()

    assert await pace(Pace(200.0, time.monotonic() + 0.2), ask) == len(begun) >= 10
    assert begun == sorted(begun)


async def test_a_link_counts_the_bytes_of_both_directions() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"answer to " + await reader.readexactly(5))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, counted([f"{host}:{port}"]) as (link,):
        reader, writer = await asyncio.open_connection(*link.address.split(":"))
        writer.write(b"hello")
        assert await reader.read() == b"answer to hello"
        writer.close()
        assert (link.bytes, link.connections) == (len(b"hello" + b"answer to hello"), 1)


def test_what_a_gateway_asks_by_itself_is_told_from_what_its_clients_cause() -> None:
    requests = Counter(
        {"/registry/v1/gateways/{gateway}/heartbeat": 7, "/healthcheck": 2, "/registry/v1/images/{image}": 1}
    )
    window = uplink_traffic.Window(1.0, 0, requests)
    assert (window.by_itself, window.others) == (9, {"/registry/v1/images/{image}": 1})


def lives_of(tmp_path: Path) -> ImageLives:
    """One image that was created, updated twice, shared and deleted, as its client was told."""
    lives = ImageLives(ImagesApi(Zone("", "")), "fra-1", History(tmp_path / "history"), 1, seed=1)
    lives.lives.append(Life(1, "u", random.Random(1), "client", steps=2, shared=True, deleted=True))
    return lives


def change(op: str = "update_image", step: int | None = None, shared: bool = False) -> dict[str, Any]:
    return {"op": op, "uuid": "u", "step": step, "shared": shared}


CREATED, FIRST, SECOND, SHARED, DELETED = (
    change("create_image"), change(step=1), change(step=2), change(shared=True), change("delete_image")
)  # fmt: skip


@pytest.mark.parametrize(
    ("told", "is_right"),
    [
        ([CREATED, FIRST, SECOND, SHARED, DELETED], True),
        ([CREATED, FIRST, SHARED, SECOND, DELETED], True),
        ([CREATED, SECOND, FIRST, SHARED, DELETED], False),
        ([CREATED, FIRST, SECOND, SECOND, SHARED, DELETED], False),
        ([CREATED, SECOND, SHARED, DELETED], False),
        ([CREATED, CREATED, FIRST, SECOND, SHARED, DELETED], False),
        ([CREATED, FIRST, SECOND, DELETED], False),
        ([CREATED, FIRST, SECOND, SHARED], False),
    ],
    ids=["right", "shared between", "reordered", "twice", "lost", "created twice", "not shared", "not deleted"],
)
def test_writes_that_are_lost_doubled_or_reordered_are_found(
    tmp_path: Path, told: list[dict[str, Any]], is_right: bool
) -> None:
    assert (list(offline.out_of_order(lives_of(tmp_path), told)) == []) is is_right
