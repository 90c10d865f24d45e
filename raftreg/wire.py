"""What goes over HTTP between the registry and its clients: encodings, headers, cursors, the session's hash chain."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import msgpack
import orjson

from raftreg import errors

PREFIX = "/registry/v1"

MSGPACK = "application/msgpack"
JSON = "application/json"
NDJSON = "application/x-ndjson"

HEADER_CLUSTER = "X-Raftreg-Cluster"
HEADER_EPOCH = "X-Raftreg-Epoch"
HEADER_REVISION = "X-Raftreg-Revision"
HEADER_APPLIED = "X-Raftreg-Applied"
HEADER_LEADER = "X-Raftreg-Leader"
HEADER_STALENESS = "X-Raftreg-Staleness"
HEADER_PEER = "X-Raftreg-Peer"
HEADER_DEADLINE_MS = "X-Raftreg-Deadline-Ms"
HEADER_HOP = "X-Raftreg-Hop"
HEADER_FORWARDED_SUBJECT = "X-Raftreg-Forwarded-Subject"
HEADER_ZONE = "X-Raftreg-Zone"
HEADER_GATEWAY = "X-Raftreg-Gateway"
HEADER_USER = "X-Raftreg-User"
HEADER_PROJECT = "X-Raftreg-Project"
HEADER_REQUEST_ID = "X-Openstack-Request-Id"
HEADER_KEY = "Idempotency-Key"

CHAIN_START = bytes(16)
"""The running hash of a session without operations."""

_CHAIN_BYTES = 16
_NUMBER_MAX = 2**63 - 1


class Cursor(NamedTuple):
    """A place in the changefeed: the epoch of the cluster and a revision in it."""

    epoch: int
    revision: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.revision}"


def parse_cursor(text: str) -> Cursor:
    """EPOCH.REVISION. Raises BadRequest."""
    epoch, dot, revision = text.partition(".")
    # isdecimal alone would take digits of other scripts.
    if dot and text.isascii() and epoch.isdecimal() and revision.isdecimal() and len(text) <= 40:
        cursor = Cursor(int(epoch), int(revision))
        if max(cursor) <= _NUMBER_MAX:
            return cursor
    raise errors.BadRequest(f"{text[:60]!r} is no cursor; it looks like 1.4711 (epoch, dot, revision)")


def chain_hash(previous: bytes, payload: bytes) -> bytes:
    """The session's running hash after an operation with this payload."""
    return hashlib.blake2b(previous + payload, digest_size=_CHAIN_BYTES).digest()


def pack(value: Any) -> bytes:
    """msgpack."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(data: bytes) -> Any:
    """The value of one msgpack document. Raises BadRequest."""
    try:
        return msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError, UnicodeDecodeError) as error:
        raise errors.BadRequest(
            f"the body is not msgpack: {error or type(error).__name__}", code="bad_msgpack"
        ) from None


def to_json(value: Any) -> bytes:
    """JSON; bytes become hexadecimal text."""
    return orjson.dumps(value, default=_json_default)


def _json_default(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def from_json(data: bytes) -> Any:
    """The value of one JSON document. Raises BadRequest."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise errors.BadRequest(f"the body is not JSON: {error}", code="bad_json") from None


def decode(data: bytes, content_type: str) -> Any:
    """The body of a request or an answer by its Content-Type; JSON unless it says msgpack. Raises BadRequest."""
    return unpack(data) if content_type.startswith(MSGPACK) else from_json(data)


def encode(value: Any, *, as_msgpack: bool) -> bytes:
    """The body of an answer."""
    return pack(value) if as_msgpack else to_json(value)


def as_bytes(value: Any, name: str) -> bytes:
    """A field that is bytes in msgpack and hexadecimal text in JSON. Raises BadRequest."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return bytes.fromhex(value)
        except ValueError:
            pass
    raise errors.BadRequest(f"{name} must be bytes (in JSON: hexadecimal text)")


def encode_page(name: str, rows: list[bytes], rest: dict[str, Any], *, as_msgpack: bool) -> bytes:
    """The map {name: [rows...], **rest} from rows that are encoded already (each was, to count its bytes)."""
    if not as_msgpack:
        tail = to_json(rest)[1:]
        return b'{"%s":[%s]%s%s' % (name.encode(), b",".join(rows), b"," if rest else b"", tail)
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(1 + len(rest))
    packer.pack(name)
    packer.pack_array_header(len(rows))
    tail = b"".join(pack(key) + pack(value) for key, value in rest.items())
    head: bytes = packer.bytes()
    return head + b"".join(rows) + tail
