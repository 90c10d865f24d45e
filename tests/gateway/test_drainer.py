"""Draining to a real registry over a link that loses answers: nothing is lost, applied twice, or refused wrongly."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.gateway.running import Zone, running, until
from tests.registry import Registry, registry
from zonegw.errors import RegistryAway


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
