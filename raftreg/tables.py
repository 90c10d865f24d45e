"""The replicated state as rows of one LMDB keyspace: prefixes, keys, codecs, the head row, listing indexes, digest.

A table is a key prefix. Everything about one generation of the state lies in one named database, so that a snapshot,
a backup and a generation flip copy or exchange the whole keyspace without knowing what is in it.

| prefix | key behind it | value |
|---|---|---|
| `!` | - | head: checksum (crc32), then format, applied index, digest, counters |
| `I` | number | image (the public map) |
| `T` | number | tombstone of a deleted image: number and UUID are never used again |
| `U` | uuid (16) | number, of images and tombstones |
| `L` | index, scope, sort value, number | nothing: a listing index |
| `C` | revision | change record |
| `B` | first number | ID block; without a gateway: numbers that an epoch skipped |
| `Z` | zone | zone, with its gateways |
| `G` | gateway | gateway: its zone, session in force, fencing token |
| `S` | session (16) | session head |
| `R` | session (16), sequence | [running hash, result]: the window of a session |
| `K` | hash of scope (16), key | idempotency row: [time, hash of the arguments, result] |
| `E` | time, hash of scope, key | nothing: idempotency rows by age |
| `O` | project, or its hash | project: what it owns and may own at most |
| `P` | epoch | what was begun by a recovery: the numbers skipped, revision and time |
| `M` | - | where the migration to the next feature level goes on, while it is under way |
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import lmdb
import msgpack

Row = dict[str, Any]

FEATURE_LEVEL = 1
"""The highest feature level that this release supports; the level in force is in the head (`raftreg.state_levels`)."""
FEATURE_LEVEL_MIN = 1
"""The lowest one of which it reads states. A state that nothing was applied to is of level 1, in every release."""

NUMBER_MAX = 2**53 - 1
"""Image numbers, revisions and versions stay exact in JSON readers that know only doubles."""

# LMDB's keys are at most 511 bytes; what is longer is cut (sort values) or hashed (scopes).
TEXT_SORT_BYTES_MAX = 128
SCOPE_BYTES_MAX = 64

HEAD = b"!"
IMAGES, TOMBSTONES, UUIDS, LISTING, CHANGES = b"I", b"T", b"U", b"L", b"C"
BLOCKS, ZONES, GATEWAYS, SESSIONS, RESULTS = b"B", b"Z", b"G", b"S", b"R"
KEYS, KEYS_BY_AGE = b"K", b"E"
EPOCHS, PROJECTS = b"P", b"O"
MIGRATION = b"M"

DIGESTED = frozenset(b"ITCBZGSRKPOM")
"""First bytes of canonical rows. `U`, `L` and `E` are derived from these; of the head, `digest` takes the counters."""

DIGEST_MODULUS = 1 << 128


class RowWatch:
    """Sum of the hashes of all canonical rows before `position`; apply keeps it true while rows change.

    A scrub that recomputes the digest in many small steps needs no read transaction across them.
    """

    __slots__ = ("position", "total")

    def __init__(self) -> None:
        self.position = b""
        self.total = 0


class View:
    """One generation of the state inside one LMDB transaction; cheap to make, never kept across an await.

    `watch` is kept true by apply, where there is one.
    """

    __slots__ = ("db", "txn", "watch")

    def __init__(self, txn: lmdb.Transaction, db: lmdb._Database, watch: RowWatch | None = None) -> None:
        self.txn = txn
        self.db = db
        self.watch = watch

    def get(self, key: bytes) -> bytes | None:
        value: Any = self.txn.get(key, None, self.db)
        return value  # type: ignore[no-any-return]

    def put(self, key: bytes, value: bytes) -> None:
        """Needs a write transaction."""
        self.txn.put(key, value, True, True, False, self.db)

    def delete(self, key: bytes) -> bool:
        """Whether the row was there. Needs a write transaction."""
        deleted: bool = self.txn.delete(key, b"", self.db)
        return deleted

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end, in key order or backwards. Don't write while a scan is open."""
        cursor: Any
        with self.txn.cursor(self.db) as cursor:
            found = cursor.set_range(end if reverse else start)
            if reverse:
                found = cursor.prev() if found else cursor.last()
            step = cursor.prev if reverse else cursor.next
            while found:
                row: tuple[bytes, bytes] = cursor.item()
                if not start <= row[0] < end:
                    return
                yield row
                found = step()


def u64(number: int) -> bytes:
    """Big-endian, so that keys sort as the numbers do."""
    return number.to_bytes(8, "big")


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(data: bytes) -> Any:
    return msgpack.unpackb(data)


def hash16(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def uuid_bytes(uuid: str) -> bytes:
    """The 16 bytes of a canonical UUID."""
    return bytes.fromhex(uuid.replace("-", ""))


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all keys that start with `prefix` (which must not end in 0xff)."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


# -- keys ---------------------------------------------------------------------------------------------------------


def image_key(number: int) -> bytes:
    return IMAGES + number.to_bytes(8, "big")


def tombstone_key(number: int) -> bytes:
    return TOMBSTONES + number.to_bytes(8, "big")


def uuid_key(uuid: str) -> bytes:
    return UUIDS + bytes.fromhex(uuid.replace("-", ""))


def change_key(revision: int) -> bytes:
    return CHANGES + revision.to_bytes(8, "big")


def block_key(first: int) -> bytes:
    return BLOCKS + first.to_bytes(8, "big")


def zone_key(zone: str) -> bytes:
    return ZONES + zone.encode()


def gateway_key(gateway: str) -> bytes:
    return GATEWAYS + gateway.encode()


def session_key(session: str) -> bytes:
    return SESSIONS + uuid_bytes(session)


def result_key(session: str, sequence: int) -> bytes:
    return RESULTS + uuid_bytes(session) + sequence.to_bytes(8, "big")


def project_key(project: str) -> bytes:
    return PROJECTS + scope_value(project)


def epoch_key(epoch: int) -> bytes:
    return EPOCHS + epoch.to_bytes(8, "big")


def new_project(project: str) -> Row:
    """The row of a project that owns nothing and has no quota: it is not stored."""
    return {"project": project, "images": 0, "bytes": 0, "images_max": None, "bytes_max": None}


# -- head ---------------------------------------------------------------------------------------------------------

COUNTERS = (
    "level", "raising",
    "time_us", "next_id", "revision", "floor", "images", "tombstones", "changes", "keys", "zones", "gateways",
    "sessions", "blocks", "projects",
)  # fmt: skip


class UnknownLevel(Exception):
    """A state, or a committed entry, is of a feature level that this release does not read. The peer stops."""


class DamagedHead(Exception):
    """The head is not what was written: the peer must stop, since digest and counters are in it."""


class Head:
    """The hot numbers of the state in one row: read once and written once per entry.

    `rows_digest` sums the hashes of all canonical rows; `floor` is the lowest revision still in the feed; `next_id`
    the next number to be issued; `keys` counts idempotency rows. `level` is the feature level in force; `raising` is 1
    while the migration to the next one is under way, else 0.
    """

    __slots__ = ("applied", "rows_digest", *COUNTERS)

    applied: int
    rows_digest: int
    level: int
    raising: int
    time_us: int
    next_id: int
    revision: int
    floor: int
    images: int
    tombstones: int
    changes: int
    keys: int
    zones: int
    gateways: int
    sessions: int
    blocks: int
    projects: int

    def __init__(self, applied: int, rows_digest: int, counters: list[int]) -> None:
        self.applied = applied
        self.rows_digest = rows_digest
        self.restore(counters)

    def counters(self) -> list[int]:
        """What is digested of the head: everything but the applied index, which depends on the cut of entries."""
        return [
            self.level, self.raising,
            self.time_us, self.next_id, self.revision, self.floor, self.images, self.tombstones, self.changes,
            self.keys, self.zones, self.gateways, self.sessions, self.blocks, self.projects,
        ]  # fmt: skip

    def restore(self, counters: list[int]) -> None:
        (
            self.level, self.raising,
            self.time_us, self.next_id, self.revision, self.floor, self.images, self.tombstones, self.changes,
            self.keys, self.zones, self.gateways, self.sessions, self.blocks, self.projects,
        ) = counters  # fmt: skip

    @property
    def format(self) -> int:
        """The feature level that a release must support to read this state."""
        return self.level + self.raising


_CHECKSUM_BYTES = 4
_EMPTY = [1, 0, 0, 1, 0, 1, *(0 for _ in COUNTERS[6:])]


def read_head(view: View) -> Head:
    """The head; of an empty state: nothing applied, the first number is 1, the feed starts at revision 1."""
    row = view.get(HEAD)
    return Head(0, 0, _EMPTY) if row is None else decode_head(row)


def decode_head(row: bytes) -> Head:
    """The head's row. Raises DamagedHead, UnknownLevel."""
    packed = row[_CHECKSUM_BYTES:]
    if int.from_bytes(row[:_CHECKSUM_BYTES], "big") != zlib.crc32(packed):
        raise DamagedHead("it does not match its checksum")
    level, *fields = unpack(packed)
    if level > FEATURE_LEVEL:
        raise UnknownLevel(
            f"the state has feature level {level}, this release reads up to {FEATURE_LEVEL}: start a release that "
            f"supports feature level {level}; only a backup from before the level was raised leads back"
        )
    if level < FEATURE_LEVEL_MIN:
        raise UnknownLevel(
            f"the state has feature level {level}, this release reads {FEATURE_LEVEL_MIN} and above: start a release "
            f"that supports {level} and {level + 1}, run `raftreg level raise`, then start this one again"
        )
    applied, rows_digest, counters = fields
    return Head(applied, int.from_bytes(rows_digest, "little"), counters)


def write_head(view: View, head: Head) -> None:
    packed = pack([head.format, head.applied, head.rows_digest.to_bytes(16, "little"), head.counters()])
    view.put(HEAD, zlib.crc32(packed).to_bytes(_CHECKSUM_BYTES, "big") + packed)


# -- digest -------------------------------------------------------------------------------------------------------

DIGEST_VERSION = 1
_DIGEST_PREFIXES = tuple(bytes((DIGEST_VERSION, length)) for length in range(256))


def row_hash(key: bytes, value: bytes) -> int:
    """A canonical row's contribution to the digest, which is their sum modulo 2**128."""
    hashed = blake2b(_DIGEST_PREFIXES[len(key)] + key + value, digest_size=16)
    return int.from_bytes(hashed.digest(), "little")


def head_hash(head: Head) -> int:
    """The head's contribution to the digest."""
    return row_hash(HEAD, pack(head.counters()))


# -- listing indexes ----------------------------------------------------------------------------------------------


def text_sort_value(text: str | None) -> bytes:
    """No text comes first; others by code point up to TEXT_SORT_BYTES_MAX bytes. No value is a prefix of another."""
    return b"\x00" if text is None else b"\x01" + text.encode()[:TEXT_SORT_BYTES_MAX] + b"\x00"


def number_sort_value(number: int | None) -> bytes:
    """No number comes first."""
    return b"\x00" if number is None else b"\x01" + number.to_bytes(8, "big")


def scope_value(value: str) -> bytes:
    """The equality part of an index key. 0xff starts no UTF-8 text, so hashed and plain values can't be mixed up."""
    encoded = value.encode()
    return encoded + b"\x00" if len(encoded) <= SCOPE_BYTES_MAX else b"\xff" + hash16(encoded)


SORTS: dict[str, Callable[[Any], bytes]] = {
    "created_at": u64,
    "name": text_sort_value,
    "status": text_sort_value,
    "disk_format": text_sort_value,
    "container_format": text_sort_value,
    "size": number_sort_value,
    "updated_at": u64,
}
"""Attributes that listing indexes sort by, and how a value is encoded. Images of one value are in the order of their
creation, then of their numbers: so an index serves as that of the images with one value, too. Encoded values never
begin with 0xff."""


def _data_zones(image: Row) -> list[str]:
    """Zones that hold the image's data."""
    if not image["locations"]:
        return []
    zones = (location["zone"] for location in image["locations"] if location["status"] == "active")
    return list(dict.fromkeys(zone for zone in zones if zone is not None))


def member_scope(project: str, status: str) -> str:
    """The value of scope `member_status`."""
    return f"{status} {project}"


def _members(image: Row) -> list[str]:
    """Projects that the image is shared with; an image of another visibility is shared with nobody."""
    return list(image["members"]) if image["visibility"] == "shared" else []


def audience(image: Row) -> Row:
    """What decides who sees the image: {"owner", "visibility", "members"}, of these the names."""
    return {"owner": image["owner"], "visibility": image["visibility"], "members": _members(image)}


MANY_VALUED: dict[str, Callable[[Row], list[str]]] = {
    "tag": lambda image: list(image["tags"]),
    "data_zone": _data_zones,
    "member": _members,
    "member_status": lambda image: [member_scope(name, image["members"][name]["status"]) for name in _members(image)],
}
"""Scopes of which an image has any number of values, each at most once."""


def scope_values(image: Row, scope: str) -> list[Any]:
    """The values of a scope that an image has."""
    if scope in MANY_VALUED:
        return MANY_VALUED[scope](image)
    value = image[scope]
    return [] if value is None else [value]


@dataclass(frozen=True, slots=True)
class Index:
    """One listing index: images for which `scope` (an attribute, or of MANY_VALUED) has a value, ordered by `sort`,
    then creation, then number."""

    code: int
    scope: str | None
    sort: str

    @property
    def prefix(self) -> bytes:
        return LISTING + bytes((self.code,))


# Codes are stored: never give one to another index. Images without a value for the scope are not in the index.
INDEXES = (
    Index(1, None, "created_at"),
    Index(2, None, "name"),
    Index(3, None, "status"),
    Index(4, None, "disk_format"),
    Index(5, None, "container_format"),
    Index(6, None, "size"),
    Index(7, None, "updated_at"),
    # One owner's images are too few among all to be filtered from an order of all. Others are not: each index is a
    # row per image, which every create pays for on every peer.
    Index(8, "owner", "created_at"),
    Index(9, "owner", "name"),
    Index(10, "owner", "size"),
    Index(11, "owner", "updated_at"),
    Index(12, "visibility", "created_at"),
    Index(13, "visibility", "name"),
    Index(14, "home_zone", "created_at"),
    Index(15, "data_zone", "created_at"),
    Index(16, "tag", "created_at"),
    Index(17, "member", "created_at"),
    Index(18, "member_status", "created_at"),
)

_Prefixes = tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """Some indexes, arranged so that the keys of an image in them are made quickly."""

    by_value: tuple[tuple[str | None, _Prefixes], ...]
    by_values: tuple[tuple[Callable[[Row], list[str]], _Prefixes], ...]

    @staticmethod
    def of(indexes: Iterable[Index]) -> IndexPlan:
        prefixes: dict[str | None, list[tuple[bytes, int]]] = {}
        for index in indexes:
            prefixes.setdefault(index.scope, []).append((index.prefix, tuple(SORTS).index(index.sort)))
        return IndexPlan(
            tuple((scope, tuple(found)) for scope, found in prefixes.items() if scope not in MANY_VALUED),
            tuple((MANY_VALUED[scope], tuple(found)) for scope, found in prefixes.items() if scope in MANY_VALUED),
        )


_ALL_INDEXES = IndexPlan.of(INDEXES)
_OTHER_SORTS = tuple((name, encode) for name, encode in SORTS.items() if name != "created_at")


def sort_end(row: Row, sort: str) -> bytes:
    """Where an image, or what was one, stands in an order: the part of an index key behind its scope."""
    end = u64(row["created_at"]) + u64(row["number"])
    return end if sort == "created_at" else SORTS[sort](row[sort]) + end


def index_keys(image: Row, plan: IndexPlan = _ALL_INDEXES) -> list[bytes]:
    """All listing rows of an image in the indexes of a plan."""
    end = image["created_at"].to_bytes(8, "big") + image["number"].to_bytes(8, "big")
    ends = [end, *[encode(image[name]) + end for name, encode in _OTHER_SORTS]]
    keys = []
    for scope, prefixes in plan.by_value:
        if scope is None:
            keys += [prefix + ends[sort] for prefix, sort in prefixes]
        elif (value := image[scope]) is not None:
            between = scope_value(value)
            keys += [prefix + between + ends[sort] for prefix, sort in prefixes]
    for values, prefixes in plan.by_values:
        for value in values(image):
            between = scope_value(value)
            keys += [prefix + between + ends[sort] for prefix, sort in prefixes]
    return keys


# Which attribute says what a scope's values are, where it has another name.
_MADE_OF = {"tag": "tags", "data_zone": "locations", "member": "visibility", "member_status": "visibility"}


@functools.lru_cache(maxsize=256)
def plan_of_changed(changed: frozenset[str], members: bool) -> IndexPlan:
    """The indexes in which an image may move when these attributes change; `members`: and its members too."""

    def moves(index: Index) -> bool:
        scope = index.scope or index.sort
        of_members = scope in ("member", "member_status")
        return index.sort in changed or _MADE_OF.get(scope, scope) in changed or (members and of_members)

    return IndexPlan.of(filter(moves, INDEXES))


INDEXED = frozenset(SORTS) | {"owner", "visibility", "home_zone", "tags", "locations"}
"""Attributes whose change can move an image in its indexes; of members, any change can."""


def number_of_index_key(key: bytes) -> int:
    return int.from_bytes(key[-8:], "big")
