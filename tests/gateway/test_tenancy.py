"""Another tenant's private image does not exist: on every route that names an image, in every list, and in no text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running import PATCH_TYPE, Zone, running

SECRET = "nobody-else-may-read-this"
OCTETS = {"Content-Type": "application/octet-stream"}
RENAME = b'[{"op": "replace", "path": "/name", "value": "mine"}]'
# Method and route -> what a correct request of its owner sends.
SENT: dict[str, dict[str, Any]] = {
    "PATCH /v2/images/{id}": {"headers": {"Content-Type": PATCH_TYPE}, "data": RENAME},
    "PUT /v2/images/{id}/file": {"headers": OCTETS, "data": b"x"},
    "PUT /v2/images/{id}/stage": {"headers": OCTETS, "data": b"x"},
    "POST /v2/images/{id}/import": {"json": {"method": {"name": "glance-direct"}}},
    "POST /v2/images/{id}/members": {"json": {"member": "other"}},
    "PUT /v2/images/{id}/members/{member}": {"json": {"status": "accepted"}},
    "PUT /v1/images/{id}": {"headers": {"x-image-meta-name": "mine"}},
    "PUT /v1/images/{id}/members": {"json": {"memberships": [{"member_id": "other"}]}},
}
NAMED = {"member": "other", "tag": "old", "store": "fra"}


def routes_of_images(zone: Zone) -> list[str]:
    """METHOD PATTERN of every route that names an image."""
    app = zone.gateway._images_app()
    found = []
    for route in app.router.routes():
        pattern = route.resource.canonical if route.resource else ""
        if ("{id}" in pattern or "{image}" in pattern) and not pattern.startswith("/v2/tasks"):
            found.append(f"{route.method} {pattern}")
    return found


async def test_no_route_admits_that_another_tenants_private_image_exists(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create_active(b"data", name=SECRET, visibility="private", tags=["old"])
        assert await zone.patch(image, {"op": "add", "path": "/key", "value": SECRET}) == 200
        routes = routes_of_images(zone)
        assert set(SENT) <= set(routes), "a route that was renamed must not lose its request here"
        for route in routes:
            method, pattern = route.split()
            number = image["os_glance_v1_id"] or 4711
            given = NAMED | {"id": number if pattern.startswith("/v1") else image["id"], "image": image["id"]}
            async with zone.ask(method, pattern.format(**given), user="bob", **SENT.get(route, {})) as answer:
                text = await answer.text()
                assert answer.status == 404, f"{route}: {answer.status} {text}"
                assert SECRET not in text, route
        assert (await zone.get(image["self"]))["name"] == SECRET
        assert await zone.data(image) == b"data"


@pytest.mark.parametrize(
    "query",
    ["", "name={secret}", "id={id}", "id=in:{id}", "key={secret}", "owner=demo", "visibility=private", "visibility=all",
     "member_status=all", "visibility=shared&member_status=all", "tag=old", "status=active", "size_min=0",
     "os_glance_home_zone=fra", "store=fra", "os_glance_v1_id={number}", "sort=name:asc,size:desc",
     "protected=false", "checksum={checksum}"],
)  # fmt: skip
async def test_no_list_shows_another_tenants_private_image(tmp_path: Path, query: str) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create_active(b"data", name=SECRET, visibility="private", tags=["old"])
        assert await zone.patch(image, {"op": "add", "path": "/key", "value": SECRET}) == 200
        image = await zone.get(image["self"])
        asked = query.format(**image, secret=SECRET, number=image["os_glance_v1_id"] or 1)
        assert (await zone.get(f"/v2/images?{asked}", user="bob"))["images"] == []
        numbered_or_shared = "v1_id" in query or "shared" in query
        assert numbered_or_shared or len((await zone.get(f"/v2/images?{asked}"))["images"]) == 1, "its owner sees it"


async def test_an_unknown_images_marker_and_anothers_are_refused_alike(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name=SECRET, visibility="private")
        unknown = "00000000-0000-4000-8000-000000000000"
        texts = []
        for marker in (image["id"], unknown):
            async with zone.ask("GET", f"/v2/images?marker={marker}", user="bob") as answer:
                assert answer.status == 400
                texts.append((await answer.text()).replace(marker, "ID"))
        assert texts[0] == texts[1]
        assert await zone.status("POST", "/v2/images", user="bob", json={"id": image["id"]}) == 409
