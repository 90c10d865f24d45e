"""Everything that the registry refuses or cannot tell, as one tree. `definite` says whether it surely did not happen.

    RegistryError
    ├── BadRequest 400 (bad_json, invalid, image_mismatch …)
    ├── Forbidden 403 ── Protected
    ├── NotFound 404 ── ImageNotFound, ImageDeleted
    ├── Conflict 409 ── UuidTaken, NumberTaken, BlockNotHeld, SequenceGap, SessionDiverged, SessionFenced,
    │                   EpochUnknown, IdFloorTooHigh, IdempotencyMismatch, AtomicRefused, LevelNotInForce,
    │                   LevelHeldBack, GatewayTooOld
    ├── Gone 410 ── Compacted, WrongEpoch
    ├── TooLarge 413 ── QuotaExceeded
    ├── TooManyRequests 429
    ├── Unavailable 503 ── Overloaded, NotLeader, NoQuorum, HomeZoneAway, TransferFailed
    ├── StorageFull 507
    └── Indefinite ── OutcomeUnknown 504, Unreachable, InternalError 500

On the wire: {"error": {"code", "message", "definite", ...details}}.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

RETRY_AFTER_S = 1
"""What `Retry-After` says on 429 and 503: longer than an election, shorter than a human's patience."""


class RegistryError(Exception):
    """One refusal or failure. `details` travel beside code and message and are plain JSON values."""

    code: str = "error"
    http_status: ClassVar[int] = 500
    definite: bool = True

    def __init__(self, message: str, *, code: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        if code is not None:
            self.code = code

    def to_wire(self) -> dict[str, Any]:
        """The body of an answer."""
        return {"error": {**self.details, "code": self.code, "message": self.message, "definite": self.definite}}


class BadRequest(RegistryError):
    """The request cannot be carried out as it stands; the message says what to change."""

    code = "invalid"
    http_status = 400


class Forbidden(RegistryError):
    """This certificate's holder may not do that."""

    code = "forbidden"
    http_status = 403


class Protected(Forbidden):
    """The image is protected; unset `protected` first."""

    code = "protected"


class NotFound(RegistryError):
    """No such route or object."""

    code = "not_found"
    http_status = 404


class ImageNotFound(NotFound):
    """No image has ever had this name here."""

    code = "image_not_found"


class ImageDeleted(NotFound):
    """The image was deleted; its number and UUID are never used again."""

    code = "image_deleted"


class Conflict(RegistryError):
    """The state has moved on: read again and decide anew."""

    code = "conflict"
    http_status = 409


class UuidTaken(Conflict):
    """The UUID names another image, or one that was deleted."""

    code = "uuid_taken"


class NumberTaken(Conflict):
    """The image number is bound to another image."""

    code = "number_taken"


class BlockNotHeld(Conflict):
    """The image number lies in no live block of this session."""

    code = "block_not_held"


class SequenceGap(Conflict):
    """An operation of the session is missing before this one; `last_sequence` says where to go on."""

    code = "sequence_gap"


class SessionDiverged(Conflict):
    """The gateway's history contradicts the registry's; the session is fenced."""

    code = "session_diverged"


class SessionFenced(Conflict):
    """A newer session of that gateway exists, or this one was fenced."""

    code = "session_fenced"


class EpochUnknown(Conflict):
    """The gateway was acknowledged in an epoch that this cluster never was in; it waits for one that follows."""

    code = "epoch_unknown"


class IdFloorTooHigh(Conflict):
    """The gateway knows numbers so far above the next one that a report alone is not believed."""

    code = "id_floor_too_high"


class IdempotencyMismatch(Conflict):
    """The idempotency key was used before for another request."""

    code = "idempotency_mismatch"


class AtomicRefused(Conflict):
    """An atomic batch did not happen: `failed` is the position of the refused operation, `cause` its refusal."""

    code = "atomic_refused"


class LevelNotInForce(Conflict):
    """The command, or a field of it, belongs to a feature level that an operator has not raised yet."""

    code = "level_not_in_force"


class LevelHeldBack(Conflict):
    """The feature level cannot rise yet; `by` names the members that do not support the next one, or are away."""

    code = "level_held_back"


class GatewayTooOld(Conflict):
    """The gateway does not support the feature level in force; upgrade it. What it holds stays in its queue."""

    code = "gateway_too_old"


class Gone(RegistryError):
    """What the cursor points at is no more: bootstrap again, then follow from the new cursor."""

    code = "gone"
    http_status = 410


class Compacted(Gone):
    """The cursor lies below the compaction floor."""

    code = "compacted"


class WrongEpoch(Gone):
    """The cursor belongs to another life of the cluster."""

    code = "wrong_epoch"


class TooLarge(RegistryError):
    """Body, batch or command is larger than its limit, which the message names."""

    code = "too_large"
    http_status = 413


class QuotaExceeded(TooLarge):
    """The project would own more than its quota."""

    code = "quota_exceeded"


class TooManyRequests(RegistryError):
    """More at a time than one caller or this peer may have under way."""

    code = "too_many_requests"
    http_status = 429


class Unavailable(RegistryError):
    """Not now; the same request may succeed later."""

    code = "unavailable"
    http_status = 503


class Overloaded(Unavailable):
    """A queue is full; nothing was queued."""

    code = "overloaded"


class NotLeader(Unavailable):
    """This peer does not lead. `leader` is the leader hint, or None."""

    code = "not_leader"

    def __init__(self, leader: str | None = None, message: str | None = None, **details: Any) -> None:
        hint = f"ask {leader}" if leader else "no leader is known"
        super().__init__(message or f"this peer does not lead; {hint}", leader=leader, **details)

    @property
    def leader(self) -> str | None:
        """Name of the peer that leads, as far as the answering peer knows."""
        name = self.details["leader"]
        return None if name is None else str(name)


class NoQuorum(Unavailable):
    """No majority of the peers can be reached."""

    code = "no_quorum"


class TransferFailed(Unavailable):
    """The lead stays where it is; the message says why."""

    code = "transfer_failed"


class HomeZoneAway(Unavailable):
    """The image's home zone is cut off, and only it may write the image meanwhile."""

    code = "home_zone_away"


class StorageFull(RegistryError):
    """The database or the disk is full; deletes still work."""

    code = "storage_full"
    http_status = 507


class Indefinite(RegistryError):
    """It may have happened, or may still. Repeat it only with the same idempotency key or session sequence."""

    code = "indefinite"
    definite = False


class OutcomeUnknown(Indefinite):
    """The command was proposed, its commit is not known. `key` is the idempotency key to repeat it with."""

    code = "outcome_unknown"
    http_status = 504


class Unreachable(Indefinite):
    """No endpoint answered in time, or the connection broke after the request was sent."""

    code = "unreachable"
    http_status = 503


class InternalError(Indefinite):
    """A bug, or a disk that failed; the peer's log has the details."""

    code = "internal"
    http_status = 500


def _tree(root: type[RegistryError]) -> Iterator[type[RegistryError]]:
    yield root
    for branch in root.__subclasses__():
        yield from _tree(branch)


# The root and the general classes stand for their status, the others for their code.
_BY_CODE: dict[str, type[RegistryError]] = {kind.code: kind for kind in _tree(RegistryError)}
_BY_CODE.update(
    bad_json=BadRequest,
    image_mismatch=BadRequest,
    session_unknown=NotFound,
    zone_not_found=NotFound,
    unknown_route=NotFound,
    too_many_keys=Overloaded,
    too_many_zones=StorageFull,
    too_many_gateways=StorageFull,
    ids_exhausted=StorageFull,
)
_BY_STATUS: dict[int, type[RegistryError]] = {
    400: BadRequest,
    403: Forbidden,
    404: NotFound,
    405: NotFound,
    409: Conflict,
    410: Gone,
    413: TooLarge,
    429: TooManyRequests,
    503: Unavailable,
    504: OutcomeUnknown,
    507: StorageFull,
}


def from_fields(fields: dict[str, Any], http_status: int | None = None) -> RegistryError:
    """The error that `{"code", "message", ...}` describes: the value of "error" in an answer or a result.

    A code that this release does not know keeps its code and gets the class of its HTTP status, without one
    `Conflict`: a result's refusal is always definite.
    """
    details = {name: value for name, value in fields.items() if name not in ("code", "message", "definite", "self")}
    code, message = str(fields.get("code", "error")), str(fields.get("message", "no reason given"))
    kind = _BY_CODE.get(code)
    if kind is None:
        kind = Conflict if http_status is None else _BY_STATUS.get(http_status, InternalError)
    if kind is NotLeader:
        return NotLeader(details.pop("leader", None), message, **details)
    error = kind(message, code=code, **details)
    if "definite" in fields:
        error.definite = bool(fields["definite"])
    return error


def refusal(error: dict[str, Any]) -> RegistryError:
    """The error for the value of "error" in a result of apply."""
    return from_fields(error)


def status_of(error: dict[str, Any]) -> int:
    """The HTTP status for a result's refusal."""
    return _BY_CODE.get(str(error.get("code")), Conflict).http_status
