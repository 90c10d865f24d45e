"""Client of the registry API: picks an endpoint, follows leader hints, fails over, and retries what is safe.

Endpoints are voters and observers. Writes and linearizable reads go to the leader; reads that may be bounded or stale,
bootstraps and the feed go to the nearest endpoint that can answer.

What is safe to send twice is said in `client_requests`; the writes here mint an idempotency key by themselves.

    async with Client(["https://a:4711", "https://b:4711"], ssl=client_ssl_context(ca, cert, key)) as registry:
        image = await registry.create_image(attributes={"name": "cirros"})
        async for message in registry.changes("1.0"):
            ...

Errors are those of `raftreg.errors`; `error.definite` says whether it surely did not happen.
"""

from __future__ import annotations

import asyncio
import ssl as tls
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from raftreg import certificates, errors, wire
from raftreg.client_feed import FeedRequests
from raftreg.client_requests import Attempt, Document, new_key, query_of
from raftreg.config import TlsFiles
from raftreg.endpoints import Endpoint
from raftreg.feed_filter import FeedFilter

__all__ = ["Client", "Document", "FeedFilter", "Ref", "client_ssl_context", "new_key"]

Ref = int | str | Mapping[str, int | str]
"""An image: its number, its UUID, or {"number", "uuid"} when both are known (then both must fit)."""


def client_ssl_context(ca: Path | str, cert: Path | str, key: Path | str) -> tls.SSLContext:
    """TLS for `Client` from PEM files. The other end must be a peer of the cluster; its address does not matter."""
    return certificates.api_client_context(TlsFiles(Path(ca), Path(cert), Path(key)))


class Client(FeedRequests):
    """Talks to one registry through any of its endpoints; use one per process, from one event loop.

    `deadline_s` bounds every call, retries included. `actor` (user, project, request_id) goes into what is written.
    """

    # -- images ---------------------------------------------------------------------------------------------------

    async def create_image(self, *, key: str | None = None, **fields: Any) -> Document:
        """Create an image from `uuid`, `attributes`, `properties`, `tags`, `home_zone`, `locations`…; as it is now."""
        return _written(await self.request("POST", "images", body=fields, key=key or new_key()))

    async def get_image(
        self, ref: Ref, *, consistency: str = "linearizable", max_staleness: float | None = None
    ) -> Document:
        """The image. Raises ImageNotFound, ImageDeleted. `max_staleness`, in seconds, goes with "bounded"."""
        path, params = _image(ref)
        asked = {**params, "consistency": consistency, "max_staleness": max_staleness}
        answer = await self.request("GET", path, params=asked)
        image: Document = answer["image"]
        return image

    async def list_images(self, **filters: Any) -> Document:
        """One page: {"images", "next"}; pass `next` as `marker` for the following one. See GET images for filters,
        `consistency` and `max_staleness`."""
        return await self.request("GET", "images", params=filters)

    async def update_image(
        self,
        ref: Ref,
        set: Mapping[str, Any] | None = None,
        *,
        unset: Sequence[str] = (),
        base_version: int | None = None,
        key: str | None = None,
        **more: Any,
    ) -> Document:
        """Change attributes ("name", "properties.os_distro", "tags"…); Conflict if one changed since base_version."""
        path, params = _image(ref)
        body = {"set": dict(set or {}), "unset": list(unset), **more}
        if base_version is not None:
            body["base_version"] = base_version
        return _written(await self.request("PATCH", path, params=params, body=body, key=key or new_key()))

    async def delete_image(
        self, ref: Ref, *, base_version: int | None = None, force: bool = False, key: str | None = None
    ) -> Document:
        """Delete for ever: number and UUID are not used again."""
        path, params = _image(ref)
        headers = {} if base_version is None else {"If-Match": str(base_version)}
        if force:
            params["force"] = "true"
        return await self.request("DELETE", path, params=params, headers=headers, key=key or new_key())

    async def fates(self, images: Sequence[Mapping[str, Any]]) -> list[Document]:
        """What has become of images, each {"number", "uuid"}: {"fate": "live"}, {"fate": "deleted", "revision"} or
        {"fate": "unknown"}, in order."""
        answer = await self.request("POST", "images/fates", body={"images": list(images)}, safe=True)
        fates: list[Document] = answer["fates"]
        return fates

    async def confirm_deletions(self, zone: str, numbers: Sequence[int]) -> int:
        """Say that the zone holds no bytes of these deleted images any more; how many were still counted for it."""
        path = _path("zones", zone, "deletions")
        answer = await self.request("POST", path, body={"numbers": list(numbers)}, safe=True)
        return int(answer["confirmed"])

    async def allocate_ids(self, count: int = 1, *, key: str | None = None) -> tuple[int, int]:
        """(first, last) of IDs that nobody else ever gets."""
        ok = await self.request("POST", "ids", body={"count": count}, key=key or new_key())
        return ok["first"], ok["last"]

    async def batch(
        self, operations: Sequence[Mapping[str, Any]], *, atomic: bool = False, key: str | None = None
    ) -> list[Document]:
        """One result per operation, {"ok"} or {"error"}; an atomic batch raises AtomicRefused instead.

        Without `atomic`, only operations that carry a `key` of their own are sent again when the outcome is unknown.
        """
        body = {"operations": list(operations), "atomic": atomic}
        safe = atomic or all("key" in operation for operation in operations)
        answer = await self.request("POST", "batch", body=body, key=(key or new_key()) if atomic else None, safe=safe)
        results: list[Document] = answer["results"]
        return results

    # -- zones, gateways, sessions --------------------------------------------------------------------------------

    async def zones(
        self, *, consistency: str = "linearizable", max_staleness: float | None = None
    ) -> dict[str, Document]:
        """The registered zones by name."""
        return await self._all("zones", {"consistency": consistency, "max_staleness": max_staleness})

    async def zone(self, zone: str) -> Document:
        """One registered zone. Raises NotFound."""
        answer = await self.request("GET", _path("zones", zone))
        found: Document = answer["zone"]
        return found

    async def register_zone(self, zone: str, **fields: Any) -> Document:
        """Register the zone (`endpoint`, `capabilities`), or change what is said about it."""
        return await self.request("PUT", _path("zones", zone), body=fields)

    async def register_gateway(self, zone: str, gateway: str, endpoint: str) -> Document:
        """Say where the other zones' gateways reach this one."""
        return await self.request("PUT", _path("zones", zone, "gateways", gateway), body={"endpoint": endpoint})

    async def heartbeat(self, zone: str, gateway: str, *, level: int = 1, deadline_s: float | None = None) -> Document:
        """Renew the zone's lease; the answer's `lease_s` is the term, its `level` the feature level in force, `state`
        what the registry had applied: {"epoch", "revision", "staleness_s"}, or None of a peer that can't tell its age.

        `level` is the highest that the gateway supports. Raises GatewayTooOld when the registry is above that.
        """
        body, answered = {"gateway": gateway, "level": level}, dict[str, str]()
        document = await self.request(
            "POST", _path("zones", zone, "heartbeat"), body=body, safe=True, deadline_s=deadline_s, answered=answered
        )
        return document | {"state": _state(answered)}

    async def projects(self, *, after: str | None = None, limit: int | None = None) -> Document:
        """A page of projects that own images or have a quota: {"projects", "next"}."""
        return await self.request("GET", "projects", params={"after": after, "limit": limit})

    async def project(self, project: str) -> Document:
        """What a project owns and may own: {"project", "images", "bytes", "images_max", "bytes_max"}."""
        answer = await self.request("GET", _path("projects", project))
        owned: Document = answer["project"]
        return owned

    async def set_quota(self, project: str, *, images_max: int | None = None, bytes_max: int | None = None) -> Document:
        """Bound what a project may own; None: no bound. Needs an operator's certificate."""
        body = {"images_max": images_max, "bytes_max": bytes_max}
        return await self.request("PUT", _path("projects", project), body=body)

    async def open_session(
        self,
        *,
        gateway: str,
        zone: str,
        session: str,
        highest_sequence: int,
        acked_sequence: int,
        acked_hash: bytes,
        epoch: int = 0,
        epoch_began: int = 0,
        highest_number: int = 0,
    ) -> Document:
        """Open the session or learn how far it got: {"session", "last_sequence", "last_hash", "token", "diverged",
        "follows", "epoch", "epoch_revision", "epoch_began"}.

        `epoch` and `epoch_began` are as the last answer gave them, 0 before the first one; `highest_number` is the
        highest image number that the gateway knows to be issued.
        """
        body = {
            "gateway": gateway,
            "zone": zone,
            "session": session,
            "highest_sequence": highest_sequence,
            "acked_sequence": acked_sequence,
            "acked_hash": acked_hash,
            "epoch": epoch,
            "epoch_began": epoch_began,
            "highest_number": highest_number,
        }
        return await self.request("POST", "sessions", body=body, safe=True)

    async def sessions(self) -> dict[str, Document]:
        """All remembered sessions by UUID, fenced ones included. For operators."""
        return await self._all("sessions", {})

    async def _all(self, name: str, params: Document) -> dict[str, Document]:
        """The rows of all pages."""
        found: dict[str, Document] = {}
        after: str | None = None
        while True:
            page = await self.request("GET", name, params={**params, "after": after})
            found |= page[name]
            after = page["next"]
            if after is None:
                return found

    async def session(self, session: str) -> Document:
        """One session. Raises NotFound. For operators."""
        answer = await self.request("GET", _path("sessions", session))
        found: Document = answer["session"]
        return found

    async def list_blocks(self, **filters: Any) -> Document:
        """One page of ID blocks: {"blocks", "next"}; pass `next` as `after` for the following one. For operators.

        Filters are `gateway` and `limit`; with `gateway` a page may be short although `next` says that there is more.
        """
        return await self.request("GET", "blocks", params=filters)

    async def seal_blocks(self, gateway: str, session: str | None = None, *, key: str | None = None) -> Document:
        """{"sealed"}: how many blocks of the gateway's session (default: the one in force) bind no number any more."""
        body = {"gateway": gateway, "session": session}
        return await self.request("POST", "blocks/seal", body=body, key=key or new_key())

    async def grant_block(
        self, *, gateway: str, session: str, size: int, token: int, key: str | None = None
    ) -> Document:
        """{"first", "last", "token"}: numbers for the session's creates."""
        body = {"gateway": gateway, "session": session, "size": size, "token": token}
        return await self.request("POST", "blocks", body=body, key=key or new_key())

    async def session_operations(
        self,
        session: str,
        operations: Sequence[Mapping[str, Any]],
        *,
        gateway: str | None = None,
        deadline_s: float | None = None,
    ) -> list[Document]:
        """Drain {"sequence", "previous_hash", "payload"} in order; one result each. Safe to repeat, by sequence."""
        body: Document = {"operations": list(operations)}
        if gateway is not None:
            body["gateway"] = gateway
        path = _path("sessions", session, "operations")
        answer = await self.request("POST", path, body=body, safe=True, deadline_s=deadline_s)
        results: list[Document] = answer["results"]
        return results

    # -- state of the registry ------------------------------------------------------------------------------------

    async def status(self) -> Document:
        """What one peer says about the cluster and itself."""
        return await self.request("GET", "status")

    async def peer_status(self, deadline_s: float = 2.0) -> dict[str, Document | errors.RegistryError]:
        """What every endpoint says, by URL; the error of those that do not answer in time."""
        return await self.each("GET", "status", deadline_s=deadline_s)

    async def each(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, deadline_s: float = 2.0
    ) -> dict[str, Document | errors.RegistryError]:
        """One request without a body to every endpoint, once, at the same time; answers or errors by URL."""

        async def ask(endpoint: Endpoint) -> Document | errors.RegistryError:
            attempt = Attempt(method, f"{wire.PREFIX}/{path}", query_of(params), None, dict(self.headers))
            try:
                return await self.once(attempt, endpoint, deadline_s)
            except errors.RegistryError as error:
                return error

        answers = await asyncio.gather(*(ask(endpoint) for endpoint in self.endpoints))
        return {endpoint.url: answer for endpoint, answer in zip(self.endpoints, answers, strict=True)}

    async def compact(
        self,
        *,
        floor: int | None = None,
        age_s: int | None = None,
        progress: Callable[[int, int], None] = lambda _floor, _most: None,
    ) -> int:
        """Forget changes below revision `floor`, or older than `age_s`; the compaction floor reached. For operators.

        `progress` is told the floor so far, and the highest that it can become.
        """
        while True:
            # The registry works through it for as long as one request may last; repeating it goes on from there.
            ok = await self.request("POST", "compact", body={"floor": floor, "age_s": age_s}, safe=True)
            progress(ok["floor"], floor or ok["revision"])
            if not ok["more"]:
                return int(ok["floor"])

    async def raise_level(self, to: int | None = None) -> int:
        """Raise the feature level to `to`, or to the highest that voters support; the level in force then.

        Raises LevelHeldBack while a member does not support it. For operators.
        """
        while True:
            # A migration goes on for as long as one request may last; repeating it goes on from there.
            ok = await self.request("POST", "level/raise", body={"level": to}, safe=True)
            if not ok["more"]:
                return int(ok["level"])

    async def transfer_leadership(self, to: str | None = None) -> Document:
        """{"from", "to", "took_s"} once another voter leads: `to`, or the one that is furthest. For operators."""
        return await self.request("POST", "leader/transfer", body={"to": to})


def _written(ok: Document) -> Document:
    """The image after a write. The answer to a retry has none when somebody has deleted it since."""
    image: Document | None = ok["image"]
    if image is None:
        raise errors.ImageDeleted(
            f"the write was done, and image {ok['number']} has been deleted since",
            **{name: ok[name] for name in ("number", "uuid", "version", "revision")},
        )
    return image


def _path(*parts: int | str) -> str:
    """A path of names that may hold anything: `/`, `%` and `?` are part of a name, not of the path.

    Raises BadRequest for one that a path cannot carry: it would be another path.
    """
    for part in parts:
        if part in ("", ".", ".."):
            raise errors.BadRequest(f"{part!r} is no name")
    return "/".join(quote(str(part), safe="") for part in parts)


def _state(answered: Mapping[str, str]) -> Document | None:
    """Which state of the registry an answer is from, by its headers."""
    staleness = answered.get(wire.HEADER_STALENESS)
    if staleness is None:
        return None
    epoch, revision = int(answered[wire.HEADER_EPOCH]), int(answered[wire.HEADER_REVISION])
    # Told in rounded milliseconds: an age may be too high, not too low.
    return {"epoch": epoch, "revision": revision, "staleness_s": float(staleness) + 0.0005}


def _image(ref: Ref) -> tuple[str, dict[str, Any]]:
    """Path and parameters which name an image."""
    if not isinstance(ref, Mapping):
        return _path("images", ref), {}
    names = {kind: ref[kind] for kind in ("number", "uuid") if ref.get(kind) is not None}
    if not names:
        raise errors.BadRequest("an image is named by number, uuid or both")
    first = next(iter(names.values()))
    return _path("images", first), names
