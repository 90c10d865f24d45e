"""Use case: one page of the images that an identity may see.

The indexes give candidates in order; the page ends when it is full or `list_scan_max` rows were read, and says where to
go on. Between chunks of rows other requests get their turn; every chunk is read afresh from where the last ended.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from zonegw import listing, visibility
from zonegw.errors import BadRequest
from zonegw.identity import Identity
from zonegw.image_query import ListQuery
from zonegw.images import Image, Images
from zonegw.store import Txn, u64

# Behind every place that begins with a value: creation time and UUID are shorter.
_BEHIND_ALL = b"\xff" * 25


@dataclass(frozen=True, slots=True)
class Page:
    """Images in order; `next_marker` is where the next page starts, None behind the last, and `end` its place in the
    index that was walked."""

    images: list[Image]
    next_marker: str | None
    end: bytes | None = None


async def page(images: Images, who: Identity, query: ListQuery) -> Page:
    """One page. Raises BadRequest for a marker that `who` can't see."""
    images.policy.require("get_images", who)
    found = await _collect(images, who, query)
    return Page([images.readable(who, images.present(image)) for image in found.images], found.next_marker, found.end)


async def full_page(images: Images, who: Identity, query: ListQuery) -> list[Image]:
    """One page that is short only behind the last image, as clients need it that take a short one for the last.
    Raises BadRequest where too many images have to be looked through."""
    found: list[Image] = []
    for _ in range(images.limits.list_full_scans_max):
        part = await page(images, who, replace(query, limit=query.limit - len(found)))
        found += part.images
        if part.next_marker is None or len(found) >= query.limit:
            return found
        marker = part.next_marker if part.end is None else None
        query = replace(query, marker=marker, marker_number=None, after=part.end)
    raise BadRequest("too few images match among too many: ask by name, by owner, or in another order")


async def _collect(images: Images, who: Identity, query: ListQuery) -> Page:
    if query.limit == 0:
        return Page([], None)
    if query.number is not None:
        return _numbered_page(images, who, query)
    scopes = scopes_for(who, query)
    index = index_for(query)
    if index is None:
        return await _sorted_page(images, who, query, scopes)
    return await _walked_page(images, who, query, scopes, *index)


def _numbered_page(images: Images, who: Identity, query: ListQuery) -> Page:
    """The one image with a number, if there is one that the query lists."""
    txn = images.store.committed()
    image = images.catalogue.by_number(txn, query.number or 0)
    found = None if image is None else _listed(images, txn, who, query, image["uuid"])
    return Page([found] if found and found["uuid"] != query.marker else [], None)


def index_for(query: ListQuery) -> tuple[str, bytes, bool] | None:
    """(sort key, first value, descending) of the index that has the order asked for; None where none has.

    Every index goes on by creation time and ID, so it also has the order of its key and these; the one by name has the
    images of one name in the order of their creation.
    """
    keys, descending = [key for key, _ in query.sort], query.sort[0][1]
    if keys[0] == "number":
        return "number", b"", descending
    if any(backwards != descending for _, backwards in query.sort):
        return None
    value = b""
    if query.name is not None:
        keys, value = ["name", *(key for key in keys if key != "name")], listing.text_value(query.name)
    order = list(dict.fromkeys([keys[0], "created_at", "id"]))
    if keys != order[: len(keys)]:
        return None
    return keys[0], value, descending


def scopes_for(who: Identity, query: ListQuery) -> list[bytes]:
    """The indexes that hold every image that may be listed."""
    if who.is_admin and not query.as_project:
        return [listing.ALL] if query.owner is None else [listing.owner_scope(query.owner)]
    own = listing.owner_scope(who.project)
    if query.owner == who.project:
        return [own]
    shared = [listing.member_scope(who.project, status) for status in query.member_statuses]
    return {
        "public": [listing.PUBLIC],
        "community": [listing.COMMUNITY],
        "private": [own],
        "shared": [own, *shared],
        "all": [listing.PUBLIC, listing.COMMUNITY, own, *shared],
    }.get(query.visibility or "", [listing.PUBLIC, own, *shared])


def _marked(images: Images, txn: Txn, who: Identity, query: ListQuery) -> Image | None:
    if query.marker_number is not None:
        image = images.catalogue.by_number(txn, query.marker_number)
    elif query.marker is not None:
        image = images.catalogue.get(txn, query.marker)
    else:
        return None
    if image is None or not visibility.may_see(who, image):
        raise BadRequest(f"Marker {query.marker or query.marker_number} is not the ID of an image that you can see")
    return image


async def _walked_page(
    images: Images, who: Identity, query: ListQuery, scopes: list[bytes], sort: str, value: bytes, reverse: bool
) -> Page:
    """A page in the order of an index: straight from it."""
    txn = images.store.committed()
    mark = _marked(images, txn, who, query)
    after = _place(mark, sort) if mark else query.after
    found: list[Image] = []
    scanned = 0
    while True:
        rows = 0
        walker = _walk(images, txn, scopes, sort, reverse=reverse, after=after, value=value)
        for place, uuid in walker:
            after = place
            rows += 1
            image = _listed(images, txn, who, query, uuid)
            if image is not None:
                found.append(image)
            if len(found) >= query.limit or scanned + rows >= images.limits.list_scan_max:
                return Page(found, uuid, place)
            if rows >= images.limits.list_chunk_rows:
                break
        else:
            return Page(found, None)
        scanned += rows
        del walker
        await asyncio.sleep(0)
        txn = images.store.committed()


def _walk(
    images: Images, txn: Txn, scopes: list[bytes], sort: str, *, reverse: bool, after: bytes | None, value: bytes
) -> Iterator[tuple[bytes, str]]:
    """(place, UUID) in order; the numbers' own table knows no scopes."""
    if sort == "number":
        return images.catalogue.walk_numbers(txn, reverse=reverse, after=after)
    return listing.walk(txn, scopes, sort, reverse=reverse, after=after, value=value)


def _place(image: Image, sort: str) -> bytes:
    return u64(image["number"] or 0) if sort == "number" else listing.place(image, sort)


def _listed(images: Images, txn: Txn, who: Identity, query: ListQuery, uuid: str) -> Image | None:
    image = images.catalogue.get(txn, uuid)
    if image is None or not visibility.may_see(who, image) or not query.matches(image):
        return None
    return image


async def _sorted_page(images: Images, who: Identity, query: ListQuery, scopes: list[bytes]) -> Page:
    """A page in an order that no index has: images are read by the first key, as many as the page takes and those that
    are equal to the last of them, and put in order in memory."""
    txn = images.store.committed()
    mark = _marked(images, txn, who, query)
    start = _before_group_of(mark, query) if mark else None
    found: list[Image] = []
    scanned = 0
    while True:
        read = _whole_groups(images, txn, query, scopes, start)
        ordered = put_in_order([image for image in read if visibility.may_see(who, image)], query.sort)
        ids = [image["uuid"] for image in ordered]
        if mark is not None and mark["uuid"] in ids:
            ordered = ordered[ids.index(mark["uuid"]) + 1 :]
        found += [image for image in ordered if query.matches(image)]
        if len(found) >= query.limit:
            return Page(found[: query.limit], found[query.limit - 1]["uuid"])
        if not read:
            return Page(found, None)
        scanned += len(read)
        if scanned >= images.limits.list_scan_max and ids and (mark is None or ids[-1] != mark["uuid"]):
            return Page(found, ids[-1])
        start = _behind_group_of(read[-1], query)
        await asyncio.sleep(0)
        txn = images.store.committed()


def _whole_groups(images: Images, txn: Txn, query: ListQuery, scopes: list[bytes], start: bytes | None) -> list[Image]:
    """The next images behind `start`, all of those with an equal first sort value or none; none behind the last."""
    sort, reverse = query.sort[0]
    wanted = min(query.limit, images.limits.list_chunk_rows)
    found: list[Image] = []
    current, equal = None, 0
    for _, uuid in listing.walk(txn, scopes, sort, reverse=reverse, after=start):
        image = images.catalogue.get(txn, uuid)
        if image is None:
            continue
        value = listing.sort_value(image, sort)
        if value != current:
            if len(found) >= wanted:
                break
            current, equal = value, 0
        equal += 1
        found.append(image)
        if equal > images.limits.list_group_max:
            raise BadRequest(
                f"more than {images.limits.list_group_max} images are equal in {sort}: sort by another key first, or "
                "by created_at behind it in the same direction"
            )
    return found


def _before_group_of(image: Image, query: ListQuery) -> bytes:
    """The place before the first image with an equal first sort value, in the direction of the list."""
    sort, reverse = query.sort[0]
    value = listing.sort_value(image, sort)
    return value + _BEHIND_ALL if reverse else value


def _behind_group_of(image: Image, query: ListQuery) -> bytes:
    """The place behind the last image with an equal first sort value."""
    sort, reverse = query.sort[0]
    value = listing.sort_value(image, sort)
    return value if reverse else value + _BEHIND_ALL


def put_in_order(group: list[Image], sort: list[tuple[str, bool]]) -> list[Image]:
    """Order by several keys, each with its direction; ties by creation time and ID in the direction of the last."""
    descending = sort[-1][1]
    ties = [(key, descending) for key in ("created_at", "id") if key not in dict(sort)]
    for key, backwards in reversed([*sort, *ties]):
        group = sorted(group, key=lambda image: _comparable(image, key), reverse=backwards)
    return group


def _comparable(image: Image, key: str) -> tuple[bool, Any]:
    value = image["uuid"] if key == "id" else image[key]
    return (value is not None, value if value is not None else 0)
