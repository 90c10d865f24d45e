"""Reading the state: changes, bootstrap chunks, blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftreg import queries
from tests.many_images import populate
from tests.state_life import Document, Gateway, Life, a_state, uuid_of


@pytest.fixture(scope="module")
def populated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Life, list[Document]]]:
    with a_state(tmp_path_factory.mktemp("queries")) as view:
        life = Life(view)
        yield life, populate(life)


def test_an_image_is_found_by_number_by_uuid_and_after_its_deletion_as_deleted(
    populated: tuple[Life, list[Document]],
) -> None:
    view = populated[0].view
    assert queries.get_image(view, {"uuid": uuid_of("0")}) == queries.get_image(view, {"number": 1})
    deleted = queries.get_image(view, {"uuid": uuid_of("4")})
    assert deleted is not None
    assert (deleted["deleted"], deleted["number"], deleted["version"]) == (True, 5, 3)
    assert queries.get_image(view, {"uuid": uuid_of("?")}) is None
    assert queries.get_image(view, {"number": 999}) is None


@given(st.integers(1, 30))
def test_bootstrap_chunks_add_up_to_all_images_by_number(populated: tuple[Life, list[Document]], size: int) -> None:
    life, images = populated
    found: list[Document] = []
    while chunk := queries.state_chunk(life.view, found[-1]["number"] if found else 0, size)[0]:
        assert len(chunk) <= size
        found += chunk
    assert found == images


def test_changes_come_in_order_without_a_gap_up_to_their_limits(populated: tuple[Life, list[Document]]) -> None:
    life, images = populated
    changes = queries.changes_since(life.view, 0, 99, 1 << 20)
    assert [change["revision"] for change in changes] == list(range(1, queries.revision(life.view) + 1))
    assert queries.changes_since(life.view, 3, 2, 1 << 20) == changes[3:5]
    assert queries.changes_since(life.view, 3, 99, 1) == changes[3:4]
    assert queries.changes_since(life.view, len(changes), 99, 1 << 20) == []
    assert all(later["time"] >= earlier["time"] for earlier, later in pairwise(changes))
    latest = {change["number"]: change for change in changes if change["kind"] == "image"}
    assert [change["image"] for _, change in sorted(latest.items()) if "image" in change] == images


def test_the_oldest_change_tells_its_time(populated: tuple[Life, list[Document]], tmp_path: Path) -> None:
    life = populated[0]
    assert queries.oldest_change_time(life.view) == queries.changes_since(life.view, 0, 1, 1)[0]["time"]
    with a_state(tmp_path) as empty:
        assert queries.oldest_change_time(empty) is None


def test_counts_are_those_of_the_state(populated: tuple[Life, list[Document]]) -> None:
    life, images = populated
    counts = queries.counts(life.view)
    assert (counts["images"], counts["tombstones"], counts["next_id"]) == (len(images), 2, 25)


def test_the_first_change_since_any_moment_is_found(populated: tuple[Life, list[Document]]) -> None:
    life, _ = populated
    changes = queries.changes_since(life.view, 0, 10_000, 1 << 30)
    times = sorted({change["time"] for change in changes})
    assert len(times) < len(changes), "some changes share their time"
    for moment in [0, *times, *(time + 1 for time in times)]:
        wanted = next((c["revision"] for c in changes if c["time"] >= moment), changes[-1]["revision"] + 1)
        assert queries.first_change_since(life.view, moment) == wanted, moment


def test_the_first_change_since_a_moment_lies_above_the_compaction_floor(tmp_path: Path) -> None:
    with a_state(tmp_path) as view:
        life = Life(view)
        assert queries.first_change_since(view, 0) == 1
        populate(life)
        life.do({"op": "compact_changes", "floor": 7})
        assert queries.first_change_since(view, 0) == 7


def test_the_pages_of_blocks_hold_every_block_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_state(tmp_path) as view:
        life = Life(view)
        gateways = [Gateway(life, name, session=name) for name in ("gw1", "gw2")]
        for gateway in gateways:
            gateway.open()
        granted: dict[str, list[int]] = {"gw1": [], "gw2": []}
        for size in range(1, 6):
            for gateway in gateways:
                granted[gateway.gateway].append(gateway.grant(size)["first"])
        monkeypatch.setattr(queries, "SCAN_ROWS_MAX", 3)
        everything = sorted([*granted["gw1"], *granted["gw2"]])
        for name, wanted in ((None, everything), *granted.items(), ("gw3", [])):
            for limit in (1, 2, 100):
                assert walk_blocks(life, name, limit) == wanted, (name, limit)


def walk_blocks(life: Life, gateway: str | None, limit: int) -> list[int]:
    """First numbers of all blocks, page by page."""
    found: list[int] = []
    after: int | None = 0
    while after is not None:
        page, after = queries.blocks(life.view, gateway=gateway, after=after, limit=limit)
        assert len(page) <= limit
        found += [block["first"] for block in page]
    return found


@pytest.mark.parametrize("size", [1, 2, 50])
def test_the_pages_of_zones_and_sessions_hold_every_one_once_in_order(tmp_path: Path, size: int) -> None:
    with a_state(tmp_path) as view:
        life = Life(view, validate=False)
        for number in range(5):
            Gateway(life, f"gw{number}", f"zone-{number}", f"s{number}").open()
        zones = [f"zone-{number}" for number in range(5)]
        sessions = sorted(uuid_of(f"s{number}") for number in range(5))
        for read, name, wanted in ((queries.list_zones, "zone", zones), (queries.list_sessions, "session", sessions)):
            found: list[str] = []
            after: str | None = None
            while True:
                page, after = read(view, after, size)
                assert len(page) <= size
                found += [row[name] for row in page]
                if after is None:
                    break
            assert found == wanted
        assert queries.get_zone(view, "zone-3") == queries.zones(view)["zone-3"]
        assert queries.get_zone(view, "zone-9") is None
        assert queries.list_zones(view, "zone-2x", 1)[0][0]["zone"] == "zone-3", "a name that is not there"
