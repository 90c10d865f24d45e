"""Tenant set: what a changed configuration makes of a catalogue, also of one that was on its way to another set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from zonegw.limits import Limits
from zonegw.store import Store
from zonegw.tenant_set import TenantSet

ROOM = 1000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store", Limits())
    yield store
    store.close()


def of(tenants: str, query_max_bytes: int = ROOM) -> TenantSet:
    """The set of tenants with one letter each; "" is the set of all."""
    return TenantSet(frozenset(tenants), query_max_bytes=query_max_bytes)


def plan(store: Store, tenants: str, query_max_bytes: int = ROOM) -> str:
    """What a gateway with this set does first."""
    wanted, read = of(tenants, query_max_bytes), store.read()
    if wanted.needs_bootstrap(read):
        return "bootstrap"
    widened_from = wanted.widened_from(read)
    return "follow" if widened_from is None else f"fill from {''.join(sorted(widened_from))}"


def settle(store: Store, tenants: str) -> None:
    """The catalogue was brought to this set."""
    with store.transaction() as txn:
        of(tenants).begin(txn)
        of(tenants).done(txn)


@pytest.mark.parametrize(
    ("held", "wanted", "planned"),
    [
        ("", "", "follow"),
        ("ab", "ba", "follow"),
        ("a", "ab", "fill from a"),
        ("a", "", "fill from a"),
        ("ab", "a", "bootstrap"),
        ("a", "b", "bootstrap"),
        ("", "a", "bootstrap"),
    ],
)
def test_a_set_that_only_grew_is_filled_and_any_other_is_bootstrapped(
    store: Store, held: str, wanted: str, planned: str
) -> None:
    settle(store, held)
    assert plan(store, wanted) == planned
    settle(store, wanted)
    assert plan(store, wanted) == "follow"


def test_a_catalogue_from_before_there_were_sets_holds_all(store: Store) -> None:
    assert plan(store, "") == "follow"
    assert plan(store, "a") == "bootstrap"


def test_a_fill_that_was_broken_off_starts_again_and_is_not_taken_for_done(store: Store) -> None:
    settle(store, "a")
    with store.transaction() as txn:
        of("ab").begin(txn)
    assert plan(store, "ab") == "fill from a"
    # Rows of b are there, and no feed kept them right: neither may they stay, nor count as held.
    assert plan(store, "a") == "bootstrap"
    assert plan(store, "abc") == "bootstrap"
    assert plan(store, "") == "bootstrap"


def test_both_sets_must_fit_one_request(store: Store) -> None:
    settle(store, "a")
    assert plan(store, "ab", query_max_bytes=45) == "fill from a"
    assert plan(store, "ab", query_max_bytes=44) == "bootstrap"
