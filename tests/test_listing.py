"""Pages of images: every order, every filter, along whichever index they are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raftreg import errors, listing
from raftreg.tables import INDEXES, image_key, read_head
from tests.many_images import populate
from tests.state_life import Document, Life, a_state, create, delete, location, update, uuid_of

Populated = tuple[Life, list[Document]]
MANY = 1 << 30


@pytest.fixture(scope="module")
def populated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Populated]:
    with a_state(tmp_path_factory.mktemp("listing")) as view:
        life = Life(view)
        yield life, populate(life)


def expected(images: list[Document], filters: Document, sort: str, descending: bool) -> list[int]:
    """What a listing must be, from a plain list."""
    matching = [image for image in images if all(_has(image, filters, name) for name in filters)]
    matching.sort(key=lambda image: (_sorted(image[sort]), image["created_at"], image["number"]), reverse=descending)
    return [image["number"] for image in matching]


def _sorted(value: Any) -> tuple[bool, Any]:
    """What is null comes first."""
    return value is not None, value


def _has(image: Document, filters: Document, name: str) -> bool:
    value = filters[name]
    if name == "data_zone":
        return any(held["zone"] == value and held["status"] == "active" for held in image["locations"])
    if name == "member":
        return image["visibility"] == "shared" and value in image["members"]
    if name == "member_status":
        return bool(image["members"].get(filters["member"], {}).get("status") == value)
    if name == "tags":
        return set(value) <= set(image["tags"])
    if name == "properties":
        return all(image["properties"].get(key) == text for key, text in value.items())
    if name.endswith(("_min", "_max")):
        held = image[name[:-4]]
        return held is not None and bool(held >= value if name.endswith("_min") else held <= value)
    return bool(image[name] == value)


def walk(life: Life, page: int, **arguments: Any) -> list[int]:
    """All pages, one after the other."""
    numbers: list[int] = []
    marker: int | None = None
    while True:
        images, marker = listing.list_images(life.view, **arguments, marker=marker, limit=page)
        assert len(images) <= page
        numbers += [image["number"] for image in images]
        assert len(numbers) <= 24, "pages repeat themselves"
        if marker is None:
            return numbers


MOMENTS = st.integers(1_700_000_000_000_000, 1_700_000_000_000_100)
SIZES = st.sampled_from([0, 1, 5, 6, 1 << 40])
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "owner": st.sampled_from(["p1", "p2", "p9", "nobody"]),
        "visibility": st.sampled_from(["private", "public", "shared", "community"]),
        "name": st.sampled_from(["a", "b", "ä", "moved", "nothing"]),
        "status": st.sampled_from(["queued", "saving"]),
        "home_zone": st.sampled_from(["fra", "ber"]),
        "data_zone": st.sampled_from(["fra", "ber"]),
        "disk_format": st.sampled_from(["qcow2", "raw", "vhd"]),
        "container_format": st.just("bare"),
        "size": st.sampled_from([0, 5]),
        "protected": st.booleans(),
        "min_ram": st.integers(0, 1),
        "tags": st.sampled_from([[], ["x"], ["y", "x"], ["new"], ["new", "x"]]),
        "properties": st.sampled_from([{}, {"os_distro": "debian"}, {"os_distro": "debian", "os_type": "linux"}]),
        "size_min": SIZES,
        "size_max": SIZES,
    },
)
MEMBERSHIPS: st.SearchStrategy[Document] = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"member": st.sampled_from(["m1", "m2", "m3"])},
        optional={"member_status": st.sampled_from(["pending", "accepted", "rejected"])},
    ),
)


@given(
    st.builds(dict.__or__, FILTERS, MEMBERSHIPS),
    st.sampled_from(listing.SORT_KEYS),
    st.booleans(),
    st.integers(1, 30),
    st.sampled_from([2, 5, 1000]),
)
@example({}, "uuid", True, 2, 1000)
@example({"owner": "p1", "name": "a"}, "created_at", True, 1, 2)
def test_pages_of_any_size_add_up_to_exactly_the_images_that_match_in_order(
    populated: Populated, filters: Document, sort: str, descending: bool, page: int, scanned_max: int
) -> None:
    """Whether few images are left to be sorted, or a long way along an index is filtered in many short pages."""
    life, images = populated
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "SCAN_ROWS_MAX", scanned_max)
        listed = walk(life, page, **filters, sort=sort, descending=descending)
    assert listed == expected(images, filters, sort, descending)


@pytest.mark.parametrize("end", ["min", "max"])
@pytest.mark.parametrize("name", listing.BETWEEN)
@pytest.mark.parametrize("sort", ["size", "created_at", "updated_at"])
def test_the_bounds_of_a_range_belong_to_it_whatever_the_order(
    populated: Populated, name: str, end: str, sort: str
) -> None:
    life, images = populated
    for value in {image[name] for image in images} - {None}:
        for near in (value - 1, value, value + 1):
            filters = {f"{name}_{end}": max(0, near)}
            assert walk(life, 7, **filters, sort=sort) == expected(images, filters, sort, False)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", listing.SORT_KEYS)
@pytest.mark.parametrize("filters", [{}, {"owner": "p2"}], ids=["all", "few"])
def test_a_marker_serves_after_its_image_was_deleted(
    tmp_path: Path, sort: str, descending: bool, filters: Document
) -> None:
    with a_state(tmp_path) as view:
        life = Life(view)
        images = populate(life)
        whole = expected([image for image in images if not image["protected"]], filters, sort, descending)
        marker = whole[len(whole) // 2]
        behind = walk(life, 99, **filters, protected=False, sort=sort, descending=descending)
        life.do(delete(marker))
        page, _ = listing.list_images(
            view, **filters, protected=False, sort=sort, descending=descending, marker=marker, limit=99
        )
    assert behind == whole
    assert [image["number"] for image in page] == whole[whole.index(marker) + 1 :]


def test_a_scan_that_finds_nothing_ends_within_its_bound_and_says_where_to_go_on(
    populated: Populated, monkeypatch: pytest.MonkeyPatch
) -> None:
    life, _ = populated
    monkeypatch.setattr(listing, "SCAN_ROWS_MAX", 3)
    filters: dict[str, Any] = {"status": "queued", "properties": {"os_distro": "none"}, "descending": True}
    images, marker = listing.list_images(life.view, **filters, limit=5)
    assert images == []
    assert marker is not None
    assert walk(life, 5, **filters) == []


class CountedView:
    """A view that counts the rows it is asked for."""

    def __init__(self, view: Any) -> None:
        self._view, self.rows = view, 0

    def get(self, key: bytes) -> bytes | None:
        self.rows += key[:1] == image_key(0)[:1]
        value: bytes | None = self._view.get(key)
        return value

    def scan(self, *range_: bytes, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        for row in self._view.scan(*range_, reverse=reverse):
            self.rows += 1
            yield row


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """3,000 images: every tenth is p0's, the last two have a name of their own, a tag or a zone."""
    with a_state(tmp_path_factory.mktemp("crowd")) as view:
        life = Life(view)
        life.do({"op": "register_zone", "zone": "fra"})
        for first in range(0, 3000, 500):
            life.do(*(_one(n) for n in range(first, first + 500)))
        yield life


def _one(n: int) -> Document:
    special: Document = {"tags": ["rare"], "home_zone": "fra"} if n >= 2998 else {}
    attributes = {
        "name": "special" if special else f"image {n % 7}", "owner": f"p{n % 10}", "size": n * 7919 % 3001,
        "visibility": "public" if n % 3 else "shared", "disk_format": "raw" if n % 2 else "qcow2",
    }  # fmt: skip
    return create(f"crowd {n}", **attributes, **special)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", listing.SORT_KEYS)
@pytest.mark.parametrize(
    "filters",
    [
        {}, {"owner": "p3"}, {"visibility": "public"}, {"status": "queued"}, {"disk_format": "raw"},
        {"name": "special"}, {"tags": ["rare"]}, {"home_zone": "fra"}, {"owner": "p8", "tags": ["rare"]},
        {"visibility": "public", "disk_format": "raw", "status": "queued"}, {"owner": "p3", "disk_format": "raw"},
    ],
    ids=str,
)  # fmt: skip
def test_a_page_costs_about_what_it_holds(crowd: Life, filters: Document, sort: str, descending: bool) -> None:
    """No order and no usual filter reads its way through all the images."""
    view: Any = CountedView(crowd.view)
    page, marker = listing.list_images(view, **filters, sort=sort, descending=descending, limit=20)
    assert len(page) == 20 or marker is None
    selective = {"owner", "name", "tags", "home_zone"} & set(filters)
    indexed = any(index.sort == sort and index.scope in (*filters, "tag") for index in INDEXES)
    assert view.rows <= (700 if selective and not indexed else 2 * 20 * 10)


def test_a_limit_of_zero_is_an_empty_page(populated: Populated) -> None:
    assert listing.list_images(populated[0].view, limit=0) == ([], None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"sort": "min_disk"}, r"not sorted by 'min_disk'; use one of created_at, name, .*number"),
        ({"virtual_size": 7}, "cannot be filtered by 'virtual_size'; use one of name"),
        ({"member_status": "accepted"}, "name the `member` too"),
        ({"member": "m1", "member_status": "gone"}, "pending, accepted, rejected"),
        ({"marker": 999}, "marker 999"),
    ],
    ids=str,
)
def test_an_unknown_order_filter_or_marker_is_refused(populated: Populated, arguments: Document, told: str) -> None:
    with pytest.raises(errors.BadRequest, match=told):
        listing.list_images(populated[0].view, **arguments, limit=1)


def test_names_beyond_the_sorted_length_are_all_listed_once(tmp_path: Path) -> None:
    with a_state(tmp_path) as view:
        life = Life(view)
        names = ["\U0001f4bf" * 60 + str(9 - n) for n in range(5)]
        life.do(*(create(str(n), name=name, owner="ö" * 200) for n, name in enumerate(names)))
        assert sorted(walk(life, 2, sort="name")) == [1, 2, 3, 4, 5]
        assert walk(life, 2, owner="ö" * 200, sort="name") == walk(life, 2, sort="name")
        assert walk(life, 2, owner="ö" * 199) == []
        assert [walk(life, 2, name=name) for name in names] == [[1], [2], [3], [4], [5]]


@pytest.mark.parametrize("first_byte", ["00", "ff"])
def test_uuids_of_any_kind_are_sorted(tmp_path: Path, first_byte: str) -> None:
    with a_state(tmp_path) as view:
        life = Life(view)
        odd = first_byte + uuid_of("odd")[2:]
        life.do(create("a"), {**create("b"), "uuid": odd}, update(1, set={"name": "x"}))
        by_uuid = sorted([(uuid_of("a"), 1), (odd, 2)])
        assert walk(life, 1, sort="uuid") == [number for _, number in by_uuid]


def test_an_image_is_lost_while_no_live_zone_holds_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SCAN_ROWS_MAX", 3)
    with a_state(tmp_path) as view:
        life = Life(view)

        def live(zone: str, is_live: bool) -> None:
            life.ok({"op": "register_zone", "zone": zone})
            life.ok({"op": "set_zone_lease", "zone": zone, "live": is_live})

        def lost() -> list[str]:
            names: list[str] = []
            marker: int | None = None
            while True:
                page, marker = listing.list_images(view, lost=True, owner="demo", marker=marker, limit=2)
                names += [image["name"] for image in page]
                if marker is None:
                    return names

        def held(alias: str, *places: Document, **more: Any) -> None:
            life.ok(create(alias, status="active", locations=list(places), owner="demo", **more))

        live("fra", True)
        live("ber", False)
        life.ok(create("without data yet", owner="demo"))
        held("in a live zone", location("a", "fra"))
        held("in a zone that is away", location("b", "ber"))
        held("in both", location("c", "ber"), location("d", "fra"))
        held("only to come in the live one", location("e", "ber"), {**location("f", "fra"), "status": "pending"})
        held("in a store of no zone", {**location("g"), "zone": None})
        held("in a zone that nobody knows", location("h", "nowhere"))
        held("given up", location("i", "fra"))
        given_up = read_head(view).images
        life.ok(update(given_up, set={"status": "deactivated"}, actor={"admin": True}))
        life.ok(update(given_up, remove_locations=["i"]))
        held("deactivated", location("k", "ber"))
        life.ok(update(given_up + 1, set={"status": "deactivated"}, actor={"admin": True}))
        life.ok(create("another project's", status="active", locations=[location("l", "ber")], owner="other"))
        away = ["in a zone that is away", "only to come in the live one", "in a zone that nobody knows", "given up",
                "deactivated"]  # fmt: skip
        assert lost() == away
        live("ber", True)
        assert lost() == ["in a zone that nobody knows", "given up"]
        live("fra", False)
        assert lost() == ["in a live zone", "in a zone that nobody knows", "given up"]
