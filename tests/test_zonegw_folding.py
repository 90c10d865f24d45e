"""Folded patches show what the updates themselves would, while these are settled one after the other."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_zonegw_catalogue import UUID, Side, image, update
from zonegw import folding, overlay
from zonegw.catalogue import key_of
from zonegw.limits import Limits
from zonegw.store import Store

NAMES = st.sampled_from(["name", "properties.a", "properties.b", "tags"])
KEYS = st.sampled_from(["k1", "k2", "k3"])
PROJECTS = st.sampled_from(["p", "q"])


@st.composite
def updates(draw: st.DrawFn) -> dict[str, Any]:
    """One update: what it sets and unsets, adds and removes are different things."""
    values = draw(st.dictionaries(NAMES, st.integers(0, 9).map(str), max_size=3))
    unset = draw(st.lists(st.sampled_from(["properties.a", "properties.b"]), max_size=1))
    added, removed = draw(st.lists(KEYS, max_size=2, unique=True)), draw(st.lists(KEYS, max_size=1))
    members = draw(st.dictionaries(PROJECTS, st.fixed_dictionaries({"can_share": st.booleans()}), max_size=1))
    gone = draw(st.lists(PROJECTS, max_size=1))
    return {
        "kind": "update", "state": "pending", "set": {n: v for n, v in values.items() if n not in unset},
        "unset": unset, "add_locations": [{"key": key} for key in added],
        "remove_locations": [key for key in removed if key not in added], "set_members": members,
        "remove_members": [project for project in gone if project not in members],
    }  # fmt: skip


def shown(base: dict[str, Any], patches: list[dict[str, Any]]) -> dict[str, Any]:
    """What readers see, but for times."""
    for patch in patches:
        base = overlay.patched(base, patch)
    members = {name: member["can_share"] for name, member in base["members"].items()}
    return base | {"updated_at": 0, "members": members, "locations": [one["key"] for one in base["locations"]]}


@settings(deadline=None, max_examples=40)
@given(st.lists(updates(), min_size=2, max_size=9), st.integers(1, 4))
def test_a_folded_patch_shows_what_its_updates_do_and_goes_on_so_while_they_are_applied(
    given_updates: list[dict[str, Any]], kept: int
) -> None:
    """Whenever the oldest is settled the base has it, and the rest lies over that."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(folding, "PATCHES_MAX", kept)
        row = overlay.empty()
        plain = []
        for position, one in enumerate(given_updates, 1):
            patch = one | {"position": position, "time": 0}
            plain.append(patch)
            row["patches"].append(patch | {"set": dict(patch["set"])})
            folding.fold(row["patches"])
        assert len(row["patches"]) <= kept
        base = image(1, members={"q": {"status": "pending", "can_share": False}}, locations=[{"key": "k3"}])
        for position in range(1, len(plain) + 1):
            assert shown(base, row["patches"]) == shown(base, plain)
            base = overlay.patched(base, plain.pop(0))
            overlay.acknowledge(row, position, position, position, base | {"version": position})
        assert row["patches"] == []


@pytest.fixture
def side(tmp_path: Path) -> Any:
    store = Store(tmp_path / "store", Limits())
    yield Side(store)
    store.close()


def test_the_hundredth_update_of_an_image_writes_as_little_as_the_twentieth(side: Side) -> None:
    side.change(1, image(1))
    sizes = []
    with side.store.transaction() as txn:
        for position in range(1, 301):
            side.catalogue.lay(txn, UUID, update(position, name=f"name-{position:04}", min_ram=position))
            sizes.append(len(txn.get("overlay", key_of(UUID)) or b""))
    side.check()
    assert sizes[-1] < sizes[19] + 20
    assert (side.seen() or {})["name"] == "name-0300"
    read = side.store.read()
    assert side.catalogue.positions(read, UUID, 0, 2000) == list(range(1, 301))
    assert side.catalogue.positions(read, UUID, 150, 3) == [151, 152, 153]


def test_updates_that_were_folded_are_acked_and_parked_one_by_one_and_leave_nothing(side: Side) -> None:
    side.change(1, image(1))
    with side.store.transaction() as txn:
        for position in range(1, 41):
            side.catalogue.lay(txn, UUID, update(position, name=f"n{position}"))
    for position in range(1, 21):
        side.ack(position, position + 1, image(position + 1, name=f"n{position}"))
        assert (side.seen() or {})["name"] == "n40"
    for position in range(21, 41):
        side.park(position)
    assert (side.seen() or {})["name"] == "n20"
    side.change(21, image(21, name="n20"))
    assert not side.overlaid()
    assert side.store.read().count("folded") == 0


def test_what_is_laid_again_beneath_folded_updates_stays_beneath_them(side: Side) -> None:
    """As a rewind does it, the newest first."""
    side.change(1, image(1, name="old", min_ram=0))
    with side.store.transaction() as txn:
        for position in range(80, 0, -1):
            patch = update(position, name=f"n{position}") | {"state": "pending", "time": 3}
            if position == 7:
                patch["set"] |= {"min_ram": 7}
            side.catalogue.lay_again(txn, UUID, patch)
    side.check()
    assert ((side.seen() or {})["name"], (side.seen() or {})["min_ram"]) == ("n80", 7)
    assert side.catalogue.positions(side.store.read(), UUID, 0, 99) == list(range(1, 81))
