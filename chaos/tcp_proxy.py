"""Our own TCP proxy, for machines without Toxiproxy: `python -m chaos.tcp_proxy HOST:PORT`.

It is controlled over the part of Toxiproxy's HTTP API that `links` uses (proxies, the toxics `timeout`, `latency` and
`bandwidth`), with the same behaviour, so that one wrapper drives both:

- a disabled proxy ends its connections and refuses new ones;
- `timeout` 0 swallows what is sent in its direction; when it is removed, the connections that lost bytes are ended;
- `latency` delays what is sent in its direction, and keeps order and throughput;
- `bandwidth` lets through so many KiB per second in its direction, for each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from chaos import config, ports

UPSTREAM = "upstream"
DOWNSTREAM = "downstream"
DIRECTIONS = (UPSTREAM, DOWNSTREAM)
VERSION = "raftreg-tcp-proxy"


@dataclass
class Direction:
    """What happens to the bytes that flow one way through a link."""

    delay_s: float = 0.0
    swallowing: bool = False
    bytes_per_s: float | None = None


class Connection:
    """One client connection through a link, and the connection to the upstream that belongs to it."""

    def __init__(self, link: Link, client: asyncio.StreamWriter) -> None:
        self._link = link
        self._writers = [client]
        self.lost_bytes = False

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes both ways until both sides have ended or `end` is called."""
        host, port = ports.split(self._link.upstream)
        try:
            async with asyncio.timeout(config.PROXY_CONNECT_TIMEOUT_S):
                up_reader, up_writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            self.end()
            return
        self._writers.append(up_writer)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry(reader, up_writer, UPSTREAM))
                tasks.create_task(self._carry(up_reader, writer, DOWNSTREAM))
        except* OSError:
            pass
        finally:
            self.end()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(config.PROXY_CHUNKS_HELD_MAX)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take(reader, held, direction))
            tasks.create_task(self._give(held, writer, direction))

    async def _take(
        self, reader: asyncio.StreamReader, held: asyncio.Queue[tuple[float, bytes]], direction: str
    ) -> None:
        """Read chunks and stamp each with the time at which it is due. An empty chunk is the end."""
        clock = asyncio.get_running_loop().time
        while True:
            data = await reader.read(config.PROXY_CHUNK_BYTES_MAX)
            way = self._link.directions[direction]
            if way.swallowing:
                self.lost_bytes = True
                if data:
                    continue
                # The end of the stream is lost on a dead link like everything else.
                return
            await held.put((clock() + way.delay_s, data))
            if not data:
                return

    async def _give(
        self, held: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, direction: str
    ) -> None:
        loop, way = asyncio.get_running_loop(), self._link.directions[direction]
        while True:
            due, data = await held.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            for piece in _pieces(data, way):
                writer.write(piece)
                await writer.drain()
                if way.bytes_per_s:
                    await asyncio.sleep(len(piece) / way.bytes_per_s)

    def end(self) -> None:
        """Reset both sides. Can be called twice."""
        for writer in self._writers:
            writer.transport.abort()


def _pieces(data: bytes, way: Direction) -> Iterator[bytes]:
    """What is sent at once: all of it, or on a narrow way as much as passes in a moment."""
    size = max(1, int(way.bytes_per_s * config.PROXY_MOMENT_S)) if way.bytes_per_s else len(data)
    return (data[start : start + size] for start in range(0, len(data), size))


@dataclass
class Link:
    """One listener that forwards to one upstream, with what is done to the bytes on the way."""

    name: str
    upstream: str
    listen: str
    directions: dict[str, Direction] = field(default_factory=lambda: {name: Direction() for name in DIRECTIONS})
    toxics: dict[str, dict[str, Any]] = field(default_factory=dict)
    connections: dict[Connection, asyncio.Task[None]] = field(default_factory=dict)
    server: asyncio.Server | None = None

    async def enable(self) -> None:
        """Listen; a link created on port 0 keeps the port that it then got."""
        if self.server is None:
            host, port = ports.split(self.listen)
            self.server = await asyncio.start_server(self._accept, host, port)
            bound = self.server.sockets[0].getsockname()
            self.listen = f"{bound[0]}:{bound[1]}"

    async def disable(self) -> None:
        """Stop listening and end every connection."""
        if self.server is not None:
            self.server.close()
            self.server = None
        await self.end_connections(lambda _: True)

    async def end_connections(self, which: Callable[[Connection], bool]) -> None:
        """End the connections for which `which` is true, and wait until they are gone."""
        ending = [task for connection, task in self.connections.items() if which(connection)]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, writer)
        task = asyncio.current_task()
        if task is None or len(self.connections) >= config.PROXY_CONNECTIONS_PER_LINK_MAX:
            connection.end()
            return
        self.connections[connection] = task
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await connection.run(reader, writer)
        finally:
            connection.end()
            del self.connections[connection]

    def description(self) -> dict[str, Any]:
        """The link as Toxiproxy shows a proxy."""
        return {
            "name": self.name,
            "listen": self.listen,
            "upstream": self.upstream,
            "enabled": self.server is not None,
            "toxics": list(self.toxics.values()),
        }


class Control:
    """The HTTP control interface, with the links that were made through it."""

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}
        self._lock = asyncio.Lock()

    def application(self) -> web.Application:
        """The routes. Changes happen one at a time, in the order in which they arrive."""
        app = web.Application()
        app.router.add_get("/version", self._version)
        app.router.add_get("/proxies", self._list)
        for method, path, handler in (
            ("POST", "/proxies", self._create),
            ("GET", "/proxies/{link}", self._show),
            ("POST", "/proxies/{link}", self._change),
            ("DELETE", "/proxies/{link}", self._destroy),
            ("GET", "/proxies/{link}/toxics", self._toxics),
            ("POST", "/proxies/{link}/toxics", self._add_toxic),
            ("DELETE", "/proxies/{link}/toxics/{toxic}", self._remove_toxic),
        ):
            app.router.add_route(method, path, self._one_at_a_time(handler))
        app.on_shutdown.append(self._close)
        return app

    def _one_at_a_time(
        self, handler: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def alone(request: web.Request) -> web.Response:
            async with self._lock:
                return await handler(request)

        return alone

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response({name: link.description() for name, link in self._links.items()})

    async def _create(self, request: web.Request) -> web.Response:
        body = await _body(request)
        name, upstream, listen = _text(body, "name"), _address(body, "upstream"), _address(body, "listen")
        if name in self._links:
            raise _refusal(web.HTTPConflict, f"there is a link {name} already")
        if len(self._links) >= config.PROXY_LINKS_MAX:
            raise _refusal(web.HTTPBadRequest, f"there are {config.PROXY_LINKS_MAX} links, which is the limit")
        link = Link(name, upstream, listen)
        if body.get("enabled", True):
            await _enable(link)
        self._links[name] = link
        return web.json_response(link.description(), status=201)

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._link(request).description())

    async def _change(self, request: web.Request) -> web.Response:
        link = self._link(request)
        enabled = (await _body(request)).get("enabled")
        if enabled is True:
            await _enable(link)
        elif enabled is False:
            await link.disable()
        return web.json_response(link.description())

    async def _destroy(self, request: web.Request) -> web.Response:
        await self._links.pop(self._link(request).name).disable()
        return web.Response(status=204)

    async def _toxics(self, request: web.Request) -> web.Response:
        return web.json_response(list(self._link(request).toxics.values()))

    async def _add_toxic(self, request: web.Request) -> web.Response:
        link, toxic = self._link(request), await _body(request)
        name, stream = _text(toxic, "name"), _text(toxic, "stream")
        if stream not in DIRECTIONS:
            raise _refusal(web.HTTPBadRequest, f"stream is {stream!r}; it must be one of {', '.join(DIRECTIONS)}")
        if name in link.toxics:
            raise _refusal(web.HTTPConflict, f"link {link.name} has a toxic {name} already")
        _set(link.directions[stream], toxic)
        link.toxics[name] = toxic
        return web.json_response(toxic)

    async def _remove_toxic(self, request: web.Request) -> web.Response:
        link, name = self._link(request), request.match_info["toxic"]
        if name not in link.toxics:
            raise _refusal(web.HTTPNotFound, f"link {link.name} has no toxic {name}")
        toxic = link.toxics.pop(name)
        way = link.directions[toxic["stream"]]
        if toxic["type"] == "latency":
            way.delay_s = 0.0
        elif toxic["type"] == "bandwidth":
            way.bytes_per_s = None
        else:
            way.swallowing = False
            # Bytes are missing from these streams: they must not go on as if nothing had happened.
            await link.end_connections(lambda connection: connection.lost_bytes)
        return web.Response(status=204)

    async def _close(self, _: web.Application) -> None:
        for link in self._links.values():
            await link.disable()

    def _link(self, request: web.Request) -> Link:
        name = request.match_info["link"]
        if name not in self._links:
            raise _refusal(web.HTTPNotFound, f"there is no link {name}")
        return self._links[name]


def _set(way: Direction, toxic: dict[str, Any]) -> None:
    """Apply a toxic to a direction. Raises 400 for what this proxy doesn't do."""
    attributes = toxic.get("attributes", {})
    if toxic.get("type") == "latency" and 0 <= attributes.get("latency", -1) <= config.LATENCY_MS_MAX:
        way.delay_s = attributes["latency"] / 1000
    elif toxic.get("type") == "bandwidth" and _is_bandwidth(attributes.get("rate")):
        way.bytes_per_s = attributes["rate"] * 1024
    elif toxic.get("type") == "timeout" and attributes.get("timeout") == 0:
        way.swallowing = True
    else:
        known = f"latency of 0 to {config.LATENCY_MS_MAX} ms, bandwidth in KiB/s, or timeout 0"
        raise _refusal(web.HTTPBadRequest, f"the toxic {toxic} is not known here; there are: {known}")


def _is_bandwidth(rate: Any) -> bool:
    return isinstance(rate, int) and config.BANDWIDTH_KIB_PER_S_MIN <= rate <= config.BANDWIDTH_KIB_PER_S_MAX


async def _enable(link: Link) -> None:
    try:
        await link.enable()
    except OSError as error:
        raise _refusal(web.HTTPInternalServerError, f"can't listen on {link.listen}: {error}") from error


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise _refusal(web.HTTPBadRequest, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise _refusal(web.HTTPBadRequest, "the body must be a JSON object")
    return body


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not (isinstance(value, str) and value):
        raise _refusal(web.HTTPBadRequest, f"{name} is missing; it must be a text")
    return value


def _address(body: dict[str, Any], name: str) -> str:
    value = _text(body, name)
    try:
        ports.split(value)
    except ValueError as error:
        raise _refusal(web.HTTPBadRequest, f"{name}: {error}") from error
    return value


def _refusal(kind: type[web.HTTPException], message: str) -> web.HTTPException:
    return kind(text=message)


async def serve(control: str) -> None:
    """Serve the control interface on HOST:PORT until cancelled. Prints one line when ready."""
    host, port = ports.split(control)
    runner = web.AppRunner(Control().application(), access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, reuse_address=True).start()
        print(f"control {control}", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main(arguments: list[str]) -> int:
    """Run the proxy in the foreground; returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m chaos.tcp_proxy HOST:PORT", file=sys.stderr)
        return 2
    try:
        asyncio.run(serve(arguments[0]))
    except (ValueError, OSError) as error:
        print(f"tcp_proxy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
