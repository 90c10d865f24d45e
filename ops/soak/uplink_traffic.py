"""`uplink-traffic`: what the reads and the data of a zone's clients cost its uplink. N is the number of reads.

Three peers, one zone whose links to the registry count their bytes. While nobody asks anything, the uplink carries
heartbeats and the feed. Then clients show and list images and download their data, and no request more may reach the
registry; then one image of a gigabyte is uploaded, and next to nothing of it may pass.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from ops.dev.backup_job import BackupError, ImagesApi
from ops.dev.cluster import Cluster, Zone
from ops.soak import peers
from ops.soak.counted_links import CountedLink, counted
from ops.soak.outcome import Outcome
from raftreg import certificates

READS = 10_000
CLIENTS = 8
UPLOAD_BYTES, UPLOAD_MAX_BYTES = 1 << 30, 100_000
ZONE, GATEWAY = "fra", "fra-1"
OWN_BYTES = 64 << 10
IDLE_S = 30.0
# What a gateway asks by itself, by the last part of the route: that it lives, how near each peer is, who else is there.
_BY_ITSELF = ("heartbeat", "healthcheck", "changes", "zones")
# Questions by itself have periods of half a second to half a minute; at the edge of a window one more may fall into it.
_EDGE = 10
_CHUNK = bytes(1 << 20)
_OCTETS = {"Content-Type": "application/octet-stream"}
_COUNTED = re.compile(r'^raftreg_http_requests_total\{route="([^"]*)",status="\d+"\} (\S+)', re.MULTILINE)


@dataclass
class Window:
    """What the uplink carried for a while."""

    seconds: float
    bytes: int
    requests: Counter[str]

    @property
    def by_itself(self) -> int:
        return sum(count for route, count in self.requests.items() if _asks_by_itself(route))

    @property
    def others(self) -> dict[str, int]:
        return {route: count for route, count in self.requests.items() if not _asks_by_itself(route)}


def _asks_by_itself(route: str) -> bool:
    return route.rstrip("/").rpartition("/")[2] in _BY_ITSELF


class Uplink:
    """Counts at both of its ends."""

    def __init__(self, cluster: Cluster, links: Sequence[CountedLink]) -> None:
        self._cluster, self._links = cluster, links

    async def during(self, work: Any) -> Window:
        """What it carries while this is awaited."""
        before, began = await self._now(), time.monotonic()
        await work
        seconds, after = time.monotonic() - began, await self._now()
        return Window(seconds, after[0] - before[0], after[1] - before[1])

    async def _now(self) -> tuple[int, Counter[str]]:
        requests = await asyncio.gather(*(asyncio.to_thread(self._requests, peer) for peer in self._cluster.peers))
        return sum(link.bytes for link in self._links), sum(requests, Counter())

    def _requests(self, peer: str) -> Counter[str]:
        """Requests that a peer has answered, by route; without those about its metrics."""
        context = certificates.client_context(self._cluster.wiring.operator_tls())
        with urllib.request.urlopen(f"{self._cluster.url(peer)}/metrics", timeout=10, context=context) as answer:
            counted: Counter[str] = Counter()
            for route, count in _COUNTED.findall(answer.read().decode()):
                counted[route] += int(float(count)) if not route.endswith("/metrics") else 0
            return counted


async def run(reads: int = READS) -> Outcome:
    outcome = Outcome("uplink-traffic", {"reads": reads, "upload_mib": (UPLOAD_BYTES * reads // READS) >> 20})
    async with peers.running(gateways={GATEWAY: ZONE}, gateways_run=False) as cluster:
        upstreams = [cluster.wiring.listen(f"api-{peer}") for peer in cluster.peers]
        async with counted(upstreams) as links:
            _dial(cluster, links)
            await asyncio.to_thread(cluster.start_process, GATEWAY)
            await asyncio.to_thread(cluster.wait_ready, [GATEWAY])
            await _measure(outcome, Uplink(cluster, links), cluster.zones[ZONE])
            await asyncio.to_thread(cluster.stop_process, GATEWAY)
    return outcome


def _dial(cluster: Cluster, links: Sequence[CountedLink]) -> None:
    """Have the gateway reach the registry through the links."""
    config = cluster.wiring.gateway_dir(GATEWAY) / "zonegw.toml"
    text = config.read_text(encoding="utf-8")
    for link in links:
        text = text.replace(f"https://{link.upstream}", f"https://{link.address}")
    config.write_text(text, encoding="utf-8")


async def _measure(outcome: Outcome, uplink: Uplink, zone: Zone) -> None:
    async with ImagesApi(zone) as api:
        image = await _stored(api, _chunks(OWN_BYTES))
        await _drained(api)
        idle = await uplink.during(asyncio.sleep(IDLE_S))
        reading = await uplink.during(_read(api, image, outcome.figures["reads"]))
        uploading = await uplink.during(_upload(api, outcome.figures["upload_mib"] << 20))
    outcome.figures["idle_bytes_per_s"] = round(idle.bytes / idle.seconds)
    outcome.figures["idle_requests_per_s"] = round(idle.by_itself / idle.seconds, 2)
    _judge_reads(outcome, idle, reading)
    caused = round(uploading.bytes - idle.bytes / idle.seconds * uploading.seconds)
    outcome.figures |= {
        "upload_s": round(uploading.seconds, 1), "upload_uplink_bytes": uploading.bytes, "upload_caused_bytes": caused,
    }  # fmt: skip
    outcome.require(caused < UPLOAD_MAX_BYTES, f"the upload caused {caused} bytes of traffic on the uplink")


def _judge_reads(outcome: Outcome, idle: Window, reading: Window) -> None:
    expected = idle.by_itself / idle.seconds * reading.seconds
    outcome.figures |= {
        "read_s": round(reading.seconds, 1), "reads_per_s": round(outcome.figures["reads"] / reading.seconds),
        "read_requests_by_itself": reading.by_itself, "read_requests_others": sum(reading.others.values()),
        "read_uplink_bytes": reading.bytes,
    }  # fmt: skip
    outcome.require(not reading.others, f"reads of the zone led to requests to the registry: {reading.others}")
    outcome.require(
        reading.by_itself <= expected + _EDGE,
        f"{reading.by_itself} requests reached the registry while the zone was read, instead of {expected:.0f}",
    )


async def _read(api: ImagesApi, image: str, reads: int) -> None:
    paths = (f"/v2/images/{image}", "/v2/images?limit=20", f"/v2/images/{image}/file")
    numbers = iter(range(reads))

    async def client() -> None:
        for number in numbers:
            status, body = await api.ask("GET", paths[number % len(paths)])
            if status != 200:
                raise BackupError(f"GET {paths[number % len(paths)]} gave {status}: {body[:200]!r}")

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def _upload(api: ImagesApi, size: int) -> None:
    await _stored(api, _chunks(size))
    await _drained(api)


async def _stored(api: ImagesApi, data: AsyncIterator[bytes]) -> str:
    body = {"name": "data", "disk_format": "raw", "container_format": "bare"}
    status, answer = await api.ask("POST", "/v2/images", json=body)
    if status != 201:
        raise BackupError(f"the create gave {status}: {answer[:200]!r}")
    image = str(json.loads(answer)["id"])
    status, answer = await api.ask("PUT", f"/v2/images/{image}/file", data=data, headers=_OCTETS, timeout=None)
    if status != 204:
        raise BackupError(f"the upload gave {status}: {answer[:200]!r}")
    return image


async def _chunks(size: int) -> AsyncIterator[bytes]:
    while size > 0:
        yield _CHUNK[:size]
        size -= len(_CHUNK)


async def _drained(api: ImagesApi) -> None:
    async with asyncio.timeout(60):
        while (await api.status())["queue_depth"]:  # noqa: ASYNC110 - what is asked has no event
            await asyncio.sleep(0.1)
