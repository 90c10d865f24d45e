"""`offline`: what becomes of 100,000 images that a zone creates while it is cut off. N is their number.

Three peers, two zones. The link of one zone to registry and zones is black-holed; its clients create images, most
without data, update, share and delete some; meanwhile its gateway is killed twice with SIGKILL and started again. Nine
tenths of the images have a number from the block on hand, the others get one at the registry. Then the link heals and
the queue drains. The judge compares the history of answers with the registry and with what the other zone lists; the
registry's changes must have each write once, those of an image in order.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Any

from chaos import history
from chaos.history import History
from chaos.validate import Verdict, judge
from ops.dev.backup_job import ImagesApi
from ops.dev.cluster import Cluster
from ops.dev.readout import client_of, registry_images
from ops.soak import peers
from ops.soak.image_lives import MEMBER, STEP, ImageLives
from ops.soak.outcome import Outcome
from raftreg import wire
from raftreg.client import Client

IMAGES = 100_000
KILLS = 2
NUMBERED = 0.9
DOWNLOADS = 50
AWAY, AWAY_GATEWAY, HOME = "fra", "fra-1", "ams"
_LOOK_S = 0.25
_STEP_MAX_S = 120.0
_DEADLINE_S = 60.0
# Of each registry image, for a hundred thousand must fit into memory beside the history.
_JUDGED = (
    "uuid", "number", "version", "name", "visibility", "properties", "status", "os_hash_value", "members", "owner",
)  # fmt: skip


async def run(images: int = IMAGES) -> Outcome:
    outcome = Outcome("offline", {"images": images, "kills": KILLS})
    limits = {"id_block_min": max(1, int(images * NUMBERED)), "queue_depth_max": 4 * images}
    zones = {"ams-1": HOME, AWAY_GATEWAY: AWAY}
    async with peers.running(proxied=True, gateways=zones, gateway_limits=limits) as cluster:
        home, away = (ImagesApi(cluster.zones[zone]) for zone in (HOME, AWAY))
        async with home, away, client_of(cluster, _DEADLINE_S) as registry:
            await _measure(outcome, cluster, home, away, registry)
    return outcome


async def _measure(outcome: Outcome, cluster: Cluster, home: ImagesApi, away: ImagesApi, registry: Client) -> None:
    noted = History(cluster.base / "history.jsonl")
    lives = ImageLives(away, AWAY_GATEWAY, noted, outcome.figures["images"], seed=random.randrange(1 << 32))
    outcome.figures["seed"] = lives.seed
    before = await registry.status()
    await _until_status(away, lambda status: status["ids_on_hand"] > 0)
    await asyncio.to_thread(cluster.cut_zone, AWAY, "blackhole")
    await _until_status(away, lambda status: status["state"] == "degraded")
    await _live_cut_off(outcome, cluster, lives)
    await _drain(outcome, cluster, away)
    status = await registry.status()
    await _until_status(home, lambda said: wire.parse_cursor(said["feed_position"]).revision >= status["revision"])
    await _download(lives, home, noted)
    noted.close()
    changes = _changes(registry, f"{before['epoch']}.{before['revision']}", status["revision"])
    told = [change async for change in changes]
    verdict = judge(history.read(noted.path), await _rows(registry), {HOME: await _listed(home)})
    _judge(outcome, lives, verdict, told, await peers.status_of(away))


async def _live_cut_off(outcome: Outcome, cluster: Cluster, lives: ImageLives) -> None:
    began = time.monotonic()
    living = asyncio.create_task(lives.run())
    for number in range(1, KILLS + 1):
        await _either(living, lives.reached(lives.count * number // (KILLS + 1)))
        await asyncio.to_thread(cluster.kill, AWAY_GATEWAY)
        await asyncio.to_thread(cluster.start_process, AWAY_GATEWAY)
    await living
    took = time.monotonic() - began
    outcome.figures |= {"requests": lives.requests, "requests_per_s": round(lives.requests / took, 1)}


async def _either(living: asyncio.Task[None], moment: Any) -> None:
    """Wait for the moment, or for the failure of those on whom it depends."""
    waiting = asyncio.ensure_future(moment)
    await asyncio.wait((living, waiting), return_when=asyncio.FIRST_COMPLETED)
    if living.done():
        waiting.cancel()
        living.result()


async def _drain(outcome: Outcome, cluster: Cluster, away: ImagesApi) -> None:
    depths = [(time.monotonic(), (await peers.status_of(away))["queue_depth"])]
    outcome.figures |= {"pending": depths[0][1]}
    await asyncio.to_thread(cluster.heal_zone, AWAY)
    healed = time.monotonic()
    while depths[-1][1]:
        await asyncio.sleep(_LOOK_S)
        depths.append((time.monotonic(), (await peers.status_of(away))["queue_depth"]))
    await _until_status(away, lambda status: status["state"] == "online")
    took = depths[-1][0] - healed
    rates = [(one[1] - two[1]) / (two[0] - one[0]) for one, two in pairwise(depths)]
    outcome.figures |= {
        "drain_s": round(took, 1), "drained_per_s": round(depths[0][1] / took, 1), "most_per_s": round(max(rates), 1),
    }  # fmt: skip


async def _download(lives: ImageLives, home: ImagesApi, noted: History) -> None:
    """Some of the data, through the other zone; the judge compares what came."""
    with_data = [operation for operation in history.read(noted.path) if operation.kind == "upload"]
    deleted = {life.uuid for life in lives.lives if life.deleted}
    for upload in with_data[:: max(1, len(with_data) // DOWNLOADS)]:
        uuid = upload.asked["uuid"]
        if uuid not in deleted:
            operation = noted.invoke("reader", "download", uuid=uuid)
            sha512, size = await home.download(uuid)
            noted.ok(operation, sha512=sha512, size=size)


# -- what is there in the end -------------------------------------------------------------------------------------


async def _until_status(api: ImagesApi, holds: Any) -> None:
    async with asyncio.timeout(_STEP_MAX_S):
        while not holds(await peers.status_of(api)):  # noqa: ASYNC110 - what is asked has no event
            await asyncio.sleep(_LOOK_S)


async def _rows(registry: Client) -> list[dict[str, Any]]:
    return [{name: image.get(name) for name in _JUDGED} for image in await registry_images(registry)]


async def _listed(api: ImagesApi) -> list[dict[str, Any]]:
    return [{name: image.get(name) for name in ("id", "os_glance_v1_id")} for image in await api.images()]


async def _changes(registry: Client, after: str, until: int) -> AsyncIterator[dict[str, Any]]:
    """What the registry's changefeed says of images, without the images themselves."""
    async with aclosing(registry.changes(after)) as messages:
        async for message in messages:
            if message.get("kind") == "image":
                yield _brief(message)
            if wire.parse_cursor(message["cursor"]).revision >= until:
                return


def _brief(message: dict[str, Any]) -> dict[str, Any]:
    stepped = f"properties.{STEP}" in message.get("changed", ())
    image = message.get("image") or {}
    return {
        "op": message["op"], "uuid": message["uuid"], "step": int(image["properties"][STEP]) if stepped else None,
        "shared": MEMBER in image.get("members", {}),
    }  # fmt: skip


def _judge(
    outcome: Outcome, lives: ImageLives, verdict: Verdict, told: Sequence[dict[str, Any]], status: dict[str, Any]
) -> None:
    wrong = list(out_of_order(lives, told))
    outcome.figures |= {
        "acknowledged": verdict.acknowledged, "in_registry": verdict.in_registry, "lost": verdict.lost,
        "duplicates": verdict.duplicate_numbers + verdict.duplicate_uuids, "parked": status["parked"],
        "checksums_verified": verdict.checksums_verified, "deleted": sum(life.deleted for life in lives.lives),
        "updates": sum(life.steps for life in lives.lives), "changes": len(told),
    }  # fmt: skip
    outcome.require(verdict.ok, f"{verdict.breaches} promises were broken: {verdict.problems[:3]}")
    outcome.require(verdict.acknowledged == lives.count, f"{verdict.acknowledged} creates were acknowledged")
    outcome.require(not wrong, f"{len(wrong)} images' writes are not there once and in order: {wrong[:3]}")
    outcome.require(not status["parked"], f"{status['parked']} writes were parked")


def out_of_order(lives: ImageLives, told: Iterable[dict[str, Any]]) -> Iterable[str]:
    """A sentence for each image whose changes are not what its client was told, once and in order."""
    creates: Counter[str] = Counter()
    deletes: Counter[str] = Counter()
    steps: dict[str, list[int]] = {}
    shared = set()
    for change in told:
        creates[change["uuid"]] += change["op"] == "create_image"
        deletes[change["uuid"]] += change["op"] == "delete_image"
        if change["step"] is not None:
            steps.setdefault(change["uuid"], []).append(change["step"])
        if change["shared"]:
            shared.add(change["uuid"])
    for life in lives.lives:
        found = (creates[life.uuid], steps.get(life.uuid, []), life.uuid in shared, deletes[life.uuid])
        asked = (1, list(range(1, life.steps + 1)), life.shared, int(life.deleted))
        if found != asked:
            yield f"{life.uuid}: creates, steps, shared, deletes are {found} and should be {asked}"
