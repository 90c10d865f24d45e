"""Imports: bring data that were staged, that lie behind a URL or in another zone, into the stores that a client names.

A job runs beside the requests and outlives the process. It first has bytes that are complete and checked: staged ones,
which `web-download` makes out of its source, or those of the image. Then it places them in store after store, and has
the image own what was placed: at once where every store must succeed, store by store else. What was placed and comes to
no owner is given up, in this zone and in others.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from zonegw.data_stores.filesystem import FilesystemStore
from zonegw.errors import BadRequest, Conflict, DataUnavailable, GatewayError, NotFound, Unavailable
from zonegw.identity import Identity
from zonegw.image_data import ImageData, Source
from zonegw.images import Changes, Image, Images, Request
from zonegw.import_jobs import Job, Jobs
from zonegw.import_rules import COPY_IMAGE, GLANCE_DIRECT, WEB_DOWNLOAD, ImportRules
from zonegw.limits import Limits
from zonegw.placement import Location, Placement, data_attributes
from zonegw.staging import Staging
from zonegw.store import Txn
from zonegw.stores import Stores, store_name
from zonegw.web_download import WebDownload

log = logging.getLogger(__name__)

# How often rows that are past their time are looked for.
SWEEP_S = 600
NEEDED_STATUS = {GLANCE_DIRECT: "uploading", WEB_DOWNLOAD: "queued", COPY_IMAGE: "active"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """An import as a client asks for it; without `stores` and `all_stores` it goes to this zone's default one."""

    method: str
    uri: str | None = None
    stores: tuple[str, ...] = field(default=())
    all_stores: bool = False
    must_succeed: bool = True


class Imports:
    """Import jobs of one gateway."""

    def __init__(
        self, images: Images, image_data: ImageData, data: FilesystemStore, placement: Placement, stores: Stores,
        rules: ImportRules, limits: Limits,
    ) -> None:  # fmt: skip
        self._images = images
        self._image_data = image_data
        self._data = data
        self._placement = placement
        self._stores = stores
        self._limits = limits
        self._web = WebDownload(rules.web, limits)
        self.methods = rules.methods
        self.staging = Staging(images, placement, limits)
        self.jobs = Jobs(images.store.read().scan("imports"), limits)
        self._abandoned: set[str] = set()
        self._waiting: asyncio.Queue[Job] = asyncio.Queue()
        for job in self.jobs.unfinished():
            self._waiting.put_nowait(job)
        images.importing = self.shown
        images.quotas.staged = self.staging.sizes
        images.quotas.importing = lambda: {job.uuid for job in self.jobs.unfinished()}
        images.on_delete = self.forget

    def shown(self, image: Image) -> Image:
        """The image with what its import adds to it."""
        uuid = image["uuid"]
        job = self.jobs.latest(uuid)
        queued = image["status"] == "queued"
        if job is not None and not job.done:
            state = {"os_glance_importing_to_stores": ",".join(job.stores), "os_glance_failed_import": _names(job)}
            return image | state | ({"status": "importing"} if queued else {})
        if queued and self.staging.shows(uuid):
            return image | {"status": "uploading"}
        if job is not None and job.failed:
            return image | {"os_glance_failed_import": _names(job)}
        return image

    # Requests.

    async def start(self, request: Request, uuid: str, wanted: Wanted) -> None:
        """Acknowledge an import: from then on it goes on by itself. Raises what Glance does, and DataUnavailable where
        none of its stores can be reached now: who asks hears of it at once."""
        uuid = uuid.lower()
        targets = self._startable(request, uuid, wanted)
        if await self._stores.asked(targets):
            # Another import may have begun while the other zones were asked.
            targets = self._startable(request, uuid, wanted)
        if not targets:
            return await self._images.store.durable()
        job = self._job(request, uuid, wanted, targets)
        with self._images.store.transaction(grows=True) as txn:
            self.jobs.save(txn, job)
        await self._images.store.durable()
        return self._waiting.put_nowait(job)

    def _startable(self, request: Request, uuid: str, wanted: Wanted) -> list[str]:
        """Stores to bring the data to, if the import may begin now."""
        image = self._images.writable(self._images.store.read(), request.who, uuid, _action(wanted.method))
        self._check(image, wanted)
        targets = self._targets(image, wanted)
        self._check_quotas(image, wanted, len(targets))
        if targets and len(self.jobs.unfinished()) >= self._limits.imports_pending_max:
            raise Unavailable("too many imports at once (limits.imports_pending_max)")
        return targets

    def _check(self, image: Image, wanted: Wanted) -> None:
        method, status = wanted.method, image["status"]
        if method not in self.methods:
            raise BadRequest(f"Unknown import method name '{method}'; there are: {', '.join(self.methods)}")
        if wanted.uri is not None:
            self._web.check(wanted.uri)
        if self._is_busy(image["uuid"]):
            raise Conflict("an import of this image is under way: wait for it")
        if status != NEEDED_STATUS[method]:
            raise Conflict(f"{method} needs an image that is {NEEDED_STATUS[method]}, this one is {status}")
        for name in ("container_format", "disk_format"):
            if not image[name]:
                raise Conflict(f"'{name}' needs to be set before import")
        if method == GLANCE_DIRECT and self.staging.get(image["uuid"]) is None:
            raise Conflict("the image's data are still being staged: wait for it")

    def _check_quotas(self, image: Image, wanted: Wanted, copies: int) -> None:
        read, quotas = self._images.store.read(), self._images.quotas
        size = self.staging.sizes().get(image["uuid"], image["size"] or 0)
        quotas.check_size(read, image["owner"], copies * size)
        if wanted.method == WEB_DOWNLOAD:
            quotas.check_uploading(read, image["owner"])

    def _is_busy(self, uuid: str) -> bool:
        job = self.jobs.latest(uuid)
        return job is not None and not job.done

    def _targets(self, image: Image, wanted: Wanted) -> list[str]:
        """Stores to bring the data to, own ones first: they cost nothing."""
        names = self._stores.names() if wanted.all_stores else [self._stores.choose(s) for s in wanted.stores]
        targets = sorted(set(names or [self._stores.default]), key=lambda name: (not self._stores.is_own(name), name))
        there = {store_name(location) for location in image["locations"]}
        if not wanted.all_stores and (doubled := there.intersection(targets)):
            raise BadRequest(f"Image is already present at store '{min(doubled)}'")
        return [name for name in targets if name not in there]

    def _job(self, request: Request, uuid: str, wanted: Wanted, targets: list[str]) -> Job:
        who, now = request.who, self._images.catalogue.now_us()
        return Job(
            id=str(uuid4()), uuid=uuid, method=wanted.method, stores=targets, must_succeed=wanted.must_succeed,
            user=who.user, project=who.project, roles=sorted(who.roles), created_us=now, updated_us=now,
            request_id=request.request_id, uri=wanted.uri,
        )  # fmt: skip

    def forget(self, txn: Txn, uuid: str) -> None:
        """The image is deleted: what is staged goes, and its import ends as soon as it looks."""
        self.staging.drop(txn, uuid)
        job = self.jobs.latest(uuid)
        if job is not None and not job.done:
            self._abandoned.add(job.id)

    # Jobs.

    async def run(self) -> None:
        """For ever: carry out jobs, a bounded number at a time, in the order in which they were asked for."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweep())
            for _ in range(self._limits.imports_running_max):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            await self._run(await self._waiting.get())

    async def _run(self, job: Job) -> None:
        message = ""
        try:
            await self._begin(job)
            await self._carry_out(job)
        except GatewayError as error:
            message = error.message
        except Exception:
            log.exception("import %s of image %s failed", job.id, job.uuid)
            message = "the gateway failed to import; its log has the reason"
        await self._finish(job, message)

    async def _begin(self, job: Job) -> None:
        if job.starts >= self._limits.import_starts_max:
            raise Unavailable(f"given up: the gateway ended during each of {job.starts} starts of this import")
        job.starts += 1
        job.status = "processing"
        self._save(job)
        await self._images.store.durable()

    def _save(self, job: Job) -> None:
        job.updated_us = self._images.catalogue.now_us()
        with self._images.store.transaction() as txn:
            self.jobs.save(txn, job)

    async def _carry_out(self, job: Job) -> None:
        if job.method == WEB_DOWNLOAD and not self._has_bytes(job):
            await self._download(job)
        await self._inspect(job)
        problem: GatewayError | None = None
        for store in list(job.stores):
            try:
                await self._place(job, store)
            except GatewayError as error:
                if job.must_succeed:
                    raise
                problem = error
                self._note_failure(job, store, error)
                continue
            if not job.must_succeed:
                await self._register(job)
        await self._register(job)
        if problem is not None and not job.owned:
            raise problem

    def _has_bytes(self, job: Job) -> bool:
        return self.staging.get(job.uuid) is not None or bool(self._image(job)["locations"])

    def _image(self, job: Job, txn: Txn | None = None) -> Image:
        if job.id in self._abandoned:
            raise NotFound("the image was deleted")
        txn = txn or self._images.store.read()
        return self._images.writable(txn, job.request.who, job.uuid, _action(job.method))

    async def _download(self, job: Job) -> None:
        """The bytes behind the job's URL become staged ones."""
        if job.uri is None:
            raise BadRequest("web-download needs a uri")
        async with aclosing(self._web.read(job.uri)) as source:
            body = self._images.quotas.staging(self._images.store.read(), self._image(job)["owner"], source)
            placed = await self._placement.stage(job.uuid, self._while_wanted(job, body))
        with self._placement.kept([placed["key"]]), self._images.store.transaction(grows=True) as txn:
            self.staging.put(txn, self._image(job, txn), placed)
        await self._images.store.durable()

    async def _inspect(self, job: Job) -> None:
        """Staged bytes must be what the image says now, which it need not have said when they came."""
        staged = self.staging.get(job.uuid)
        if staged is None:
            return
        inspection = self._image_data.inspection(self._image(job))
        async with aclosing(_file_pieces(self._data.path(staged["key"]), self._limits.data_chunk_bytes)) as pieces:
            async for _ in inspection.of(self._while_wanted(job, pieces)):
                if inspection.decided:
                    break
        job.virtual_size = inspection.virtual_size(staged["size"])

    async def _while_wanted(self, job: Job, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in body:
            if job.id in self._abandoned:
                raise NotFound("the image was deleted")
            yield piece

    async def _place(self, job: Job, store: str) -> None:
        """Bring the bytes to one store."""
        staged = self.staging.get(job.uuid)
        if staged is not None and store == store_name(staged):
            placed = staged
        else:
            placed = await self._copy(job, staged, store)
        with self._placement.kept([placed["key"]]), self._images.store.transaction() as txn:
            self._placement.owned(txn, [placed["key"]])
            job.placed.append(placed)
            job.stores.remove(store)
            self.jobs.save(txn, job)
        await self._images.store.durable()

    async def _copy(self, job: Job, staged: Location | None, store: str) -> Location:
        image = self._image(job)
        source = Source(image, file=self._data.path(staged["key"])) if staged else await self._image_data.open(image)
        body = self._while_wanted(job, _pieces(source, self._limits.data_chunk_bytes))
        placed = await self._placement.place(job.uuid, store, body, staged["size"] if staged else image["size"])
        wanted = staged["sha512"] if staged else image["os_hash_value"]
        with self._placement.kept([placed["key"]]):
            if wanted is not None and placed["sha512"] != wanted:
                raise DataUnavailable("the source's bytes do not match their sha512: the copy is dropped")
        return placed

    async def _register(self, job: Job) -> None:
        """Have the image own what was placed."""
        if not job.placed:
            return
        placed, staged = job.placed, self.staging.get(job.uuid)
        with self._images.store.transaction() as txn:
            image = self._image(job, txn)
            self._images.quotas.check_size(txn, image["owner"], sum(location["size"] for location in placed))
            changes = self._activation(job, image, placed[0])
            position = self._images.append_update(
                txn, job.request, image, changes, add_locations=placed, conditional=False
            )
            job.placed, job.owned = [], job.owned + len(placed)
            self.jobs.save(txn, job)
            if staged is not None and staged["key"] in [location["key"] for location in placed]:
                self.staging.take(txn, job.uuid)
        await self._images.settle(image, position)

    @staticmethod
    def _activation(job: Job, image: Image, placed: Location) -> Changes:
        if image["status"] == "importing":
            return Changes(data_attributes(placed, job.virtual_size))
        if image["status"] not in ("active", "deactivated") or image["os_hash_value"] != placed["sha512"]:
            raise Conflict("the image got other data meanwhile: what was imported is dropped")
        return Changes()

    def _note_failure(self, job: Job, store: str, error: GatewayError) -> None:
        log.warning("import %s of image %s failed for store %s: %s", job.id, job.uuid, store, error.message)
        job.stores.remove(store)
        job.failed.append(store)
        job.message = f"{store}: {error.message}"
        self._save(job)

    async def _finish(self, job: Job, problem: str) -> None:
        """Settle the job, and give up what it leaves behind."""
        if problem:
            log.warning("import %s of image %s failed: %s", job.id, job.uuid, problem)
            job.message = problem
            job.failed += job.stores
        job.status = "failure" if problem else "success"
        job.updated_us = self._images.catalogue.now_us()
        with self._images.store.transaction() as txn:
            self._images.discard_bytes(txn, job.placed)
            if job.method != COPY_IMAGE:
                self.staging.drop(txn, job.uuid)
            job.placed, job.stores = [], []
            self.jobs.save(txn, job)
            self.jobs.prune(txn, job.updated_us)
        self._abandoned.discard(job.id)
        self._placement.wake()
        await self._images.store.durable()

    async def _sweep(self) -> None:
        """Drop staged bytes that nobody came to import."""
        while True:
            expired = [uuid for uuid in self.staging.expired() if not self._is_busy(uuid)]
            if expired:
                with self._images.store.transaction() as txn:
                    for uuid in expired:
                        self.staging.drop(txn, uuid)
                self._placement.wake()
            await asyncio.sleep(SWEEP_S)

    # Tasks, as Glance calls jobs.

    def tasks(self, who: Identity, uuid: str | None = None) -> list[Job]:
        """Jobs that `who` may know of, newest first; of one image, if it is named."""
        found = [job for job in self.jobs.all() if who.is_admin or job.project == who.project]
        return [job for job in reversed(found) if uuid in (None, job.uuid)]


def _action(method: str) -> str:
    return "copy_image" if method == COPY_IMAGE else "modify_image"


def _names(job: Job) -> str:
    return ",".join(job.failed)


async def _pieces(source: Source, chunk_bytes: int) -> AsyncIterator[bytes]:
    """The source's bytes."""
    if source.fetch is not None:
        async for piece in source.fetch.read(0, source.fetch.size, chunk_bytes):
            yield piece
    elif source.file is not None:
        async for piece in _file_pieces(source.file, chunk_bytes):
            yield piece


async def _file_pieces(path: Path, chunk_bytes: int) -> AsyncGenerator[bytes]:
    try:
        handle = await asyncio.to_thread(os.open, path, os.O_RDONLY)
    except FileNotFoundError:
        raise NotFound("the image's data are gone") from None
    try:
        offset = 0
        while piece := await asyncio.to_thread(os.pread, handle, chunk_bytes, offset):
            offset += len(piece)
            yield piece
    finally:
        os.close(handle)
