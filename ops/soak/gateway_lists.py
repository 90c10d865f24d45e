"""`gateway-lists`: what a list of 20 costs at a gateway whose catalogue holds N images (a million by default), beside
one of ten thousand in the same run.

The catalogues are filled through the gateway's own code, once; two gateway processes serve them, cut off from any
registry, and are asked in turns over HTTP by a tenant and by an administrator, one request at a time. Medians are
compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from chaos.ports import Reservation
from ops.dev.cluster import RUN_DIR
from ops.dev.processes import Process
from ops.dev.wiring import ROOT
from ops.soak.images import ZONES, image, owner
from ops.soak.outcome import Outcome
from raftreg.commands import DEFAULTS
from zonegw import config
from zonegw.auth import create_token
from zonegw.catalogue import Catalogue
from zonegw.listing import SORT_CODES
from zonegw.store import Store

IMAGES, SMALL = 1_000_000, 10_000
RATIO_MAX = 1.3
ROUNDS, ASKED_PER_ROUND = 10, 20
PAGE = 20
MEMORY_MAX_BYTES = 300_000_000
_BATCH = 2000
_READY_S = 60.0
_BEGAN_US = 1_700_000_000_000_000
_CONFIG = "zonegw.toml"

Query = Callable[["Side"], str]


@dataclass
class Side:
    """One of the two gateways."""

    images: int
    process: Process
    url: str
    tokens: dict[str, str]
    http: aiohttp.ClientSession
    uuids: list[str] = field(default_factory=list)
    took: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    async def ask(self, query: str, user: str) -> list[dict[str, Any]]:
        headers = {"X-Auth-Token": self.tokens[user]}
        async with self.http.get(f"{self.url}/v2/images?{query}", headers=headers) as answer:
            answer.raise_for_status()
            images: list[dict[str, Any]] = (await answer.json())["images"]
            return images

    def marker(self) -> str:
        return f"&marker={self.chance.choice(self.uuids)}"


def _by(sort: str, direction: str = "desc") -> Query:
    """From anywhere in the list."""
    return lambda side: f"limit={PAGE}&sort_key={sort}&sort_dir={direction}{side.marker()}"


def _first(more: str = "") -> Query:
    return lambda side: f"limit={PAGE}{more}"


ASKED: dict[str, tuple[str, Query]] = {
    "first page": ("tenant", _first()),
    "page of own": ("tenant", _first("&visibility=private")),
    "page of public": ("tenant", _first("&visibility=public")),
    "page of public by name": ("tenant", _first("&visibility=public&sort_key=name&sort_dir=asc")),
    "page of public of a format": ("tenant", _first("&visibility=public&disk_format=raw")),
    "page of a name": ("tenant", _first("&name=backup%20of%20server%2017%20of%20project%2017")),
    "page by two keys": ("tenant", _first("&sort=created_at:desc,name:asc")),
    "page of a size and status": ("tenant", _first("&size_min=1000&status=queued")),
    "page of a property": ("tenant", _first("&os_distro=debian")),
    "first page of all": ("admin", _first()),
    "page of an owner": ("admin", lambda side: f"limit={PAGE}&owner={owner(side.chance.randrange(400))}"),
    "page of a home zone": ("admin", _first(f"&os_glance_home_zone={ZONES[3]}")),
    **{f"page by {key}": ("admin", _by(key)) for key in SORT_CODES},
    "page by name, ascending": ("admin", _by("name", "asc")),
}


async def run(images: int = IMAGES) -> Outcome:
    """The whole run; fills the catalogues where that was not done before."""
    outcome = Outcome("gateway-lists", {"images": images, "beside": SMALL})
    async with contextlib.AsyncExitStack() as stack:
        small, large = [await stack.enter_async_context(_serving(count)) for count in (SMALL, images)]
        sides = [small, large]
        for side in sides:
            side.uuids = await _read_through(side)
        for number in range(ROUNDS + 1):
            await _ask_all(sides, measured=number > 0)  # the first round fills caches
        _compare(sides, outcome)
        memory = _resident_bytes(large.process)
        outcome.figures["memory_mib"] = memory >> 20
        outcome.require(memory <= MEMORY_MAX_BYTES, f"the gateway took more than {MEMORY_MAX_BYTES // 10**6} MB")
    return outcome


def _compare(sides: list[Side], outcome: Outcome) -> None:
    ratios = []
    for name in ASKED:
        medians = [statistics.median(side.took[name]) * 1000 for side in sides]
        ratios.append((medians[1] / medians[0], name))
        row = [name, *(round(ms, 2) for ms in medians), round(ratios[-1][0], 2)]
        outcome.figures.setdefault("p50_ms", []).append(row)
        outcome.within(ratios[-1][0] <= RATIO_MAX, f"{name}: {ratios[-1][0]:.2f} times as long as among {SMALL} images")
    outcome.figures["most"] = "{1}: {0:.2f} times".format(*max(ratios))


async def _ask_all(sides: list[Side], *, measured: bool) -> None:
    """Every request goes to one side and then to the other: a slow second of the machine weighs on both."""
    for name, (user, query) in ASKED.items():
        for number in range(ASKED_PER_ROUND):
            for side in sides if number % 2 else reversed(sides):
                asked = time.perf_counter()
                await side.ask(query(side), user)
                if measured:
                    side.took[name].append(time.perf_counter() - asked)


async def _read_through(side: Side) -> list[str]:
    """All images once, which touches every page of the database; the UUIDs of some, from all over the list."""
    some: list[str] = []
    marker = ""
    while page := await side.ask(f"limit=1000&sort_key=id&sort_dir=asc{marker}", "admin"):
        marker = f"&marker={page[-1]['id']}"
        some += [image["id"] for image in page[:: max(1, len(page) // 5)]]
    return some


def _resident_bytes(process: Process) -> int:
    """Memory of its own: what it maps of the database is the page cache's."""
    identity = process.identity
    text = Path(f"/proc/{identity.pid if identity else 'self'}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("RssAnon")))


# -- a gateway with a full catalogue ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _serving(count: int) -> AsyncIterator[Side]:
    base = await asyncio.to_thread(_filled, count)
    tokens = {name: (base / f"{name}.token").read_text() for name in ("tenant", "admin")}
    port = Reservation()
    _write_config(base, port.port)
    port.release()
    command = [sys.executable, "-m", "zonegw.cli", "serve", "--config", str(base / _CONFIG)]
    process = Process(
        f"gateway-{count}", command, log=base / "log", env=dict(os.environ), cwd=ROOT, data_dir=base / "data"
    )
    async with aiohttp.ClientSession() as http:
        process.start()
        try:
            side = Side(count, process, f"http://127.0.0.1:{port.port}", tokens, http)
            await _ready(side)
            yield side
        finally:
            await asyncio.to_thread(process.stop)


async def _ready(side: Side) -> None:
    async with asyncio.timeout(_READY_S):
        while side.process.running:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                await side.ask("limit=1", "tenant")
                return
            await asyncio.sleep(0.05)
    raise RuntimeError(side.process.ending())


def _write_config(base: Path, port: int) -> None:
    text = config.render(
        zone=ZONES[0], gateway="lists-1", data_dir="data", listen=f"127.0.0.1:{port}", endpoints=["http://127.0.0.1:1"],
        tokens_file="tokens.json",
    )  # fmt: skip
    (base / _CONFIG).write_text(text)


def _filled(count: int) -> Path:
    """A gateway's directory whose catalogue holds `count` images; made once."""
    base = RUN_DIR / "soak" / f"gateway-{count}"
    if base.exists():
        return base
    making = base.with_name(f"{base.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for user, project, roles in (("tenant", owner(17), ["member"]), ("admin", "admin", ["admin"])):
        token = create_token(making / "tokens.json", user=user, project=project, roles=roles)
        (making / f"{user}.token").write_text(token)
    _write_config(making, 1)
    _fill(making, count)
    making.rename(base)
    subprocess.run(["sync"], check=True)
    return base


def _fill(base: Path, count: int) -> None:
    chosen = config.load(base / _CONFIG)
    store, catalogue = Store(chosen.data_dir / "store", chosen.limits), Catalogue()
    began = time.monotonic()
    try:
        for first in range(1, count + 1, _BATCH):
            with store.transaction() as txn:
                for number in range(first, min(first + _BATCH, count + 1)):
                    catalogue.put_bootstrapped(txn, _registered(number))
    finally:
        store.close()
    print(f"{count} images in the catalogue after {time.monotonic() - began:.0f} s", flush=True)


def _registered(number: int) -> dict[str, Any]:
    """An image as the registry tells it; the UUID by its number, so that a broken filling can be gone over again."""
    given = image(number)
    attributes = DEFAULTS | given.pop("attributes")
    at = _BEGAN_US + number * 1_000_000
    return {
        **attributes, **given, "uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))),
        "number": number, "version": 1, "revision": number, "created_at": at, "updated_at": at, "locations": [],
        "members": {}, "attribute_versions": {},
    }  # fmt: skip
