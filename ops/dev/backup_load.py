"""The load of daily backups on a cluster: `python -m ops.dev.backup_load` (`make backup-load`).

Every server is backed up once a day, and the oldest of its backups goes: for a million servers that is twelve creates
and twelve deletes a second, in real time or accelerated. Zones can be cut off meanwhile. The report is what a capacity
planner wants: latencies before, during and after an outage, queues, runway, feed, disks, the registry's cores.

    make up ARGS=--proxied
    make backup-load ARGS='--servers 1000000 --seconds 600 --outage fra:120:180'
    make backup-load ARGS='--zones 4 --servers 2000 --keep 2 --speed 500 --seconds 520'      a cluster of its own

Without a running cluster, or with --zones, it starts one in .run/backup-load and stops it in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from ops.dev.backup_figures import AFTER, OUTAGE, QUIET, LoadFigures, ZoneFigures
from ops.dev.backup_job import ImagesApi
from ops.dev.backup_schedule import DAY_S, Backup, Schedule
from ops.dev.cluster import ClusterError, forget_caller
from ops.dev.load_target import Target, status_of, target
from ops.dev.processes import ProcessError, cpu_s
from raftreg import errors, wire

CLIENTS = 64
SAMPLE_PERIOD_S = 1.0
DRAINED_MAX_S = 900.0
_LOOK_S = 0.2
_OCTETS = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Outage:
    """A zone is cut off from `start_s` on, for so many real seconds."""

    zone: str
    start_s: float
    seconds: float


def outage(text: str) -> Outage:
    """ZONE:START:SECONDS of the command line."""
    zone, start, seconds = text.split(":")
    return Outage(zone, float(start), float(seconds))


class BackupLoad:
    """One run of a schedule against a cluster."""

    def __init__(
        self, at: Target, schedule: Schedule, data_bytes: int, outages: Sequence[Outage], seconds: float
    ) -> None:
        self._at, self._schedule, self._outages, self._seconds = at, schedule, outages, seconds
        self._data_bytes = data_bytes
        self._apis = {name: ImagesApi(zone) for name, zone in at.zones.items()}
        self._phases = dict.fromkeys(at.zones, QUIET)
        self._room = asyncio.Semaphore(CLIENTS)
        self._began = 0.0
        self.figures = LoadFigures({name: ZoneFigures() for name in at.zones})

    async def run(self) -> LoadFigures:
        async with contextlib.AsyncExitStack() as stack:
            for api in self._apis.values():
                await stack.enter_async_context(api)
            self._began = time.monotonic()
            before = await self._registry()
            watching = asyncio.create_task(self._watch())
            async with asyncio.TaskGroup() as tasks:
                for one in self._outages:
                    tasks.create_task(self._break(one))
                await self._back_up(tasks)
            self.figures.seconds = self._now()
            await self._drained()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self._sample()
            self._compare(before, await self._registry())
        return self.figures

    def _now(self) -> float:
        return time.monotonic() - self._began

    # Backups.

    async def _back_up(self, tasks: asyncio.TaskGroup) -> None:
        """Begin each when it is due, whatever the others take; beyond CLIENTS at once they wait, and that is told."""
        for backup in self._schedule.backups():
            if backup.due_s >= self._seconds:
                return
            await asyncio.sleep(max(0.0, backup.due_s - self._now()))
            await self._room.acquire()
            self.figures.asked += 1
            self.figures.late_most_s = max(self.figures.late_most_s, self._now() - backup.due_s)
            tasks.create_task(self._one(backup))

    async def _one(self, backup: Backup) -> None:
        try:
            if await self._ask(backup, "create", "POST", "/v2/images", 201, json=self._body(backup)):
                self.figures.created += 1
                if self._data_bytes:
                    path = f"/v2/images/{backup.uuid}/file"
                    await self._ask(backup, "upload", "PUT", path, 204, data=self._data(backup), headers=_OCTETS)
            if backup.expired is not None:
                await self._ask(backup, "delete", "DELETE", f"/v2/images/{backup.expired}", 204)
        finally:
            self._room.release()

    def _body(self, backup: Backup) -> dict[str, str]:
        return {
            "id": backup.uuid, "name": f"daily backup {backup.day} of server {backup.server}", "disk_format": "qcow2",
            "container_format": "bare", "visibility": "private", "image_type": "backup", "backup_type": "daily",
            "instance_uuid": self._schedule.uuid_of(backup.server, -1),
        }  # fmt: skip

    def _data(self, backup: Backup) -> bytes:
        return hashlib.shake_128(backup.uuid.encode()).digest(self._data_bytes)

    async def _ask(self, backup: Backup, kind: str, method: str, path: str, wanted: int, **options: Any) -> bool:
        """One request, not repeated: what a gateway refuses is what a planner must know."""
        zone, phase, began = self.figures.zones[backup.zone], self._phases[backup.zone], time.perf_counter()
        try:
            status, _ = await self._apis[backup.zone].ask(method, path, **options)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            zone.failed(phase, kind, type(error).__name__)
            return False
        if status != wanted:
            zone.failed(phase, kind, str(status))
            return False
        zone.took[phase, kind].add(time.perf_counter() - began)
        return True

    # Outages.

    async def _break(self, one: Outage) -> None:
        await asyncio.sleep(one.start_s)
        await self._at.cut(one.zone)
        self._phases[one.zone] = OUTAGE
        await asyncio.sleep(one.seconds)
        await self._at.heal(one.zone)
        self._phases[one.zone] = AFTER
        healed, before = self._now(), await status_of(self._apis[one.zone]) or {}
        await self._zone_drained(one.zone)
        took, depth = self._now() - healed, before.get("queue_depth", 0)
        self.figures.zones[one.zone].drains.append(
            {"at_s": round(healed, 1), "pending": depth, "seconds": round(took, 1), "per_s": round(depth / took, 1)}
        )
        self._phases[one.zone] = QUIET

    async def _drained(self) -> None:
        await asyncio.gather(*(self._zone_drained(zone) for zone in self._apis))

    async def _zone_drained(self, zone: str) -> None:
        """Until the zone is online and what was pending then is drained: while clients go on, some always is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAINED_MAX_S):
                while (await status_of(self._apis[zone]) or {}).get("state") != "online":  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)

    # What gateways and registry say.

    async def _watch(self) -> None:
        while True:
            await self._sample()
            await asyncio.sleep(SAMPLE_PERIOD_S)

    async def _sample(self) -> None:
        revision = (await self._registry()).get("revision")
        for name, api in self._apis.items():
            if (status := await status_of(api)) is not None:
                self._note(self.figures.zones[name], status, revision)

    def _note(self, zone: ZoneFigures, status: dict[str, Any], revision: int | None) -> None:
        now = self._now()
        zone.queue_depth.add(now, status["queue_depth"])
        zone.runway_s.add(now, status["runway_s"])
        zone.staleness_s.add(now, status["staleness_s"])
        zone.store_bytes.add(now, status["store_used_bytes"])
        if revision is not None and status["feed_position"] != "none":
            reached = wire.parse_cursor(status["feed_position"]).revision
            zone.behind_revisions.add(now, max(0, revision - reached))

    async def _registry(self) -> dict[str, Any]:
        """The leader's status, with what each peer's process has used; nothing while there is no leader."""
        used = {peer: cpu_s(pid) for peer, pid in self._at.peers.items()}
        with contextlib.suppress(errors.RegistryError):
            return {**await self._at.registry.status(), "cpu_s": used, "at": self._now()}
        return {"cpu_s": used, "at": self._now()}

    def _compare(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        seconds = after["at"] - before["at"]
        self.figures.registry["cores_used"] = {
            peer: round((used - before["cpu_s"][peer]) / seconds, 3) for peer, used in after["cpu_s"].items()
        }
        if "db" in before and "db" in after and self.figures.created:
            grown = {name: after["db"][name] - before["db"][name] for name in ("used_bytes", "file_bytes")}
            self.figures.registry |= {
                "database_bytes_per_create": round(grown["used_bytes"] / self.figures.created),
                "database_grown_bytes": grown["used_bytes"], "database_file_grown_bytes": grown["file_bytes"],
            }  # fmt: skip


# -- command line -------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    parsing = argparse.ArgumentParser(
        prog="python -m ops.dev.backup_load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parsing.add_argument("--servers", type=int, default=100_000, help="each is backed up once a day (%(default)s)")
    parsing.add_argument("--keep", type=int, default=7, help="backups of a server that are kept (%(default)s)")
    parsing.add_argument("--speed", type=float, default=1.0, help="simulated seconds in a real one (%(default)s)")
    parsing.add_argument("--seconds", type=float, help="real seconds; default: one simulated day")
    parsing.add_argument("--data-kib", type=int, default=0, help="data of a backup; default: none")
    parsing.add_argument("--zones", type=int, metavar="N", help="start a cluster with N zones, whatever runs")
    parsing.add_argument("--outage", type=outage, action="append", default=[], metavar="ZONE:START:SECONDS")
    parsing.add_argument("--seed", type=int, default=1, help="the same seed, the same load (%(default)s)")
    parsing.add_argument("--json", type=Path, metavar="FILE", help="the report with all series")
    return parsing


async def _run(given: argparse.Namespace) -> LoadFigures:
    async with target(given.zones) as at:
        if unknown := [one.zone for one in given.outage if one.zone not in at.zones]:
            raise ClusterError(f"there is no zone {unknown[0]}; there are: {', '.join(at.zones)}")
        schedule = Schedule(given.servers, given.keep, tuple(at.zones), given.seed, given.speed, at.salt)
        seconds = given.seconds or DAY_S / given.speed
        return await BackupLoad(at, schedule, given.data_kib << 10, given.outage, seconds).run()


def main(arguments: Sequence[str]) -> int:
    """0 if every request was served, 1 if some were not, 2 if there was no cluster to ask."""
    given = parser().parse_args(arguments)
    forget_caller()
    try:
        figures = asyncio.run(_run(given))
    except (ClusterError, ProcessError) as error:
        print(error, file=sys.stderr)
        return 2
    console = Console()
    for table in figures.tables():
        console.print(table)
    if given.json:
        asked = {name: value for name, value in vars(given).items() if name not in ("json", "outage")}
        asked["outages"] = [vars(one) for one in given.outage]
        given.json.write_text(json.dumps({**asked, **figures.document()}, indent=1), encoding="utf-8")
    return 1 if figures.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
