"""A voter's links to observers: each is one connection that the observer dialled, used both ways.

An observer may sit behind a NAT, and no voter knows where; so who observes is known while its link is up, and not
otherwise. `raftreg.peer_links` checks the hello; from there on the connection belongs here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from raftreg.config import Limits, Timing
from raftreg.engine import now
from raftreg.raft import RaftNode
from raftreg.transport import Message

if TYPE_CHECKING:
    from raftreg.peer_links import FrameProtocol

logger = logging.getLogger(__name__)


class ObserverLinks:
    """All observers of one voter, by name. `raft` is attached when the voter starts to listen."""

    def __init__(self, limits: Limits, timing: Timing, poke: Callable[[], None]) -> None:
        self._limits, self._timing, self._poke = limits, timing, poke
        self._links: dict[str, FrameProtocol] = {}
        self._levels: dict[str, int] = {}
        self.raft: RaftNode | None = None

    def refusal(self, name: str) -> str | None:
        """Why this observer cannot be linked, or None."""
        assert self.raft is not None
        if name in self.raft.store.identity.peers:
            return f"{name} is a voter of this cluster; an observer needs a name of its own"
        others = len(self._links.keys() - {name})
        if others >= self._limits.observers_max:
            return f"{others} observers are linked to this peer already, the limit is observers_max"
        return None

    def welcome(self, name: str, link: FrameProtocol, level: int) -> None:
        """Serve a connection whose hello was accepted; an older one of that observer ends before its first frame.
        `level` is the highest feature level that it supports."""
        self._drop(name)
        link.send({"type": "hello_ack"}, self._limits.transport_buffer_max_bytes)
        link.peer, link.on_frame = name, self._on_frame
        self._links[name], self._levels[name] = link, level
        link.closed.add_done_callback(lambda _: self._closed(name, link))
        self._raft().link_up(name)
        self._poke()

    def _raft(self) -> RaftNode:
        assert self.raft is not None
        return self.raft

    def _on_frame(self, link: FrameProtocol, message: Message) -> None:
        name = link.peer
        if name is not None and self._links.get(name) is link and message.get("type") != "ping":
            self._raft().receive(name, message)
            self._poke()

    def link(self, name: str) -> FrameProtocol | None:
        """The connection of an observer, or None when there is none."""
        return self._links.get(name)

    def levels(self) -> dict[str, int]:
        """The highest feature level of every observer that is linked, by name."""
        return {name: self._levels[name] for name in self._links}

    def check(self) -> None:
        """Once per tick: ping what is quiet, break what is silent."""
        at = now()
        for name, link in list(self._links.items()):
            if at - link.heard_at > self._timing.link_silence_s:
                logger.warning("nothing heard from observer %s for %.1f s: link broken", name, at - link.heard_at)
                self._drop(name)
            elif at - link.sent_at > self._timing.link_ping_s:
                link.send({"type": "ping"}, self._limits.transport_buffer_max_bytes)

    def close(self) -> None:
        """Break all links."""
        for name in list(self._links):
            self._drop(name)

    def _closed(self, name: str, link: FrameProtocol) -> None:
        if self._links.get(name) is link:
            self._drop(name)

    def _drop(self, name: str) -> None:
        link = self._links.pop(name, None)
        if link is not None:
            del self._levels[name]
            link.abort()
            self._raft().link_down(name)
            self._poke()
