"""An observer's links to the voters: it dials every one of them, and one connection carries both directions.

Nobody dials an observer, so it may sit behind a NAT, and a voter's configuration says nothing of it. Frames, hello,
pings and the rules of what was held by a broken connection are those of `raftreg.peer_links`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable

from raftreg.config import Limits, Timing, split_address
from raftreg.engine import now
from raftreg.peer_links import FrameProtocol, hello_of
from raftreg.raft import RaftNode
from raftreg.transport import Message

logger = logging.getLogger(__name__)

# Four round trips, TLS and hello included: an observer may be on another continent.
_DIAL_TIMEOUT_S = 3.0
# Seldom enough that many observers which are refused cost the voters nothing that counts.
_DIAL_RETRY_S = 0.5


class VoterLinks:
    """All links of one observer; its Raft node's network. `poke` is called when a turn is due."""

    def __init__(
        self,
        addresses: dict[str, str],
        *,
        client_ssl: ssl.SSLContext,
        limits: Limits,
        timing: Timing,
        poke: Callable[[], None],
    ) -> None:
        self._addresses, self._client_ssl = addresses, client_ssl
        self._limits, self._timing, self._poke = limits, timing, poke
        self._links: dict[str, FrameProtocol] = {}
        self._refusals: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._raft: RaftNode | None = None

    @property
    def raft(self) -> RaftNode:
        assert self._raft is not None
        return self._raft

    def start(self, raft: RaftNode) -> None:
        """Begin to dial; call within a running loop."""
        self._raft = raft
        for voter in raft.others:
            task = asyncio.get_running_loop().create_task(self._dial_forever(voter), name=f"dial-{voter}")
            self._tasks.append(task)

    async def close(self) -> None:
        """Stop dialling and break every link."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for voter in list(self._links):
            self._drop(voter)

    # -- the Raft node's network ----------------------------------------------------------------------------------

    def send(self, peer: str, message: Message) -> None:
        """Write one frame, or break the link when too much waits in it."""
        link = self._links.get(peer)
        if link is not None:
            link.send(message, self._limits.transport_buffer_max_bytes)

    def buffered(self, peer: str) -> int:
        link = self._links.get(peer)
        return 0 if link is None else link.buffered

    def refusals(self) -> dict[str, str]:
        """Why a voter does not accept us, by name; for status."""
        return dict(self._refusals)

    def levels(self) -> dict[str, int]:
        """Nothing: an observer leads nobody, so voters don't tell it what they support."""
        return {}

    def check(self) -> None:
        """Once per tick: ping what is quiet, break what is silent."""
        at = now()
        for voter, link in list(self._links.items()):
            if at - link.heard_at > self._timing.link_silence_s:
                logger.warning("nothing heard from %s for %.1f s: link broken", voter, at - link.heard_at)
                self._drop(voter)
            elif at - link.sent_at > self._timing.link_ping_s:
                link.send({"type": "ping"}, self._limits.transport_buffer_max_bytes)

    # -- dialling -------------------------------------------------------------------------------------------------

    async def _dial_forever(self, voter: str) -> None:
        while True:
            try:
                async with asyncio.timeout(_DIAL_TIMEOUT_S):
                    link = await self._dial(voter)
            except (OSError, TimeoutError, ssl.SSLError, ConnectionError) as error:
                logger.debug("dialling %s failed: %r", voter, error)
            except Exception:
                logger.exception("dialling %s failed; it is tried again", voter)
            else:
                await link.closed
            await asyncio.sleep(_DIAL_RETRY_S)

    async def _dial(self, voter: str) -> FrameProtocol:
        """A connection whose hello was answered, well or ill; it is closed in the latter case."""
        host, port = split_address(self._addresses[voter])
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_answer(link: FrameProtocol, answer: Message) -> None:
            # At once: what follows in the same read is of Raft already.
            self._greeted(voter, link, answer)
            if not answered.done():
                answered.set_result(None)

        _, link = await asyncio.get_running_loop().create_connection(
            lambda: FrameProtocol(self._limits.frame_bytes_max, on_answer), host, port, ssl=self._client_ssl
        )
        link.peer = voter
        try:
            if link.certified_name() != voter:
                self._refused(voter, link, f"the certificate at {self._addresses[voter]} is not that of {voter}")
            link.send(hello_of(self.raft), self._limits.transport_buffer_max_bytes)
            await asyncio.wait({answered, link.closed}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            link.abort()
            raise
        return link

    def _greeted(self, voter: str, link: FrameProtocol, answer: Message) -> None:
        if answer.get("type") != "hello_ack" or answer.get("error"):
            self._refused(voter, link, str(answer.get("error", "it does not answer a hello")))
            return
        self._refusals.pop(voter, None)
        link.on_frame = self._on_frame
        self._links[voter] = link
        link.closed.add_done_callback(lambda _: self._closed(voter, link))
        self.raft.link_up(voter)
        self._poke()

    def _refused(self, voter: str, link: FrameProtocol, why: str) -> None:
        if self._refusals.get(voter) != why:
            logger.warning("no link to %s: %s", voter, why)
        self._refusals[voter] = why
        link.abort()

    def _on_frame(self, link: FrameProtocol, message: Message) -> None:
        voter = link.peer
        if voter is not None and self._links.get(voter) is link and message.get("type") != "ping":
            self.raft.receive(voter, message)
            self._poke()

    def _closed(self, voter: str, link: FrameProtocol) -> None:
        if self._links.get(voter) is link:
            self._drop(voter)

    def _drop(self, voter: str) -> None:
        link = self._links.pop(voter, None)
        if link is not None:
            link.abort()
            self.raft.link_down(voter)
            self._poke()
