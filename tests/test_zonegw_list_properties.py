"""Lists of a gateway against a model: every image that may be seen and fits, in order, each once over all pages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zonegw import image_list, image_query
from zonegw.catalogue import Catalogue, key_of
from zonegw.id_pool import IdPool
from zonegw.identity import Identity
from zonegw.images import WRITABLE, Images
from zonegw.limits import Limits
from zonegw.listing import SORT_CODES
from zonegw.store import Store
from zonegw.write_queue import WriteQueue

Image = dict[str, Any]

# Small, so that a few images meet every one of them: pages end early and lists go on in chunks.
LIMITS = Limits(list_chunk_rows=3, list_scan_max=7, list_group_max=1000, store_map_size_bytes=1 << 26)
PROJECTS = ("mine", "yours", "theirs")
ME, ADMIN = Identity("u", "mine", frozenset({"member"})), Identity("a", "ops", frozenset({"admin"}))
STATUSES = ("pending", "accepted", "rejected")
NAMES = (None, "", "a", "b", "ab", "ä")


@st.composite
def catalogues(draw: st.DrawFn) -> list[Image]:
    images = []
    uuids = draw(st.lists(st.integers(1, 99), max_size=14, unique=True))
    for number, low in enumerate(uuids, 1):
        members = draw(st.dictionaries(st.sampled_from(PROJECTS), st.sampled_from(STATUSES), max_size=2))
        images.append(
            {
                **WRITABLE, "number": number, "uuid": str(UUID(int=low << 64, version=4)),
                "version": 1, "revision": number, "home_zone": draw(st.sampled_from((None, "fra", "ams"))),
                "owner": draw(st.sampled_from(PROJECTS)), "name": draw(st.sampled_from(NAMES)),
                "visibility": draw(st.sampled_from(("public", "community", "shared", "private"))),
                "status": draw(st.sampled_from(("queued", "active"))), "size": draw(st.sampled_from((None, 1, 2, 300))),
                "disk_format": draw(st.sampled_from((None, "raw", "iso"))), "os_hidden": draw(st.booleans()),
                "min_ram": draw(st.integers(0, 1)), "created_at": draw(st.integers(1, 3)) * 1_000_000,
                "updated_at": draw(st.integers(3, 5)) * 1_000_000,
                "tags": draw(st.lists(st.sampled_from("xy"), unique=True)),
                "properties": draw(st.dictionaries(st.just("k"), st.sampled_from("12"))), "locations": [],
                "members": {p: {"status": s, "can_share": False} for p, s in members.items()},
                "virtual_size": None, "checksum": None, "os_hash_algo": None, "os_hash_value": None,
                "attribute_versions": {},
            }
        )  # fmt: skip
    return images


FILTERS: dict[str, st.SearchStrategy[str]] = {
    "visibility": st.sampled_from(("public", "community", "shared", "private", "all")),
    "member_status": st.sampled_from((*STATUSES, "all")),
    "owner": st.sampled_from(PROJECTS),
    "name": st.sampled_from(("a", "ab", "in:a,ab", "zz")),
    "status": st.sampled_from(("active", "in:active,queued")),
    "disk_format": st.just("raw"),
    "size_min": st.sampled_from("12"),
    "min_ram": st.just("1"),
    "os_hidden": st.sampled_from(("true", "false")),
    "tag": st.sampled_from("xy"),
    "k": st.sampled_from("12"),
    "created_at": st.sampled_from(("gt:1970-01-01T00:00:01Z", "lte:1970-01-01T00:00:02Z", "neq:1970-01-01T00:00:02Z")),
    "os_glance_home_zone": st.just("fra"),
    "os_glance_v1_id": st.sampled_from("135"),
}
ASKED = st.fixed_dictionaries({}, optional=FILTERS)
SORTS = st.lists(
    st.tuples(st.sampled_from(sorted(SORT_CODES)), st.sampled_from(("asc", "desc"))),
    max_size=3, unique_by=lambda pair: pair[0],
)  # fmt: skip


def listed(image: Image, who: Identity, asked: dict[str, str]) -> bool:
    """Whether the image belongs into the list; written from the API's description, not from the code."""
    wanted = asked.get("visibility")
    answer = image["members"].get(who.project, {}).get("status") if image["visibility"] == "shared" else None
    wished = asked.get("member_status", "accepted")
    shared = answer is not None and wished in (answer, "all")
    default = image["visibility"] == "public" or (image["visibility"] == "community" and wanted in ("community", "all"))
    if not (who is ADMIN or image["owner"] == who.project or shared or default):
        return False
    return all(_fits(image, name, value) for name, value in ({"os_hidden": "false"} | asked).items())


def _fits(image: Image, name: str, value: str) -> bool:
    seconds = image["created_at"] // 1_000_000
    if name in ("visibility", "member_status"):
        return name == "member_status" or value in (image["visibility"], "all")
    if name in ("name", "status", "disk_format"):
        return image[name] in value.removeprefix("in:").split(",")
    fits: dict[str, bool] = {
        "owner": image["owner"] == value,
        "size_min": image["size"] is not None and image["size"] >= int(value if value.isdigit() else 0),
        "min_ram": image["min_ram"] == 1,
        "os_hidden": image["os_hidden"] == (value == "true"),
        "tag": value in image["tags"],
        "k": image["properties"].get("k") == value,
        "created_at": {"gt": seconds > 1, "lte": seconds <= 2, "neq": seconds != 2}.get(value.partition(":")[0], False),
        "os_glance_home_zone": image["home_zone"] == value,
        "os_glance_v1_id": str(image["number"]) == value,
    }
    return fits[name]


def ordered(images: list[Image], sort: list[tuple[str, str]]) -> list[str]:
    """Equals by creation and ID, in the direction of the last key that was asked for."""
    keys = sort or [("created_at", "desc")]
    rest = keys[-1][1]
    keys = [*keys, *((key, rest) for key in ("created_at", "id") if key not in dict(keys))]
    for key, direction in reversed(keys):
        images = sorted(images, key=lambda image: _value(image, key), reverse=direction == "desc")
    return [image["uuid"] for image in images]


def _value(image: Image, key: str) -> tuple[bool, Any]:
    value = image["uuid" if key == "id" else key]
    return (value is not None, (value.encode() if isinstance(value, str) else value) if value is not None else 0)


async def all_pages(images: Images, who: Identity, query: list[tuple[str, str]]) -> list[str]:
    """UUIDs over all pages, following the markers as a client follows `next`."""
    found: list[str] = []
    marker: str | None = None
    while True:
        pairs = [*query, *([("marker", marker)] if marker else [])]
        page = await image_list.page(images, who, image_query.parse(pairs, LIMITS))
        found += [image["uuid"] for image in page.images]
        if page.next_marker is None:
            return found
        assert page.next_marker != marker, "a page that does not move on"
        marker = page.next_marker


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """One store for all examples: each leaves it empty, and what one left in an index would show in the next."""
    store = Store(tmp_path_factory.mktemp("lists") / "store", LIMITS, sync=False)
    yield Images(store, WriteQueue(LIMITS), IdPool(LIMITS), Catalogue(), zone="fra", gateway="fra-1", limits=LIMITS)
    store.close()


@settings(deadline=None, max_examples=100)
@given(catalogue=catalogues(), asked=ASKED, sort=SORTS, limit=st.integers(1, 5), admin=st.booleans())
def test_a_list_holds_what_fits_in_order_each_once_over_all_pages(
    images: Images, catalogue: list[Image], asked: dict[str, str], sort: list[tuple[str, str]], limit: int, admin: bool
) -> None:
    who = ADMIN if admin else ME
    query = [*asked.items(), *([("sort", ",".join(":".join(pair) for pair in sort))] if sort else [])]
    with images.store.transaction() as txn:
        for image in catalogue:
            images.catalogue.put_bootstrapped(txn, image)
    try:
        found = asyncio.run(all_pages(images, who, [*query, ("limit", str(limit))]))
    finally:
        with images.store.transaction() as txn:
            for image in catalogue:
                images.catalogue.forget(txn, key_of(image["uuid"]))
    assert found == ordered([image for image in catalogue if listed(image, who, asked)], sort)
