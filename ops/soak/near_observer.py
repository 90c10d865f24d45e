"""`observer`: the voters are 100 ms away, an observer is near. A bounded read answers within milliseconds, at the
observer, through the client library that knows all endpoints."""

from __future__ import annotations

import asyncio
import inspect
import statistics
import time

from ops.dev.cluster import Cluster
from ops.soak import peers
from ops.soak.outcome import Outcome
from raftreg.client import Client, client_ssl_context

READS = 3000
ONE_WAY_MS = 50
READ_P99_MAX_S = 0.005
MAX_STALENESS_S = 2.0
OBSERVER = "o"
_SETTLE_S = 3.0


async def run(reads: int = READS) -> Outcome:
    outcome = Outcome("observer")
    if "observers" not in inspect.signature(Cluster.__init__).parameters:
        outcome.skipped = "the development cluster has no observers yet"
        return outcome
    async with peers.running(proxied=True, observers=(OBSERVER,)) as cluster:
        far = _delay(cluster)
        near = f"https://{cluster.wiring.listen(f'api-{OBSERVER}')}"
        tls = cluster.wiring.operator_tls()
        async with Client([*far, near], ssl=client_ssl_context(tls.ca, tls.cert, tls.key)) as client:
            image = await client.create_image(attributes={"name": "read"})
            await asyncio.sleep(_SETTLE_S)  # the client measures its endpoints, the observer catches up
            took = [await _read(client, image["uuid"]) for _ in range(reads)]
            endpoint = client.nearest().url
    cuts = statistics.quantiles(took, n=100)
    outcome.figures = {
        "reads": len(took),
        "read_p50_ms": round(cuts[49] * 1000, 2),
        "read_p99_ms": round(cuts[98] * 1000, 2),
        "read_most_ms": round(max(took) * 1000, 2),
        "round_trip_ms": 2 * ONE_WAY_MS,
    }
    outcome.require(endpoint == near, f"the client found {endpoint} nearest, not {near}")
    outcome.within(cuts[98] <= READ_P99_MAX_S, f"p99 of a bounded read above {READ_P99_MAX_S * 1000:.0f} ms")
    return outcome


def _delay(cluster: Cluster) -> list[str]:
    """Put the voters `ONE_WAY_MS` away from observer and clients; the URLs at which clients reach them."""
    assert cluster.links is not None
    for name in cluster.links.addresses():
        if OBSERVER in name.split("-")[1:]:
            cluster.links.latency(name, ONE_WAY_MS)
    urls = []
    for peer in cluster.peers:
        address = cluster.links.create(f"far-{peer}", cluster.wiring.listen(f"api-{peer}"))
        cluster.links.latency(f"far-{peer}", ONE_WAY_MS)
        urls.append(f"https://{address}")
    return urls


async def _read(client: Client, uuid: str) -> float:
    began = time.perf_counter()
    await client.get_image(uuid, consistency="bounded", max_staleness=MAX_STALENESS_S)
    return time.perf_counter() - began
