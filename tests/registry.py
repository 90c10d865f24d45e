"""A real registry for tests: peers with TLS, LMDB and Raft on loopback, all in this process and its event loop.

async with registry(tmp_path, "abc") as cluster:
    async with cluster.client() as client: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from chaos.ports import Reservation
from raftreg import cluster_init, config, main, wire
from raftreg.certificates import api_client_context
from raftreg.client import Client
from raftreg.cluster_init import Plan, PlannedPeer
from raftreg.config import Limits, PeerConfig, Timing, TlsFiles
from raftreg.peer import Peer

READY_S = 20.0
# Of so many ports at a time; a test asks for a dozen.
RESERVED_MAX = 200
_RESERVED: deque[Reservation] = deque()
GATEWAYS = {"ams-1": "ams", "ams-2": "ams", "fra-1": "fra"}


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, and that nobody else is given while a test stops and starts there."""
    taken = [Reservation() for _ in range(count)]
    for one in taken:
        if len(_RESERVED) == RESERVED_MAX:
            _RESERVED.popleft().release()
        _RESERVED.append(one)
    return [one.port for one in taken]


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = READY_S) -> None:
    """Ask again and again, at a bounded rate and for a bounded time, until the answer is yes."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - what is asked has no event
            await asyncio.sleep(0.02)


class Registry:
    """The peers of one cluster; each can be stopped and started again."""

    def __init__(self, directory: Path, names: str, limits: Limits, timing: Timing, api_tls: bool) -> None:
        self.directory = directory
        ports = iter(free_ports(2 * len(names)))
        peers = [PlannedPeer(name, f"127.0.0.1:{next(ports)}", f"127.0.0.1:{next(ports)}") for name in names]
        self.cluster_id = cluster_init.initialise(directory, Plan(peers, GATEWAYS, ["app"]), offline=True)
        self.configs = {name: self._settings(name, limits, timing, api_tls) for name in names}
        self._stacks: dict[str, contextlib.AsyncExitStack] = {}
        self.peers: dict[str, Peer] = {}

    def _settings(self, name: str, limits: Limits, timing: Timing, api_tls: bool) -> PeerConfig:
        made = config.load(self.directory / name)
        urls = made.api_peers if api_tls else {n: u.replace("https:", "http:") for n, u in made.api_peers.items()}
        return dataclasses.replace(made, limits=limits, timing=timing, api_tls=api_tls, api_peers=urls)

    def url(self, name: str) -> str:
        return self.configs[name].api_peers[name]

    @property
    def urls(self) -> list[str]:
        return [self.url(name) for name in self.configs]

    async def start(self, name: str) -> None:
        stack = contextlib.AsyncExitStack()
        self.peers[name], _ = await stack.enter_async_context(main.running(self.configs[name]))
        self._stacks[name] = stack

    async def stop(self, name: str) -> None:
        del self.peers[name]
        await self._stacks.pop(name).aclose()

    async def stop_all(self) -> None:
        for name in list(self._stacks):
            await self.stop(name)

    async def leader(self) -> str:
        """Name of the peer that leads, once one does and has applied an entry of its term."""
        async with asyncio.timeout(READY_S):
            while True:
                for name, peer in self.peers.items():
                    if peer.raft.is_leader and peer.reads.freshness()["staleness_s"] is not None:
                        return name
                await asyncio.sleep(0.01)

    def tls(self, who: str) -> TlsFiles:
        """Certificate files of a peer, gateway or client by name."""
        for directory in (self.directory, self.directory / "gateways", self.directory / "clients"):
            tls = directory / who / "tls"
            if tls.is_dir():
                return TlsFiles(tls / "ca.pem", tls / "cert.pem", tls / "key.pem")
        raise KeyError(who)

    def client(self, who: str = "operator", *, at: str | None = None, **options: Any) -> Client:
        urls = self.urls if at is None else [self.url(at)]
        return Client(urls, ssl=api_client_context(self.tls(who)), **options)

    @contextlib.asynccontextmanager
    async def http(self, who: str = "operator", *, at: str = "a") -> AsyncIterator[Http]:
        """Bare HTTP to one peer, for what the client library would not send."""
        tls = api_client_context(self.tls(who)) if self.configs[at].api_tls else False
        connector = aiohttp.TCPConnector(ssl=tls, limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(20)) as session:
            yield Http(session, self.url(at))


@dataclasses.dataclass
class Answer:
    status: int
    headers: Any
    body: Any

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.body["error"]
        return error


class Http:
    """Requests to one peer, answered as decoded documents."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """`body` is sent as JSON, `data` as it is; a path without slash in front is below the API's prefix."""
        target = self.url + (path if path.startswith("/") else f"{wire.PREFIX}/{path}")
        sent = wire.to_json(body) if body is not None else data
        given = {"Content-Type": wire.JSON} if sent is not None else {}
        async with self.session.request(method, target, data=sent, headers={**given, **(headers or {})}) as answer:
            content = await answer.read()
            kind = answer.headers.get("Content-Type", "")
            return Answer(
                answer.status, answer.headers, wire.decode(content, kind) if "text" not in kind else content.decode()
            )


@contextlib.asynccontextmanager
async def registry(
    directory: Path,
    names: str = "a",
    *,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    timing: Timing = Timing(),  # noqa: B008 - frozen
    api_tls: bool = True,
) -> AsyncIterator[Registry]:
    """A cluster of peers named by single letters, with a leader."""
    cluster = Registry(directory / "cluster", names, limits, timing, api_tls)
    try:
        for name in names:
            await cluster.start(name)
        await cluster.leader()
        yield cluster
    finally:
        await cluster.stop_all()
