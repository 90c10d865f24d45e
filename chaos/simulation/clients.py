"""Clients of the registry's API: they write, read and allocate, and repeat what got no answer under the same key."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from chaos.simulation.processes import Process, RegistryProcess
from raftreg import errors

if TYPE_CHECKING:
    from chaos.simulation.world import World

ATTEMPT_S = 2.0
# As long as several elections; afterwards the outcome stays unknown and the client goes on.
OPERATION_S = 15.0
PAUSE_S = 0.2
HOT_IMAGES_MAX = 6
_NOT_HERE = (errors.NotLeader, errors.NoQuorum, errors.Overloaded)
Document = dict[str, Any]


class Caller(Process):
    """A process that asks peers and follows leader hints."""

    def __init__(self, world: World, name: str, role: str) -> None:
        super().__init__(world, name, role)
        self._preferred: str | None = None
        self.stopping = self.idle = False

    def start(self) -> None:
        """Begin to work."""
        raise NotImplementedError

    async def ask(
        self, method: str, body: Document, *, deadline_s: float = OPERATION_S, peer: str | None = None
    ) -> Any:
        """The answer of whichever peer gives one. Raises the refusal; OutcomeUnknown when no answer came in time."""
        deadline = self.clock() + deadline_s
        unknown = False
        while self.clock() < deadline:
            server = self._choose(peer)
            try:
                async with asyncio.timeout(ATTEMPT_S):
                    return await self.world.call(self, server, method, body).answered
            except _NOT_HERE as error:
                self._preferred = error.details.get("leader")
            except (errors.Indefinite, TimeoutError):
                unknown, self._preferred = True, None
            await asyncio.sleep(self.world.random.uniform(0, PAUSE_S))
        if unknown:
            raise errors.OutcomeUnknown("no answer in time")
        raise errors.NoQuorum("no leader in time")

    def _choose(self, peer: str | None) -> RegistryProcess:
        name = peer or self._preferred
        if name is None:
            name = self.world.random.choice(self.world.peers).name
        server = self.world.processes[name]
        assert isinstance(server, RegistryProcess)
        return server


class ApiClient(Caller):
    """One operation after the other until it is told to stop."""

    def __init__(self, world: World, name: str, hot: list[str]) -> None:
        super().__init__(world, name, "client")
        self._hot = hot
        self._count = 0
        self._own: list[str] = []
        self.hurried = False  # mostly writes, and no pauses
        self._actor = {"user": name, "project": "demo"}

    def start(self) -> None:
        self.begin()
        self.spawn(self._work())

    async def _work(self) -> None:
        kinds: list[Callable[[], Awaitable[None]]] = [
            self._create, self._create, self._create, self._update, self._update, self._read_linearizable,
            self._read_linearizable, self._read_bounded, self._read_stale, self._allocate, self._delete,
        ]  # fmt: skip
        hurried: list[Callable[[], Awaitable[None]]] = [
            *[self._create] * 3,
            *[self._update] * 3,
            self._read_linearizable,
        ]
        while not self.stopping:
            await self.world.random.choice(hurried if self.hurried else kinds)()
            await asyncio.sleep(0.0 if self.hurried else self.world.random.choice((0.0, 0.0, PAUSE_S)))
        self.idle = True

    # -- writes ---------------------------------------------------------------------------------------------------

    async def _write(self, kind: str, commands: list[Document], details: list[Document]) -> list[Document | None]:
        """Propose the commands of one request, each under a key of its own; what was acknowledged of each."""
        operations = [self.world.judge.ask(self.name, kind, self.world.now, **one) for one in details]
        for command in commands:
            self._count += 1
            command |= {"actor": self._actor, "key": f"{self.name}-{self._count:06}"}
        try:
            results = await self.ask("propose", {"commands": commands})
        except errors.RegistryError:
            return [None] * len(commands)
        for operation, result in zip(operations, results, strict=True):
            if "ok" in result:
                self.world.judge.answer(operation, result["ok"]["revision"], self.world.now, result["ok"])
        return [result.get("ok") for result in results]

    async def _create(self) -> None:
        made = [str(uuid.UUID(int=self.world.random.getrandbits(128), version=4)) for _ in range(self._batch())]
        details = [{"uuid": one, "name": f"{self.name} {self._count}"} for one in made]
        commands = [
            {"op": "create_image", "uuid": one["uuid"], "attributes": {"name": one["name"], "owner": "demo"}}
            for one in details
        ]
        for one, ok in zip(made, await self._write("create", commands, details), strict=True):
            if ok is not None:
                self._own.append(one)
                if len(self._hot) < HOT_IMAGES_MAX:
                    self._hot.append(one)

    def _batch(self) -> int:
        return self.world.random.choice((1, 1, 2, 3))

    async def _update(self) -> None:
        if not self._hot:
            return
        target, name = self.world.random.choice(self._hot), f"{self.name} {self._count} new"
        command = {"op": "update_image", "image": {"uuid": target}, "set": {"name": name}}
        await self._write("update", [command], [{"uuid": target, "name": name}])

    async def _delete(self) -> None:
        if len(self._own) < 4:
            return
        target = self._own.pop(self.world.random.randrange(len(self._own)))
        if target in self._hot:
            self._hot.remove(target)
        command = {"op": "delete_image", "image": {"uuid": target}}
        await self._write("delete", [command], [{"uuid": target}])

    async def _allocate(self) -> None:
        count = self.world.random.randint(1, 5)
        await self._write("allocate", [{"op": "allocate_ids", "count": count}], [{"count": count}])

    # -- reads ----------------------------------------------------------------------------------------------------

    async def _read_linearizable(self) -> None:
        await self._read("linearizable")

    async def _read_bounded(self) -> None:
        await self._read("bounded", max_staleness_s=self.world.random.choice((0.2, 1.0, 5.0)))

    async def _read_stale(self) -> None:
        await self._read("stale")

    async def _read(self, level: str, **more: Any) -> None:
        operation = self.world.judge.ask(self.name, "read", self.world.now, **more)
        body: Document = {"consistency": level, **more}
        if self._hot:
            body["image"] = {"uuid": self.world.random.choice(self._hot)}
        peer = self.world.random.choice(self.world.peers).name
        try:
            answer = await self.ask("read", body, peer=peer, deadline_s=ATTEMPT_S * 2)
        except errors.RegistryError:
            return
        self.world.judge.answer_read(
            operation, answer["revision"], answer["at_s"], level, answer["staleness_s"], answer
        )
