"""Refusals of a zone gateway; images_v2's middleware turns each into its HTTP answer.

GatewayError
 +- BadRequest 400 · Unauthenticated 401 · Forbidden 403 · NotFound 404 · Conflict 409
 +- BodyTooLarge, QuotaExceeded 413 · UnsupportedMediaType 415 · RangeUnsatisfiable 416
 +- Unavailable 503 (Retry-After) +- Degraded: needs the registry, which is away
 |                                +- DataUnavailable: a data store, or another zone, can't be reached
 |                                    +- ZoneAway: the zone is silent
 +- StorageFull 507
 +- OutcomeUnknown 504 (indefinite)
ConfigError: the configuration file is wrong; said at start, never over HTTP.
RegistryAway, RegistryRefused, FeedGone: what the uplink tells drainer and feed consumer; never over HTTP either.
"""


class GatewayError(Exception):
    """A request was refused: `definite` says whether it surely did not happen."""

    code = "error"
    http_status = 500
    definite = True

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class BadRequest(GatewayError):
    """The request is malformed; the message says what to change."""

    code = "bad_request"
    http_status = 400


class Unauthenticated(GatewayError):
    """No identity could be established."""

    code = "unauthenticated"
    http_status = 401


class Forbidden(GatewayError):
    """The identity may see the image but not do this with it."""

    code = "forbidden"
    http_status = 403


class NotFound(GatewayError):
    """There is no such thing, or this identity may not know of it."""

    code = "not_found"
    http_status = 404


class Conflict(GatewayError):
    """The image is not in the state that the request needs."""

    code = "conflict"
    http_status = 409


class BodyTooLarge(GatewayError):
    """A body is above its bound."""

    code = "body_too_large"
    http_status = 413


class QuotaExceeded(GatewayError):
    """The project may have no more of this."""

    code = "quota_exceeded"
    http_status = 413


class UnsupportedMediaType(GatewayError):
    """The Content-Type is not one that this operation takes."""

    code = "unsupported_media_type"
    http_status = 415


class RangeUnsatisfiable(GatewayError):
    """The Range lies outside the image."""

    code = "range_unsatisfiable"
    http_status = 416

    def __init__(self, message: str, *, size: int) -> None:
        super().__init__(message)
        self.size = size


class Unavailable(GatewayError):
    """Not now; ask again after `retry_after_s`."""

    code = "unavailable"
    http_status = 503

    def __init__(self, message: str, *, retry_after_s: int = 5) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class Degraded(Unavailable):
    """This needs the registry (or the image's home zone), and the uplink is down."""

    code = "degraded"


class DataUnavailable(Unavailable):
    """The bytes lie in another zone and are not cached here, or belong into a store, and that can't be reached."""

    code = "data_unavailable"


class ZoneAway(DataUnavailable):
    """The zone did not answer in time: asking it again costs as much. Others may hold a copy."""


class StorageFull(GatewayError):
    """The disk or a quota is full; nothing was written. Deleting images makes room."""

    code = "storage_full"
    http_status = 507


class OutcomeUnknown(GatewayError):
    """The write is in the queue, but the registry's verdict did not come in time."""

    code = "outcome_unknown"
    http_status = 504
    definite = False


class ConfigError(Exception):
    """The configuration can't be used; the message names the key and what to write instead."""


class RegistryAway(Exception):
    """The registry did not answer, can't serve now, or its answer was lost: the same request may be sent again."""


class RegistryRefused(Exception):
    """The registry refused, with its error `code`; `malformed`: for what the request is, whatever the state."""

    def __init__(self, code: str, message: str, *, malformed: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.malformed = malformed


class FeedGone(Exception):
    """The feed can't go on from this position: it was compacted, or the cluster has a new epoch. Resync."""
