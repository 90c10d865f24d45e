"""Use case: one page of the images that an identity may see.

The indexes give candidates in order; the page ends when it is full or `list_scan_max` rows were read, and says where to
go on. Between chunks of rows other requests get their turn; every chunk is read afresh from where the last ended.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zonegw import listing, visibility
from zonegw.errors import BadRequest
from zonegw.identity import Identity
from zonegw.image_query import ListQuery
from zonegw.images import Image, Images
from zonegw.store import Txn


@dataclass(frozen=True, slots=True)
class Page:
    """Images in order; `next_marker` is where the next page starts, None behind the last."""

    images: list[Image]
    next_marker: str | None


async def page(images: Images, who: Identity, query: ListQuery) -> Page:
    """One page. Raises BadRequest for a marker that `who` can't see."""
    found = await _collect(images, who, query)
    await images.store.durable()
    return Page([images.readable(who, images.present(image)) for image in found.images], found.next_marker)


async def _collect(images: Images, who: Identity, query: ListQuery) -> Page:
    if query.limit == 0:
        return Page([], None)
    if query.number is not None:
        return _numbered_page(images, who, query)
    scopes = scopes_for(who, query)
    if query.name is not None or len(query.sort) > 1:
        return _sorted_page(images, who, query, scopes)
    return await _walked_page(images, who, query, scopes)


def _numbered_page(images: Images, who: Identity, query: ListQuery) -> Page:
    """The one image with a number, if there is one that the query lists."""
    txn = images.store.read()
    image = images.catalogue.by_number(txn, query.number or 0)
    found = None if image is None else _listed(images, txn, who, query, image["uuid"])
    return Page([found] if found and found["uuid"] != query.marker else [], None)


def scopes_for(who: Identity, query: ListQuery) -> list[bytes]:
    """The indexes that hold every image that may be listed."""
    if who.is_admin:
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
    if query.marker is None:
        return None
    image = images.catalogue.get(txn, query.marker)
    if image is None or not visibility.may_see(who, image):
        raise BadRequest(f"Marker {query.marker} is not the ID of an image that you can see")
    return image


async def _walked_page(images: Images, who: Identity, query: ListQuery, scopes: list[bytes]) -> Page:
    """A page in the order of one sort key: straight from its index."""
    sort, reverse = query.sort[0]
    txn = images.store.read()
    mark = _marked(images, txn, who, query)
    after = listing.place(mark, sort) if mark else None
    found: list[Image] = []
    scanned = 0
    while True:
        rows = 0
        walker = listing.walk(txn, scopes, sort, reverse=reverse, after=after)
        for place, uuid in walker:
            after = place
            rows += 1
            image = _listed(images, txn, who, query, uuid)
            if image is not None:
                found.append(image)
            if len(found) >= query.limit or scanned + rows >= images.limits.list_scan_max:
                return Page(found, uuid)
            if rows >= images.limits.list_chunk_rows:
                break
        else:
            return Page(found, None)
        scanned += rows
        del walker
        await asyncio.sleep(0)
        txn = images.store.read()


def _listed(images: Images, txn: Txn, who: Identity, query: ListQuery, uuid: str) -> Image | None:
    image = images.catalogue.get(txn, uuid)
    if image is None or not visibility.may_see(who, image) or not query.matches(image):
        return None
    return image


def _sorted_page(images: Images, who: Identity, query: ListQuery, scopes: list[bytes]) -> Page:
    """A page by name, or in the order of several keys: groups with an equal first value are put in order in memory."""
    txn = images.store.read()
    mark = _marked(images, txn, who, query)
    found: list[Image] = []
    for group in _groups(images, txn, who, query, scopes, mark):
        ordered = put_in_order(group, query.sort)
        ids = [image["uuid"] for image in ordered]
        if mark is not None and mark["uuid"] in ids:
            ordered = ordered[ids.index(mark["uuid"]) + 1 :]
            mark = None
        found += [image for image in ordered if query.matches(image)]
        if len(found) >= query.limit:
            return Page(found[: query.limit], found[query.limit - 1]["uuid"])
    return Page(found, None)


def _groups(
    images: Images, txn: Txn, who: Identity, query: ListQuery, scopes: list[bytes], mark: Image | None
) -> Iterator[list[Image]]:
    """Visible images by equal first sort value, from the marker's group on; by name there is one group."""
    sort, reverse = ("name", False) if query.name is not None else query.sort[0]
    value = listing.text_value(query.name) if query.name is not None else b""
    start = None
    if mark is not None and query.name is None:
        at = listing.sort_value(mark, sort)
        start = at + b"\xff" * 25 if reverse else at
    group: list[Image] = []
    current: bytes | None = None
    rows = 0
    for _, uuid in listing.walk(txn, scopes, sort, reverse=reverse, after=start, value=value):
        rows += 1
        image = images.catalogue.get(txn, uuid)
        if image is None or not visibility.may_see(who, image):
            continue
        at = listing.sort_value(image, sort)
        if at != current and group:
            yield group
            group = []
        current = at
        group.append(image)
        _check_work(len(group), rows, images)
    if group:
        yield group


def _check_work(group: int, rows: int, images: Images) -> None:
    if group > images.limits.list_group_max or rows > images.limits.list_scan_max:
        raise BadRequest("too many images are equal in the first sort key: sort by created_at or name first")


def put_in_order(group: list[Image], sort: list[tuple[str, bool]]) -> list[Image]:
    """Order by several keys, each with its direction; ties by creation time and ID, newest first unless one
    direction goes for all."""
    descending = sort[0][1] if len(sort) == 1 else True
    ties = [(key, descending) for key in ("created_at", "id") if key not in dict(sort)]
    for key, backwards in reversed([*sort, *ties]):
        group = sorted(group, key=lambda image: _comparable(image, key), reverse=backwards)
    return group


def _comparable(image: Image, key: str) -> tuple[bool, Any]:
    value = image["uuid"] if key == "id" else image[key]
    return (value is not None, value if value is not None else 0)
