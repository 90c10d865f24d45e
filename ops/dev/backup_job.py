"""A backup job as clouds run it: instance snapshots registered and uploaded through one zone's Images API by several
clients at once, each answer noted in a history."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable, Collection
from typing import Any

import aiohttp

from chaos.history import History
from ops.dev.cluster import Zone

CLIENTS = 8
# Compressed increments of small servers; enough that data matter, not so much that the disk decides.
BACKUP_BYTES_MIN, BACKUP_BYTES_MAX = 16 * 1024, 192 * 1024
# One request; the gateway answers from its own disk.
REQUEST_TIMEOUT_S = 15.0
# One backup, with every retry: longer than any outage that the gateway has to bridge.
BACKUP_TIMEOUT_S = 60.0
RETRY_PAUSE_S = 0.2
LIST_PAGE = 1000
# Answers after which a backup is tried again.
LATER = (429, 502, 503, 504)


class BackupError(Exception):
    """A backup, list or download did not work. The message holds the gateway's answer."""


class ImagesApi:
    """A zone's Images API, as a client of the demo project uses it."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ImagesApi:
        self._http = aiohttp.ClientSession(
            headers={"X-Auth-Token": self.zone.token}, timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        """Status and body. Raises aiohttp.ClientError or TimeoutError if there is no answer."""
        if self._http is None:
            raise RuntimeError("use as `async with`")
        async with self._http.request(method, self.zone.url + path, **options) as answer:
            return answer.status, await answer.read()

    async def document(self, path: str) -> dict[str, Any]:
        """A JSON document by GET. Raises BackupError."""
        status, body = await self.ask("GET", path)
        if status != 200:
            raise BackupError(f"GET {self.zone.url}{path} gave {status}: {body[:200]!r}")
        document: dict[str, Any] = json.loads(body)
        return document

    async def images(self) -> list[dict[str, Any]]:
        """All images that the project sees in this zone."""
        images: list[dict[str, Any]] = []
        path: str | None = f"/v2/images?limit={LIST_PAGE}"
        while path:
            page = await self.document(path)
            images += page["images"]
            path = page.get("next")
        return images

    async def status(self) -> dict[str, Any]:
        """What the gateway says of itself."""
        return await self.document("/zonegw/v1/status")

    async def download(self, one: str) -> tuple[str, int]:
        """sha512 and size of an image's data. Raises BackupError."""
        status, body = await self.ask("GET", f"/v2/images/{one}/file")
        if status != 200:
            raise BackupError(f"downloading {one} from {self.zone.url} gave {status}: {body[:200]!r}")
        return hashlib.sha512(body).hexdigest(), len(body)


class BackupJob:
    """`count` backups by concurrent clients. `allow` says how far it may go, so that faults come when they should."""

    def __init__(
        self, api: ImagesApi, gateway: str, history: History, *, count: int, seed: int, clients: int = CLIENTS,
        later: Collection[int] = LATER,
    ) -> None:  # fmt: skip
        self._api, self._gateway, self._history, self._seed = api, gateway, history, seed
        self.count, self._clients, self._later = count, clients, later
        self.done = 0
        self.longest_pause_s = 0.0
        self.uuids: list[str] = []
        self.on_done: Callable[[int], None] = lambda _: None
        self._next = 0
        self._allowed = 0
        self._moved = asyncio.Condition()

    async def run(self) -> None:
        """Make all backups. Raises BackupError for one that could not be made in BACKUP_TIMEOUT_S."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._clients):
                tasks.create_task(self._client(f"backup-{number}"))

    async def allow(self, number: int) -> None:
        """Let the job go on until so many backups were begun."""
        async with self._moved:
            self._allowed = min(number, self.count)
            self._moved.notify_all()

    async def reached(self, number: int, timeout_s: float) -> None:
        """Wait until so many backups were acknowledged. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._moved:
            await self._moved.wait_for(lambda: self.done >= number)

    async def _client(self, name: str) -> None:
        while (number := await self._take()) is not None:
            await self._back_up(name, number)
            async with self._moved:
                self.done += 1
                self._moved.notify_all()
            self.on_done(self.done)

    async def _take(self) -> int | None:
        """The next backup's number; waits while none is allowed; None when all were begun."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._next < self._allowed or self._next >= self.count)
            if self._next >= self.count:
                return None
            self._next += 1
            self._moved.notify_all()
            return self._next

    async def _back_up(self, client: str, number: int) -> None:
        chance = random.Random(f"{self._seed}.{number}")
        one = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        data = chance.randbytes(chance.randint(BACKUP_BYTES_MIN, BACKUP_BYTES_MAX))
        body = {
            "id": one,
            "name": f"backup-{number:04}",
            "disk_format": "raw",
            "container_format": "bare",
            "image_type": "snapshot",
        }
        created = await self._noted(
            client, "create", {"uuid": one, "gateway": self._gateway}, "POST", "/v2/images", 201, json=body
        )
        self._history.ok(created[0], number=created[1].get("os_glance_v1_id"))
        sha512 = hashlib.sha512(data).hexdigest()
        headers = {"Content-Type": "application/octet-stream"}
        stored = await self._noted(
            client,
            "upload",
            {"uuid": one, "sha512": sha512, "size": len(data)},
            "PUT",
            f"/v2/images/{one}/file",
            204,
            data=data,
            headers=headers,
        )
        self._history.ok(stored[0])
        self.uuids.append(one)

    async def _noted(
        self, client: str, kind: str, asked: dict[str, Any], method: str, path: str, wanted: int, **options: Any
    ) -> tuple[int, dict[str, Any]]:
        """Ask until it worked; (operation, JSON answer). The pause of a client is the time that this takes."""
        operation = self._history.invoke(client, kind, **asked)
        began = time.monotonic()
        try:
            async with asyncio.timeout(BACKUP_TIMEOUT_S):
                answer = await self._until(method, path, wanted, asked["uuid"], **options)
        except TimeoutError:
            self._history.info(operation)
            raise BackupError(f"{method} {path} did not work in {BACKUP_TIMEOUT_S} s") from None
        except BackupError:
            self._history.fail(operation)
            raise
        self.longest_pause_s = max(self.longest_pause_s, time.monotonic() - began)
        return operation, json.loads(answer) if answer else {}

    async def _until(self, method: str, path: str, wanted: int, one: str, **options: Any) -> bytes:
        """Repeat while the gateway says "later" or says nothing; what an unanswered try did counts as done by us."""
        unanswered = False
        while True:
            try:
                status, answer = await self._api.ask(method, path, **options)
            except (aiohttp.ClientError, TimeoutError, OSError):
                unanswered = True
            else:
                if status == wanted:
                    return answer
                if status == 409 and unanswered:
                    if done := await self._done_before(path, one):
                        return done
                    status = 503
                if status not in self._later:
                    raise BackupError(f"{method} {self._api.zone.url}{path} gave {status}: {answer[:300]!r}")
                unanswered |= status == 504
            # The job's own pace; it waits for nothing that could be told in another way.
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _done_before(self, path: str, one: str) -> bytes | None:
        """The image, if an unanswered try has made it what this one is for; an upload may still be under way."""
        try:
            image = await self._api.document(f"/v2/images/{one}")
        except (BackupError, aiohttp.ClientError, TimeoutError, OSError):
            return None
        return json.dumps(image).encode() if image["status"] == "active" or not path.endswith("/file") else None
