"""Passes over all rows: the sum always comes out while rows change behind and before the pass, and what is not what was
written is found wherever it lies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftreg import state_machine
from raftreg.config import Limits, Timing
from raftreg.records import DamagedRecord
from raftreg.scrub import Scrubber
from raftreg.state_scrub import FINDINGS_MAX, Pass, checked_rows
from raftreg.store import Store, initialise
from raftreg.tables import DIGESTED, HEAD, KEYS_BY_AGE, LISTING, MIGRATION, UUIDS, View, index_keys, pack, unpack
from tests.state_life import Gateway, Life, a_state, create, delete, location, update

ALL = 1 << 30


def scrubbed(view: View, rows: int = ALL) -> list[str]:
    """The findings of a whole pass."""
    run = Pass()
    while not run.step(view, rows, ALL):
        pass
    return run.findings


def populated(view: View, *, validate: bool = False) -> Life:
    """A state with rows in every table."""
    life = Life(view, validate=validate)
    life.do({"op": "register_zone", "zone": "fra", "endpoint": "https://fra", "capabilities": {}})
    life.do({"op": "register_gateway", "zone": "fra", "gateway": "gw1", "endpoint": "https://gw1"})
    gateway = Gateway(life)
    gateway.open()
    gateway.grant(10)
    gateway.send(create("from the gateway"))
    for number in range(12):
        life.do(create(f"image {number}", key=f"key {number}", owner="demo", locations=[location("k")], tags=["t"]))
    life.do(update(11, set_members={"p2": {"status": "accepted"}}))
    life.do({"op": "set_quota", "project": "demo", "images_max": 100})
    for number in (3, 5):
        life.do(delete(number + 10))
    life.do({"op": "begin_epoch", "epoch": 2})
    return life


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    with a_state(tmp_path) as made:
        yield made


def keys(view: View) -> list[bytes]:
    return [bytes(key) for key, _ in view.scan(b"\x00", b"\xff")]


def test_the_population_of_these_tests_has_rows_in_every_table(view: View) -> None:
    populated(view, validate=True)
    derived = {HEAD, UUIDS, LISTING, KEYS_BY_AGE}
    # A migration has its row only while it is under way.
    assert {key[:1] for key in keys(view)} == {bytes((code,)) for code in DIGESTED} - {MIGRATION} | derived


@pytest.mark.parametrize("rows", [1, 7, ALL])
def test_a_sound_state_has_no_findings_however_small_the_steps(view: View, rows: int) -> None:
    populated(view)
    assert scrubbed(view, rows) == []


def test_a_step_reads_no_more_rows_and_bytes_than_it_may(view: View) -> None:
    populated(view)
    by_rows, by_bytes = Pass(), Pass()
    by_rows.step(view, 5, ALL)
    by_bytes.step(view, ALL, 1)
    assert (by_rows.rows, by_bytes.rows) == (5, 1)


# -- changes during a pass ----------------------------------------------------------------------------------------


def change(life: Life, draw: random.Random, counter: int) -> None:
    """One entry of a few random commands, some of which are refused, alone or as a whole."""
    commands: list[dict[str, Any]] = []
    for step in range(draw.randint(1, 4)):
        number, alias = draw.randint(1, 60), f"{counter}.{step}.{draw.randint(0, 3)}"
        commands.append(
            draw.choice(
                [
                    create(alias, key=f"k{draw.randint(0, 30)}", owner=draw.choice(["demo", "other"])),
                    create(alias),
                    update(number, set={"name": f"renamed {counter}"}),
                    delete(number),
                    {"op": "compact_changes", "floor": draw.randint(1, 200)},
                    {"op": "atomic", "operations": [create(alias), update(number, set={"name": "x"}), delete(999)]},
                    {"op": "atomic", "operations": [create(alias), update(number, set={"owner": "me"})]},
                ]
            )
        )
    life.do(*commands)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 40), entries=st.integers(0, 4))
def test_the_sum_comes_out_exactly_whatever_entries_change_during_a_pass(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, entries: int
) -> None:
    draw = random.Random(seed)
    with a_state(tmp_path_factory.mktemp("state")) as view:
        life = populated(view)
        run = Pass()
        view.watch = run.watch
        steps = 0
        while not run.step(view, rows, ALL) and steps < 2000:
            steps += 1
            for _ in range(draw.randint(0, entries) if steps < 60 else 0):
                change(life, draw, steps)
        assert run.findings == []
        assert run.rows > 0
        state_machine.validate_state(view)


def test_changes_that_nobody_reports_to_the_pass_would_spoil_its_sum(view: View) -> None:
    """Without the watch the same schedule contradicts the digest: the test above can fail."""
    life = populated(view)
    run = Pass()
    run.step(view, 100, ALL)
    life.do(create("while the pass runs"), delete(11))
    assert run.step(view, ALL, ALL)
    assert run.findings == ["the rows of the state are not those that its digest was made of"]


def test_a_refused_atomic_batch_leaves_the_sum_of_the_pass_as_it_was(view: View) -> None:
    life = populated(view)
    run = Pass()
    view.watch = run.watch
    assert not run.step(view, len(keys(view)) - 1, ALL)
    before = run.watch.total
    operations = [create("never"), update(11, set={"name": "never"}), delete(999)]
    assert life.refused({"op": "atomic", "operations": operations})["code"] == "atomic_refused"
    assert run.watch.total == before


# -- damage -------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_row_is_found_wherever_it_lies(view: View) -> None:
    """Every row of every table in turn; the head has a checksum of its own."""
    populated(view)
    draw = random.Random(1)
    for key in keys(view):
        if key == HEAD:
            continue
        value = view.get(key)
        assert value is not None
        damaged = bytearray(value or b"\x01")
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        view.put(key, bytes(damaged))
        assert scrubbed(view), f"a flipped bit in {key!r} was not found"
        view.put(key, value)
    assert scrubbed(view) == []


def test_a_row_that_is_gone_is_found_in_every_table(view: View) -> None:
    populated(view)
    for key in keys(view):
        if key == HEAD:
            continue
        value = view.get(key)
        assert value is not None
        view.delete(key)
        assert scrubbed(view), f"the loss of {key!r} was not found"
        view.put(key, value)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [(UUIDS, "does not have this UUID"), (LISTING, "is not to be listed"), (KEYS_BY_AGE, "is that old")],
)
def test_a_superfluous_derived_row_is_found_and_named(view: View, table: bytes, sentence: str) -> None:
    populated(view)
    key = next(key for key in keys(view) if key[:1] == table)
    stray = key[:4] + b"\x77" + key[5:]
    view.put(stray, view.get(key) or b"")
    (finding,) = scrubbed(view)
    assert sentence in finding
    assert stray[1:].hex() in finding


def test_rows_of_no_table_are_found(view: View) -> None:
    populated(view)
    view.put(b"\x00stray", b"")
    assert "no table has such rows" in scrubbed(view)[0]


def test_a_listing_that_shows_an_image_as_it_was_is_found_though_the_digest_fits(view: View) -> None:
    populated(view)
    key = next(key for key in keys(view) if key[:1] == b"I")
    image = unpack(view.get(key) or b"")
    right = index_keys(image)
    stale = index_keys({**image, "name": "an older name"})
    gone, left_over = sorted(set(right) - set(stale)), sorted(set(stale) - set(right))
    assert state_machine.digest(view) == state_machine.recompute_digest(view)
    for one in gone:
        view.delete(one)
    for one in left_over:
        view.put(one, b"")
    assert state_machine.digest(view) == state_machine.recompute_digest(view)
    findings = scrubbed(view)
    assert any("listing indexes are missing" in finding for finding in findings)
    assert any("is not to be listed" in finding for finding in findings)


def test_findings_are_bounded(view: View) -> None:
    populated(view)
    for key in keys(view):
        if key[:1] == LISTING:
            view.put(key, b"x")
    assert len(scrubbed(view)) == FINDINGS_MAX


def in_lists(rows: list[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Of seven rows each: some are of one table, some of several."""
    return (rows[start : start + 7] for start in range(0, len(rows), 7))


def test_a_damaged_state_is_not_handed_on_as_a_snapshot(view: View) -> None:
    populated(view)
    rows = [(bytes(key), bytes(value)) for key, value in view.scan(b"\x00", b"\xff")]
    assert list(checked_rows(view, in_lists(rows))) == list(in_lists(rows))
    position = next(number for number, (key, _) in enumerate(rows) if key[:1] == b"I")
    rows[position] = (rows[position][0], pack({"rotten": True}))
    with pytest.raises(DamagedRecord, match="digest"):
        list(checked_rows(view, in_lists(rows)))


# -- the scrubber on a store --------------------------------------------------------------------------------------

LIMITS = replace(Limits(), scrub_step_rows=50, scrub_fast_step_rows=50)
TIMING = replace(Timing(), scrub_step_s=1.0, scrub_pass_s=1000.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("raftreg.scrub.now", made)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    initialise(tmp_path, cluster_id="test", peer="a", peers="a")
    made = Store(tmp_path, map_size_bytes=1 << 28)
    yield made
    made.close()


def scrubber(store: Store, found: list[str]) -> Scrubber:
    return Scrubber(store, begin_pass=Pass, found=found.append, limits=LIMITS, timing=TIMING)


def life_on(store: Store) -> Life:
    return populated(store.view())


def run_pass(run: Scrubber, clock: Clock, *, seconds: float = 1.0) -> int:
    """Ticks until the pass under way, or the next one, is over."""
    finished, ticks = run.finished, 0
    while run.finished == finished and ticks < 1000:
        clock.now += seconds
        run.tick()
        ticks += 1
    return ticks


def test_a_pass_takes_its_time_and_the_next_one_waits(store: Store, clock: Clock) -> None:
    life_on(store)
    run = scrubber(store, [])
    rows = store.state_rows()
    run.tick()
    assert run.begun == 0
    assert run_pass(run, clock) == math.ceil(rows / LIMITS.scrub_step_rows)
    assert run.status()["finished_age_s"] == 0.0
    clock.now += TIMING.scrub_pass_s / 2
    run.tick()
    assert not run.status()["running"]
    clock.now += TIMING.scrub_pass_s
    run.tick()
    assert run.status()["running"]
    assert 0 < run.status()["rows"] <= LIMITS.scrub_step_rows
    assert run.status()["rows_total"] == rows


def test_an_operator_s_pass_starts_anew_and_does_not_wait_between_steps(store: Store, clock: Clock) -> None:
    life_on(store)
    run = scrubber(store, [])
    clock.now += 1.0
    run.tick()
    assert run.hurry() == 2
    run.tick()
    assert run.hurry() == 2, "a fast pass under way is joined"
    run_pass(run, clock, seconds=0.0)
    assert run.finished == 2
    assert not run.status()["fast"]


def test_damage_is_reported_when_it_is_seen_and_stays_in_the_status(store: Store, clock: Clock) -> None:
    life_on(store)
    found: list[str] = []
    run = scrubber(store, found)
    stray = UUIDS + bytes(16)
    store.view().put(stray, bytes(8))
    run_pass(run, clock)
    assert len(found) == 1
    assert stray[1:].hex() in found[0]
    assert run.status()["findings"] == [found[0].removeprefix("a scrub found that ")]


def test_writes_through_the_store_are_followed_and_a_snapshot_begins_the_pass_anew(store: Store, clock: Clock) -> None:
    life = life_on(store)
    found: list[str] = []
    run = scrubber(store, found)
    clock.now += 1.0
    run.tick()
    life.view = store.view()
    assert life.view.watch is not None
    life.do(create("followed"), delete(11))
    clock.now += 1.0
    run.tick()
    half = run.status()["rows"]
    rows = [(bytes(key), bytes(value)) for key, value in store.view().scan(b"\x00", b"\xff")]
    store.begin_install()
    store.install_rows(rows)
    store.flip_generation()
    assert store.view().watch is None
    clock.now += 1.0
    run.tick()
    assert 0 < run.status()["rows"] < half
    run_pass(run, clock)
    assert found == []
    assert store.view().watch is None
