"""Turns concurrent commands into few Raft entries and gives every caller its own outcome.

Commands wait in a bounded queue; whenever the leader's turn asks (`pump`), as many as fit become one entry, and at
most `inflight_entries_max` entries are under way. pysyncobj never forwards: on a follower `propose` raises NotLeader
and the API sends the request to the leader itself. What arrives while nobody leads waits for the next leader; what is
in the queue while the lead is given away goes to the successor.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from raftreg import errors
from raftreg.config import Limits
from raftreg.leadership import Leadership
from raftreg.raft import RaftNode

ENTRY_VERSION = 1
_HEADER_BYTES = 32
# These give back more than they take, so they pass while the database is full.
_SHRINKING = frozenset({"delete_image", "confirm_deletions", "compact_changes", "seal_blocks", "set_zone_lease"})

Result = dict[str, Any]


class _NotProposed(Exception):
    """The lead went elsewhere before the commands were in an entry: they may be proposed by somebody else."""


@dataclass(slots=True)
class _Submission:
    commands: list[bytes]
    size: int
    deadline: float
    future: asyncio.Future[list[Result]]
    proposed: bool = field(default=False)


class Proposer:
    """`full()` says why growth is refused, or None; `admit` raises the refusal of a command that may not be in the log
    yet; `poke` makes a turn due; `now_us` is the wall clock."""

    def __init__(
        self,
        raft: RaftNode,
        limits: Limits,
        leadership: Leadership,
        *,
        poke: Callable[[], None],
        full: Callable[[], str | None] = lambda: None,
        admit: Callable[[Sequence[dict[str, Any]]], None] = lambda _commands: None,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._raft, self._limits, self._leadership, self._poke = raft, limits, leadership, poke
        self._full, self._admit, self._now_us, self._clock = full, admit, now_us, clock
        self._waiting: deque[_Submission] = deque()
        self._in_flight: dict[int, list[_Submission]] = {}
        self._entry_counter = 0
        self._commands_waiting = 0
        self._packer = msgpack.Packer(autoreset=False)
        self.proposed = 0
        raft.on_pump = self.pump
        raft.on_leadership = self._lead_changed
        leadership.busy = lambda: bool(self._in_flight)

    @property
    def pending(self) -> int:
        """Commands accepted and not yet answered."""
        return self._commands_waiting

    async def propose(
        self, commands: Sequence[dict[str, Any]], *, deadline_s: float = 10.0, patience: float | None = None
    ) -> list[Result]:
        """Replicate the commands in this order, with nothing of their own in between; one result for each.

        Waits while nobody leads, up to `leader_wait_s` or the moment `patience` of `Leadership`'s clock. Raises
        NotLeader when another peer does; NoQuorum, Overloaded, StorageFull, TooLarge and what `admit` raises: it surely
        did not happen.
        OutcomeUnknown: it may have, or may still; repeat it only with the same idempotency key or session sequence.
        """
        if self._commands_waiting + len(commands) > self._limits.propose_queue_max:
            raise errors.Overloaded(f"{self._commands_waiting} commands wait already; try again later")
        deadline = self._clock() + deadline_s
        self._commands_waiting += len(commands)
        try:
            return await self._propose(
                commands, deadline, min(deadline, self._leadership.patience() if patience is None else patience)
            )
        finally:
            self._commands_waiting -= len(commands)

    async def _propose(self, commands: Sequence[dict[str, Any]], deadline: float, until: float) -> list[Result]:
        while True:
            await self._lead(until)
            submission = self._accept(commands, deadline)
            self._waiting.append(submission)
            self._poke()
            try:
                return await submission.future
            except _NotProposed:
                until = max(until, self._clock() + self._limits.successor_wait_s)

    async def _lead(self, until: float) -> None:
        """Return when this peer leads. Raises NotLeader as soon as another one does."""
        while not self._raft.is_leader:
            leader = await self._leadership.known(until)
            if leader != self._raft.name:
                raise errors.NotLeader(leader)

    def _accept(self, commands: Sequence[dict[str, Any]], deadline: float) -> _Submission:
        refusal = self._full()
        if refusal is not None and any(command.get("op") not in _SHRINKING for command in commands):
            raise errors.StorageFull(refusal)
        self._admit(commands)
        packed = [msgpack.packb(command) for command in commands]
        size = sum(map(len, packed)) + _HEADER_BYTES
        if size > self._limits.entry_bytes_max or len(packed) > self._limits.entry_commands_max:
            raise errors.TooLarge(
                f"{len(packed)} commands of {size} bytes; one request holds at most "
                f"{self._limits.entry_commands_max} commands and {self._limits.entry_bytes_max} bytes"
            )
        future: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        return _Submission(packed, size, deadline, future)

    def pump(self) -> None:
        """Form entries from what waits; called by the Raft node in a leader's turn. While the lead is being given away
        nothing new may enter the log: the successor must have all of it."""
        while self._waiting and len(self._in_flight) < self._limits.inflight_entries_max:
            if self._leadership.holding:
                return
            self._append(self._gather())

    def _gather(self) -> list[_Submission]:
        batch: list[_Submission] = []
        size = commands = 0
        while self._waiting:
            submission = self._waiting[0]
            size += submission.size
            commands += len(submission.commands)
            if batch and (size > self._limits.entry_bytes_max or commands > self._limits.entry_commands_max):
                break
            self._waiting.popleft()
            if not submission.future.done():
                batch.append(submission)
        return batch

    def _append(self, batch: list[_Submission]) -> None:
        if not batch:
            return
        for submission in batch:
            submission.proposed = True
        self._entry_counter += 1
        number = self._entry_counter
        self._in_flight[number] = batch
        self.proposed += 1
        self._raft.append(self._payload(batch), lambda results: self._applied(number, results))

    def _payload(self, batch: list[_Submission]) -> bytes:
        packer = self._packer
        packer.reset()
        packer.pack_array_header(3)
        packer.pack(ENTRY_VERSION)
        packer.pack(self._now_us())
        packer.pack_array_header(sum(len(submission.commands) for submission in batch))
        header: bytes = packer.bytes()
        return header + b"".join(command for submission in batch for command in submission.commands)

    def _applied(self, number: int, results: list[Result]) -> None:
        batch = self._in_flight.pop(number, None)
        if batch is None:
            return
        start = 0
        for submission in batch:
            end = start + len(submission.commands)
            if not submission.future.done():
                submission.future.set_result(results[start:end])
            start = end
        if self._waiting:
            self._poke()

    def _lead_changed(self, leading: bool) -> None:
        """Lost: what is in the log may still be committed by the next leader; what only waited surely is not."""
        if leading:
            return
        in_flight, self._in_flight = self._in_flight, {}
        for batch in in_flight.values():
            for submission in batch:
                self._fail(submission, errors.OutcomeUnknown("leadership was lost before the commit was known"))
        waiting, self._waiting = self._waiting, deque()
        for submission in waiting:
            self._fail(submission, _NotProposed())

    def expire(self) -> None:
        """Answer those whose deadline passed; call every few ticks."""
        now = self._clock()
        if any(submission.deadline < now for submission in self._waiting):
            expired = [submission for submission in self._waiting if submission.deadline < now]
            self._waiting = deque(submission for submission in self._waiting if submission.deadline >= now)
            for submission in expired:
                self._fail(submission, errors.Overloaded("the deadline passed before the command was proposed"))
        for batch in self._in_flight.values():
            for submission in batch:
                if submission.deadline < now:
                    self._fail(submission, errors.OutcomeUnknown("the deadline passed before the commit was known"))

    @staticmethod
    def _fail(submission: _Submission, error: Exception) -> None:
        if not submission.future.done():
            submission.future.set_exception(error)
