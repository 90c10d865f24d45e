"""Clients whose every operation is noted in the history: invoked before it is sent, and how it ended."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from chaos import config
from chaos.cluster import ClusterUnderTest
from chaos.history import History
from ops.dev.readout import client_of
from raftreg import errors
from raftreg.client import Client, client_ssl_context
from raftreg.http_once import send_once

Values = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a gateway answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def document(self) -> Any:
        return json.loads(self.body) if self.body else {}


class ZoneClient:
    """A client of one gateway's Images API, with the token of one tenant."""

    def __init__(
        self, cluster: ClusterUnderTest, gateway: str, history: History, process: str, *, token: str | None = None
    ) -> None:
        self.gateway, self.zone, self.process = gateway, cluster.zone_of(gateway), process
        self._url = f"http://{cluster.wiring.listen(f'images-{gateway}')}"
        self._token = token or cluster.wiring.token(gateway)
        self._history = history
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ZoneClient:
        self._http = aiohttp.ClientSession(
            headers={"X-Auth-Token": self._token},
            timeout=aiohttp.ClientTimeout(total=config.REQUEST_MAX_S),
            middlewares=(send_once,),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()

    async def ask(self, method: str, path: str, **options: Any) -> Answer:
        """One request, noted nowhere. Raises aiohttp.ClientError or TimeoutError."""
        if self._http is None:
            raise RuntimeError("use as `async with`")
        async with self._http.request(method, self._url + path, **options) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def noted(
        self,
        kind: str,
        asked: Values,
        method: str,
        path: str,
        told: Callable[[Answer], Values] = lambda _: {},
        *,
        good: Sequence[int] = (200, 201, 204),
        promised: bool = True,
        **options: Any,
    ) -> Answer | None:
        """One request as an operation; its answer if it was a good one. `told` makes the answer's values.

        `promised`: the zone has promised to answer it also while it is cut off.
        """
        where = {"gateway": self.gateway} | ({"zone": self.zone} if promised else {})
        operation = self._history.invoke(self.process, kind, **asked, **where)
        try:
            answer = await self.ask(method, path, **options)
        except aiohttp.ClientConnectorError:
            self._history.fail(operation, code="refused connection", gave_up=time.monotonic())
            return None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._history.info(operation, code=type(error).__name__, gave_up=time.monotonic())
            return None
        if answer.status not in good:
            note = self._history.info if answer.status in (500, 502, 504) else self._history.fail
            note(operation, code=answer.status, gave_up=time.monotonic())
            return None
        self._history.ok(operation, **told(answer), **_freshness(answer))
        return answer


def _freshness(answer: Answer) -> Values:
    """What the answer says of how current it is."""
    said: Values = {"state": answer.headers.get("X-Zonegw-State"), "revision": answer.headers.get("X-Zonegw-Revision")}
    try:
        said["staleness_s"] = float(answer.headers.get("X-Zonegw-Staleness", "unknown"))
    except ValueError:
        return said
    return said


class RegistryClient:
    """Notes what a client of the registry is answered."""

    def __init__(self, client: Client, history: History, process: str) -> None:
        self.client, self.process = client, process
        self._history = history

    async def noted(self, kind: str, asked: Values, call: Awaitable[Values]) -> Values | None:
        """One call as an operation; what it returned if it was acknowledged."""
        operation = self._history.invoke(self.process, kind, **asked)
        try:
            answered = await call
        except errors.RegistryError as error:
            note = self._history.fail if error.definite else self._history.info
            note(operation, code=error.code)
            return None
        except asyncio.CancelledError:
            self._history.info(operation, code="cancelled")
            raise
        self._history.ok(operation, **answered)
        return answered


def client_anywhere(cluster: ClusterUnderTest) -> Client:
    """A client that finds the leader by itself."""
    return client_of(cluster, config.REQUEST_MAX_S)


def client_at(cluster: ClusterUnderTest, peer: str) -> Client:
    """A client that knows one peer or observer only, and so shows what this one answers."""
    tls = cluster.wiring.operator_tls()
    context = client_ssl_context(tls.ca, tls.cert, tls.key)
    return Client([cluster.url(peer)], ssl=context, deadline_s=config.REQUEST_MAX_S)
