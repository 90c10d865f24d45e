"""Requests of clients and gateways to a peer's API, over links that may lose question or answer.

HTTP is not simulated: a handler here does what the HTTP handler of that name does with the services of a peer.
An answer that does not come leaves the outcome unknown, which clients must live with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from raftreg import commands, errors, queries

if TYPE_CHECKING:
    from chaos.simulation.processes import Process, RegistryProcess

Document = dict[str, Any]
_SERVER_DEADLINE_S = 4.0


class Call:
    """One request on its way there, in work, or on its way back."""

    def __init__(self, client: Process, server: RegistryProcess, method: str, body: Document) -> None:
        self.client, self.server = client, server
        self._method, self._body = method, body
        self.answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._life = server.loop
        self._result: Any = None
        self._arrived = self.ready = False

    def __str__(self) -> str:
        way = "->" if not self._arrived else "<-"
        return f"{self.client.name} {way} {self.server.name}: {self._method}"

    @property
    def movable(self) -> bool:
        """Whether something of it is under way, and may pass now."""
        blocked = self.client.world.network.blocked
        if not self._arrived:
            return (self.client.name, self.server.name) not in blocked
        return self.ready and (self.server.name, self.client.name) not in blocked

    @property
    def over(self) -> bool:
        return self.answered.done() or not self.client.alive

    def move(self) -> None:
        """Bring the question to the peer, or the answer to the client."""
        if not self.server.alive or self.server.loop is not self._life:
            self.lose()
        elif not self._arrived:
            self._arrived = True
            self.server.spawn(self._serve())
        else:
            self._finish(self._result)

    def lose(self) -> None:
        """The connection breaks: the client does not know what became of its question."""
        self._finish(errors.Unreachable(f"the connection to {self.server.name} broke"))

    def _finish(self, result: Any) -> None:
        if self.over:
            return
        with self.client.world.inside(self.client):
            if isinstance(result, Exception):
                self.answered.set_exception(result)
            else:
                self.answered.set_result(result)

    async def _serve(self) -> None:
        try:
            self._result = await _METHODS[self._method](self.server, self._body)
        except errors.RegistryError as error:
            self._result = error
        self.ready = True


async def _propose(server: RegistryProcess, body: Document) -> list[Document]:
    for command in body["commands"]:
        commands.validate(command)
    return await server.running.proposer.propose(body["commands"], deadline_s=_SERVER_DEADLINE_S)


async def _heartbeat(server: RegistryProcess, body: Document) -> Document:
    assert server.leases is not None
    answer = await server.leases.heartbeat(body["zone"], body["gateway"], body["level"])
    reads = server.running.reads
    view, staleness = reads.view(), reads.freshness()["staleness_s"]
    # A simulated cluster has one epoch.
    state = {"epoch": 1, "revision": queries.revision(view), "staleness_s": staleness}
    return answer | {"state": None if staleness is None else state}


async def _read(server: RegistryProcess, body: Document) -> Document:
    """An image, or the newest revision alone, with what the answer's headers would say."""
    reads = server.running.reads
    await reads.barrier(body["consistency"], body.get("max_staleness_s"))
    view = reads.view()
    image = queries.get_image(view, body["image"]) if "image" in body else None
    freshness = reads.freshness()
    return {
        "image": image,
        "revision": queries.revision(view),
        "staleness_s": freshness["staleness_s"],
        "at_s": server.world.now,
    }


_METHODS: dict[str, Callable[[RegistryProcess, Document], Awaitable[Any]]] = {
    "propose": _propose,
    "heartbeat": _heartbeat,
    "read": _read,
}
