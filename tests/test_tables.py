"""Rows, keys, codecs and digests."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftreg import tables
from raftreg.tables import Head, UnknownLevel, View
from tests.state_life import a_state

NAMES = st.text(st.characters(exclude_characters="\x00", codec="utf-8"), max_size=255)
NUMBERS = st.integers(1, tables.NUMBER_MAX)


def test_a_scan_yields_rows_from_start_up_to_but_without_end_both_ways(tmp_path: Path) -> None:
    with a_state(tmp_path) as view:
        for key in (b"a", b"b", b"c", b"d"):
            view.put(key, key.upper())
        assert list(view.scan(b"b", b"d")) == [(b"b", b"B"), (b"c", b"C")]
        assert list(view.scan(b"b", b"d", reverse=True)) == [(b"c", b"C"), (b"b", b"B")]
        assert list(view.scan(b"bb", b"zz", reverse=True)) == [(b"d", b"D"), (b"c", b"C")]
        assert list(view.scan(b"e", b"zz")) == list(view.scan(b"0", b"a", reverse=True)) == []


def test_delete_says_whether_the_row_was_there(tmp_path: Path) -> None:
    with a_state(tmp_path) as view:
        view.put(b"a", b"1")
        assert view.delete(b"a") is True
        assert view.delete(b"a") is False
        assert view.get(b"a") is None


@given(st.lists(NUMBERS, min_size=2, max_size=2))
def test_keys_of_numbers_sort_as_the_numbers_do(numbers: list[int]) -> None:
    assert [tables.image_key(n) for n in sorted(numbers)] == sorted(tables.image_key(n) for n in numbers)


@given(NAMES, NAMES)
def test_short_names_sort_by_code_point(first: str, second: str) -> None:
    if max(len(first.encode()), len(second.encode())) <= tables.TEXT_SORT_BYTES_MAX:
        values = tables.text_sort_value(first), tables.text_sort_value(second)
        assert (values[0] < values[1], values[0] == values[1]) == (first < second, first == second)


@given(NAMES, NAMES)
def test_different_scopes_never_share_a_prefix(first: str, second: str) -> None:
    if first != second:
        ours, other = tables.scope_value(first), tables.scope_value(second)
        assert not ours.startswith(other)
        assert not other.startswith(ours)


def test_index_keys_of_the_longest_values_fit_lmdb(tmp_path: Path) -> None:
    longest = "\U0001f4bf" * 255
    image = {
        "number": tables.NUMBER_MAX, "created_at": 1 << 52, "name": longest, "owner": longest, "home_zone": "z" * 63,
        "visibility": "shared", "status": "deactivated", "tags": [longest], "disk_format": "qcow2",
        "container_format": "compressed", "size": tables.NUMBER_MAX, "updated_at": 1 << 52,
        "members": {longest: {"status": "accepted"}}, "locations": [{"zone": "z" * 63, "status": "active"}],
    }  # fmt: skip
    with a_state(tmp_path) as view:
        keys = tables.index_keys(image)
        assert len(keys) == len(tables.INDEXES)
        for key in keys:
            view.put(key, b"")
            assert tables.number_of_index_key(key) == tables.NUMBER_MAX


def test_no_two_indexes_share_a_code() -> None:
    codes = [index.code for index in tables.INDEXES]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 255 for code in codes)


def test_an_image_is_not_in_an_index_of_a_scope_that_it_lacks() -> None:
    image: tables.Row = {
        "number": 1, "created_at": 1, "name": None, "owner": None, "home_zone": None, "visibility": "public",
        "status": "queued", "tags": [], "members": {}, "locations": [], "disk_format": None, "container_format": None,
        "size": None, "updated_at": 1,
    }  # fmt: skip
    scopes = {index.prefix: index.scope for index in tables.INDEXES}
    assert {scopes[key[:2]] for key in tables.index_keys(image)} == {None, "visibility"}


def test_the_head_survives_being_written(tmp_path: Path) -> None:
    with a_state(tmp_path) as view:
        head = tables.read_head(view)
        assert (head.applied, head.next_id, head.floor, head.revision) == (0, 1, 1, 0)
        numbers = [tables.FEATURE_LEVEL, 0, *range(2, len(tables.COUNTERS))]
        written = Head(7, 2**128 - 1, numbers)
        tables.write_head(view, written)
        again = tables.read_head(view)
        assert (again.applied, again.rows_digest) == (7, 2**128 - 1)
        assert again.counters() == numbers
        assert [getattr(again, name) for name in tables.COUNTERS] == again.counters()


@pytest.mark.parametrize(
    ("level", "advice"),
    [
        (tables.FEATURE_LEVEL + 1, "start a release that supports feature level 2"),
        (tables.FEATURE_LEVEL_MIN - 1, "supports 0 and 1, run `raftreg level raise`"),
    ],
)
def test_a_state_of_a_level_that_this_release_does_not_read_is_refused_with_what_to_do(
    tmp_path: Path, level: int, advice: str
) -> None:
    """Whatever is behind the level, since another level may have other fields there."""
    with a_state(tmp_path) as view:
        packed = tables.pack([level, "something else"])
        view.put(tables.HEAD, zlib.crc32(packed).to_bytes(4, "big") + packed)
        with pytest.raises(UnknownLevel, match=advice):
            tables.read_head(view)


def test_the_hash_of_a_row_tells_key_from_value() -> None:
    assert tables.row_hash(b"ab", b"c") != tables.row_hash(b"a", b"bc")


def test_every_table_is_either_digested_or_derived() -> None:
    prefixes = {
        value for name, value in vars(tables).items() if name.isupper() and isinstance(value, bytes) and len(value) == 1
    }
    derived = {tables.UUIDS, tables.LISTING, tables.KEYS_BY_AGE, tables.HEAD}
    assert {bytes((code,)) for code in tables.DIGESTED} == prefixes - derived


def test_a_view_is_three_references() -> None:
    assert View.__slots__ == ("db", "txn", "watch")
