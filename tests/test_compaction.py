"""When old changes go: by number, but none that a bootstrap still needs; whom that overtakes is told 410."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from raftreg import errors, queries
from raftreg.compaction import ChangeCompactor
from raftreg.config import Limits
from tests.registry import Registry, registry

KEPT = 10
LIMITS = dataclasses.replace(Limits(), changes_keep_rows=KEPT, compact_rows_max=3, bootstrap_max_s=600.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    """The peer's own compactor has not lived for `bootstrap_max_s`, so that it does nothing here."""
    async with registry(tmp_path, limits=LIMITS) as cluster:
        yield cluster


def compactor(cluster: Registry, clock: Clock, later_s: float = 0.0) -> ChangeCompactor:
    return ChangeCompactor(
        cluster.peers["a"], queries.revision, queries.compaction_floor, queries.first_change_since,
        clock=clock, now_us=lambda: time.time_ns() // 1000 + int(later_s * 1_000_000),
    )  # fmt: skip


def floor(cluster: Registry) -> int:
    return queries.compaction_floor(cluster.peers["a"].reads.view())


async def create(cluster: Registry, count: int) -> int:
    """The revision afterwards."""
    async with cluster.client() as client:
        await client.batch([{"op": "create_image", "attributes": {"name": "x"}} for _ in range(count)])
        return int((await client.status())["revision"])


async def test_changes_that_are_too_old_go_however_few_there_are(cluster: Registry) -> None:
    clock = Clock()
    last = await create(cluster, KEPT - 2)
    for later_s, expected in ((LIMITS.changes_keep_s - 60, 1), (LIMITS.changes_keep_s + 60, last)):
        compacting = compactor(cluster, clock, later_s)
        await compacting.check()
        clock.now += LIMITS.bootstrap_max_s + 1
        await compacting.check()
        assert floor(cluster) == expected, "a bootstrap may follow from the newest on"


async def test_changes_beyond_the_number_to_keep_go_once_no_bootstrap_can_need_them(cluster: Registry) -> None:
    clock = Clock()
    compacting = compactor(cluster, clock)
    old = await create(cluster, 30)
    await compacting.check()
    assert floor(cluster) == 1, "too young, however many there are"
    clock.now += LIMITS.bootstrap_max_s
    young = await create(cluster, 8)
    await compacting.check()
    assert floor(cluster) == 1, "a bootstrap that began then is within its time to the second"
    clock.now += 1
    await compacting.check()
    assert floor(cluster) == young - KEPT < old, "so many are kept, whatever their age"
    await create(cluster, 30)
    clock.now += 1
    await compacting.check()
    assert floor(cluster) == old, "those behind it are too young"
    clock.now += LIMITS.bootstrap_max_s
    await compacting.check()
    assert floor(cluster) > old


async def test_few_changes_stay_whatever_their_age(cluster: Registry) -> None:
    clock = Clock()
    compacting = compactor(cluster, clock)
    await create(cluster, KEPT)
    for _ in range(3):
        await compacting.check()
        clock.now += 10 * LIMITS.bootstrap_max_s
    assert floor(cluster) == 1


async def test_a_consumer_that_automatic_compaction_overtook_is_told_to_bootstrap(cluster: Registry) -> None:
    clock = Clock()
    compacting = compactor(cluster, clock)
    await create(cluster, 30)
    await compacting.check()
    clock.now += 2 * LIMITS.bootstrap_max_s
    await compacting.check()
    async with cluster.http() as http:
        behind = await http("GET", "changes?after=1.1")
        assert (behind.status, behind.error["code"], behind.error["floor"]) == (410, "compacted", floor(cluster))
    async with cluster.client() as client, asyncio.timeout(20), aclosing(client.changes("1.1")) as feed:
        with pytest.raises(errors.Compacted):
            await anext(feed)
