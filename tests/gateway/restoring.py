"""A registry of one real peer that is backed up and restored around running gateways, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from raftreg import recovery, stored_peer
from raftreg.cli_new_epoch import now_us
from tests.gateway.running import Zone, running, until
from tests.registry import Registry, registry
from tests.test_cli import COMMAND

# What differs between an image and the same image in another life of the registry.
OF_THE_LIFE = ("version", "revision", "updated_at", "attribute_versions", "epoch_version")
# A link that is cut or back is noticed in a fraction of a second.
PROMPT: dict[str, Any] = {"heartbeat_interval_s": 0.1, "retry_delay_max_s": 1}


async def command(*arguments: object) -> str:
    """`raftreg` as a process of its own, which must succeed; what it says."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    return said


class Restorable:
    """The registry; `a` is its peer."""

    def __init__(self, cluster: Registry) -> None:
        self.cluster = cluster

    async def save(self, name: str = "backup") -> Path:
        """A backup of the running registry."""
        file = self.cluster.directory.parent / name
        await command("backup", "create", file, "--config", self.cluster.directory / "a")
        return file

    async def stop(self, *zones: Zone) -> None:
        """The registry is away, and the zones know it."""
        await self.cluster.stop("a")
        for zone in zones:
            await until(lambda zone=zone: zone.gateway.status.state == "degraded", "the link to count as down")  # type: ignore[misc]

    async def start_from(self, file: Path, *, epoch: int | None = None) -> None:
        """The state of a backup in a new epoch, in place of the one that is stopped."""
        shutil.rmtree(self.cluster.directory / "a" / "store")
        configured = stored_peer.below(self.cluster.directory / "a")[0]
        recovery.from_backup(configured, file, epoch=epoch, id_floor=None, now_us=now_us())
        await self.cluster.start("a")

    async def restore(self, file: Path, *zones: Zone, epoch: int | None = None) -> None:
        await self.stop(*zones)
        await self.start_from(file, epoch=epoch)

    async def images(self) -> dict[str, dict[str, Any]]:
        """All images by UUID, without what is of this life alone."""
        found: dict[str, dict[str, Any]] = {}
        marker: str | None = None
        async with self.cluster.client() as client:
            while True:
                page = await client.list_images(limit=500, **({"marker": marker} if marker else {}))
                for image in page["images"]:
                    found[image["uuid"]] = {name: value for name, value in image.items() if name not in OF_THE_LIFE}
                marker = page["next"]
                if marker is None:
                    return found


@contextlib.asynccontextmanager
async def restorable(directory: Path) -> AsyncIterator[Restorable]:
    async with registry(directory) as cluster:
        yield Restorable(cluster)


@contextlib.asynccontextmanager
async def zone_of(registry: Restorable, directory: Path, zone: str = "fra", **limits: Any) -> AsyncIterator[Zone]:
    """A running gateway of a zone; it has IDs on hand."""
    async with running(
        directory / zone, registry=registry.cluster, zone=zone, gateway=f"{zone}-1", **PROMPT, **limits
    ) as one:
        await one.drained_but_parked()
        yield one


async def in_epoch(zone: Zone, epoch: int) -> None:
    """Wait for a catalogue of this epoch, and until all that was pending has its verdict."""
    gateway = zone.gateway
    await until(lambda: gateway.catalogue.epoch(gateway.store.committed()) == epoch, f"a catalogue of epoch {epoch}")
    await zone.drained_but_parked()


def parked(zone: Zone) -> list[tuple[str, str, str]]:
    """(UUID, operation, refusal) of every parked write, in order."""
    rows = zone.gateway.queue.parked(zone.gateway.store.read())
    return [(row["write"]["uuid"], row["write"]["command"]["op"], row["reason"]["code"]) for row in rows]


def garbage(zone: Zone) -> int:
    """How many bytes' keys wait for their removal."""
    return zone.gateway.store.committed().count("garbage")


def files(zones: Iterable[Zone]) -> dict[Path, bytes]:
    """The image data that lies in these zones."""
    below = [zone.gateway.config.data_dir / "data" for zone in zones]
    return {path: path.read_bytes() for data in below for path in data.rglob("*") if path.is_file()}
