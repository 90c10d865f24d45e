"""`uplink`: what a slow and a dead uplink cost a zone's own clients. N is the number of rounds.

Three peers, one zone. Creates, reads and lists arrive at the zone's gateway as those of many clients do: evenly spaced
ones would keep step with what each create sets off at a near registry, and never meet it. In each round there is a
phase with a quiet uplink, one with `ONE_WAY_MS` on every link to the registry, each way, and one in which the links
accept and answer nothing; the rounds spread what else the machine does over all three. Compared: p99 of creates and of
reads. At the end the gateway is started again behind the slow uplink: it must come online.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from chaos.links import Mode
from ops.dev import processes
from ops.dev.backup_job import ImagesApi
from ops.dev.cluster import Cluster
from ops.soak import peers
from ops.soak.outcome import Outcome, quantiles_ms
from ops.soak.steady_requests import Pace, pace

ROUNDS, PHASE_S = 10, 12.0
SEED = 1
ONE_WAY_MS = 250
RATIO_MAX = 1.2
WRITES_PER_S, READS_PER_S = 20.0, 60.0
ZONE, GATEWAY = "fra", "fra-1"
QUIET, SLOW, DEAD = "quiet", "slow", "dead"
_STATE_MAX_S = 60.0
_SETTLE_S = 2.0


@dataclass
class Samples:
    """Seconds that requests took, by phase and kind, and what was no success."""

    took: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: list[str] = field(default_factory=list)


class Clients:
    """Asks one zone at a steady pace: creates, and shows and lists in turn of what was created."""

    def __init__(self, api: ImagesApi) -> None:
        self._api = api
        self._chance = random.Random(SEED)
        self._paths = ["/v2/images?limit=20"]
        self.samples = Samples()

    async def phase(self, name: str, seconds: float) -> None:
        ends = time.monotonic() + seconds
        await asyncio.gather(
            pace(Pace(WRITES_PER_S, ends, self._chance), lambda number: self._write(name)),
            pace(Pace(READS_PER_S, ends, self._chance), lambda number: self._read(name, number)),
        )

    def spread(self, phase: str, method: str) -> dict[str, float]:
        return quantiles_ms(self.samples.took[phase, method])

    async def _write(self, phase: str) -> None:
        one = str(uuid.uuid4())
        if await self._ask(phase, "POST", "/v2/images", 201, json={"id": one, "name": "made meanwhile"}):
            self._paths[1:] = [*self._paths[1:], f"/v2/images/{one}"][-20:]

    async def _read(self, phase: str, number: int) -> None:
        await self._ask(phase, "GET", self._paths[number % len(self._paths)], 200)

    async def _ask(self, phase: str, method: str, path: str, wanted: int, **options: Any) -> bool:
        began = time.perf_counter()
        try:
            status, _ = await self._api.ask(method, path, **options)
        except (OSError, TimeoutError) as error:
            self.samples.failures.append(f"{phase}: {method} {path}: {error!r}")
            return False
        self.samples.took[phase, method].append(time.perf_counter() - began)
        if status != wanted:
            self.samples.failures.append(f"{phase}: {method} {path} gave {status}")
        return status == wanted


async def run(rounds: int = ROUNDS) -> Outcome:
    outcome = Outcome("uplink", {"rounds": rounds, "round_trip_ms": 2 * ONE_WAY_MS})
    async with peers.running(proxied=True, gateways={GATEWAY: ZONE}) as cluster:
        async with ImagesApi(cluster.zones[ZONE]) as api:
            clients = Clients(api)
            await clients.phase("warm-up", PHASE_S / 2)
            for number in range(rounds):
                await _round(cluster, clients, outcome, number)
        _compare(clients.samples, outcome, rounds)
        await _start_behind_slow_links(cluster, outcome)
    return outcome


async def _round(cluster: Cluster, clients: Clients, outcome: Outcome, number: int) -> None:
    await clients.phase(f"{QUIET} {number}", PHASE_S)
    await asyncio.to_thread(_delay, cluster, ONE_WAY_MS)
    await clients.phase("changing", _SETTLE_S)
    await clients.phase(f"{SLOW} {number}", PHASE_S)
    state = (cluster.gateway_status(GATEWAY) or {}).get("state")
    outcome.require(state != "degraded", f"a round trip of {2 * ONE_WAY_MS} ms counts as a dead uplink")
    await asyncio.to_thread(_cut, cluster, "blackhole")
    await clients.phase("changing", _SETTLE_S)
    await clients.phase(f"{DEAD} {number}", PHASE_S)
    await asyncio.to_thread(_heal, cluster)
    # What was queued meanwhile drains before the next quiet phase.
    outcome.require(await asyncio.to_thread(_online, cluster), "the zone did not come online after it was healed")
    await clients.phase("changing", _SETTLE_S)


def _registry_links(cluster: Cluster) -> list[str]:
    return [name for name in cluster.wiring.links_of_zone(ZONE) if name.startswith("registry-")]


def _delay(cluster: Cluster, ms: int) -> None:
    assert cluster.links is not None
    for name in _registry_links(cluster):
        cluster.links.latency(name, ms)


def _cut(cluster: Cluster, mode: Mode) -> None:
    assert cluster.links is not None
    for name in _registry_links(cluster):
        cluster.links.cut(name, mode=mode)


def _heal(cluster: Cluster) -> None:
    assert cluster.links is not None
    for name in _registry_links(cluster):
        cluster.links.heal(name)


def _online(cluster: Cluster) -> bool:
    return processes.wait_until(lambda: cluster.is_ready(GATEWAY), _STATE_MAX_S)


async def _start_behind_slow_links(cluster: Cluster, outcome: Outcome) -> None:
    """Connections are made anew, each with several round trips: that must fit the bounds of the uplink too."""
    await asyncio.to_thread(cluster.stop_process, GATEWAY)
    await asyncio.to_thread(_delay, cluster, ONE_WAY_MS)
    began = time.monotonic()
    await asyncio.to_thread(cluster.start_process, GATEWAY)
    online = await asyncio.to_thread(_online, cluster)
    outcome.figures["online_behind_slow_uplink_s"] = round(time.monotonic() - began, 1) if online else None
    outcome.require(online, f"a gateway started {2 * ONE_WAY_MS} ms away from the registry did not come online")


def _compare(samples: Samples, outcome: Outcome, rounds: int) -> None:
    """Of all rounds together, and of each by itself: a pause of the disk spoils the round that it falls into."""
    for method in ("POST", "GET"):
        p99 = {}
        for phase in (QUIET, SLOW, DEAD):
            took = [samples.took[f"{phase} {number}", method] for number in range(rounds)]
            named = quantiles_ms(list(chain.from_iterable(took)))
            p99[phase] = named["p99_ms"]
            outcome.figures |= {f"{method}_{phase}_{name}": value for name, value in named.items()}
            outcome.figures[f"{method}_{phase}_p99_ms_by_round"] = [quantiles_ms(one)["p99_ms"] for one in took]
        for phase in (SLOW, DEAD):
            ratio = p99[phase] / p99[QUIET]
            outcome.figures[f"{method}_{phase}_ratio"] = round(ratio, 2)
            outcome.within(ratio <= RATIO_MAX, f"p99 of {method} is {ratio:.2f} times as long with a {phase} uplink")
    outcome.figures["requests"] = sum(map(len, samples.took.values()))
    outcome.require(not samples.failures, f"{len(samples.failures)} requests failed: {samples.failures[:3]}")
