"""The registry's HTTP API: one application per peer, one middleware that counts, bounds and answers for errors.

Handlers stand beside this module (`api_images`, `api_zones` …), their description is `openapi.json`, what they share is
`api_context`. A write that finds another peer leading is forwarded; while nobody leads it waits for whoever is next.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from raftreg import config as configuration
from raftreg import errors, wire
from raftreg.api_changes import Changes
from raftreg.api_context import PATIENCE, Context, Document, Leadership, Proposer, Reads
from raftreg.api_deletions import Deletions
from raftreg.api_forward import Forwarder
from raftreg.api_images import Images
from raftreg.api_integrity import Integrity, Soundness
from raftreg.api_leader import Leader
from raftreg.api_level import Level, Raising
from raftreg.api_openapi import OpenApi
from raftreg.api_projects import Projects
from raftreg.api_zones import Zones
from raftreg.changefeed import Feed
from raftreg.config import PeerConfig
from raftreg.leases import LeaseKeeper
from raftreg.metrics import CONTENT_TYPE, PeerMetrics

logger = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# Clients come back on the same connection within seconds; a handshake costs more than a parked connection.
_KEEPALIVE_S = 75.0
# How long a stopping peer waits for answers that are under way; feeds end at once.
_SHUTDOWN_S = 2.0
_BACKLOG = 1024
_NO_FORWARD = frozenset({"GET", "HEAD"})
CONTEXT = web.AppKey("context", Context)


def build_app(
    *,
    proposer: Proposer,
    reads: Reads,
    leadership: Leadership,
    status: Callable[[], Document],
    cluster_id: str,
    epoch: int,
    peer_name: str,
    config: PeerConfig,
    metrics: PeerMetrics,
    feed: Feed,
    leases: LeaseKeeper,
    integrity: Soundness,
    levels: Raising,
    forward_tls: ssl.SSLContext | None = None,
) -> web.Application:
    """The application of one peer; its services are at `app[CONTEXT]`. `forward_tls`, from
    `certificates.api_client_context`, is for the leader's API.

    The caller runs `leases.run()` as a task and calls `feed.notify` after turns; the application closes the feed when
    it shuts down.
    """
    context = Context(proposer, reads, leadership, status, cluster_id, epoch, peer_name, config, metrics, feed, leases)
    forwarder = Forwarder(context, forward_tls)
    app = web.Application(middlewares=[_edge(context, forwarder)], client_max_size=config.limits.body_bytes_max)
    app[CONTEXT] = context
    peer = _Peer(context)
    for handlers in (
        Images(context), Deletions(context), Projects(context), Zones(context), Changes(context), Leader(context),
        Level(context, levels), Integrity(context, integrity), OpenApi(context), peer,
    ):  # fmt: skip
        app.add_routes(handlers.routes())
    metrics.before_render.append(lambda: _fill(context))

    async def end_feeds(_app: web.Application) -> None:
        feed.close()

    async def close_forwarder(_app: web.Application) -> None:
        await forwarder.close()

    app.on_shutdown.append(end_feeds)
    app.on_cleanup.append(close_forwarder)
    return app


async def serve(app: web.Application, config: PeerConfig, tls: ssl.SSLContext | None) -> web.AppRunner:
    """Listen on `api_listen`; `runner.addresses` tells the port, `await runner.cleanup()` ends it.

    `tls` is `certificates.server_context(config.tls)`; None only where the configuration turns TLS off.
    """
    if (tls is None) == config.api_tls:
        raise ValueError("a TLS context belongs to api_tls = true, and to nothing else")
    host, port = configuration.split_address(config.api_listen, "api.listen")
    runner = web.AppRunner(
        app, access_log=None, keepalive_timeout=_KEEPALIVE_S, shutdown_timeout=_SHUTDOWN_S, handle_signals=False
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls, backlog=_BACKLOG).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


def _edge(context: Context, forwarder: Forwarder) -> Middleware:
    """The middleware around every handler."""

    @web.middleware
    async def edge(request: web.Request, handler: _Handler) -> web.StreamResponse:
        context.running += 1
        context.served += 1
        try:
            response = await _guarded(request, handler)
        except errors.RegistryError as error:
            response = _failure(context, request, error)
        finally:
            context.running -= 1
        context.metrics.count_request(_route(request), response.status)
        if context.stopping and not response.prepared:
            response.force_close()
        return response

    async def _guarded(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if context.running > context.limits.requests_max:
            raise errors.TooManyRequests(f"{context.limits.requests_max} requests are under way already")
        try:
            if request.method in _NO_FORWARD:
                return await handler(request)
            return await _at_the_leader(request, handler)
        except web.HTTPException as http:
            raise _translated(context, request, http) from None
        except errors.RegistryError:
            raise
        except ConnectionError:
            raise  # The client is gone; there is nobody to answer.
        except Exception as error:
            logger.exception("%s %s failed", request.method, request.path)
            raise errors.InternalError(
                f"{type(error).__name__}; the log of peer {context.peer_name} has the details"
            ) from None

    async def _at_the_leader(request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Carry a write out here or where the leader is. While the lead changes hands it has surely not happened, and
        is tried again with the next leader, until `leader_wait_s` after it came."""
        leadership = context.leadership
        hopped = wire.HEADER_HOP in request.headers
        # Whoever sent it on does the waiting, so that the waits of two peers don't add up.
        until = leadership.patience(0.0 if hopped else None)
        PATIENCE.set(until)
        while True:
            version = leadership.version
            try:
                return await handler(request)
            except errors.NotLeader as not_leader:
                here = not_leader
            try:
                return await forwarder.forward(request, here)
            except (errors.NotLeader, errors.NoQuorum):
                if hopped or not forwarder.reaches(here.leader) or not await leadership.changed(version, until):
                    raise

    return edge


def _translated(context: Context, request: web.Request, http: web.HTTPException) -> errors.RegistryError:
    """What aiohttp itself refuses, in our form."""
    if http.status == 413:
        return errors.TooLarge(f"the body is larger than {context.limits.body_bytes_max} bytes; send several requests")
    if http.status == 404:
        return errors.NotFound(f"no such route: {request.path[:200]}", code="unknown_route")
    if isinstance(http, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(http.allowed_methods))
        return _MethodNotAllowed(f"{request.method} is not possible here; use {allowed}", allowed=allowed)
    return errors.BadRequest(http.reason)


class _MethodNotAllowed(errors.RegistryError):
    """The route exists, with other methods."""

    code = "method_not_allowed"
    http_status = 405


def _failure(context: Context, request: web.Request, error: errors.RegistryError) -> web.Response:
    headers = {}
    if error.http_status in (429, 503):
        headers["Retry-After"] = str(errors.RETRY_AFTER_S)
    if isinstance(error, errors.OutcomeUnknown) and wire.HEADER_KEY in request.headers:
        error.details.setdefault("key", request.headers[wire.HEADER_KEY])
    return context.answer(request, error.to_wire(), error.http_status, headers)


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical}" if resource is not None else "unknown"


class _Peer:
    """Handlers about this peer itself: health, metrics, status."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthcheck", self.health),
            web.get("/metrics", self.metrics, allow_head=False),
            web.get(f"{wire.PREFIX}/status", self.status, allow_head=False),
        ]

    async def health(self, request: web.Request) -> web.Response:
        """200 while this peer can answer, with the consistency that it can serve; 503 while it stops or catches up."""
        if self._context.stopping:
            raise errors.Unavailable("this peer is stopping; ask another one", serves="nothing")
        freshness = self._context.reads.freshness()
        leader = freshness["leader"]
        # An observer may know the leader long before it has caught up with it.
        if leader is not None and not (self._context.config.observer and freshness["staleness_s"] is None):
            return self._context.answer(request, {"serves": "linearizable", "leader": leader})
        if self._context.status().get("recovering"):
            raise errors.Unavailable(
                "this peer has no leader and is recovering; its state may be old", serves="nothing"
            )
        return self._context.answer(request, {"serves": "stale", "leader": leader})

    async def metrics(self, _request: web.Request) -> web.Response:
        """Prometheus text."""
        return web.Response(body=self._context.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def status(self, request: web.Request) -> web.Response:
        """This peer's view of the cluster and of itself."""
        context = self._context
        body = {
            "cluster_id": context.cluster_id,
            "epoch": context.epoch,
            "revision": int(context.headers()[wire.HEADER_REVISION]),
            "staleness_s": context.reads.freshness()["staleness_s"],
            "feed_consumers": context.feed.consumers,
            "requests_running": context.running,
            **context.status(),
        }
        return context.answer(request, body)


def _fill(context: Context) -> None:
    """The gauges that the API knows; the owner of the peer fills its own."""
    metrics, freshness = context.metrics, context.reads.freshness()
    metrics.requests_running.set(context.running)
    metrics.feed_consumers.set(context.feed.consumers)
    metrics.has_leader.set(freshness["leader"] is not None)
    metrics.is_leader.set(freshness["leader"] == context.peer_name)
    metrics.applied_index.set(freshness["applied"])
    metrics.revision.set(int(context.headers()[wire.HEADER_REVISION]))
    if freshness["staleness_s"] is not None:
        metrics.staleness_s.set(freshness["staleness_s"])
