"""What every answer of the images listener has in common: request ID, identity, errors as HTTP, state headers."""

import asyncio
import html
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import Any, Protocol
from uuid import uuid4

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from zonegw.auth import Authenticator
from zonegw.config import Network
from zonegw.errors import (
    BadRequest,
    BodyTooLarge,
    GatewayError,
    RangeUnsatisfiable,
    Unavailable,
    UnsupportedMediaType,
)
from zonegw.identity import Identity
from zonegw.images import Request
from zonegw.limits import Limits
from zonegw.metrics import GatewayMetrics

log = logging.getLogger(__name__)

Stamp = Callable[[web.Request, web.StreamResponse], Awaitable[None]]

OCTETS = "application/octet-stream"
REQUEST_ID = web.RequestKey("request_id", str)
# How long a client wants to wait for the registry's verdict on its write; not there: this zone's word will do.
WAIT_S = web.RequestKey("wait_s", float)
IDENTITY = web.RequestKey("identity", Identity)
# A client that sends back what it got never sees an older catalogue, whichever gateway it asks.
REVISION = "X-Zonegw-Revision"
# Paths outside of the API, which Glance answers with its versions.
_INSIDE = "v2(?:/|$)|zonegw/|(?:versions|healthcheck|metrics)$"
OTHER_PATHS = f"/{{other:(?!{_INSIDE}).+}}"
OTHER_PATHS_BESIDE_V1 = f"/{{other:(?!v1/|{_INSIDE}).+}}"
OPEN_ROUTES = frozenset({
    "/", "/versions", "/v2", "/healthcheck", "/metrics", "/zonegw/v1/status", "/zonegw/v1/openapi.json", "/{other}",
})  # fmt: skip


class Freshness(Protocol):
    """How current the gateway's answers are."""

    @property
    def state(self) -> str: ...

    def staleness_s(self) -> float | None: ...

    def cursor(self) -> str: ...

    async def reached(self, cursor: str) -> None: ...


def answering(freshness: Freshness, metrics: GatewayMetrics, limits: Limits) -> tuple[Middleware, Stamp]:
    """The outermost middleware, which turns errors into answers, and what stamps the headers of every answer."""
    running = 0

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal running
        request[REQUEST_ID] = f"req-{uuid4()}"
        running += 1
        try:
            if running > limits.requests_max:
                raise Unavailable("too many requests at once (limits.requests_max)", retry_after_s=1)
            seen = request.headers.get(REVISION)
            if seen is not None and seen != "none":
                await freshness.reached(seen)
            if (wait_s := waits(request, limits)) is not None:
                request[WAIT_S] = wait_s
            response = await handler(request)
        except web.HTTPException as error:
            response = _from_aiohttp(request, error)
        except (TimeoutError, GatewayError) as error:
            refusal = error if isinstance(error, GatewayError) else Unavailable("this took too long")
            response = error_response(request, refusal)
        except web.RequestPayloadError:
            said = "the body can't be read: it is not what Content-Encoding or Transfer-Encoding says"
            response = error_response(request, BadRequest(said))
            response.force_close()  # what follows on the connection is no request
        except (ConnectionResetError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("%s %s failed (%s)", request.method, request.path, request[REQUEST_ID])
            response = _text_response(request, 500, "The gateway failed to answer; its log has the reason.")
        finally:
            running -= 1
        metrics.requests.labels(route_of(request), str(response.status)).inc()
        return response

    async def stamp(request: web.Request, response: web.StreamResponse) -> None:
        staleness = freshness.staleness_s()
        response.headers["x-openstack-request-id"] = request.get(REQUEST_ID, "")
        response.headers["X-Zonegw-State"] = freshness.state
        response.headers["X-Zonegw-Staleness"] = "unknown" if staleness is None else f"{staleness:.3f}"
        response.headers[REVISION] = freshness.cursor()

    return answer, stamp


def route_of(request: web.Request) -> str:
    """The route's pattern: a bounded label, never an ID."""
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical}" if resource is not None else "unknown"


def identifying(authenticator: Authenticator) -> Middleware:
    """Puts the identity into the request; only a few routes answer without one."""

    @web.middleware
    async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        if resource is None or resource.canonical not in OPEN_ROUTES:
            request[IDENTITY] = authenticator.identify(request.headers.get("X-Auth-Token"))
        return await handler(request)

    return identify


def identity(request: web.Request) -> Identity:
    return request[IDENTITY]


def asking(request: web.Request) -> Request:
    """Who asks, for a use case."""
    return Request(identity(request), request[REQUEST_ID], request.get(WAIT_S))


def waits(request: web.Request, limits: Limits) -> float | None:
    """The seconds of `?wait=registry&timeout=SECONDS` of a write. Raises BadRequest."""
    if request.method not in ("POST", "PUT", "PATCH", "DELETE") or request.match_info.http_exception is not None:
        return None
    wait = request.query.get("wait")
    if wait not in (None, "registry"):
        raise BadRequest(f"a write waits for nothing but the registry: wait=registry, not {wait!r:.60}")
    text, longest = request.query.get("timeout"), limits.registry_wait_max_s
    if text is None:
        return longest if wait else None
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) or not 0 < float(text) <= longest:
        raise BadRequest(f"timeout must be seconds, more than 0 and at most {longest:g}, not {text!r:.60}")
    return float(text) if wait else None


def json_response(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)


async def json_body(request: web.Request, limits: Limits, *, any_type: bool = False) -> Any:
    """The decoded body, whose size and time are bounded; clients of ours send JSON as octets, too."""
    if not any_type and request.content_type not in ("application/json", OCTETS):
        raise UnsupportedMediaType(f"send the body as application/json, not {request.content_type}")
    if (request.content_length or 0) > limits.json_body_max_bytes:
        raise BodyTooLarge(f"the body is larger than {limits.json_body_max_bytes} bytes")
    async with asyncio.timeout(limits.json_body_max_s):
        body = await request.read()
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"Malformed JSON in request body: {error}") from None


class Links:
    """Where clients reach this API, for links in answers."""

    def __init__(self, public_url: str | None, trusted_proxies: Sequence[Network]) -> None:
        self._public_url = public_url
        self._trusted = trusted_proxies

    def base(self, request: web.Request) -> str:
        """URL without a slash at its end: the configured one; what a trusted proxy says; or as it was asked."""
        if self._public_url is not None:
            return self._public_url.rstrip("/")
        scheme, host = request.scheme, request.host
        if self._is_trusted(request.remote):
            scheme = _first(request, "X-Forwarded-Proto") or scheme
            host = _first(request, "X-Forwarded-Host") or host
        return f"{scheme}://{host}"

    def _is_trusted(self, address: str | None) -> bool:
        if not self._trusted or address is None:
            return False
        return any(ip_address(address) in network for network in self._trusted)


def _first(request: web.Request, header: str) -> str:
    """What the proxy next to us wrote: of several proxies, the one that the client reached comes first."""
    return request.headers.get(header, "").partition(",")[0].strip()


def error_response(request: web.Request, error: GatewayError) -> web.Response:
    """A refusal as HTTP; clients print the text."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, RangeUnsatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Token"
    return _text_response(request, error.http_status, error.message, headers, error.code)


def _from_aiohttp(request: web.Request, error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals: unknown route, wrong method, body too large."""
    if error.status == 413:
        return error_response(request, BodyTooLarge("the body is larger than this operation takes"))
    headers = {name: error.headers[name] for name in ("Allow", "Location") if name in error.headers}
    if error.status == 405 and request.method == "OPTIONS":
        return web.Response(status=200, headers=headers)
    return _text_response(request, error.status, error.text or error.reason, headers)


def _text_response(
    request: web.Request, status: int, message: str, headers: dict[str, str] | None = None, code: str = "error"
) -> web.Response:
    reason = web.Response(status=status).reason or ""
    if "application/json" in request.headers.get("Accept", ""):
        body = orjson.dumps({"code": f"{status} {reason}", "title": reason, "message": message, "error": code})
        return web.Response(status=status, body=body, content_type="application/json", headers=headers)
    title = f"{status} {reason}"
    text = (
        f"<html>\n <head>\n  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n"
        f"  {html.escape(message, quote=False)}<br /><br />\n\n\n </body>\n</html>"
    )
    return web.Response(status=status, text=text, content_type="text/html", charset="UTF-8", headers=headers)
