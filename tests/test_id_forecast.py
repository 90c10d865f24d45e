"""When the image numbers run out: the rate of the last day, what is left, and how it is shown."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from raftreg import id_forecast
from raftreg.cli import _numbers
from raftreg.id_forecast import IdForecast
from raftreg.metrics import PeerMetrics
from tests.registry import registry
from tests.state_life import Life

HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def forecast(life: Life, clock: Clock) -> IdForecast:
    return IdForecast(lambda: life.view, clock=clock)


def allocate(life: Life, forecast: IdForecast, count: int) -> None:
    life.ok({"op": "allocate_ids", "count": count})
    forecast.sample()


def test_the_rate_is_that_of_the_last_day(life: Life, forecast: IdForecast, clock: Clock) -> None:
    forecast.sample()
    for _ in range(24):
        clock.now += HOUR
        allocate(life, forecast, 100)
    status = forecast.status()
    left = 2**31 - 1 - 2400
    assert status["next"] == 2401
    assert status["remaining"] == {"int32": left, "int53": 2**53 - 1 - 2400}
    assert status["per_day"] == 2400.0
    assert status["days"]["int32"] == round(left / 2400, 1)
    for _ in range(24):
        clock.now += HOUR
        allocate(life, forecast, 10)
    assert forecast.status()["per_day"] == 240.0, "what was before the last day does not count any more"
    clock.now += 25 * HOUR
    assert forecast.status()["per_day"] == 0.0
    assert forecast.status()["days"] == {"int32": None, "int53": None}


def test_a_rate_is_told_only_once_enough_was_seen(life: Life, forecast: IdForecast, clock: Clock) -> None:
    assert forecast.status()["per_day"] is None
    allocate(life, forecast, 1)
    clock.now += id_forecast.OBSERVED_MIN_S - 1
    assert forecast.status()["per_day"] is None
    life.ok({"op": "allocate_ids", "count": 6})
    clock.now += 1
    assert forecast.status()["per_day"] == 6 * 86_400 / id_forecast.OBSERVED_MIN_S


def test_numbers_that_a_new_epoch_skipped_were_not_issued(life: Life, forecast: IdForecast, clock: Clock) -> None:
    forecast.sample()
    life.ok({"op": "begin_epoch", "epoch": 2})
    clock.now += 12 * HOUR
    allocate(life, forecast, 5)
    assert forecast.status()["per_day"] == 10.0
    assert forecast.status()["next"] > 2**24


def test_nothing_is_left_for_old_clients_beyond_their_last_number(
    life: Life, forecast: IdForecast, clock: Clock
) -> None:
    life.ok({"op": "begin_epoch", "epoch": 2, "id_floor": 2**31 + 5})
    forecast.sample()
    clock.now += HOUR
    life.ok({"op": "allocate_ids", "count": 1})
    status = forecast.status()
    assert (status["remaining"]["int32"], status["days"]["int32"]) == (0, 0.0)
    assert status["remaining"]["int53"] == 2**53 - 1 - 2**31 - 5


def rendered(metrics: PeerMetrics) -> dict[str, float]:
    lines = re.findall(r"^raftreg_ids_(\S+) (\S+)$", metrics.render().decode(), re.MULTILINE)
    return {name: float(value) for name, value in lines}


def test_gauges_tell_the_same_in_seconds(life: Life, forecast: IdForecast, clock: Clock) -> None:
    metrics = PeerMetrics()
    metrics.before_render.append(lambda: metrics.ids.fill(forecast.status()))
    assert math.isnan(rendered(metrics)['runway_seconds{limit="int32"}'])
    forecast.sample()
    clock.now += 24 * HOUR
    assert rendered(metrics)['runway_seconds{limit="int32"}'] == math.inf
    life.ok({"op": "allocate_ids", "count": 1000})
    left = 2**31 - 1 - 1000
    assert rendered(metrics) == {
        "next": 1001.0,
        'remaining{limit="int32"}': left,
        'remaining{limit="int53"}': 2**53 - 1 - 1000,
        'runway_seconds{limit="int32"}': pytest.approx(left / 1000 * 86_400),
        'runway_seconds{limit="int53"}': pytest.approx((2**53 - 1 - 1000) / 1000 * 86_400),
    }


async def test_a_peer_tells_it_in_status_and_metrics(tmp_path: Path) -> None:
    async with registry(tmp_path) as cluster, cluster.client() as client, cluster.http() as http:
        await client.allocate_ids(41)
        status = await client.status()
        assert status["ids"]["next"] == 42
        assert "raftreg_ids_next 42.0" in (await http("GET", "/metrics")).body
        left = f"{2**31 - 42:,}"
        assert _numbers({"a": status}) == f"next number 42; {left} left up to 2^31-1: rate not known yet"


def test_the_line_of_status_is_the_leaders_account(life: Life, forecast: IdForecast, clock: Clock) -> None:
    forecast.sample()
    follower = {"role": "follower", "ids": forecast.status()}
    clock.now += 24 * HOUR
    leader = {"role": "leader", "ids": forecast.status()}
    assert (_numbers({"a": follower, "b": leader}) or "").endswith("2^31-1: for ever at this rate")
    allocate(life, forecast, 2000)
    leader["ids"] = forecast.status()
    assert (_numbers({"a": follower, "b": leader}) or "").endswith(": 1,073,741 days at 2,000 a day")
    assert _numbers({}) is None
