"""Who leads, for whoever waits for it, and how a leader gives the lead away without failing a request.

What finds no leader waits here for the next one, for about as long as an election takes. A transfer lets the entries
under way commit while new commands wait (`holding`), asks the voter that then has the whole log to stand, and is over
when that one is known to lead: the commands that waited go to it.

`after_turn` and `expire` are called by the peer: waiters sleep until the lead changes or their time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raftreg import errors
from raftreg.config import Limits, Timing
from raftreg.raft import RaftNode

logger = logging.getLogger(__name__)

Transferred = dict[str, Any]


@dataclass(slots=True)
class _Waiter:
    deadline: float
    moved: asyncio.Future[bool]


@dataclass(slots=True)
class _Transfer:
    """One attempt to give the lead away: to a certain voter, or to the one that is furthest."""

    to: str | None
    began: float
    deadline: float
    done: asyncio.Future[Transferred]
    asked_at: float = float("-inf")


class Leadership:
    """`busy` tells whether entries are under way; the proposer sets it. `clock` is monotonic, in seconds."""

    def __init__(
        self, raft: RaftNode, limits: Limits, timing: Timing, *, poke: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._raft, self._limits, self._timing = raft, limits, timing
        self._poke, self._clock = poke, clock
        self.busy: Callable[[], bool] = lambda: False
        self.on_change: list[Callable[[], None]] = []
        self.version = 0
        self.holding = False
        self._seen = self._situation()
        self._leaderless_since: float | None = clock()
        self._waiting: list[_Waiter] = []
        self._transfer: _Transfer | None = None

    # -- who leads ------------------------------------------------------------------------------------------------

    @property
    def leader(self) -> str | None:
        """Name of the leader as far as this peer knows."""
        return self._raft.leader

    def patience(self, wait_s: float | None = None) -> float:
        """Until when something that arrives now may wait for a leader, by default `leader_wait_s`."""
        return self._clock() + (self._limits.leader_wait_s if wait_s is None else wait_s)

    def lost_for_long(self) -> bool:
        """Whether no leader has been known for longer than anybody waits for one."""
        since = self._leaderless_since
        return since is not None and self._clock() - since > self._limits.leader_wait_s

    async def known(self, until: float | None = None) -> str:
        """The leader's name, as soon as one is known. Raises NoQuorum after `until`, by default the usual patience."""
        deadline = self.patience() if until is None else until
        while (leader := self._raft.leader) is None:
            if not await self.changed(self.version, deadline):
                raise self.no_quorum()
        return leader

    async def changed(self, version: int, until: float) -> bool:
        """Wait until the lead is another than when `version` was read; False when that takes longer than `until`."""
        if self._clock() >= until:
            return False
        if version != self.version:
            return True
        waiter = _Waiter(until, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        return await waiter.moved

    def no_quorum(self) -> errors.NoQuorum:
        """The refusal for what found no leader in time: it says which voters this peer is cut off from."""
        away = [peer for peer in self._raft.others if not self._raft.is_connected(peer)]
        reason = f"not connected with {', '.join(away)}" if away else "all voters are connected, none is elected yet"
        return errors.NoQuorum(f"{self._raft.name} knows no leader: {reason}", not_connected=away)

    def _situation(self) -> tuple[int, str | None, bool]:
        leader = self._raft.leader
        return self._raft.term, leader, leader is not None and self._raft.is_connected(leader)

    def after_turn(self) -> None:
        """Wake those who wait when the lead has changed, and bring a transfer forward."""
        situation = self._situation()
        if situation != self._seen:
            self._seen = situation
            self._moved(situation[1])
        if self._transfer is not None:
            self._advance(self._transfer)

    def _moved(self, leader: str | None) -> None:
        self.version += 1
        logger.info("term %d: %s", self._raft.term, f"{leader} leads" if leader else "no leader is known")
        if leader is not None:
            self._leaderless_since = None
        elif self._leaderless_since is None:
            self._leaderless_since = self._clock()
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            _settle(waiter.moved, True)
        for listener in self.on_change:
            listener()

    def expire(self) -> None:
        """Send those away whose time is up; call every few ticks."""
        if not self._waiting:
            return
        now = self._clock()
        overdue = [waiter for waiter in self._waiting if waiter.deadline <= now]
        self._waiting = [waiter for waiter in self._waiting if waiter.deadline > now and not waiter.moved.done()]
        for waiter in overdue:
            _settle(waiter.moved, False)

    # -- giving the lead away -------------------------------------------------------------------------------------

    async def transfer(self, to: str | None = None) -> Transferred:
        """Give the lead to a voter, by default the one that is furthest: {"from", "to", "took_s"} when it leads.

        Raises NotLeader or NoQuorum when this peer does not lead, BadRequest for a name that is no voter's,
        TransferFailed when nobody has taken over within `transfer_max_s`; then this peer goes on leading.
        """
        return await asyncio.shield(self.begin(to))  # whoever asked may go away; the transfer goes on

    def begin(self, to: str | None = None) -> asyncio.Future[Transferred]:
        """As `transfer`, without waiting for its end."""
        raft, now = self._raft, self._clock()
        if not raft.is_leader:
            raise self.no_quorum() if raft.leader is None else errors.NotLeader(raft.leader)
        if to is not None and to != raft.name and to not in raft.others:
            raise errors.BadRequest(f"{to[:80]!r} is no voter; the voters are {', '.join((raft.name, *raft.others))}")
        if self._transfer is not None:
            raise errors.TransferFailed("another transfer is under way; ask again when it is over")
        done: asyncio.Future[Transferred] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_log)
        transfer = _Transfer(to, now, now + self._timing.transfer_max_s, done)
        if to == raft.name:
            done.set_result(self._told(transfer))
        else:
            self._transfer = transfer
            self._advance(transfer)
        return done

    async def leave(self) -> None:
        """Give the lead away because this peer is about to stop; returns when it leads no more, or can't help it."""
        if self._transfer is not None:
            await asyncio.wait({self._transfer.done})
        if not self._raft.is_leader or not self._raft.others:
            return
        with contextlib.suppress(errors.RegistryError):  # logged; the others elect somebody when this peer is gone
            await self.transfer()

    def leave_soon(self) -> None:
        """Give the lead away in the background, when that is possible at all."""
        if self._transfer is None and self._raft.is_leader:
            self.begin()

    def _advance(self, transfer: _Transfer) -> None:
        """One step, after a turn: wait for the target, hold new commands, ask the target to stand, see it lead."""
        raft, now = self._raft, self._clock()
        if not raft.is_leader:
            self._see_successor(transfer, now)
            return
        target = self._target(transfer.to)
        if target is None or now >= transfer.deadline:
            self._end(transfer, self._obstacle(transfer.to))
            return
        lag = raft.journal.last_index - (raft.match_index(target) or 0)
        if not self.holding and lag <= self._limits.transfer_lag_entries_max:
            self.holding = True
        if lag == 0 and not self.busy() and now - transfer.asked_at >= self._timing.raft_min_timeout_s:
            # Only a voter with the whole log wins; asked again, since the message may be lost with its link.
            if raft.transfer_leadership(target):
                transfer.asked_at = now
            self._poke()

    def _see_successor(self, transfer: _Transfer, now: float) -> None:
        leader = self._raft.leader
        if leader is not None and transfer.to in (None, leader):
            self._end(transfer)
        elif leader is not None:
            self._end(transfer, f"{leader} leads now, not {transfer.to}")
        elif now >= transfer.deadline:
            self._end(transfer, "no successor was elected in time")

    def _end(self, transfer: _Transfer, failure: str | None = None) -> None:
        self._transfer, self.holding = None, False
        if not transfer.done.done():
            if failure is None:
                transfer.done.set_result(self._told(transfer))
            else:
                transfer.done.set_exception(errors.TransferFailed(failure, leader=self._raft.leader))
        self._poke()

    def _told(self, transfer: _Transfer) -> Transferred:
        return {"from": self._raft.name, "to": self._raft.leader, "took_s": self._clock() - transfer.began}

    def _target(self, to: str | None) -> str | None:
        """The voter to ask: connected, not recovering, and the furthest of those."""
        able = [peer for peer in self._raft.others if to in (None, peer) and self._is_able(peer)]
        return max(able, key=lambda peer: (self._raft.match_index(peer) or 0, peer), default=None)

    def _is_able(self, peer: str) -> bool:
        return self._raft.is_connected(peer) and not self._raft.is_recovering(peer)

    def _obstacle(self, to: str | None) -> str:
        """Why the lead stays here."""
        target = self._target(to)
        if target is None and to is None:
            return "no other voter is connected and able to lead"
        if target is None:
            why = "recovers, and can't lead before that is over" if self._raft.is_connected(to or "") else "is away"
            return f"{to} {why}"
        missing = self._raft.journal.last_index - (self._raft.match_index(target) or 0)
        return f"{target} did not take over within {self._timing.transfer_max_s:g} s; it lacks {missing} entries"


def _settle(moved: asyncio.Future[bool], outcome: bool) -> None:
    if not moved.done():
        moved.set_result(outcome)


def _log(done: asyncio.Future[Transferred]) -> None:
    error = done.exception()
    if error is not None:
        logger.warning("the lead was not given away: %s", error)
    else:
        logger.info("%s leads now; it took %.0f ms", done.result()["to"], done.result()["took_s"] * 1000)
