"""`?wait=registry`: a write that is answered by the registry's verdict, or says that it has none."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.gateway.running import PATCH_TYPE, Zone, queued_commands, running
from tests.gateway.test_drainer import HeldLink, parked
from tests.registry import Registry, registry

OCTETS = {"Content-Type": "application/octet-stream"}
WAIT = "?wait=registry&timeout=10"
SHARED = {"name": "n", "disk_format": "raw", "container_format": "bare", "visibility": "shared"}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as running_cluster:
        yield running_cluster


async def asked(zone: Zone, method: str, path: str, **options: Any) -> tuple[int, str]:
    headers = {"Accept": "application/json", **options.pop("headers", {})}
    async with zone.ask(method, path, headers=headers, **options) as answer:
        return answer.status, await answer.text()


def patch(name: str) -> dict[str, Any]:
    return {"json": [{"op": "replace", "path": "/name", "value": name}], "headers": {"Content-Type": PATCH_TYPE}}


async def test_every_write_that_waits_is_in_the_registry_when_it_is_answered(cluster: Registry, tmp_path: Path) -> None:
    async with running(tmp_path / "fra", registry=cluster) as zone, cluster.client() as client:
        await zone.drained()
        async with zone.ask("POST", f"/v2/images{WAIT}", json=SHARED) as answer:
            assert answer.status == 201
            image = await answer.json()
        registered = await client.get_image(image["id"])
        assert registered["number"] == image["os_glance_v1_id"]
        path = image["self"]
        for method, at, options, shows in (
            ("PATCH", path, patch("renamed"), lambda one: one["name"] == "renamed"),
            ("PUT", f"{path}/file", {"data": b"x", "headers": OCTETS}, lambda one: one["status"] == "active"),
            ("POST", f"{path}/members", {"json": {"member": "other"}}, lambda one: "other" in one["members"]),
            ("DELETE", f"{path}/members/other", {}, lambda one: one["members"] == {}),
            ("PUT", f"{path}/tags/t", {}, lambda one: one["tags"] == ["t"]),
            ("DELETE", f"{path}/tags/t", {}, lambda one: one["tags"] == []),
            ("POST", f"{path}/actions/deactivate", {}, lambda one: one["status"] == "deactivated"),
        ):
            status, text = await asked(zone, method, at + WAIT, **options)
            assert status < 300, text
            assert shows(await client.get_image(image["id"])), (method, at)
        assert (await asked(zone, "DELETE", path + WAIT))[0] == 204
        assert (await client.list_images())["images"] == []


async def test_a_write_without_a_verdict_in_time_is_an_unknown_outcome_and_stays_queued(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        status, text = await asked(zone, "POST", "/v2/images?wait=registry&timeout=0.1", json={"name": "kept"})
        assert status == 504
        assert "outcome_unknown" in text
        assert "durably as position 1" in text
        assert await zone.names() == ["kept"]
        assert len(queued_commands(zone)) == 1
    async with running(tmp_path) as zone:
        assert await zone.names() == ["kept"]


TIMEOUTS = ("0", "31", "x", "-1", "nan", "")


@pytest.mark.parametrize("query", ["wait=disk", "wait=", *(f"wait=registry&timeout={text}" for text in TIMEOUTS)])
async def test_a_wait_that_can_not_be_is_refused_before_anything_is_written(tmp_path: Path, query: str) -> None:
    async with running(tmp_path) as zone:
        assert (await asked(zone, "POST", f"/v2/images?{query}", json={"name": "n"}))[0] == 400
        assert queued_commands(zone) == []


async def test_a_refused_write_that_somebody_waits_for_is_told_with_its_status_and_nothing_is_kept(
    cluster: Registry, tmp_path: Path
) -> None:
    async with running(tmp_path / "fra", registry=cluster) as zone, cluster.client() as client:
        await zone.drained()
        image = await zone.create(**SHARED)
        await zone.drained()
        gate = asyncio.Event()
        zone.gateway.drainer._link = HeldLink(zone.gateway.uplink, gate)
        taken = str(uuid4())
        writes = [
            asyncio.create_task(asked(zone, "PATCH", image["self"] + WAIT, **patch("ours"))),
            asyncio.create_task(asked(zone, "POST", f"/v2/images{WAIT}", json={"id": taken, "name": "second"})),
        ]
        while len(queued_commands(zone)) < 2:  # noqa: ASYNC110 - what is asked has no event
            await asyncio.sleep(0.01)
        await client.update_image(image["id"], set={"name": "theirs"}, force=True)
        await client.create_image(uuid=taken, attributes={"name": "first", "visibility": "private", "owner": "x"})
        gate.set()
        (renamed, why), (created, _) = await asyncio.gather(*writes)
        assert (renamed, created) == (409, 409)
        assert "name changed after version" in why
        await zone.drained()
        assert parked(zone) == []
        assert (await zone.get(image["self"]))["name"] == "theirs"
        assert await zone.names() == ["theirs"]


async def test_a_refused_create_stays_parked_where_others_have_written_to_the_image_meanwhile(
    cluster: Registry, tmp_path: Path
) -> None:
    async with running(tmp_path / "fra", registry=cluster) as zone, cluster.client() as client:
        await zone.drained()
        gate = asyncio.Event()
        zone.gateway.drainer._link = HeldLink(zone.gateway.uplink, gate)
        uuid = str(uuid4())
        creating = asyncio.create_task(asked(zone, "POST", f"/v2/images{WAIT}", json={"id": uuid, "name": "second"}))
        while len(queued_commands(zone)) < 1:  # noqa: ASYNC110 - what is asked has no event
            await asyncio.sleep(0.01)
        assert await zone.status("PUT", f"/v2/images/{uuid}/tags/t") == 204
        await client.create_image(uuid=uuid, attributes={"name": "first", "visibility": "private", "owner": "x"})
        gate.set()
        assert (await creating)[0] == 409
        await zone.drained_but_parked()
        assert [row["write"]["command"]["op"] for row in parked(zone)] == ["create_image", "update_image"]
        assert (await asked(zone, "PUT", f"/v2/images/{uuid}/tags/u{WAIT}"))[0] in (404, 409)


async def test_who_waits_for_a_write_of_a_lost_session_hears_that_its_outcome_is_unknown(
    cluster: Registry, tmp_path: Path
) -> None:
    async with running(tmp_path / "fra", registry=cluster) as zone, cluster.client() as client:
        await zone.drained()
        gate = asyncio.Event()
        zone.gateway.drainer._link = HeldLink(zone.gateway.uplink, gate)
        creating = asyncio.create_task(asked(zone, "POST", f"/v2/images{WAIT}", json={"name": "n"}))
        while len(queued_commands(zone)) < 1:  # noqa: ASYNC110 - what is asked has no event
            await asyncio.sleep(0.01)
        await client.open_session(
            gateway="fra-1", zone="fra", session=str(uuid4()), highest_sequence=0, acked_sequence=0,
            acked_hash=bytes(16),
        )  # fmt: skip
        gate.set()
        status, text = await creating
        assert status == 504
        assert "parked as position 1" in text
        assert len(parked(zone)) == 1


async def test_a_write_to_a_parked_image_is_not_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path / "fra") as zone:
        image = await zone.create(name="n")
        zone.gateway.drainer._sessions.lose("session_diverged: test")
        while zone.gateway.drainer._sessions.parking.step() is not None:
            pass
        status, text = await asked(zone, "PATCH", image["self"] + WAIT, **patch("x"))
        assert status == 409
        assert "parked" in text
        assert await zone.rename(image, "x") == 200
