"""Members, tags and the two actions of the Images API v2, in a zone that is cut off and between two zones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running import Zone, running
from tests.registry import Registry, registry

DATA = b"some bytes"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as running_cluster:
        yield running_cluster


async def share(zone: Zone, image: dict[str, Any], project: str = "other", **options: Any) -> int:
    return await zone.status("POST", f"{image['self']}/members", json={"member": project}, **options)


async def answer(zone: Zone, image: dict[str, Any], status: str, *, user: str = "bob", project: str = "other") -> int:
    path = f"{image['self']}/members/{project}"
    return await zone.status("PUT", path, user=user, json={"status": status})


async def test_a_shared_image_is_shown_to_its_member_at_once_and_listed_when_accepted(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create_active(DATA, name="gift")
        assert await zone.status("GET", image["self"], user="bob") == 404
        assert await share(zone, image) == 200
        assert (await zone.get(image["self"], user="bob"))["name"] == "gift"
        assert await zone.data(image, user="bob") == DATA
        assert await zone.names(user="bob") == []
        assert await zone.names("?member_status=pending", user="bob") == ["gift"]
        assert await answer(zone, image, "accepted") == 200
        assert await zone.names(user="bob") == ["gift"]
        assert await zone.names("?visibility=shared", user="bob") == ["gift"]
        assert await zone.names("?member_status=rejected", user="bob") == []
        assert await zone.names("?visibility=public", user="bob") == []
        assert await answer(zone, image, "rejected") == 200
        assert await zone.names(user="bob") == []
        assert await zone.names("?member_status=all&visibility=shared", user="bob") == ["gift"]
        assert await zone.status("DELETE", f"{image['self']}/members/other") == 204
        assert await zone.status("GET", image["self"], user="bob") == 404
        assert await zone.names("?member_status=all", user="bob") == []


async def test_members_of_an_image_are_known_to_its_owner_and_each_to_itself(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="gift")
        for project in ("other", "third"):
            assert await share(zone, image, project) == 200
        path = f"{image['self']}/members"
        listed = await zone.get(path)
        assert [member["member_id"] for member in listed["members"]] == ["other", "third"]
        assert listed["schema"] == "/v2/schemas/members"
        member = listed["members"][0]
        assert set(member) == {"member_id", "image_id", "status", "created_at", "updated_at", "schema"}
        assert (member["image_id"], member["status"]) == (image["id"], "pending")
        assert [one["member_id"] for one in (await zone.get(path, user="bob"))["members"]] == ["other"]
        assert (await zone.get(f"{path}/other", user="bob"))["status"] == "pending"
        assert await zone.status("GET", f"{path}/third", user="bob") == 404
        assert await zone.status("GET", f"{path}/fourth") == 404


async def test_only_the_member_answers_and_only_the_owner_shares(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="gift")
        assert await share(zone, image) == 200
        assert await share(zone, image) == 409
        assert await share(zone, image, "third", user="bob") == 403
        assert await answer(zone, image, "accepted", user="alice") == 403
        assert await answer(zone, image, "maybe") == 400
        assert await answer(zone, image, "accepted", project="third") == 404
        assert await answer(zone, image, "accepted", user="root") == 200
        assert await zone.status("DELETE", f"{image['self']}/members/other", user="bob") == 403
        assert await zone.status("DELETE", f"{image['self']}/members/third") == 404


@pytest.mark.parametrize("body", [{}, {"member": ""}, {"member": 7}, [], "other", {"member": "x" * 256}])
async def test_what_names_no_project_is_refused(tmp_path: Path, body: object) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create()
        assert await zone.status("POST", f"{image['self']}/members", json=body) == 400
        assert (await zone.get(f"{image['self']}/members"))["members"] == []


@pytest.mark.parametrize("visibility", ["private", "community", "public"])
async def test_only_shared_images_have_members(tmp_path: Path, visibility: str) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(user="root", visibility=visibility)
        assert await share(zone, image, user="root") == 403
        assert await zone.status("GET", f"{image['self']}/members", user="root") == 403


async def test_members_are_kept_and_see_nothing_while_the_image_is_private(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="gift")
        await share(zone, image)
        await answer(zone, image, "accepted")
        assert await zone.patch(image, {"op": "replace", "path": "/visibility", "value": "private"}) == 200
        assert await zone.status("GET", image["self"], user="bob") == 404
        assert await zone.names(user="bob") == []
        assert await zone.patch(image, {"op": "replace", "path": "/visibility", "value": "shared"}) == 200
        assert await zone.names(user="bob") == ["gift"]


async def test_an_image_is_shared_with_a_bounded_number_of_projects(tmp_path: Path) -> None:
    async with running(tmp_path, members_max=2) as zone:
        image = await zone.create()
        assert [await share(zone, image, project) for project in ("a", "b", "c")] == [200, 200, 413]


async def test_sharing_reaches_the_other_zone_and_is_accepted_there(cluster: Registry, tmp_path: Path) -> None:
    async with (
        running(tmp_path / "fra", zone="fra", gateway="fra-1", registry=cluster) as fra,
        running(tmp_path / "ams", zone="ams", gateway="ams-1", registry=cluster) as ams,
    ):
        await fra.drained()
        await ams.drained()
        image = await fra.create_active(DATA, name="gift")
        await share(fra, image)

        async def seen(zone: Zone, query: str, names: list[str]) -> None:
            async with asyncio.timeout(20):
                while await zone.names(query, user="bob") != names:  # noqa: ASYNC110 - what is asked has no event
                    await asyncio.sleep(0.02)

        await seen(ams, "?member_status=pending", ["gift"])
        assert await answer(ams, image, "accepted") == 200
        assert await ams.names(user="bob") == ["gift"]
        await seen(fra, "", ["gift"])
        assert await ams.data(image, user="bob") == DATA


async def test_a_late_answer_does_not_bring_back_a_member_that_was_removed(cluster: Registry, tmp_path: Path) -> None:
    async with running(tmp_path / "fra", registry=cluster) as fra:
        await fra.drained()
        image = await fra.create(name="gift")
        await share(fra, image)
        await fra.drained()
    async with running(tmp_path / "fra") as fra:
        assert await answer(fra, image, "accepted") == 200
    async with cluster.client() as client:
        await client.update_image(image["id"], remove_members=["other"], force=True)
    async with running(tmp_path / "fra", registry=cluster) as fra:
        await fra.drained_but_parked()
        parked = [row["reason"]["code"] for row in fra.gateway.queue.parked(fra.gateway.store.read())]
        assert parked == ["conflict"]
        assert (await fra.get(f"{image['self']}/members"))["members"] == []
        assert await fra.status("GET", image["self"], user="bob") == 404


async def test_tags_are_put_and_deleted_one_by_one(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(tags=["a"])
        for _ in range(2):
            assert await zone.status("PUT", f"{image['self']}/tags/b%20c") == 204
        assert sorted((await zone.get(image["self"]))["tags"]) == ["a", "b c"]
        assert await zone.names("?tag=a&tag=b%20c") == [None]
        assert await zone.status("DELETE", f"{image['self']}/tags/a") == 204
        assert await zone.status("DELETE", f"{image['self']}/tags/a") == 404
        assert await zone.status("PUT", f"{image['self']}/tags/{'x' * 256}") == 400
        assert await zone.status("PUT", f"{image['self']}/tags/c", user="bob") == 404
        assert (await zone.get(image["self"]))["tags"] == ["b c"]


async def test_a_deactivated_image_gives_its_data_to_administrators_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create_active(DATA)
        queued = await zone.create()
        action = f"{image['self']}/actions"
        for _ in range(2):
            assert await zone.status("POST", f"{action}/deactivate") == 204
        assert (await zone.get(image["self"]))["status"] == "deactivated"
        assert await zone.status("GET", f"{image['self']}/file") == 403
        assert await zone.data(image, user="root") == DATA
        assert await zone.status("POST", f"{action}/reactivate", user="bob") == 404
        assert await zone.status("POST", f"{action}/reactivate") == 204
        assert await zone.data(image) == DATA
        assert await zone.status("POST", f"{queued['self']}/actions/deactivate") == 403
        assert await zone.status("POST", f"{queued['self']}/actions/reactivate") == 403


PROTECTED = """
[policy]
publicize_image = "owner"

[[property_protections]]
pattern = "x_billing"
create = ["admin"]
read = ["admin"]
update = ["admin"]
delete = ["admin"]

[[property_protections]]
pattern = ".*"
create = ["@"]
read = ["@"]
update = ["@"]
delete = ["@"]
"""


async def test_protected_properties_and_an_overridden_rule_hold_over_http(tmp_path: Path) -> None:
    async with running(tmp_path, more=PROTECTED) as zone:
        assert await zone.status("POST", "/v2/images", json={"x_billing": "1"}) == 403
        image = await zone.create(user="root", owner="demo", x_billing="1", free="2")
        assert "x_billing" not in await zone.get(image["self"])
        assert "x_billing" not in (await zone.get("/v2/images"))["images"][0]
        assert (await zone.get(image["self"], user="root"))["x_billing"] == "1"
        assert await zone.patch(image, {"op": "add", "path": "/x_billing", "value": "3"}) == 403
        assert await zone.patch(image, {"op": "remove", "path": "/x_billing"}) == 409
        assert await zone.patch(image, {"op": "replace", "path": "/free", "value": "3"}) == 200
        assert await zone.patch(image, {"op": "replace", "path": "/visibility", "value": "public"}) == 200
        assert (await zone.get(image["self"], user="root"))["x_billing"] == "1"
