"""Every link between the peers is cut: each refuses what needs a quorum, says who is away, and still answers reads."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from chaos import links
from ops.dev.cluster import Cluster
from raftreg import certificates, wire
from tests.system.conftest import MakeCluster

# For everything that must happen in the end, on a busy machine.
SOON_S = 30.0


class Ask:
    """Plain HTTP to the peers of a cluster, which repeats nothing: (status, headers, document)."""

    def __init__(self, cluster: Cluster, session: aiohttp.ClientSession) -> None:
        self._urls = dict(zip(cluster.peers, cluster.registry_urls, strict=True))
        self._session = session

    async def __call__(self, peer: str, method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
        url = f"{self._urls[peer]}{wire.PREFIX}/{path}"
        async with self._session.request(method, url, json=body) as answer:
            return answer.status, answer.headers, await answer.json()


@pytest.mark.parametrize("mode", ["blackhole", pytest.param("reset", marks=pytest.mark.slow)])
async def test_without_a_quorum_the_reason_is_said_at_every_peer_and_stale_reads_go_on(
    make_cluster: MakeCluster, mode: links.Mode
) -> None:
    cluster = make_cluster(proxied=True, gateways={})
    await asyncio.to_thread(cluster.start)
    tls = certificates.api_client_context(cluster.wiring.operator_tls())
    timeout = aiohttp.ClientTimeout(total=SOON_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), timeout=timeout) as session:
        ask = Ask(cluster, session)
        for peer in cluster.peers:
            status, _, _ = await ask(peer, "POST", "ids", {"count": 1})
            assert status == 201
        for peer in cluster.peers:
            await asyncio.to_thread(cluster.isolate_peer, peer, mode)
        for peer in cluster.peers:
            others = [other for other in cluster.peers if other != peer]
            for method, path, body in (("POST", "ids", {"count": 1}), ("GET", "images", None)):
                headers, error = await refused(ask, peer, method, path, body)
                assert headers["Retry-After"] == "1"
                assert (error["definite"], error["not_connected"]) == (True, others)
                assert f"{peer} knows no leader: not connected with {', '.join(others)}" in error["message"]
            status, _, page = await ask(peer, "GET", "images?consistency=stale")
            assert (status, page["images"]) == (200, [])
        for peer in cluster.peers:
            await asyncio.to_thread(cluster.heal_peer, peer)
        await asyncio.to_thread(cluster.wait_ready, cluster.peers)
        for peer in cluster.peers:
            status, _, _ = await ask(peer, "POST", "ids", {"count": 1})
            assert status == 201


async def refused(ask: Ask, peer: str, method: str, path: str, body: Any) -> tuple[Any, Any]:
    """Headers and error of the refusal; what the peer took before it noticed that it is alone ends in doubt first."""
    async with asyncio.timeout(SOON_S):
        while True:
            status, headers, document = await ask(peer, method, path, body)
            assert status in (503, 504) or (status < 300 and method == "GET")
            if status == 503 and document["error"]["code"] == "no_quorum":
                return headers, document["error"]
