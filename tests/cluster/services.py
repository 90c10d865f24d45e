"""What the API asks of a simulated voter: the product's proposer, reads and leadership, run after every turn as the
peer runs them. Requests are tasks of the test's event loop, which knows nothing of the virtual clock: after moving
that on, `settle_tasks` lets every task go as far as it can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack

from raftreg.config import Limits
from raftreg.leadership import Leadership
from raftreg.proposer import Proposer
from raftreg.reads import Reads
from raftreg.tables import View
from tests.cluster.harness import SMALL_SNAPSHOTS, TIMING, Cluster, apply_value

_STEP_S = 0.05


class Services:
    """The services of one voter; its entries are values of the list machine."""

    def __init__(self, cluster: Cluster, name: str, limits: Limits = SMALL_SNAPSHOTS) -> None:
        self.node = cluster.nodes[name]
        poke: Callable[[], None] = lambda: None  # noqa: E731
        self.leadership = Leadership(self.node, limits, TIMING, poke=poke, clock=cluster.clock)
        self.proposer = Proposer(self.node, limits, self.leadership, poke=poke, now_us=lambda: 0, clock=cluster.clock)
        self.reads = Reads(self.node, self.leadership, poke=poke, waiting_max=100, clock=cluster.clock)
        self._turn = self.node.turn
        self.node.turn = self.turn  # type: ignore[method-assign]
        self.node._apply = apply_commands

    def turn(self) -> bool:
        again = self._turn()
        self.leadership.after_turn()
        self.reads.after_turn()
        for service in (self.leadership, self.proposer, self.reads):
            service.expire()
        return again

    def write(self, value: str) -> Request:
        return Request(self.proposer.propose([{"op": "put", "value": value}]))

    def read(self) -> Request:
        return Request(self.reads.barrier("linearizable"))

    def transfer(self, to: str | None = None) -> Request:
        return Request(self.leadership.transfer(to))


def apply_commands(view: View, index: int, payload: bytes | None) -> Any:
    apply_value(view, index, payload)
    commands = msgpack.unpackb(payload)[2] if payload else []
    return [{"ok": command["value"]} for command in commands]


def entries(cluster: Cluster, name: str) -> list[bytes]:
    """The entries that a voter has applied."""
    return [bytes(value) for _, value in cluster.nodes[name].store.view().scan(b"value:", b"value:\xff")]


def written(cluster: Cluster, name: str) -> list[str]:
    """The values of the commands that a voter has applied, entry by entry."""
    return [command["value"] for entry in entries(cluster, name) for command in msgpack.unpackb(entry)[2]]


class Request:
    """One call, driven by hand."""

    def __init__(self, call: Awaitable[Any]) -> None:
        self.task = asyncio.ensure_future(call)

    async def started(self) -> Request:
        await settle_tasks()
        return self

    @property
    def waits(self) -> bool:
        return not self.task.done()

    async def outcome(self) -> Any:
        """Its result or its error; it must have one by now."""
        await settle_tasks()
        assert self.task.done()
        error = self.task.exception()
        return self.task.result() if error is None else error


async def settle_tasks() -> None:
    """Let every task that can run do so."""
    for _ in range(4):
        await asyncio.sleep(0)


async def go_on(cluster: Cluster, seconds: float, among: str | None = None) -> None:
    """Let time pass in small steps: the voters exchange everything and the tasks run."""
    for _ in range(round(seconds / _STEP_S)):
        cluster.pump(among, rounds=1, step=_STEP_S)
        await settle_tasks()
