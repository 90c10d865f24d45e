"""Draining to a real registry over a link that loses answers: nothing is lost, applied twice, or refused wrongly."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.gateway.running import Zone, running, until
from tests.registry import Registry, registry
from zonegw.errors import RegistryAway, RegistryRefused


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as running_cluster:
        yield running_cluster


class LossyLink:
    """The uplink, but the answers to operations that `loses` picks never come: they were applied all the same."""

    def __init__(self, uplink: Any, loses: Callable[[list[dict[str, Any]]], bool]) -> None:
        self._uplink = uplink
        self._loses = loses
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._uplink, name)

    async def session_operations(self, session: str, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = await self._uplink.session_operations(session, operations)
        if self._loses(operations):
            self.lost += 1
            raise RegistryAway("the answer was lost")
        return results


class HeldLink(LossyLink):
    """The uplink, but operations leave only once `gate` is open."""

    def __init__(self, uplink: Any, gate: asyncio.Event) -> None:
        super().__init__(uplink, lambda operations: False)
        self._gate = gate

    async def session_operations(self, session: str, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        await self._gate.wait()
        return await super().session_operations(session, operations)


class GarblingLink(LossyLink):
    """The uplink, but the first answer to operations can't be read, which looks like a malformed request."""

    async def session_operations(self, session: str, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = await self._uplink.session_operations(session, operations)
        if self.lost == 0:
            self.lost += 1
            raise RegistryRefused("bad_msgpack", "the body is not msgpack", malformed=True)
        return results


class MuteLink(LossyLink):
    """The uplink, but answers to operations hold no result."""

    async def session_operations(self, session: str, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        await self._uplink.session_operations(session, operations)
        return []


def lose(zone: Zone, loses: Callable[[list[dict[str, Any]]], bool]) -> LossyLink:
    """Put a lossy link between the drainer and the registry."""
    drainer = zone.gateway.drainer
    link = LossyLink(zone.gateway.uplink, loses)
    drainer._link = link
    return link


def parked(zone: Zone) -> list[dict[str, Any]]:
    gateway = zone.gateway
    return list(gateway.queue.parked(gateway.store.read()))


async def test_the_lost_answer_to_a_full_batch_loses_no_session(cluster: Registry, tmp_path: Path) -> None:
    """The handshake after it names the last operation acked, which the registry must still be able to tell."""
    async with running(tmp_path / "fra") as zone:
        for n in range(600):
            await zone.create(name=f"backup-{n}")
    async with running(tmp_path / "fra", registry=cluster) as zone:
        link = lose(zone, lambda operations: operations[0]["sequence"] > 1 and link.lost == 0)
        await zone.drained()
        assert link.lost == 1
        assert zone.gateway.status.document()["sessions_lost"] == []
        assert parked(zone) == []


async def test_a_delete_that_another_side_made_first_leaves_no_overlay_though_the_feed_told_of_it_before(
    cluster: Registry, tmp_path: Path
) -> None:
    async with running(tmp_path / "fra", registry=cluster) as zone, cluster.client() as client:
        await zone.drained()
        image = await zone.create(name="doomed")
        await zone.drained()
        gate = asyncio.Event()
        zone.gateway.drainer._link = HeldLink(zone.gateway.uplink, gate)
        assert await zone.status("DELETE", image["self"]) == 204
        deleted = await client.delete_image(image["id"], force=True)
        feed, store = zone.gateway.feed, zone.gateway.store
        position = zone.gateway.catalogue.position(store.committed()) or (0, 0)
        async with asyncio.timeout(20):
            await feed.reached((position[0], deleted["revision"]))
        gate.set()
        await zone.drained()
        assert parked(zone) == []
        assert await zone.status("GET", image["self"]) == 404


async def test_creates_that_were_applied_before_the_session_was_lost_can_be_changed_again(
    cluster: Registry, tmp_path: Path
) -> None:
    """They are parked, for their answer was lost; but the registry has them, so what follows goes there."""
    async with running(tmp_path / "fra", registry=cluster) as zone, cluster.client() as client:
        await zone.drained()
        link = lose(zone, lambda operations: True)
        image = await zone.create(name="backup")
        await until(lambda: link.lost > 0, "the create to be applied")
        await client.open_session(
            gateway="fra-1", zone="fra", session=str(uuid4()), highest_sequence=0, acked_sequence=0,
            acked_hash=bytes(16),
        )  # fmt: skip
        await until(lambda: len(parked(zone)) == 1, "the create to be parked")
        zone.gateway.drainer._link = zone.gateway.uplink
        await zone.drained()
        assert (await zone.get(image["self"]))["os_glance_parked"] is False
        assert await zone.rename(image, "renamed") == 200
        await zone.drained()
        assert (await client.get_image(image["id"]))["name"] == "renamed"
        assert len(parked(zone)) == 1


async def test_a_write_that_was_applied_is_not_parked_for_an_answer_that_cannot_be_read(
    cluster: Registry, tmp_path: Path
) -> None:
    async with running(tmp_path / "fra", registry=cluster) as zone, cluster.client() as client:
        await zone.drained()
        link = zone.gateway.drainer._link = GarblingLink(zone.gateway.uplink, lambda operations: False)
        image = await zone.create(name="backup")
        later = await zone.create(name="later")
        await zone.drained()
        assert link.lost == 1
        assert parked(zone) == []
        assert zone.gateway.status.document()["sessions_lost"] == []
        for made in (image, later):
            assert (await client.get_image(made["id"]))["number"] == made["os_glance_v1_id"]


async def test_an_answer_without_results_is_no_progress_and_is_told(cluster: Registry, tmp_path: Path) -> None:
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await zone.drained()
        drainer = zone.gateway.drainer
        drainer._link = MuteLink(zone.gateway.uplink, lambda operations: False)
        await zone.create(name="backup")
        await until(lambda: "0 of 1 operations" in (drainer.last_error or ""), "the drainer to complain")
        drainer._link = zone.gateway.uplink
        await zone.drained()
        assert parked(zone) == []


async def test_clients_get_turns_while_the_verdicts_of_a_batch_are_taken(tmp_path: Path) -> None:
    async with running(tmp_path / "fra") as zone:
        await asyncio.gather(*(zone.create(name=f"n{number}") for number in range(60)))
    few = {"turn_rows_max": 16}
    async with registry(tmp_path) as cluster, running(tmp_path / "fra", registry=cluster, **few) as zone:
        depths: set[int] = set()

        def look() -> bool:
            depths.add(zone.gateway.queue.depth(zone.gateway.store.read()))
            return 0 in depths

        async with asyncio.timeout(20):
            while not look():  # noqa: ASYNC110 - every turn of the loop is looked at
                await asyncio.sleep(0)
        assert {60 - 15, 60 - 31, 60 - 47} <= depths
