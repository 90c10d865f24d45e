"""`no-quorum`: every link between the peers is cut. Writes and linearizable reads at the leader and at a follower are
refused with 503 within a second of their arrival; what was taken before is answered as unknown."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import aiohttp

from ops.dev.cluster import Cluster
from ops.soak import peers
from ops.soak.outcome import Outcome, spread_ms
from raftreg import certificates, wire

ROUNDS = 8
REFUSED_MAX_S = 1.0
# Long enough for several refusals, one after the other, in each place.
_LOOK_S = 4.0
_ASKS = (("POST", "ids", {"count": 1}), ("GET", "images?limit=1", None))


async def run(count: int = ROUNDS) -> Outcome:
    outcome, statuses = Outcome("no-quorum"), Counter[str]()
    took: dict[str, list[float]] = {"at_leader": [], "at_follower": []}
    first: list[float] = []
    async with peers.running(proxied=True) as cluster, _plain(cluster) as session:
        for _ in range(count):
            leader = await asyncio.to_thread(cluster.wait_leader)
            follower = next(peer for peer in cluster.peers if peer != leader)
            for peer in cluster.peers:
                await asyncio.to_thread(cluster.isolate_peer, peer)
            cut = time.monotonic()
            looks = [
                _look(session, cluster, peer, ask, took[where], statuses)
                for where, peer in (("at_leader", leader), ("at_follower", follower))
                for ask in _ASKS
            ]
            first += [moment - cut for moment in await asyncio.gather(*looks)]
            for peer in cluster.peers:
                await asyncio.to_thread(cluster.heal_peer, peer)
            await asyncio.to_thread(cluster.wait_ready, cluster.peers)
    outcome.figures = {
        **spread_ms("refused_at_leader", took["at_leader"]),
        **spread_ms("refused_at_follower", took["at_follower"]),
        **spread_ms("first_refusal_after_the_cut", first),
        **{f"answers_{status}": number for status, number in sorted(statuses.items())},
    }
    longest = max(*took["at_leader"], *took["at_follower"])
    outcome.within(longest <= REFUSED_MAX_S, f"a refusal took {longest:.2f} s, more than {REFUSED_MAX_S} s")
    return outcome


async def _look(
    session: aiohttp.ClientSession,
    cluster: Cluster,
    peer: str,
    ask: tuple[str, str, object],
    took: list[float],
    statuses: Counter[str],
) -> float:
    """Ask one peer again and again; notes how long each 503 took, and returns when the first one came."""
    url = cluster.registry_urls[cluster.peers.index(peer)]
    method, path, body = ask
    end, first = time.monotonic() + _LOOK_S, 0.0
    while time.monotonic() < end:
        began = time.monotonic()
        async with session.request(method, f"{url}{wire.PREFIX}/{path}", json=body) as answer:
            await answer.read()
        statuses[f"{method}_{answer.status}"] += 1
        if answer.status == 503:
            took.append(time.monotonic() - began)
            first = first or time.monotonic()
    return first or time.monotonic()


def _plain(cluster: Cluster) -> aiohttp.ClientSession:
    tls = certificates.api_client_context(cluster.wiring.operator_tls())
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), timeout=aiohttp.ClientTimeout(total=30))
