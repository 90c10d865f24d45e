"""Clients of one zone through whom images live: created, some with data, updated, shared, deleted; each answer is noted
in a history that `chaos.validate` can judge.

Each update counts on in the property `step` of its image, so that the registry's changes show whether every one came,
once and in order. A client that got no answer asks the gateway what became of its request before it repeats it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from chaos.history import History
from ops.dev.backup_job import BackupError, ImagesApi

CLIENTS = 16
STEP = "step"
MEMBER = "partner"
# One image in so many has it; most have no data.
WITH_DATA, UPDATED, SHARED, DELETED = 50, 4, 20, 20
UPDATES_MAX = 3
DATA_BYTES_MIN, DATA_BYTES_MAX = 4 << 10, 32 << 10
# A gateway that was killed starts again in seconds; on a busy machine in tens of them.
_PATIENCE_S = 120.0
_RETRY_PAUSE_S = 0.2
_PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
_OCTETS = {"Content-Type": "application/octet-stream"}

Document = dict[str, Any]
Happened = Callable[[Document | None], bool]


@dataclass
class Life:
    """One image, and how far it came."""

    number: int
    uuid: str
    chance: random.Random
    client: str
    steps: int = 0
    shared: bool = False
    deleted: bool = False


@dataclass
class ImageLives:
    """`count` images by concurrent clients. `lives` are those that were acknowledged; `requests` counts all."""

    api: ImagesApi
    gateway: str
    history: History
    count: int
    seed: int
    lives: list[Life] = field(default_factory=list)
    requests: int = 0
    begun: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """All of them. Raises BackupError for a refusal, and for what did not work within _PATIENCE_S."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(CLIENTS):
                tasks.create_task(self._client(f"client-{number}"))

    async def reached(self, images: int) -> None:
        """Wait until so many images are acknowledged."""
        while len(self.lives) < images:
            self.moved.clear()
            await self.moved.wait()

    async def _client(self, name: str) -> None:
        while self.begun < self.count:
            self.begun += 1
            await self._live(name, self.begun)
            self.moved.set()

    async def _live(self, client: str, number: int) -> None:
        chance = random.Random(f"{self.seed}.{number}")
        life = Life(number, str(uuid.UUID(int=chance.getrandbits(128), version=4)), chance, client)
        await self._create(life)
        self.lives.append(life)
        if not chance.randrange(WITH_DATA):
            await self._upload(life)
        if not chance.randrange(UPDATED):
            for _ in range(chance.randint(1, UPDATES_MAX)):
                await self._update(life, "name", f"renamed {chance.randrange(1000)}")
        if not chance.randrange(SHARED):
            await self._share(life)
        if not chance.randrange(DELETED):
            await self._delete(life)

    # What is done to an image.

    async def _create(self, life: Life) -> None:
        body = {
            "id": life.uuid, "name": f"image {life.number}", "disk_format": "raw", "container_format": "bare",
            "visibility": "private", "image_type": "snapshot", "instance_uuid": str(uuid.UUID(int=life.number)),
        }  # fmt: skip
        operation = self._invoke(life, "create", gateway=self.gateway)
        image = await self._until(life, "POST", "/v2/images", lambda image: image is not None, json=body)
        self.history.ok(operation, number=(image or {}).get("os_glance_v1_id"))

    async def _upload(self, life: Life) -> None:
        data = life.chance.randbytes(life.chance.randint(DATA_BYTES_MIN, DATA_BYTES_MAX))
        operation = self._invoke(life, "upload", sha512=hashlib.sha512(data).hexdigest(), size=len(data))
        path = f"/v2/images/{life.uuid}/file"
        await self._until(life, "PUT", path, lambda image: _is(image, "status", "active"), data=data, headers=_OCTETS)
        self.history.ok(operation)

    async def _update(self, life: Life, attribute: str, value: str) -> None:
        life.steps += 1
        step = str(life.steps)
        operation = self._invoke(life, "update", set={attribute: value, f"properties.{STEP}": step})
        changes = [
            {"op": "replace", "path": f"/{attribute}", "value": value},
            {"op": "add", "path": f"/{STEP}", "value": step},
        ]
        path = f"/v2/images/{life.uuid}"
        await self._until(life, "PATCH", path, lambda image: _is(image, STEP, step), json=changes, headers=_PATCH)
        self.history.ok(operation)

    async def _share(self, life: Life) -> None:
        await self._update(life, "visibility", "shared")
        operation = self._invoke(life, "share", member=MEMBER)
        await self._until(life, "POST", f"/v2/images/{life.uuid}/members", lambda image: False, json={"member": MEMBER})
        self.history.ok(operation)
        life.shared = True

    async def _delete(self, life: Life) -> None:
        operation = self._invoke(life, "delete")
        await self._until(life, "DELETE", f"/v2/images/{life.uuid}", lambda image: image is None)
        self.history.ok(operation)
        life.deleted = True

    def _invoke(self, life: Life, kind: str, **values: Any) -> int:
        return self.history.invoke(life.client, kind, uuid=life.uuid, **values)

    # One request.

    async def _until(self, life: Life, method: str, path: str, happened: Happened, **options: Any) -> Document | None:
        """The answer; where there was none, the image as it is if it shows that the request was done."""
        unanswered = False
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                try:
                    if unanswered and happened(image := await self._image(life)):
                        return image
                    status, body = await self._ask(method, path, **options)
                except (aiohttp.ClientError, TimeoutError, OSError):
                    unanswered = True
                else:
                    if 200 <= status < 300 or (status == 409 and unanswered):  # a member that is there already
                        return json.loads(body) if body else None
                    if status not in (502, 503, 504):
                        raise BackupError(f"{method} {path} gave {status}: {body[:300]!r}")
                await asyncio.sleep(_RETRY_PAUSE_S)

    async def _image(self, life: Life) -> Document | None:
        """The image as the gateway shows it; None where there is none. Raises TimeoutError for anything else."""
        status, body = await self._ask("GET", f"/v2/images/{life.uuid}")
        if status not in (200, 404):
            raise TimeoutError
        return None if status == 404 else dict(json.loads(body))

    async def _ask(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        self.requests += 1
        return await self.api.ask(method, path, **options)


def _is(image: Document | None, attribute: str, value: str) -> bool:
    return image is not None and image.get(attribute) == value
