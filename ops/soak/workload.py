"""Clients of the registry that write without pause and note what they were answered, for a judge to compare later."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from chaos import history
from chaos.history import History, Operation
from chaos.validate import Verdict, judge
from ops.dev.cluster import Cluster
from ops.dev.readout import client_of, registry_images
from raftreg import errors
from raftreg.client import Client

CLIENTS = 12
# One operation, with fail-over; an operation longer than this is noted as unknown and the client goes on.
OPERATION_DEADLINE_S = 5.0
# After a fault: election, reconnection and a busy machine.
PROGRESS_TIMEOUT_S = 30.0


class Workload:
    """Clients that create, update, delete and allocate for as long as the block lasts."""

    def __init__(self, cluster: Cluster, path: Path, *, seed: int, clients: int = CLIENTS) -> None:
        self.cluster, self.seed = cluster, seed
        self.history = History(path)
        self.acknowledged_at: list[float] = []
        self._clients = clients
        self._stop = asyncio.Event()
        self._moved = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def acknowledged(self) -> int:
        """How many operations have succeeded."""
        return len(self.acknowledged_at)

    async def __aenter__(self) -> Workload:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._clients)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        try:
            await asyncio.wait_for(asyncio.gather(*self._tasks), 3 * OPERATION_DEADLINE_S)
        finally:
            self.history.close()

    async def progress(self, more: int, timeout_s: float = PROGRESS_TIMEOUT_S) -> None:
        """Wait until so many more operations were acknowledged. Raises AssertionError with the logs' place."""
        goal = self.acknowledged + more
        broken = [task for task in self._tasks if task.done()]
        for task in broken:
            task.result()
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self.acknowledged >= goal)
        except TimeoutError:
            raise AssertionError(
                f"{self.acknowledged} of {goal} operations were acknowledged in {timeout_s} s; "
                f"leader {self.cluster.leader()}; logs in {self.cluster.base / 'logs'} (seed {self.seed})"
            ) from None

    async def _client(self, number: int) -> None:
        chance = random.Random(f"{self.seed}.{number}")
        own: list[str] = []
        async with client_of(self.cluster, OPERATION_DEADLINE_S) as client:
            while not self._stop.is_set():
                await self._operation(client, f"client-{number}", chance, own)

    async def _operation(self, client: Client, name: str, chance: random.Random, own: list[str]) -> None:
        kind = chance.choices(["create", "update", "delete", "allocate"], [6, 3, 1, 1])[0]
        if kind == "allocate":
            await self._noted(name, kind, {}, self._allocate(client, chance.randint(1, 5)))
        elif kind == "create" or not own:
            own.append(str(uuid.UUID(int=chance.getrandbits(128), version=4)))
            await self._noted(name, "create", {"uuid": own[-1]}, self._create(client, own[-1]))
        elif kind == "update":
            one, changes = chance.choice(own), {"name": f"name-{chance.getrandbits(32)}"}
            await self._noted(name, kind, {"uuid": one, "set": changes}, self._update(client, one, changes))
        else:
            one = own.pop(chance.randrange(len(own)))
            await self._noted(name, kind, {"uuid": one}, self._delete(client, one))

    async def _noted(self, name: str, kind: str, asked: dict[str, Any], call: Any) -> None:
        operation = self.history.invoke(name, kind, **asked)
        try:
            answered = await call
        except errors.RegistryError as error:
            note = self.history.fail if error.definite else self.history.info
            note(operation, code=error.code)
            return
        self.history.ok(operation, **answered)
        async with self._moved:
            self.acknowledged_at.append(time.monotonic())
            self._moved.notify_all()

    @staticmethod
    async def _create(client: Client, one: str) -> dict[str, Any]:
        attributes = {"name": f"backup of {one}", "disk_format": "raw", "container_format": "bare", "owner": "demo"}
        image = await client.create_image(uuid=one, attributes=attributes)
        return {"number": image["number"]}

    @staticmethod
    async def _update(client: Client, one: str, changes: dict[str, Any]) -> dict[str, Any]:
        image = await client.update_image(one, changes)
        return {"version": image["version"]}

    @staticmethod
    async def _delete(client: Client, one: str) -> dict[str, Any]:
        await client.delete_image(one)
        return {}

    @staticmethod
    async def _allocate(client: Client, count: int) -> dict[str, Any]:
        first, last = await client.allocate_ids(count)
        return {"first": first, "last": last}


async def judged(workload: Workload) -> tuple[Verdict, list[Operation]]:
    """The verdict on a workload that has ended, and its operations."""
    operations = history.read(workload.history.path)
    async with client_of(workload.cluster, PROGRESS_TIMEOUT_S) as client:
        return judge(operations, await registry_images(client)), operations
