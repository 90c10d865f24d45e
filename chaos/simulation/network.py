"""TCP as far as peers can tell: connections of two byte streams, which the world delivers, delays, cuts and forgets.

A stream holds what was written and not read yet, wherever on the way that is. A connection may end at one side before
the other: the bytes that are under way then still arrive, though a newer connection may be open already. A direction
between two machines that is `blocked` delivers nothing until it is unblocked; TCP would send it again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chaos.simulation.processes import Process

_END = b""  # in a stream: the writer has closed it


class Stream:
    """One direction of a connection."""

    def __init__(self, number: int, source: Process, target: Process) -> None:
        self.number, self.source, self.target = number, source, target
        self.chunks: deque[bytes] = deque()
        self.size = 0
        self.protocol: asyncio.Protocol | None = None  # the reader's
        self.ended = False

    def write(self, data: bytes) -> None:
        if not self.ended:
            self.chunks.append(data)
            self.size += len(data)

    def end(self) -> None:
        """The writer is gone; the reader learns it behind everything that was written."""
        if not self.ended:
            self.ended = True
            self.chunks.append(_END)

    def drop(self) -> None:
        """What was under way is lost."""
        self.chunks.clear()
        self.size = 0

    def take(self, chunks: int, cut: Callable[[int], int] | None) -> bytes | None:
        """The next bytes to be read, or None for the end. `cut(length)` may say how much of the last chunk comes."""
        if self.chunks[0] is _END:
            self.chunks.popleft()
            return None
        taken: list[bytes] = []
        while self.chunks and self.chunks[0] is not _END and len(taken) < chunks:
            taken.append(self.chunks.popleft())
        if cut is not None and len(taken[-1]) > 1:
            at = cut(len(taken[-1]))
            self.chunks.appendleft(taken[-1][at:])
            taken[-1] = taken[-1][:at]
        data = b"".join(taken)
        self.size -= len(data)
        return data


class Connection:
    """Two streams; `outward` runs from the one who dialled."""

    def __init__(self, number: int, dialler: Process, listener: Process) -> None:
        self.dialler, self.listener = dialler, listener
        self.outward = Stream(2 * number, dialler, listener)
        self.homeward = Stream(2 * number + 1, listener, dialler)
        self.streams = (self.outward, self.homeward)


class SimulatedTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, network: Network, connection: Connection, mine: Stream, theirs: Stream) -> None:
        super().__init__()
        self._network, self.connection = network, connection
        self._mine, self._theirs = mine, theirs
        self._closing = False

    def write(self, data: Any) -> None:
        if not self._closing and self._mine.source.alive:
            self._mine.write(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self._mine.size

    def is_closing(self) -> bool:
        return self._closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._theirs.source.certificate if name == "peercert" else default

    def close(self) -> None:
        self._close(lose=False)

    def abort(self) -> None:
        self._close(lose=self._network.abort_loses())

    def _close(self, *, lose: bool) -> None:
        if self._closing:
            return
        self._closing = True
        if lose:
            self._mine.drop()
        self._mine.end()
        self._theirs.drop()
        self.lost()

    def lost(self) -> None:
        """Tell the own protocol, soon, that the connection is gone."""
        self._closing = True
        process, protocol = self._mine.source, self._theirs.protocol
        self._theirs.protocol = None
        if protocol is not None and process.alive:
            process.loop.call_soon(protocol.connection_lost, None)


class _Server:
    """What `create_server` gives."""

    def __init__(self, network: Network, address: str) -> None:
        self._network, self._address = network, address

    @property
    def sockets(self) -> list[Any]:
        return [self]

    def getsockname(self) -> tuple[str, int]:
        host, _, port = self._address.rpartition(":")
        return host, int(port)

    def close(self) -> None:
        self._network.listeners.pop(self._address, None)


class Network:
    """All connections. `abort_loses()` decides whether an aborted connection takes what was under way with it."""

    def __init__(self, processes: dict[str, Process], abort_loses: Callable[[], bool]) -> None:
        self._processes, self.abort_loses = processes, abort_loses
        self.listeners: dict[str, tuple[str, Callable[[], asyncio.BaseProtocol]]] = {}
        self.connections: list[Connection] = []
        self.blocked: set[tuple[str, str]] = set()
        self._count = 0

    # -- for the loops --------------------------------------------------------------------------------------------

    def listen(self, name: str, address: str, factory: Callable[[], asyncio.BaseProtocol]) -> _Server:
        self.listeners[address] = (name, factory)
        return _Server(self, address)

    async def dial(
        self, name: str, address: str, factory: Callable[[], asyncio.BaseProtocol]
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """Connect, or wait for ever in a black hole. Raises ConnectionRefusedError where nobody listens."""
        opened = asyncio.get_running_loop().create_future()
        target = address.rpartition(":")[0]
        if not self._is_open(name, target):
            return await opened  # type: ignore[no-any-return]
        listener = self.listeners.get(address)
        if listener is None or not self._processes[listener[0]].alive:
            raise ConnectionRefusedError(f"nobody listens at {address}")
        acceptor = self._processes[listener[0]]
        acceptor.loop.call_soon(self._accept, self._processes[name], acceptor, listener[1], factory, opened)
        return await opened  # type: ignore[no-any-return]

    def _is_open(self, a: str, b: str) -> bool:
        return (a, b) not in self.blocked and (b, a) not in self.blocked

    def _accept(
        self,
        dialler: Process,
        acceptor: Process,
        acceptor_factory: Callable[[], asyncio.BaseProtocol],
        dialler_factory: Callable[[], asyncio.BaseProtocol],
        opened: asyncio.Future[Any],
    ) -> None:
        if not dialler.alive or opened.done():
            return
        self._count += 1
        connection = Connection(self._count, dialler, acceptor)
        self.connections.append(connection)
        self._attach(connection, connection.homeward, connection.outward, acceptor_factory())
        dialler.loop.call_soon(self._opened, connection, dialler_factory, opened)

    def _opened(
        self, connection: Connection, factory: Callable[[], asyncio.BaseProtocol], opened: asyncio.Future[Any]
    ) -> None:
        if opened.done() or connection.homeward.ended:
            connection.outward.end()
            if not opened.done():
                opened.set_exception(ConnectionResetError("the other end closed at once"))
            return
        protocol = factory()
        transport = self._attach(connection, connection.outward, connection.homeward, protocol)
        opened.set_result((transport, protocol))

    def _attach(self, connection: Connection, mine: Stream, theirs: Stream, protocol: Any) -> SimulatedTransport:
        transport = SimulatedTransport(self, connection, mine, theirs)
        theirs.protocol = protocol
        protocol.connection_made(transport)
        return transport

    # -- for the world --------------------------------------------------------------------------------------------

    def deliverable(self) -> list[Stream]:
        """Streams from which something can be read now. Connections that nobody reads any more are forgotten."""
        readable: list[Stream] = []
        forgotten = False
        for connection in self.connections:
            outward, homeward = connection.streams
            if outward.chunks and self._is_read(outward):
                readable.append(outward)
            if homeward.chunks and self._is_read(homeward):
                readable.append(homeward)
            forgotten = forgotten or (outward.protocol is None and homeward.protocol is None)
        if forgotten:
            self.connections = [c for c in self.connections if c.outward.protocol or c.homeward.protocol]
        return readable

    def _is_read(self, stream: Stream) -> bool:
        return (
            stream.protocol is not None
            and stream.target.alive
            and (stream.source.name, stream.target.name) not in self.blocked
        )

    def deliver(self, stream: Stream, chunks: int, cut: Callable[[int], int] | None) -> str:
        """Have the reader read; returns what, for the trace."""
        protocol = stream.protocol
        assert protocol is not None
        data = stream.take(chunks, cut)
        if data is None:
            self._end_at_reader(stream)
            return "end"
        stream.target.loop.call_soon(protocol.data_received, data)
        return f"{len(data)} bytes"

    def _end_at_reader(self, stream: Stream) -> None:
        """The reader sees the end, and its own side is closed with it, as asyncio does on EOF."""
        transport = stream.protocol.transport  # type: ignore[union-attr]
        if transport is not None:
            stream.target.loop.call_soon(transport.close)

    def reset(self, connection: Connection, side: str) -> None:
        """The connection breaks: at `dialler`, at `listener` (the other end reads on what is under way), or `both`."""
        for name, mine, theirs in (
            ("dialler", connection.outward, connection.homeward),
            ("listener", connection.homeward, connection.outward),
        ):
            if side not in (name, "both"):
                continue
            if side == "both":
                mine.drop()
            protocol: Any = theirs.protocol
            if protocol is not None and protocol.transport is not None:
                mine.end()
                protocol.transport.lost()

    def crash(self, process: Process) -> None:
        """The process is gone: its ends close without a word to it; what it had sent may still arrive."""
        for address, (name, _) in list(self.listeners.items()):
            if name == process.name:
                del self.listeners[address]
        for connection in self.connections:
            for mine, theirs in (connection.streams, connection.streams[::-1]):
                if mine.source is process:
                    theirs.drop()
                    theirs.protocol = None
                    if self.abort_loses():
                        mine.drop()
                    mine.end()

    def between(self, a: str, b: str) -> list[Connection]:
        return [c for c in self.connections if {c.dialler.name, c.listener.name} == {a, b}]
