"""Links between voters: mutual TLS, length-prefixed msgpack frames, one first-in-first-out connection per direction.

Who is at the other end is the name in its certificate, never its address, so that a link may run through a proxy.
A voter dials every other one and sends on that connection only; what it receives comes on the connections that it
accepted. A newly accepted connection of a voter ends the older one before its first frame is served, since a proxy
may still hold old bytes. A message is sent at most once: what a broken connection held is gone.

Observers dial as well, and use their connection both ways; what becomes of it is told by `raftreg.observer_links`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import asdict, dataclass

import msgpack

from raftreg import tables
from raftreg.certificates import subject_of
from raftreg.config import Limits, Timing, split_address
from raftreg.engine import now
from raftreg.observer_links import ObserverLinks
from raftreg.positions import Hello, has_forgotten
from raftreg.raft import RaftNode
from raftreg.transport import LENGTH, NUMBER_MAX, Message, encode_frame
from raftreg.voter_set import announcement, objection

logger = logging.getLogger(__name__)

PROTOCOL = 1
PEER, OBSERVER = "peer", "observer"
_DIAL_TIMEOUT_S = 1.0
_DIAL_RETRY_S = 0.1
_HELLO_TIMEOUT_S = 2.0  # from the accept to the hello, TLS included
_STRANGERS_MAX = 64


class FrameProtocol(asyncio.Protocol):
    """Cuts a byte stream into decoded frames; a frame that is too long or not msgpack ends the connection."""

    def __init__(self, frame_bytes_max: int, on_frame: Callable[[FrameProtocol, Message], None]) -> None:
        self._frame_bytes_max = frame_bytes_max
        self.on_frame = on_frame
        self._buffer = bytearray()
        self.transport: asyncio.Transport | None = None
        self.closed = asyncio.get_running_loop().create_future()
        self.peer: str | None = None
        self.heard_at = self.sent_at = now()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def certified_name(self, role: str = PEER) -> str | None:
        """The name in the certificate of the other end, if it is one of that role."""
        assert self.transport is not None
        subject = subject_of(self.transport.get_extra_info("peercert"))
        return subject.name if subject is not None and subject.role == role else None

    @property
    def buffered(self) -> int:
        """Bytes that were sent and have not left yet."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def send(self, message: Message, buffer_bytes_max: int) -> None:
        """Write one frame, or end the connection when too much waits: the order must not be lost by skipping."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.buffered > buffer_bytes_max:
            logger.warning("link to %s: too many bytes wait (transport_buffer_max_bytes); breaking it", self.peer)
            self.abort()
            return
        self.transport.write(encode_frame(message))
        self.sent_at = now()

    def data_received(self, data: bytes) -> None:
        self.heard_at = now()
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(buffer, start)
            if length > self._frame_bytes_max:
                return self._break(f"a frame of {length} bytes, the limit is {self._frame_bytes_max}")
            end = start + LENGTH.size + length
            if len(buffer) < end:
                break
            try:
                message = msgpack.unpackb(memoryview(buffer)[start + LENGTH.size : end])
            except ValueError as error:
                return self._break(f"a frame that is not msgpack: {error}")
            if not isinstance(message, dict):
                return self._break("a frame that is not a map")
            self.on_frame(self, message)
            start = end
        if start:
            del buffer[:start]
        return None

    def _break(self, why: str) -> None:
        logger.warning("closing the link from %s: %s", self.peer or "a stranger", why)
        self.abort()

    def abort(self) -> None:
        self._buffer = bytearray()
        if self.transport is not None:
            self.transport.abort()
        if not self.closed.done():
            self.closed.set_result(None)


@dataclass
class _Peer:
    """Both directions to one voter. `up` is what was last told to the Raft node; `level` is the highest feature level
    that the voter says it supports."""

    outbound: FrameProtocol | None = None
    inbound: FrameProtocol | None = None
    up: bool = False
    refusal: str | None = None
    level: int = 1


class PeerLinks:
    """All links of one voter; the Raft node's network. `poke` is called when a turn is due."""

    def __init__(
        self,
        addresses: dict[str, str],
        *,
        client_ssl: ssl.SSLContext,
        server_ssl: ssl.SSLContext,
        limits: Limits,
        timing: Timing,
        poke: Callable[[], None],
    ) -> None:
        self._addresses = addresses
        self._client_ssl, self._server_ssl = client_ssl, server_ssl
        self._limits, self._timing, self._poke = limits, timing, poke
        self._peers: dict[str, _Peer] = {}
        self._observers = ObserverLinks(limits, timing, poke)
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None
        self._strangers: set[FrameProtocol] = set()
        self._raft: RaftNode | None = None

    @property
    def raft(self) -> RaftNode:
        assert self._raft is not None
        return self._raft

    async def start(self, raft: RaftNode, host: str, port: int) -> int:
        """Listen and begin to dial; returns the port."""
        self._raft = raft
        self._observers.raft = raft
        self._peers = {peer: _Peer() for peer in raft.others}
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, host, port, ssl=self._server_ssl)
        for peer in raft.others:
            self._tasks.append(loop.create_task(self._dial_forever(peer), name=f"dial-{peer}"))
        return int(self._server.sockets[0].getsockname()[1])

    def _accept(self) -> FrameProtocol:
        """A connection that must say hello soon; the oldest of too many such goes."""
        link = FrameProtocol(self._limits.frame_bytes_max, self._on_inbound)
        if len(self._strangers) >= _STRANGERS_MAX:
            self._strangers.pop().abort()
        self._strangers.add(link)
        asyncio.get_running_loop().call_later(_HELLO_TIMEOUT_S, self._expect_hello, link)
        return link

    def _expect_hello(self, link: FrameProtocol) -> None:
        if link in self._strangers:
            self._strangers.discard(link)
            link.abort()

    async def close(self) -> None:
        """Stop dialling and listening, and break every link."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        for peer in self._peers.values():
            for link in (peer.inbound, peer.outbound):
                if link is not None:
                    link.abort()
        self._observers.close()
        for link in self._strangers:
            link.abort()

    # -- the Raft node's network ----------------------------------------------------------------------------------

    def send(self, peer: str, message: Message) -> None:
        """Write one frame, or break the link when too much waits in it."""
        link = self._outbound(peer)
        if link is not None:
            link.send(message, self._limits.transport_buffer_max_bytes)

    def buffered(self, peer: str) -> int:
        link = self._outbound(peer)
        return 0 if link is None else link.buffered

    def _outbound(self, peer: str) -> FrameProtocol | None:
        return self._peers[peer].outbound if peer in self._peers else self._observers.link(peer)

    def refusals(self) -> dict[str, str]:
        """Why a voter does not accept us, by name; for status."""
        return {name: peer.refusal for name, peer in self._peers.items() if peer.refusal}

    def levels(self) -> dict[str, int]:
        """The highest feature level of every voter and observer that is linked, by name."""
        voters = {name: peer.level for name, peer in self._peers.items() if peer.up}
        return voters | self._observers.levels()

    def check(self) -> None:
        """Once per tick: ping what is quiet, break what is silent."""
        at = now()
        self._observers.check()
        for name, peer in self._peers.items():
            if not peer.up or peer.outbound is None:
                continue
            # Bytes count, not frames: a large one may take longer than that to arrive.
            if peer.inbound is not None and at - peer.inbound.heard_at > self._timing.link_silence_s:
                logger.warning("nothing heard from %s for %.1f s: link broken", name, self._timing.link_silence_s)
                self._drop(name)
            elif at - peer.outbound.sent_at > self._timing.link_ping_s:
                self.send(name, {"type": "ping"})

    def _drop(self, name: str) -> None:
        peer = self._peers[name]
        for link in (peer.inbound, peer.outbound):
            if link is not None:
                link.abort()
        peer.inbound = peer.outbound = None
        self._update(name)

    def _update(self, name: str) -> None:
        peer = self._peers[name]
        up = peer.inbound is not None and peer.outbound is not None
        if up != peer.up:
            peer.up = up
            if up:
                self.raft.link_up(name)
            else:
                self.raft.link_down(name)
            self._poke()

    # -- outbound -------------------------------------------------------------------------------------------------

    async def _dial_forever(self, name: str) -> None:
        while True:
            try:
                async with asyncio.timeout(_DIAL_TIMEOUT_S):
                    link = await self._dial(name)
            except (OSError, TimeoutError, ssl.SSLError, ConnectionError) as error:
                logger.debug("dialling %s failed: %r", name, error)
            except Exception:
                logger.exception("dialling %s failed; it is tried again", name)
            else:
                if link is not None:
                    await self._serve_outbound(name, link)
            await asyncio.sleep(_DIAL_RETRY_S)

    async def _serve_outbound(self, name: str, link: FrameProtocol) -> None:
        peer = self._peers[name]
        peer.outbound = link
        self._update(name)
        try:
            await link.closed
        finally:
            if peer.outbound is link:
                peer.outbound = None
                self._update(name)
            link.abort()

    async def _dial(self, name: str) -> FrameProtocol | None:
        host, port = split_address(self._addresses[name])
        answered: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def on_frame(_link: FrameProtocol, message: Message) -> None:
            if not answered.done():
                answered.set_result(message)

        _, link = await asyncio.get_running_loop().create_connection(
            lambda: FrameProtocol(self._limits.frame_bytes_max, on_frame),
            host,
            port,
            ssl=self._client_ssl,
        )
        link.peer = name
        try:
            if link.certified_name() != name:
                self._refused(name, link, f"the certificate at {self._addresses[name]} is not that of {name}")
                return None
            assert link.transport is not None
            link.transport.write(encode_frame(hello_of(self.raft)))
            await asyncio.wait({answered, link.closed}, return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                self._refused(name, link, "the connection ended before the answer to hello")
                return None
            return self._greeted(name, link, answered.result())
        except BaseException:
            link.abort()
            raise

    def _greeted(self, name: str, link: FrameProtocol, answer: Message) -> FrameProtocol | None:
        if answer.get("error"):
            self._refused(name, link, str(answer["error"]))
            return None
        if (remembered := answer.get("remembered")) is not None:
            # Judged here, by what the disk holds now: the hello may have been overtaken by news of this peer.
            if not has_forgotten(tuple(remembered), self.raft.hello()):
                self._refused(name, link, f"{name} had news of this peer that are newer than the hello; dialling again")
                return None
            self.raft.begin_recovery(f"{name} remembers that this peer acknowledged more than its disk holds")
            self._poke()
            self._refused(name, link, "saying hello again as recovering")
            return None
        self._peers[name].refusal = None
        return link

    def _refused(self, name: str, link: FrameProtocol, why: str) -> None:
        if self._peers[name].refusal != why:
            logger.warning("no link to %s: %s", name, why)
        self._peers[name].refusal = why
        link.abort()

    # -- inbound --------------------------------------------------------------------------------------------------

    def _on_inbound(self, link: FrameProtocol, message: Message) -> None:
        if link.peer is None:
            self._welcome(link, message)
            return
        peer = self._peers[link.peer]
        if peer.inbound is not link:
            return
        if message.get("type") != "ping":
            self.raft.receive(link.peer, message)
            self._poke()

    def _welcome(self, link: FrameProtocol, hello: Message) -> None:
        assert link.transport is not None
        observer = link.certified_name(OBSERVER)
        name = link.certified_name() if observer is None else observer
        error = self._objection(name, observer, hello)
        if error is not None or name is None:
            logger.warning("hello of %s refused: %s", name or "a stranger", error)
            link.transport.write(encode_frame({"type": "hello_ack", "error": error}))
            link.transport.close()
            return
        self._strangers.discard(link)
        if observer is not None:
            self._observers.welcome(observer, link, _level(hello))
            return
        if not self.raft.greet(name, _said(hello)):
            link.transport.write(encode_frame({"type": "hello_ack", "remembered": self.raft.remembered(name)}))
            link.transport.close()
            return
        link.transport.write(encode_frame({"type": "hello_ack"}))
        self._fence(name)
        link.peer = name
        self._peers[name].inbound, self._peers[name].level = link, _level(hello)
        link.closed.add_done_callback(lambda _: self._inbound_closed(name, link))
        self._update(name)

    def _fence(self, name: str) -> None:
        """End the older connection, and with it what it still holds, before the new one is served."""
        older, self._peers[name].inbound = self._peers[name].inbound, None
        self._update(name)
        if older is not None:
            older.abort()

    def _inbound_closed(self, name: str, link: FrameProtocol) -> None:
        if self._peers[name].inbound is link:
            self._peers[name].inbound = None
            self._update(name)

    def _objection(self, name: str | None, observer: str | None, hello: Message) -> str | None:
        identity = self.raft.store.identity
        if name is None or hello.get("type") != "hello":
            return "a link of voters starts with a peer's certificate and a hello"
        if observer is None and name not in self._peers:
            return f"{name} is not a voter of this cluster"
        if observer is not None and (refusal := self._observers.refusal(observer)):
            return refusal
        if hello.get("protocol") != PROTOCOL:
            return f"it speaks protocol {hello.get('protocol')}, this release speaks {PROTOCOL}"
        if hello.get("cluster_id") != identity.cluster_id:
            return f"it belongs to cluster {hello.get('cluster_id')}, this peer to {identity.cluster_id}"
        if hello.get("epoch") != identity.epoch:
            return f"it lives in epoch {hello.get('epoch')}, this peer in {identity.epoch}"
        if (different := objection(identity, hello)) is not None:
            return different
        return self._too_old(hello) if _is_complete(hello) else "its hello is incomplete or malformed"

    def _too_old(self, hello: Message) -> str | None:
        """Such a peer would stop at an entry, a row or a snapshot that it cannot read."""
        needed = tables.read_head(self.raft.store.view()).format
        if _level(hello) >= needed:
            return None
        return (
            f"it supports feature level {_level(hello)}, the registry has level {needed}: start a newer release there"
        )


def hello_of(raft: RaftNode) -> Message:
    """The first frame of a link: who this is, and what its disk holds."""
    identity = raft.store.identity
    return {
        "type": "hello",
        "protocol": PROTOCOL,
        "cluster_id": identity.cluster_id,
        "epoch": identity.epoch,
        "level": tables.FEATURE_LEVEL,
        **announcement(identity),
        **asdict(raft.hello()),
    }


def _is_complete(hello: Message) -> bool:
    recovered = hello.get("recovered")
    numbers = [_level(hello), *(hello.get(name) for name in ("term", "last_index", "last_log_term"))]
    numbers += recovered if isinstance(recovered, list) else []
    return (
        isinstance(hello.get("store_id"), str)
        and isinstance(hello.get("recovering"), bool)
        and (recovered is None or (isinstance(recovered, list) and len(recovered) == 2))
        and all(type(number) is int and 0 <= number < NUMBER_MAX for number in numbers)
    )


def _level(hello: Message) -> int:
    """The highest feature level that a hello tells, which may be malformed. Whoever tells none knows only the first."""
    level: int = hello.get("level", 1)
    return level


def _said(hello: Message) -> Hello:
    recovered = hello["recovered"]
    return Hello(
        hello["store_id"],
        hello["term"],
        hello["last_index"],
        hello["recovering"],
        (recovered[0], recovered[1]) if recovered is not None else None,
        hello["last_log_term"],
    )
