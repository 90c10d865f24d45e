"""Lists of the Images API v1: what they show to whom, filters, order, pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running import Zone, running, seed_block
from tests.gateway.test_images_v1 import create, names, zone

__all__ = ["zone"]  # a fixture

LATER, EARLIER = "2100-01-01T00:00:00", "2001-01-01T00:00:00"


async def numbers(zone: Zone, query: str, **options: Any) -> list[int]:
    return [image["id"] for image in (await zone.get(f"/v1/images{query}", **options))["images"]]


async def pages(zone: Zone, query: str, size: int) -> list[int]:
    """IDs as glanceclient reads them: by the last ID until a page is short."""
    found: list[int] = []
    marker = ""
    while True:
        page = await numbers(zone, f"/detail?limit={size}&{query}{marker}")
        found += page
        if len(page) < size:
            return found
        marker = f"&marker={page[-1]}"


async def test_lists_show_public_own_and_shared_images(zone: Zone) -> None:
    await create(zone, name="public", is_public=True, user="root")
    await create(zone, name="of root", user="root")
    await create(zone, name="of alice")
    await create(zone, name="for bob")
    assert await zone.status("PUT", "/v1/images/44/members/other") == 204
    await zone.create(name="community", visibility="community")
    await zone.create(name="hidden", os_hidden=True)
    assert set(await names(zone)) == {"public", "of alice", "for bob", "community"}
    assert set(await names(zone, user="bob")) == {"public", "for bob"}
    assert set(await names(zone, "?is_public=None&sort_key=id", user="bob")) == {"public", "for bob"}
    for query in ("", "?is_public=True", "?sort_key=id"):
        assert set(await names(zone, query, user="root")) == {"public", "of root"}
    assert "public" not in await names(zone, "?is_public=False", user="root")
    assert len(await names(zone, "?is_public=None", user="root")) == 5
    assert await names(zone, "?is_public=None&owner=demo&name=of+alice", user="root") == ["of alice"]
    assert await zone.status("GET", "/v1/images?is_public=maybe", user="root") == 400


async def test_lists_are_filtered(zone: Zone) -> None:
    await create(zone, b"12345", name="five", OS_DISTRO="a", min_ram=7)
    await create(zone, name="none", protected=True, min_disk=3)
    for query, expected in (
        ("name=five", {"five"}),
        ("name=in:five,none", set()),
        ("status=active", {"five"}),
        ("status=killed", set()),
        ("disk_format=raw&container_format=bare", {"five"}),
        ("disk_format=iso", set()),
        ("property-os_distro=a", {"five"}),
        ("property-os_distro=b", set()),
        ("min_ram=7", {"five"}),
        ("min_disk=3", {"none"}),
        ("size_min=5&size_max=5", {"five"}),
        ("size_min=6", set()),
        ("protected=True", {"none"}),
        ("owner=demo", {"five", "none"}),
        ("owner=other", set()),
        (f"changes-since={EARLIER}", {"five", "none"}),
        (f"changes-since={LATER}", set()),
        ("deleted=True", {"five", "none"}),
        ("unknown=1", {"five", "none"}),
        ("limit=0", set()),
    ):
        assert set(await names(zone, f"?{query}")) == expected, query
    assert await names(zone, "?deleted=True&is_public=None", user="root") == []


@pytest.mark.parametrize(
    "query",
    ["limit=-1", "limit=x", "marker=x", "marker=999", "marker=41", "sort_key=bogus", "sort_key=owner", "sort_dir=up",
     "size_min=x", "min_ram=x", "changes-since=yesterday", "protected=maybe"],
)  # fmt: skip
async def test_a_bad_list_query_is_refused(zone: Zone, query: str) -> None:
    await create(zone, name="not alice's", user="root")
    assert await zone.status("GET", f"/v1/images?{query}") == 400


async def test_pages_by_the_last_id_have_neither_gap_nor_repetition_in_any_order(zone: Zone) -> None:
    made = [(await create(zone, name=f"n{n % 3}", user="alice" if n % 4 else "root"))["id"] for n in range(16)]
    own = [number for n, number in enumerate(made) if n % 4]
    assert await pages(zone, "sort_key=id&sort_dir=asc", 5) == own
    assert await pages(zone, "sort_key=id&sort_dir=desc", 5) == own[::-1]
    assert await pages(zone, "", 5) == own[::-1]
    for key in ("name", "status", "size", "created_at", "updated_at", "disk_format", "container_format"):
        for direction in ("asc", "desc"):
            query = f"sort_key={key}&sort_dir={direction}"
            whole = await numbers(zone, f"?limit=1000&{query}")
            assert sorted(whole) == own
            assert await pages(zone, query, 5) == whole, query
    named = [number for n, number in enumerate(made) if n % 4 and n % 3 == 1]
    for key in ("id", "created_at", "name", "size"):
        assert await pages(zone, f"name=n1&sort_key={key}&sort_dir=asc", 2) == named, key


async def test_a_page_is_short_only_behind_the_last_image(tmp_path: Path) -> None:
    """Clients take a short page for the last: a scan that ends early must go on."""
    seed_block(tmp_path, 1, 100)
    async with running(tmp_path, list_scan_max=10, list_chunk_rows=3) as zone:
        rare = []
        for n in range(45):  # of each fifteen images one is alice's and rare, and some she can't see
            made = await create(zone, min_ram=int(n % 15 == 0), user="alice" if n % 3 == 0 else "root")
            rare += [made["id"]] if n % 15 == 0 else []
        for order in ("sort_key=id", "sort_key=created_at"):
            assert await numbers(zone, f"?min_ram=1&{order}&sort_dir=asc&limit=2") == rare[:2]
            assert await pages(zone, f"min_ram=1&{order}&sort_dir=asc", 2) == rare
    async with running(tmp_path, list_scan_max=10, list_full_scans_max=2) as zone:
        assert await numbers(zone, "?min_ram=1&sort_key=id&limit=1") == rare[-1:]
        assert await zone.status("GET", "/v1/images?min_ram=2&sort_key=id") == 400
