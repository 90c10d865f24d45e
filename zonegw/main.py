"""Wiring of a gateway process, in the order in which the parts need each other; shutdown goes the other way round."""

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any

import orjson
from aiohttp import web

from zonegw import control, images_v1, metadefs, store_identity, tls, usage
from zonegw.auth import Authenticator
from zonegw.bandwidth import Bandwidth
from zonegw.cached_images import CachedImages
from zonegw.catalogue import Catalogue
from zonegw.config import Config
from zonegw.control_cache import ControlCache
from zonegw.control_data import ControlData
from zonegw.control_parked import ControlParked
from zonegw.control_queue import ControlQueue
from zonegw.data_cache import DataCache
from zonegw.data_transfer import Downloads
from zonegw.deletions import Deletions
from zonegw.deposits import Deposits
from zonegw.discovery import Discovery
from zonegw.drainer import Drainer
from zonegw.feed_consumer import FeedConsumer
from zonegw.graves import Graves
from zonegw.http_frame import Links, answering, identifying
from zonegw.id_pool import IdPool
from zonegw.image_data import ImageData
from zonegw.images import Images
from zonegw.images_v1 import ImagesV1
from zonegw.images_v2 import ImagesV2
from zonegw.images_v2_import import ImportV2
from zonegw.images_v2_sharing import SharingV2
from zonegw.images_v2_tasks import TasksV2
from zonegw.imports import Imports
from zonegw.interzone import InterzoneClient
from zonegw.interzone_app import build_app
from zonegw.members import Members
from zonegw.metrics import GatewayMetrics
from zonegw.orphans import Orphans
from zonegw.own_stores import Origins, OwnStores
from zonegw.parked import ParkedWrites
from zonegw.placement import Placement
from zonegw.prefetch import Prefetch
from zonegw.quotas import Quotas
from zonegw.retries import Retries
from zonegw.running_clock import RunningClock
from zonegw.status import Status
from zonegw.store import Store, Txn
from zonegw.stores import Stores
from zonegw.tenant_set import TenantSet
from zonegw.undelete import Undelete
from zonegw.uplink import Uplink
from zonegw.write_queue import WriteQueue
from zonegw.zones import Zones

log = logging.getLogger(__name__)


class RegistryLink:
    """What the use cases know of the registry: the uplink's state and the drainer's verdicts."""

    def __init__(self, uplink: Uplink, drainer: Drainer) -> None:
        self._uplink = uplink
        self.away_reason = uplink.away_reason
        self.verdict = drainer.verdict
        self.wake = drainer.wake

    def available(self) -> bool:
        return self._uplink.up


class Gateway:
    """One running gateway; use as `async with`. `address` is where the Images API listens."""

    def __init__(self, config: Config) -> None:
        self.config = config
        limits = config.limits
        self.metrics = GatewayMetrics()
        # The store first: it locks the data directory, so that nothing else is touched by a second process.
        self.store = Store(config.data_dir / "store", limits, on_commit=self.metrics.commits.observe)
        self.queue = WriteQueue(limits)
        self.ids = IdPool(limits)
        self.catalogue = Catalogue()
        self._check_identity()
        with self.store.transaction() as txn:
            self.queue.index_parked(txn)
        # Bytes: temporary files of an earlier life are removed here.
        self.own_stores = OwnStores(config)
        self.data = self.own_stores.local
        self.uplink = Uplink(config)
        self.zones = Zones(self.store, self.uplink, limits)
        self.interzone = InterzoneClient(self.zones.endpoints, config.tls, limits)
        origins = Origins(self.own_stores.shared, self.interzone)
        self.cached = CachedImages(self.store, self.catalogue.now_us)
        bandwidth = Bandwidth(config.cache.bandwidth_max_bytes_per_s)
        self.cache = DataCache(config.data_dir / "cache", origins, self.cached, bandwidth, limits)
        self.prefetch = Prefetch(self.store, self.catalogue, self.cache, self.cached, config)
        self.images = Images(
            self.store, self.queue, self.ids, self.catalogue, zone=config.zone, gateway=config.gateway, limits=limits,
            policy=config.policy, protections=config.protections, quotas=Quotas(config.quotas, self.catalogue),
        )  # fmt: skip
        self.metadefs = metadefs.load(config.metadefs_dir)
        self.stores = Stores(self.own_stores, self.zones.with_endpoints, self.interzone, limits)
        self.placement = Placement(self.store, self.own_stores, self.interzone, self.stores.target, limits)
        self.images.on_garbage = self.placement.wake
        self.graves = Graves(RunningClock(self.store), config.deletion)
        self.deletions = Deletions(
            self.store, self.catalogue, self.placement, self.graves, self.uplink, config.zone, limits
        )
        self.images.on_unsent_delete = self._deleted
        self.undelete = Undelete(self.images, self.graves, self.deletions, self._has)
        self.orphans = Orphans(self.store, self.catalogue, self.own_stores.files(), self.placement, limits)
        with self.store.transaction() as txn:
            self.placement.recover(txn)
            usage.begin(txn, self.catalogue.all(txn))
        self.image_data = ImageData(
            self.images, self.own_stores, self.cache, self.placement, self.stores, limits, config.inspection
        )
        self.deposits = Deposits(self.images, self.own_stores)
        self.imports = Imports(
            self.images, self.image_data, self.data, self.placement, self.stores, config.imports, limits
        )
        self.drainer = Drainer(
            self.store, self.queue, self.ids, self.catalogue, self.uplink, config, self.metrics,
            on_deleted=self._acked_delete,
        )  # fmt: skip
        self.catalogue.shows = self.images.kept = self.uplink.shows
        tenants = TenantSet(frozenset(config.tenants), query_max_bytes=limits.tenants_query_max_bytes)
        self.feed = FeedConsumer(self.store, self.catalogue, self.uplink, limits, tenants, on_deleted=self._tombstone)
        self.retries = Retries(self.store, self.queue, self.catalogue, limits, on_queued=self.drainer.wake)
        self.uplink.on_confirmed = self.feed.confirm
        self.store.on_durable = self.feed.durable
        self.feed.on_zone_changed = self.zones.changed
        self.feed.on_removed, self.feed.on_unseen = self._removed, self.deletions.unseen
        self.feed.may_enter, self.feed.on_bootstrapped = self.drainer.may_enter, self._bootstrapped
        self.images.registry = RegistryLink(self.uplink, self.drainer)
        self.status = Status(
            config, self.store, self.queue, self.ids, self.catalogue, self.feed, self.uplink, self.drainer, self.data,
            self.cache,
        )  # fmt: skip
        # A link that comes up: first what has to be drained is noted, then the drainer starts.
        self.uplink.on_change += [self.status.link_changed, self.drainer.link_changed, self.deletions.link_changed]
        self.feed.on_image_changed = self.prefetch.changed
        self.drainer.on_drained = self.status.drain_moved
        self.address: tuple[str, int] = config.listen
        self.interzone_address: tuple[str, int] | None = config.interzone_listen
        self._runners: list[web.AppRunner] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _check_identity(self) -> None:
        """A copied or restored data directory must not hand out its IDs: the original may do so too."""
        with self.store.transaction() as txn:
            if not store_identity.unchanged(txn, self.store.directory):
                lost = self.ids.seal(txn, "store identity changed")
                store_identity.record(txn, self.store.directory)
                log.error("this is not the disk that the ID blocks were granted to: %d IDs sealed", lost)

    async def _has(self, location: dict[str, Any]) -> bool:
        return await self.own_stores.held(location["store"], location["key"]) is not None

    def _bootstrapped(self) -> None:
        self.drainer.wake()
        self.deletions.ask()
        self.prefetch.look()

    def _acked_delete(self, txn: Txn, locations: list[dict[str, Any]], image: dict[str, Any] | None) -> None:
        if image is not None:
            self._deleted(txn, image)
        else:
            self.images.discard_bytes(txn, locations)
        self.placement.wake()

    def _deleted(self, txn: Txn, image: dict[str, Any]) -> None:
        """An image that this zone deleted: what it put into other zones they are asked to drop."""
        self.deletions.bury(txn, image)
        far = [location for location in image["locations"] if location["zone"] != self.config.zone]
        self.images.discard_bytes(txn, far)

    def _removed(self, txn: Txn, locations: list[dict[str, Any]]) -> None:
        """The registry took locations from an image that stays: so much of the bytes as is here goes."""
        self.images.discard_bytes(txn, [location for location in locations if location["zone"] == self.config.zone])
        for location in locations:  # behind this transaction: the cache has its own
            asyncio.get_running_loop().call_soon(self.cache.evict, location["key"])
        self.placement.wake()

    def _tombstone(self, image: dict[str, Any]) -> None:
        """The registry deleted an image: its own bytes go, and cached ones."""
        with self.store.transaction() as txn:
            self.deletions.bury(txn, image)
            self.imports.forget(txn, image["uuid"])
        self.cache.forget(image["uuid"], image["locations"])
        self.placement.wake()

    # Start and stop.

    async def __aenter__(self) -> "Gateway":
        # Listeners before the uplink: the zone answers at once, whatever the registry does.
        self.address = await self._listen(self._images_app(), self.config.listen, None)
        if self.config.interzone_listen and self.config.tls:
            app = build_app(self.own_stores, self.deposits, self.config.limits)
            context = tls.server_context(self.config.tls)
            self.interzone_address = await self._listen(app, self.config.interzone_listen, context)
        await self._serve_operators()
        for name, work in self._work().items():
            task = asyncio.create_task(work, name=name)
            task.add_done_callback(self._ended)
            self._tasks.append(task)
        return self

    def _work(self) -> dict[str, Coroutine[Any, Any, None]]:
        return {
            "uplink": self.uplink.probe(),
            "feed": self.feed.run(),
            "drainer": self.drainer.run(),
            "zones": self.zones.run(),
            "garbage": self.placement.remove_garbage(),
            "far garbage": self.placement.withdraw_garbage(),
            "imports": self.imports.run(),
            "deletions": self.deletions.run(),
            "prefetch": self.prefetch.run(),
            "retries": self.retries.run(),
        }

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Background work never ends by itself: if it does, that is a bug, and the process stops."""
        if task.cancelled() or self.failed.done():
            return
        self.failed.set_exception(task.exception() or RuntimeError(f"{task.get_name()} ended"))

    async def __aexit__(self, *exc: object) -> None:
        # No new requests; those under way get their grace. Then the background, the links, and last the store.
        for runner in self._runners:
            await runner.cleanup()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.cache.close()
        await self.interzone.close()
        await self.own_stores.close()
        await self.uplink.close()
        self.store.close()

    async def _serve_operators(self) -> None:
        """On a socket in the data directory, which is gone when this process is."""
        runner = web.AppRunner(self._control_app(), access_log=None)
        await runner.setup()
        self._runners.append(runner)
        await web.SockSite(runner, control.listening(self.config.data_dir)).start()

    def _control_app(self) -> web.Application:
        parked = ParkedWrites(self.images, self.retries, self.feed.confirmed)
        nouns: list[control.Noun] = [
            ControlParked(parked), ControlQueue(self.store, self.queue, self.ids, self.retries),
            ControlCache(self.images, self.cache, self.cached, self.prefetch),
            ControlData(self.images, self.orphans, self.graves, self.undelete),
        ]  # fmt: skip
        return control.build_app(nouns, self.config.limits)

    async def _listen(self, app: web.Application, address: tuple[str, int], ssl: Any) -> tuple[str, int]:
        limits = self.config.limits
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=limits.shutdown_grace_s, read_bufsize=limits.read_buffer_bytes,
            lingering_time=limits.refused_body_max_s,
        )  # fmt: skip
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, *address, ssl_context=ssl, backlog=1024).start()
        host, port = runner.addresses[0][:2]
        return host, port

    def _images_app(self) -> web.Application:
        limits = self.config.limits
        answer, stamp = answering(self.status, self.metrics, limits)
        app = web.Application(
            middlewares=[answer, identifying(Authenticator(self.config.auth))],
            client_max_size=limits.json_body_max_bytes,
        )
        app.on_response_prepare.append(stamp)
        links = Links(self.config.public_url, self.config.trusted_proxies)
        downloads = Downloads(limits)
        importing = ImportV2(self.images, self.image_data, self.imports, self.stores, limits)
        ImagesV2(self.images, self.image_data, limits, links, downloads, importing.headers).add_routes(app.router)
        importing.add_routes(app.router)
        TasksV2(self.images, self.imports).add_routes(app.router)
        members = Members(self.images)
        SharingV2(self.images, members).add_routes(app.router)
        if self.config.v1:
            ImagesV1(self.images, self.image_data, members, limits, self.stores, downloads, self.metrics).add_routes(
                app.router
            )
        versions_v1 = images_v1.VERSIONS if self.config.v1 else ()
        Discovery(links, self.config.policy, self.metadefs, versions_v1).add_routes(app.router)
        app.router.add_get("/healthcheck", self._healthcheck)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/zonegw/v1/status", self._status)
        return app

    async def _healthcheck(self, request: web.Request) -> web.Response:
        """The zone answers from its own disk, so it is healthy while this process and its store are."""
        await self.store.durable()
        return web.Response(text="OK")

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.render(self.status.gauges()), content_type="text/plain")

    async def _status(self, request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(self.status.document()), content_type="application/json")


async def serve(config: Config) -> None:
    """Run until SIGTERM or SIGINT, or until a part fails."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with Gateway(config) as gateway:
        host, port = gateway.address
        print(f"zonegw {config.gateway} of zone {config.zone} listens on http://{host}:{port}", flush=True)
        stopping = asyncio.create_task(stop.wait())
        waiting: set[asyncio.Future[Any]] = {stopping, gateway.failed}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if gateway.failed.done():
            gateway.failed.result()
