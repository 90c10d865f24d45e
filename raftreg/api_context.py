"""What every handler of the registry API works with: who asks, what they sent, the consensus services, the answer.

Handlers carry no `except`: they raise errors of `raftreg.errors`, and the one middleware in `raftreg.api` answers.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import web

from raftreg import certificates, commands, errors, queries, wire
from raftreg.certificates import Subject
from raftreg.changefeed import Feed
from raftreg.config import Limits, PeerConfig
from raftreg.leases import LeaseKeeper
from raftreg.metrics import PeerMetrics
from raftreg.tables import View

Document = dict[str, Any]
Kinds = Mapping[str, type | tuple[type, ...]]

# Over plain HTTP only this machine can ask (config sees to that), and whoever is on it may do everything.
_LOCAL_OPERATOR = Subject("local", "operator")
_DATED_KEY = re.compile(r"(\d{9,11})-", re.ASCII)
_ACTOR_HEADERS = (
    ("user", wire.HEADER_USER),
    ("project", wire.HEADER_PROJECT),
    ("request_id", wire.HEADER_REQUEST_ID),
)
_ACTOR_BYTES_MAX = 255
PATIENCE: ContextVar[float | None] = ContextVar("patience", default=None)
"""Until when the request in hand may wait for a leader, however often it is tried; None: the usual time."""
_PAGE_STEP_ROWS = 50


class Proposer(Protocol):
    """What the API needs of the consensus service `Proposer`."""

    async def propose(
        self, commands: Sequence[Document], *, deadline_s: float = 10.0, patience: float | None = None
    ) -> list[Document]: ...


class Reads(Protocol):
    """What the API needs of the consensus service `Reads`."""

    async def barrier(self, consistency: str, max_staleness_s: float | None = None) -> None: ...

    def view(self) -> View: ...

    def freshness(self) -> Document: ...


class Leadership(Protocol):
    """What the API needs of the consensus service `Leadership`."""

    version: int
    on_change: list[Callable[[], None]]

    @property
    def leader(self) -> str | None: ...

    def patience(self, wait_s: float | None = None) -> float: ...

    async def known(self, until: float | None = None) -> str: ...

    async def changed(self, version: int, until: float) -> bool: ...

    async def transfer(self, to: str | None = None) -> Document: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the certificate's subject, and the actor that goes into commands."""

    subject: Subject
    actor: Document

    @property
    def is_operator(self) -> bool:
        return self.subject.role == "operator"

    def require_gateway(self, gateway: object, zone: object = None) -> None:
        """Refuse unless the caller is this gateway (of this zone, where one is named) or an operator."""
        if self.is_operator:
            return
        if self.subject.role != "gateway" or gateway != self.subject.name:
            raise errors.Forbidden(f"{self.subject.role} {self.subject.name} may not act for gateway {gateway}")
        if zone is not None and zone != self.subject.zone:
            raise errors.Forbidden(f"gateway {gateway} belongs to zone {self.subject.zone}, not to {zone}")

    def require_zone(self, zone: str) -> None:
        """Refuse unless the caller is a gateway of this zone or an operator."""
        self.require_role("operator", "gateway")
        if not self.is_operator and self.subject.zone != zone:
            raise errors.Forbidden(f"gateway {self.subject.name} belongs to zone {self.subject.zone}, not to {zone}")

    def require_role(self, *roles: str) -> None:
        if self.subject.role not in roles:
            raise errors.Forbidden(f"this needs a certificate of role {' or '.join(roles)}, not {self.subject.role}")


@dataclass
class Context:
    """The services behind the API of one peer. `stopping`: connections end with their next answer."""

    proposer: Proposer
    reads: Reads
    leadership: Leadership
    status: Callable[[], Document]
    cluster_id: str
    epoch: int
    peer_name: str
    config: PeerConfig
    metrics: PeerMetrics
    feed: Feed
    leases: LeaseKeeper
    running: int = field(default=0)
    served: int = field(default=0)
    stopping: bool = field(default=False)

    @property
    def limits(self) -> Limits:
        return self.config.limits

    # -- the request ----------------------------------------------------------------------------------------------

    def caller(self, request: web.Request) -> Caller:
        """Who asks. Raises Forbidden for a certificate without a role."""
        subject = self._subject(request)
        headers = request.headers
        actor: Document = {
            name: _short(headers[header], header) for name, header in _ACTOR_HEADERS if header in headers
        }
        if subject.role == "gateway":
            actor["zone"], actor["gateway"] = subject.zone, subject.name
        elif subject.role == "operator":
            actor["admin"] = True
            self._impersonate(request, actor)
        return Caller(subject, actor)

    def _subject(self, request: web.Request) -> Subject:
        if not self.config.api_tls:
            return _LOCAL_OPERATOR
        transport = request.transport
        peercert = transport.get_extra_info("peercert") if transport is not None else None
        subject = _subject_of(peercert["subject"]) if peercert else None
        if subject is None:
            raise errors.Forbidden("the certificate names no role; use one that `raftreg init` made")
        if subject.role == "peer" and wire.HEADER_FORWARDED_SUBJECT in request.headers:
            return parse_subject(request.headers[wire.HEADER_FORWARDED_SUBJECT])
        return subject

    def _impersonate(self, request: web.Request, actor: Document) -> None:
        """Without certificates the headers say for which gateway somebody on this machine speaks."""
        if self.config.api_tls:
            return
        for name, header in (("zone", wire.HEADER_ZONE), ("gateway", wire.HEADER_GATEWAY)):
            if header in request.headers:
                actor[name] = _short(request.headers[header], header)
                actor.pop("admin", None)

    async def body(self, request: web.Request) -> Document:
        """The map that was sent. Raises BadRequest; a body above the limit ends as TooLarge."""
        data = await request.read()
        if not data:
            raise errors.BadRequest("the body is empty; send a map in JSON or msgpack")
        value = wire.decode(data, request.headers.get("Content-Type", wire.JSON))
        if not isinstance(value, dict):
            raise errors.BadRequest(f"the body must be a map (JSON object), not {type(value).__name__}")
        return value

    def deadline_s(self, request: web.Request) -> float:
        """How long the caller will wait for a write."""
        text = request.headers.get(wire.HEADER_DEADLINE_MS)
        if text is None:
            return self.limits.propose_deadline_s
        if not (text.isascii() and text.isdecimal() and int(text[:12]) > 0):
            raise errors.BadRequest(f"{wire.HEADER_DEADLINE_MS} must be a whole number of milliseconds above 0")
        return min(int(text[:12]) / 1000, self.limits.propose_deadline_max_s)

    def key(self, request: web.Request) -> str | None:
        """The idempotency key. Raises BadRequest when too long, Conflict when it carries a time that is too old."""
        key = request.headers.get(wire.HEADER_KEY)
        if key is None:
            return None
        if not 0 < len(key.encode("utf-8", "replace")) <= self.limits.idempotency_key_bytes_max:
            raise errors.BadRequest(f"{wire.HEADER_KEY} must have 1 to {self.limits.idempotency_key_bytes_max} bytes")
        dated = _DATED_KEY.match(key)
        if dated and time.time() - int(dated[1]) > self.limits.idempotency_retention_h * 3600:
            raise errors.Conflict(
                f"the idempotency key is older than {self.limits.idempotency_retention_h:g} h, its result forgotten; "
                "read the state, then use a new key",
                code="idempotency_expired",
            )
        return key

    # -- writes ---------------------------------------------------------------------------------------------------

    async def propose(self, request: web.Request, caller: Caller, command: Document) -> Document:
        """Replicate one command; its `ok`. Raises its refusal, and what a proposal raises."""
        command["actor"] = caller.actor
        key = self.key(request)
        if key is not None:
            command["key"] = key
        (result,) = await self.propose_all(request, [command])
        if "error" in result:
            raise errors.refusal(result["error"])
        ok: Document = result["ok"]
        return ok

    async def propose_all(self, request: web.Request, proposed: list[Document]) -> list[Document]:
        """Replicate commands in this order, with nothing of their own in between; one result each."""
        for command in proposed:
            try:
                commands.validate(command)
            except commands.Invalid as invalid:
                raise errors.BadRequest(str(invalid)) from None
        counter = self.metrics.proposals
        try:
            results = await self.proposer.propose(
                proposed, deadline_s=self.deadline_s(request), patience=PATIENCE.get()
            )
        except errors.RegistryError as error:
            counter.labels(error.code).inc(len(proposed))
            raise
        counter.labels("answered").inc(len(proposed))
        return results

    # -- reads ----------------------------------------------------------------------------------------------------

    async def view(self, request: web.Request) -> View:
        """The state, at least as fresh as the request asks for. Read from it before the next await."""
        query = request.query
        consistency = query.get("consistency", "linearizable")
        if consistency not in ("linearizable", "bounded", "stale"):
            raise errors.BadRequest(f"consistency={consistency[:40]!r}: use linearizable, bounded or stale")
        staleness = number_parameter(query, "max_staleness", float)
        await self.reads.barrier(consistency, staleness)
        return self.reads.view()

    def page_rows(self, request: web.Request) -> int:
        """How many rows a page may have at most, at least 1."""
        limit = number_parameter(request.query, "limit")
        wanted = self.limits.page_rows_default if limit is None else limit
        return max(1, min(wanted, self.limits.page_rows_max))

    # -- answers --------------------------------------------------------------------------------------------------

    def headers(self) -> dict[str, str]:
        """The headers that every answer carries: which cluster, which state, how fresh."""
        freshness = self.reads.freshness()
        headers = {
            wire.HEADER_CLUSTER: self.cluster_id,
            wire.HEADER_PEER: self.peer_name,
            wire.HEADER_EPOCH: str(self.epoch),
            wire.HEADER_REVISION: str(queries.revision(self.reads.view())),
            wire.HEADER_APPLIED: str(freshness["applied"]),
        }
        if freshness["leader"] is not None:
            headers[wire.HEADER_LEADER] = freshness["leader"]
        if freshness["staleness_s"] is not None:
            headers[wire.HEADER_STALENESS] = f"{freshness['staleness_s']:.3f}"
        return headers

    def answer(
        self, request: web.Request, value: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        """`value` in the encoding that the caller wants."""
        as_msgpack = wants_msgpack(request)
        return self.encoded(wire.encode(value, as_msgpack=as_msgpack), as_msgpack, status, headers)

    def encoded(
        self, body: bytes, as_msgpack: bool, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        """An answer whose body is encoded already."""
        fields = self.headers()
        fields["Content-Type"] = wire.MSGPACK if as_msgpack else wire.JSON
        if headers:
            fields.update(headers)
        return web.Response(body=body, status=status, headers=fields)


@functools.lru_cache(maxsize=4096)
def _subject_of(subject: tuple[Any, ...]) -> Subject | None:
    """Once per certificate instead of per request."""
    return certificates.subject_of({"subject": subject})


def format_subject(subject: Subject) -> str:
    """The header value with which a follower tells the leader for whom it forwards."""
    return ";".join((subject.name, subject.role, subject.zone or ""))


def parse_subject(text: str) -> Subject:
    """What `format_subject` made. Raises BadRequest."""
    parts = text.split(";")
    if len(parts) != 3 or parts[1] not in certificates.ROLES:
        raise errors.BadRequest(f"{wire.HEADER_FORWARDED_SUBJECT} is malformed")
    return Subject(parts[0], parts[1], parts[2] or None)


def wants_msgpack(request: web.Request) -> bool:
    """By Accept; without one, the encoding that was sent."""
    headers = request.headers
    accept = headers.get("Accept", "*/*")
    if wire.MSGPACK in accept:
        return True
    return accept == "*/*" and headers.get("Content-Type", "").startswith(wire.MSGPACK)


def _short(value: str, header: str) -> str:
    if len(value) > _ACTOR_BYTES_MAX:
        raise errors.BadRequest(f"{header} has more than {_ACTOR_BYTES_MAX} characters")
    return value


Read = Callable[[int | None, int], tuple[list[Document], int | None]]
"""Reads up to `count` images behind a marker: (images, the marker to go on from or None at the end)."""


def fill_page(
    read: Read, marker: int | None, rows_max: int, bytes_max: int, *, as_msgpack: bool
) -> tuple[list[bytes], int | None]:
    """Encoded images up to the first limit that is reached, and the marker to go on from or None at the end.

    Reads a few at a time, so that large images are not all decoded before the bytes are counted.
    """
    rows: list[bytes] = []
    size = 0
    while len(rows) < rows_max:
        count = min(rows_max - len(rows), _PAGE_STEP_ROWS)
        images, following = read(marker, count)
        for image in images:
            rows.append(wire.encode(image, as_msgpack=as_msgpack))
            size += len(rows[-1])
            if size >= bytes_max and image is not images[-1]:
                return rows, image["number"]
        marker = following
        # A short answer with a marker means that many rows were looked at: enough for one request.
        if marker is None or size >= bytes_max or len(images) < count:
            break
    return rows, marker


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def refuse_unknown(query: Mapping[str, str], known: Collection[str], besides: str = "") -> None:
    """A misspelt filter must not show everything. Raises BadRequest; `besides` tells of what else is known."""
    unknown = next((name for name in query if name not in known), None)
    if unknown is not None:
        raise errors.BadRequest(f"unknown parameter {unknown[:80]!r}; known are {', '.join(sorted(known))}{besides}")


def flag_parameter(query: Mapping[str, str], name: str) -> bool:
    """A query parameter that is true or false (the default). Raises BadRequest."""
    text = query.get(name, "false").lower()
    if text not in _BOOLEANS:
        raise errors.BadRequest(f"{name}={text[:40]!r} must be true or false")
    return _BOOLEANS[text]


def number_parameter(query: Mapping[str, str], name: str, kind: type[int] | type[float] = int) -> Any:
    """A query parameter that is a number of 0 or more, or None. Raises BadRequest."""
    text = query.get(name)
    if text is None:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 2**53 - 1:
        raise errors.BadRequest(f"{name}={text[:40]!r} must be a {'whole ' if kind is int else ''}number of 0 or more")
    return value


def take(body: Document, allowed: Kinds, required: Sequence[str] = ()) -> Document:
    """The fields of a body, checked by name and type; None counts as absent. Raises BadRequest."""
    unknown = [str(name) for name in body if name not in allowed]
    if unknown:
        raise errors.BadRequest(f"unknown field {unknown[0][:80]!r}; known are {', '.join(allowed)}")
    fields = {name: value for name, value in body.items() if value is not None}
    for name, value in fields.items():
        kinds = allowed[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is int):
            raise errors.BadRequest(f"{name} must be {_kind_name(kinds)}, not {type(value).__name__}")
    for name in required:
        if name not in fields:
            raise errors.BadRequest(f"{name} is missing")
    return fields


_KIND_NAMES: dict[type, str] = {
    int: "a whole number",
    str: "a string",
    dict: "a map",
    list: "a list",
    bool: "true or false",
    bytes: "bytes",
}


def _kind_name(kinds: type | tuple[type, ...]) -> str:
    return " or ".join(_KIND_NAMES[kind] for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
