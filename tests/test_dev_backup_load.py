"""The load driver: the same seed asks for the same, nothing grows with time, and what was refused is told."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from collections import Counter
from pathlib import Path

import pytest

from ops.dev import backup_load
from ops.dev.backup_figures import SAMPLES_MAX, LoadFigures, Series, ZoneFigures
from ops.dev.backup_schedule import DAY_S, Backup, Schedule
from ops.dev.latencies import STEP, Latencies
from ops.dev.load_target import links_of

ZONES = ("ams", "fra", "nyc")


def days(schedule: Schedule, count: int) -> list[Backup]:
    return list(itertools.islice(schedule.backups(), schedule.servers * count))


@pytest.mark.parametrize("servers", [1, 2, 97, 360])
def test_each_server_is_backed_up_once_a_day_in_its_zone(servers: int) -> None:
    schedule = Schedule(servers, 2, ZONES, seed=3)
    for day, backups in itertools.groupby(days(schedule, 3), lambda backup: backup.day):
        made = list(backups)
        assert Counter(backup.server for backup in made) == Counter(range(servers))
        assert all(day * DAY_S <= backup.due_s <= (day + 1) * DAY_S for backup in made)
        assert all(backup.zone == ZONES[backup.server % 3] for backup in made)


def test_backups_are_due_one_after_the_other_and_a_million_servers_ask_twelve_times_a_second() -> None:
    schedule = Schedule(1_000_000, 7, ZONES, seed=1)
    due = [backup.due_s for backup in itertools.islice(schedule.backups(), 6000)]
    assert due == sorted(due)
    assert len(due) / due[-1] == pytest.approx(schedule.per_s, rel=0.01) == pytest.approx(11.57, rel=0.01)
    faster = Schedule(1_000_000, 7, ZONES, seed=1, speed=10)
    assert next(faster.backups()).due_s == pytest.approx(due[0] / 10)


def test_the_oldest_backup_goes_when_one_more_than_is_kept_was_made() -> None:
    schedule = Schedule(5, 2, ZONES, seed=1)
    made: dict[int, list[str]] = {}
    for backup in days(schedule, 4):
        kept = made.setdefault(backup.server, [])
        assert backup.expired == (kept.pop(0) if len(kept) == 2 else None)
        kept.append(backup.uuid)
    assert len({uuid for kept in made.values() for uuid in kept}) == 10


def test_the_seed_decides_who_comes_when_and_a_salt_only_what_the_images_are_called() -> None:
    one, same, other, salted = (
        days(Schedule(50, 2, ZONES, seed=seed, salt=salt), 2) for seed, salt in ((1, ""), (1, ""), (2, ""), (1, "x"))
    )
    assert one == same
    assert [b.server for b in one] != [b.server for b in other]
    assert [(b.server, b.due_s) for b in one] == [(b.server, b.due_s) for b in salted]
    assert {b.uuid for b in one}.isdisjoint({b.uuid for b in salted})


def test_quantiles_of_counted_times_are_right_to_within_a_step() -> None:
    chance = random.Random(7)
    times = [chance.lognormvariate(-4, 1) for _ in range(5000)]
    counted = Latencies()
    for one in times:
        counted.add(one)
    for share, exact in ((0.5, statistics.median(times)), (0.99, statistics.quantiles(times, n=100)[98])):
        told = counted.quantile(share)
        assert told is not None
        assert exact / STEP**2 <= told <= exact * STEP**2
    again = Latencies(counted.counts)
    again.merge(counted.counts)
    assert (len(again), again.quantile(0.5)) == (2 * len(times), counted.quantile(0.5))
    assert Latencies().figures_ms() == {"count": 0, "p50_ms": None, "p99_ms": None}
    for odd in (0.0, 1e9):
        counted.add(odd)
    assert len(counted) == len(times) + 2


def test_a_series_stays_short_and_keeps_its_extremes() -> None:
    series = Series()
    for second in range(100_000):
        series.add(second, 7.0 if second == 4711 else 1.0)
        series.add(second, None)
    assert len(series.samples) <= SAMPLES_MAX
    assert (series.least, series.most) == (1.0, 7.0)
    assert series.samples[-1][0] > 99_000


def test_failures_are_counted_by_reason_and_odd_reasons_together() -> None:
    zone = ZoneFigures()
    for number in range(100):
        zone.failed("outage", "create", str(number))
    figures = LoadFigures({"fra": zone}, asked=100, seconds=10.0)
    assert figures.failures == 100
    assert len(figures.document()["zones"]["fra"]["failures"]) <= 22
    assert any("other" in reason for reason in figures.document()["zones"]["fra"]["failures"])
    json.dumps(figures.document())


def test_a_zone_is_cut_off_by_its_own_links_to_the_registry_and_all_of_its_data() -> None:
    gateways = {"ams-1": "ams", "fra-1": "fra", "fra-2": "fra"}
    links = ["registry-ams-1-a", "registry-fra-1-a", "registry-fra-2-b", "interzone-ams-1", "raft-a-b", "api-a-b"]
    assert links_of("fra", gateways, links) == ["registry-fra-1-a", "registry-fra-2-b", "interzone-ams-1"]


def test_an_outage_is_named_by_zone_start_and_length(capsys: pytest.CaptureFixture[str]) -> None:
    given = backup_load.parser().parse_args(["--outage", "fra:60:120.5"])
    assert given.outage == [backup_load.Outage("fra", 60.0, 120.5)]
    with pytest.raises(SystemExit):
        backup_load.parser().parse_args(["--outage", "fra:60"])
    assert "--outage" in capsys.readouterr().err


@pytest.mark.slow
def test_a_load_through_an_outage_is_served_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ops.dev.load_target.RUN_DIR", tmp_path)
    report = tmp_path / "report.json"
    load = "--zones 1 --servers 20 --keep 1 --speed 8640 --seconds 25 --data-kib 1 --outage zone1:5:8"
    assert backup_load.main([*load.split(), "--json", str(report)]) == 0
    told = json.loads(report.read_text())
    assert told["asked"] == told["created"] > 40
    requests = told["zones"]["zone1"]["requests"]
    assert {"quiet_create", "quiet_upload", "outage_create", "outage_delete"} <= requests.keys()
    assert told["zones"]["zone1"]["drains"][0]["pending"] > 0
    assert told["registry"]["cores_used"].keys() == {"a", "b", "c"}
    assert "Requests of all zones" in capsys.readouterr().out
