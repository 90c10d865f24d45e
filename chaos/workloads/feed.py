"""Consumers of the registry's changefeed, which read it in stretches and go on where they came to.

One for each peer and observer reads all changes of images; one, who is free to change the source, those of one tenant.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from chaos import config
from chaos.changes import change_of, revision_of
from chaos.workloads.recording import client_anywhere, client_at
from chaos.workloads.workload import Site, Workload
from ops.dev.wiring import PROJECT
from raftreg import errors
from raftreg.client import Client, FeedFilter

IMAGES = FeedFilter(kinds=frozenset({"image"}))
OF_TENANT = FeedFilter(kinds=frozenset({"image"}), tenants=frozenset({PROJECT}))


@dataclass
class Consumer:
    """Who reads what and from where, and the cursor that it has come to."""

    name: str
    connect: Callable[[], Client]
    wanted: FeedFilter
    owner: str | None
    cursor: str


class Feed(Workload):
    name: ClassVar[str] = "feed"

    def __init__(self) -> None:
        self._consumers: list[Consumer] = []

    async def prepare(self, site: Site) -> None:
        async with client_anywhere(site.cluster) as client:
            start = f"{(await client.status())['epoch']}.0"
        self._consumers = [
            Consumer(f"feed-{name}", partial(client_at, site.cluster, name), IMAGES, None, start)
            for name in site.cluster.voters_and_observers
        ]
        self._consumers.append(
            Consumer("feed-tenant", partial(client_anywhere, site.cluster), OF_TENANT, PROJECT, start)
        )

    def clients(self, site: Site) -> Sequence[Coroutine[Any, Any, None]]:
        return [self._client(site, consumer) for consumer in self._consumers]

    async def _client(self, site: Site, consumer: Consumer) -> None:
        async with consumer.connect() as client:
            while await site.pace():
                await stretch(site, consumer, client, None)

    async def finish(self, site: Site) -> None:
        """Every consumer comes to the end, so that what it missed before is missed for good."""
        async with client_anywhere(site.cluster) as client:
            head = (await client.status())["revision"]
        for consumer in self._consumers:
            async with asyncio.timeout(config.RECOVERY_MAX_S), consumer.connect() as client:
                while revision_of(consumer.cursor) < head:
                    await stretch(site, consumer, client, head)


async def stretch(site: Site, consumer: Consumer, client: Client, head: int | None) -> None:
    """Read for a while, or up to a revision; then leave, and note what came as one operation."""
    asked = {"consumer": consumer.name, "after": consumer.cursor, "wanted": consumer.owner}
    operation = site.history.invoke(consumer.name, "feed", **asked)
    changes: list[dict[str, Any]] = []
    messages = client.changes(consumer.cursor, wanted=consumer.wanted)
    try:
        async with contextlib.aclosing(messages), asyncio.timeout(config.FEED_STRETCH_S):
            async for message in messages:
                if message["type"] != "heartbeat":
                    changes.append(change_of(message))
                consumer.cursor = message["cursor"]
                if len(changes) >= config.FEED_CHANGES_MAX or (head and revision_of(consumer.cursor) >= head):
                    break
    except TimeoutError:
        pass
    except errors.RegistryError as error:
        site.history.info(operation, code=error.code)
        return
    site.history.ok(operation, until=consumer.cursor, changes=changes)
