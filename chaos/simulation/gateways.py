"""A simulated zone gateway: the product's store, write-ahead queue, ID pool, catalogue, use cases, uplink and drainer.

Only HTTP is missing: the uplink's client asks through the simulated links.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import uuid
from typing import TYPE_CHECKING, Any

from chaos.simulation.clients import Caller
from chaos.simulation.judge import Violation
from raftreg import errors, queries
from raftreg.tables import View
from zonegw import sessions, store_identity
from zonegw.catalogue import Catalogue
from zonegw.config import Config
from zonegw.drainer import Drainer
from zonegw.errors import GatewayError
from zonegw.id_pool import IdPool
from zonegw.identity import Identity
from zonegw.images import Changes, Images, Request
from zonegw.limits import Limits
from zonegw.main import RegistryLink
from zonegw.metrics import GatewayMetrics
from zonegw.store import Store
from zonegw.uplink import Uplink
from zonegw.write_queue import WriteQueue

if TYPE_CHECKING:
    from chaos.simulation.world import World

# Sessions are keys in the state: from the system's own randomness their order would differ from run to run.
sessions.uuid4 = lambda: uuid.UUID(int=random.getrandbits(128), version=4)  # type: ignore[attr-defined]

Document = dict[str, Any]
REQUEST = Request(Identity("backup", "demo", frozenset({"member"})))
_LIMITS = Limits(
    id_block_min=8, id_block_max=32, session_window=3, uplink_deadline_s=6, heartbeat_interval_s=1.0,
    heartbeat_deadline_s=3.0, store_map_size_bytes=1 << 26, store_soft_limit_bytes=1 << 25,
)  # fmt: skip


class _RegistryClient:
    """What the uplink asks of `raftreg.client.Client`."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway

    async def _propose(self, command: Document) -> Any:
        command["actor"] = {"zone": self._gateway.zone, "gateway": self._gateway.name}
        (result,) = await self._gateway.ask("propose", {"commands": [command]}, deadline_s=_LIMITS.uplink_deadline_s)
        if "error" in result:
            raise errors.refusal(result["error"])
        return result["ok"]

    async def register_zone(self, zone: str) -> Any:
        return await self._propose({"op": "register_zone", "zone": zone})

    async def register_gateway(self, zone: str, gateway: str, endpoint: str) -> Any:
        return await self._propose({"op": "register_gateway", "zone": zone, "gateway": gateway, "endpoint": endpoint})

    async def heartbeat(self, zone: str, gateway: str, *, level: int, deadline_s: float) -> Any:
        said = {"zone": zone, "gateway": gateway, "level": level}
        return await self._gateway.ask("heartbeat", said, deadline_s=deadline_s)

    async def open_session(self, **fields: Any) -> Any:
        return await self._propose({"op": "open_session", **fields})

    async def grant_block(self, *, gateway: str, session: str, size: int, token: int) -> Any:
        key = f"{gateway}-{self._gateway.world.random.getrandbits(64):016x}"
        command = {"op": "grant_block", "gateway": gateway, "session": session, "size": size, "token": token}
        return await self._propose({**command, "key": key})

    async def session_operations(self, session: str, operations: list[Document], *, gateway: str) -> list[Document]:
        actor = {"zone": self._gateway.zone, "gateway": gateway}
        commands = [
            {"op": "session_operation", "actor": actor, "gateway": gateway, "session": session, **operation}
            for operation in operations
        ]
        results: list[Document] = await self._gateway.ask(
            "propose", {"commands": commands}, deadline_s=_LIMITS.uplink_deadline_s
        )
        return results

    async def close(self) -> None:
        return None


class GatewayProcess(Caller):
    """One zone's gateway with a backup job inside that creates, renames and deletes images."""

    def __init__(self, world: World, name: str, zone: str) -> None:
        super().__init__(world, name, "gateway")
        self.zone = zone
        self.directory = world.directory / name
        self.config = Config(
            zone=zone, gateway=name, data_dir=self.directory, listen=("127.0.0.1", 0),
            endpoints=("http://registry:1",), limits=_LIMITS,
        )  # fmt: skip
        self.acknowledged: dict[str, int | None] = {}
        self.deleted: set[str] = set()
        self.forgotten: set[str] = set()  # acknowledged by a disk that is gone
        self._at_copy: set[str] = set()
        self._deleted_at_copy: set[str] = set()
        self.drainer: Drainer | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.begin()
        with self.world.inside(self), self.loop.running():
            self._build()
            self.loop.create_task(self.uplink.probe())
            self.loop.create_task(self.drainer_running.run())
            self.loop.create_task(self._work())

    def _build(self) -> None:
        self.store = Store(self.directory / "store", _LIMITS, sync=False)
        self.queue = WriteQueue(_LIMITS, now_us=self.now_us)
        self.ids = IdPool(_LIMITS, clock=self.clock)
        self.catalogue = Catalogue(now_us=self.now_us)
        with self.store.transaction() as txn:
            if not store_identity.unchanged(txn, self.store.directory):
                self.ids.seal(txn, "store identity changed")
                store_identity.record(txn, self.store.directory)
        self.uplink = Uplink(self.config)
        self.uplink._client = _RegistryClient(self)  # type: ignore[assignment]
        self.images = Images(
            self.store, self.queue, self.ids, self.catalogue, zone=self.zone, gateway=self.name, limits=_LIMITS
        )
        self.drainer = Drainer(
            self.store, self.queue, self.ids, self.catalogue, self.uplink, self.config, GatewayMetrics(),
            on_deleted=lambda _txn, _locations, _image: None,
        )  # fmt: skip
        self.images.registry = RegistryLink(self.uplink, self.drainer)
        self.uplink.on_change.append(self.drainer.link_changed)

    @property
    def drainer_running(self) -> Drainer:
        assert self.drainer is not None
        return self.drainer

    def crash(self) -> None:
        """SIGKILL: what was not committed is gone."""
        self.end()
        store = self.store
        store._closed = True
        store._txn.abort()
        store.env.close()
        os.close(store._lock)

    def copy_disk(self) -> None:
        """Keep a copy of what is committed now."""
        target = self.directory.with_name(f"{self.name}.copy")
        shutil.rmtree(target, ignore_errors=True)
        (target / "store").mkdir(parents=True)
        shutil.copy(self.directory / "store" / "data.mdb", target / "store" / "data.mdb")
        self._at_copy = set(self.acknowledged)
        self._deleted_at_copy = set(self.deleted)

    @property
    def has_copy(self) -> bool:
        return self.directory.with_name(f"{self.name}.copy").exists()

    def roll_back(self) -> None:
        """Put the kept copy in place of the disk: what was acknowledged since is lost with it."""
        shutil.rmtree(self.directory)
        self.directory.with_name(f"{self.name}.copy").rename(self.directory)
        self.forgotten |= set(self.acknowledged) - self._at_copy
        self.deleted &= self._deleted_at_copy

    # -- work -----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        chance = self.world.random
        while not self.stopping:
            with contextlib.suppress(GatewayError):
                await chance.choice((self._create, self._create, self._create, self._rename, self._delete))()
            await asyncio.sleep(chance.choice((0.1, 0.3, 0.6)))
        self.idle = True

    async def _create(self) -> None:
        made = str(uuid.UUID(int=self.world.random.getrandbits(128), version=4))
        image = await self.images.create(REQUEST, made, {"name": made}, {}, [])
        self.acknowledged[made] = image["number"]

    def _one(self) -> str | None:
        known = sorted(set(self.acknowledged) - self.deleted - self.forgotten)
        return self.world.random.choice(known) if known else None

    async def _rename(self) -> None:
        if (target := self._one()) is not None:
            await self.images.update(REQUEST, target, Changes({"name": f"{target} renamed"}, []))

    async def _delete(self) -> None:
        if len(self.acknowledged) > 6 and (target := self._one()) is not None:
            await self.images.delete(REQUEST, target)
            self.deleted.add(target)

    # -- the end --------------------------------------------------------------------------------------------------

    @property
    def drained(self) -> bool:
        return self.alive and self.queue.depth(self.store.read()) == 0

    def judge(self, view: View, owners: dict[int, str]) -> None:
        """Everything acknowledged is in the registry under its number, or parked for a human to see."""
        parked = {row["write"]["uuid"] for row in self.queue.parked(self.store.read())}
        for made, number in self.acknowledged.items():
            image = queries.get_image(view, {"uuid": made})
            if image is None:
                if made not in parked and made not in self.forgotten:
                    raise Violation(
                        f"lost: image {made}, acknowledged by {self.name}, is neither registered nor parked"
                    )
                continue
            if number is not None and image["number"] != number and made not in self.forgotten:
                raise Violation(f"image {made} was acknowledged by {self.name} as {number}, and is {image['number']}")
            if made in self.deleted and not image.get("deleted") and made not in parked | self.forgotten:
                raise Violation(f"image {made} is there, though {self.name} acknowledged its deletion")
            if owners.setdefault(image["number"], made) != made:
                raise Violation(f"number {image['number']} belongs to {owners[image['number']]} and to {made}")
