"""Indexes of the catalogue: for every scope and sort key one range of keys, so that a page costs the same at any size.

A scope is who may see it: all, public, community, one owner's, or shared with one project that answered so. Key =
scope · sort code · value · created_at · UUID; the part after the code is an image's *place* in that order, the same in
every scope, so that scopes can be merged.
"""

import heapq
from collections.abc import Iterator
from hashlib import blake2b
from itertools import groupby
from typing import Any
from uuid import UUID

from zonegw.store import Txn, u64

Image = dict[str, Any]

ALL, PUBLIC, COMMUNITY = b"a", b"p", b"c"
_MEMBER_CODES = {"accepted": b"m", "pending": b"w", "rejected": b"r"}
# The part of a text that takes part in the order; LMDB keys end at 511 bytes.
TEXT_BYTES = 200
SORT_CODES = {
    "created_at": b"c", "updated_at": b"u", "name": b"n", "size": b"s", "status": b"t", "disk_format": b"d",
    "container_format": b"f", "id": b"i",
}  # fmt: skip


# All that the keys of one image are made of.
_INDEXED = ("owner", "visibility", "members", *(name for name in SORT_CODES if name != "id"))


def owner_scope(owner: str) -> bytes:
    return b"o" + blake2b(owner.encode(), digest_size=16).digest()


def member_scope(project: str, status: str) -> bytes:
    """Images shared with a project, by what it answered."""
    return _MEMBER_CODES[status] + blake2b(project.encode(), digest_size=16).digest()


def image_scopes(image: Image) -> list[bytes]:
    """The scopes that an image is listed in."""
    found = [ALL]
    if image["owner"] is not None:
        found.append(owner_scope(image["owner"]))
    if image["visibility"] in ("public", "community"):
        found.append(PUBLIC if image["visibility"] == "public" else COMMUNITY)
    if image["visibility"] == "shared":
        found += [member_scope(project, member["status"]) for project, member in image["members"].items()]
    return found


def sort_value(image: Image, sort: str) -> bytes:
    """The image's value under `sort`, encoded so that bytes sort as values do and no value is a prefix of another."""
    value = image["uuid"] if sort == "id" else image[sort]
    if value is None:
        return b"\x00"
    if isinstance(value, int):
        return b"\x01" + int.to_bytes(value, 8, "big")
    return text_value(value)


def text_value(text: str) -> bytes:
    return b"\x01" + text.encode()[:TEXT_BYTES].replace(b"\x00", b" ") + b"\x00"


def place(image: Image, sort: str) -> bytes:
    """Where the image stands in the order of `sort`."""
    return sort_value(image, sort) + _last(image)


def _last(image: Image) -> bytes:
    """What images with equal values are sorted by."""
    return u64(image["created_at"]) + bytes.fromhex(image["uuid"].replace("-", ""))


def keys(image: Image | None) -> set[bytes]:
    """Every index key of an image."""
    if image is None:
        return set()
    scopes, last = image_scopes(image), _last(image)
    places = [code + sort_value(image, sort) + last for sort, code in SORT_CODES.items()]
    return {scope + at for scope in scopes for at in places}


def reindex(txn: Txn, before: Image | None, after: Image | None) -> None:
    """Bring the indexes from the state of `before` to that of `after`."""
    if before is not None and after is not None and all(before[name] == after[name] for name in _INDEXED):
        return
    old, new = keys(before), keys(after)
    for key in old - new:
        txn.delete("listing", key)
    for key in new - old:
        txn.put("listing", key, b"")


def walk(
    txn: Txn, scopes: list[bytes], sort: str, *, reverse: bool, after: bytes | None = None, value: bytes = b""
) -> Iterator[tuple[bytes, str]]:
    """(place, uuid) of the images in any of `scopes`, in order, each once; from behind the place `after`; with
    `value` only those with that sort value."""
    ranges = [_range(txn, scope + SORT_CODES[sort], value, after, reverse) for scope in scopes]
    merged = heapq.merge(*ranges, reverse=reverse)
    return ((at, str(UUID(bytes=at[-16:]))) for at, _ in groupby(merged))


def _range(txn: Txn, prefix: bytes, value: bytes, after: bytes | None, reverse: bool) -> Iterator[bytes]:
    start, end = prefix + value, successor(prefix + value)
    if after is not None and reverse:
        end = min(end, prefix + after)
    elif after is not None:
        start = max(start, prefix + after + b"\x00")
    for key, _ in txn.scan("listing", start, end, reverse=reverse):
        yield key[len(prefix) :]


def successor(prefix: bytes) -> bytes:
    """The first key behind every key that starts with `prefix`."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1])
