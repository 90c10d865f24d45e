"""Pages of images in any order that Images v2 and v1 offer, with any of their filters.

A page is read along one listing index (`tables.INDEXES`), or along the images by number or UUID: the one that gives the
wanted order and leaves out most of what the filters don't want; the rest is filtered image by image. Where another
filter leaves few images, whatever their order, these are sorted instead.

Each call reads a bounded number of rows, so that it fits between two turns of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raftreg import errors
from raftreg.commands import MEMBER_STATUSES
from raftreg.queries import get_zone
from raftreg.tables import (
    IMAGES,
    INDEXES,
    SORTS,
    UUIDS,
    Index,
    Row,
    View,
    image_key,
    member_scope,
    number_of_index_key,
    scope_value,
    scope_values,
    sort_end,
    tombstone_key,
    u64,
    unpack,
    uuid_bytes,
)

SCAN_ROWS_MAX = 1000
"""Rows looked at by one call, whatever part of them passes the filters; also images of one name, owner, tag and the
like that are sorted for a page."""

RARE_ROWS_MAX = 100
"""So many images are looked for of one status, format or visibility: a value that so few have is rare."""

SORT_KEYS = (*SORTS, "uuid", "number")
EQUAL = (
    "name", "member", "member_status", "tag", "owner", "home_zone", "data_zone", "size", "status", "container_format",
    "disk_format", "visibility", "checksum", "os_hash_algo", "os_hash_value", "min_disk", "min_ram", "protected",
    "os_hidden",
)  # fmt: skip
"""Filters by one value, from the one that usually leaves the fewest images; those in an index come first."""
BETWEEN = ("size", "created_at", "updated_at")
"""Filters by a least and a most value: NAME_min, NAME_max."""

_SELECTIVE = frozenset(EQUAL[: EQUAL.index("status")])
# Time of creation and number: the end of every index key.
_END_BYTES = 16
_RANK = {name: rank for rank, name in enumerate(EQUAL)}
_NO_RANK = len(EQUAL)
Matches = Callable[[Row], bool]


@dataclass(frozen=True, slots=True)
class _Path:
    """Rows in the order of `sort` behind `prefix`. `place` is what stands behind the prefix for an image; `ranks` are
    of the filters that the prefix answers. `is_index`: of INDEXES."""

    prefix: bytes
    place: Callable[[Row], bytes]
    number: Callable[[bytes, bytes], int]
    ranks: tuple[int, ...] = ()
    start: bytes = b""
    end: bytes = b"\xff"
    is_index: bool = True

    def range(self, marker: bytes | None, descending: bool) -> tuple[bytes, bytes]:
        start, end = self.prefix + self.start, self.prefix + self.end
        if marker is not None and descending:
            end = min(end, self.prefix + marker)
        elif marker is not None:
            start = max(start, self.prefix + marker + b"\x00")
        return start, end


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Filters, taken apart: (name, value) that must be equal, least and most by name, and the check of all of them."""

    equal: tuple[tuple[str, Any], ...]
    between: Mapping[str, tuple[int | None, int | None]]
    matches: Matches


def list_images(
    view: View,
    *,
    sort: str = "created_at",
    descending: bool = False,
    marker: int | None = None,
    limit: int,
    **filters: Any,
) -> tuple[list[Row], int | None]:
    """A page of images behind `marker`, and the marker to go on from, or None at the end.

    `filters`: those of EQUAL by name (`data_zone` is a zone that holds the data; `member` a project that the image is
    shared with, with `member_status` in that state); NAME_min and NAME_max, both included, for those of BETWEEN;
    `tags`, a list of which all must be there; `properties`, a map of which all must be equal; `lost`, to leave out all
    but images that ought to have data, of which no live zone holds any.

    The page may be short, even empty, before the end: one call looks at SCAN_ROWS_MAX rows at most. Images of one sort
    value are in the order of their creation, then of their numbers. A marker may name an image that was deleted
    meanwhile. Raises BadRequest.
    """
    if sort not in SORT_KEYS:
        raise errors.BadRequest(f"images are not sorted by {sort[:40]!r}; use one of {', '.join(SORT_KEYS)}")
    wanted = _wanted(view, filters)
    behind = None if marker is None else _row(view, marker)
    if limit <= 0:
        return [], None
    path = min(_paths(wanted, sort), key=lambda path: (*path.ranks, _NO_RANK))
    few = _few(view, wanted, path)
    if few is not None:
        return _page_of(few, path, behind, descending, limit)
    return _page_along(view, path, wanted, behind, descending, limit)


def _row(view: View, marker: int) -> Row:
    value = view.get(image_key(marker)) or view.get(tombstone_key(marker))
    if value is None:
        raise errors.BadRequest(f"marker {marker} is no image number; use the number of the last image of a page")
    row: Row = unpack(value)
    return row


# -- along one path -----------------------------------------------------------------------------------------------


def _page_along(
    view: View, path: _Path, wanted: _Wanted, behind: Row | None, descending: bool, limit: int
) -> tuple[list[Row], int | None]:
    page: list[Row] = []
    number = 0
    lists = _other_lists(path, wanted)
    start, end = path.range(None if behind is None else path.place(behind), descending)
    for scanned, (key, value) in enumerate(view.scan(start, end, reverse=descending)):
        if len(page) == limit or scanned == SCAN_ROWS_MAX:
            return page, number
        number = path.number(key, value)
        if lists and not _is_in_all(view, lists, key[-_END_BYTES:]):
            continue
        stored = view.get(image_key(number))
        if stored is not None:  # the UUIDs of deleted images stay
            image: Row = unpack(stored)
            if wanted.matches(image):
                page.append(image)
    return page, None


def _other_lists(path: _Path, wanted: _Wanted) -> list[bytes]:
    """Where the images of the filters that the path does not answer are together, each in the order of its creation.

    To look an image up there costs a part of reading it: a row that is a few bytes long and has many neighbours that
    are looked up too.
    """
    if not path.is_index:
        return []
    others = [pair for pair in wanted.equal if _RANK[pair[0]] not in path.ranks]
    return [prefix for name, value in others if (prefix := _prefix_of(name, value)) is not None]


def _is_in_all(view: View, lists: list[bytes], end: bytes) -> bool:
    return all(view.get(prefix + end) is not None for prefix in lists)


# -- few images ---------------------------------------------------------------------------------------------------


def _few(view: View, wanted: _Wanted, path: _Path) -> list[Row] | None:
    """All images that match, where a filter that the path does not answer leaves few; else None."""
    best = min(path.ranks, default=_NO_RANK)
    name, value = next(((name, value) for name, value in wanted.equal if _RANK[name] < best), (None, None))
    prefix = None if name is None else _prefix_of(name, value)
    if prefix is None:
        return None
    most = SCAN_ROWS_MAX if name in _SELECTIVE else RARE_ROWS_MAX
    numbers: list[int] = []
    for key, _ in view.scan(prefix, prefix + b"\xff"):
        if len(numbers) == most:
            return None
        numbers.append(number_of_index_key(key))
    images: Iterator[Row] = (unpack(value) for number in numbers if (value := view.get(image_key(number))) is not None)
    return [image for image in images if wanted.matches(image)]


def _prefix_of(name: str, value: Any) -> bytes | None:
    """Where the images with this value are together, in whatever order."""
    for index in INDEXES:
        if index.scope == name:
            return index.prefix + scope_value(value)
        if index.scope is None and index.sort == name:
            return index.prefix + SORTS[name](value)
    return None


def _page_of(
    images: list[Row], path: _Path, behind: Row | None, descending: bool, limit: int
) -> tuple[list[Row], int | None]:
    images.sort(key=path.place, reverse=descending)
    if behind is not None:
        place = path.place(behind)
        images = [image for image in images if (path.place(image) < place if descending else path.place(image) > place)]
    page = images[:limit]
    return page, page[-1]["number"] if len(images) > limit else None


# -- paths --------------------------------------------------------------------------------------------------------


def _paths(wanted: _Wanted, sort: str) -> Iterator[_Path]:
    """All that give the wanted order."""
    if sort == "uuid":
        last = b"\xff" * 17  # a UUID may begin with 0xff
        yield _Path(
            UUIDS,
            lambda row: uuid_bytes(row["uuid"]),
            lambda _, value: int.from_bytes(value, "big"),
            end=last,
            is_index=False,
        )
    elif sort == "number":
        yield _Path(IMAGES, lambda row: u64(row["number"]), lambda key, _: number_of_index_key(key), is_index=False)
    else:
        for index in INDEXES:
            yield from _paths_in(index, wanted, sort)


def _paths_in(index: Index, wanted: _Wanted, sort: str) -> Iterator[_Path]:
    prefix, ranks = index.prefix, []
    if index.scope is not None:
        value = dict(wanted.equal).get(index.scope)
        if value is None:
            return
        prefix += scope_value(value)
        ranks.append(_RANK[index.scope])
    only = dict(wanted.equal).get(index.sort)
    if only is not None and sort in (index.sort, "created_at"):
        ranks.append(_RANK[index.sort])
        place = _place("created_at")
        yield _Path(prefix + SORTS[index.sort](only), place, _number, tuple(sorted(ranks)))
    elif index.sort == sort:
        yield _Path(prefix, _place(sort), _number, tuple(ranks), *_bounds(wanted, sort))


def _place(sort: str) -> Callable[[Row], bytes]:
    return lambda row: sort_end(row, sort)


def _number(key: bytes, _value: bytes) -> int:
    return number_of_index_key(key)


def _bounds(wanted: _Wanted, sort: str) -> tuple[bytes, bytes]:
    least, most = wanted.between.get(sort, (None, None))
    if (least, most) == (None, None):
        return b"", b"\xff"
    return SORTS[sort](least or 0), b"\xff" if most is None else SORTS[sort](most) + b"\xff"


# -- filters ------------------------------------------------------------------------------------------------------


def _wanted(view: View, filters: dict[str, Any]) -> _Wanted:
    given = dict(filters)
    reach = _Reach(view) if given.pop("lost", False) else None
    tags, properties = list(given.pop("tags", ())), dict(given.pop("properties", {}))
    between = {name: (given.pop(f"{name}_min", None), given.pop(f"{name}_max", None)) for name in BETWEEN}
    if "member_status" in given:
        given["member_status"] = _membership(given.pop("member", None), given["member_status"])
    for name in given:
        if name not in _RANK:
            raise errors.BadRequest(f"images cannot be filtered by {name[:40]!r}; use one of {', '.join(EQUAL)}")
    equal = [*given.items(), *(("tag", tag) for tag in tags)]
    equal.sort(key=lambda pair: _RANK[pair[0]])
    limits = [(name, least, most) for name, (least, most) in between.items() if (least, most) != (None, None)]

    def matches(image: Row) -> bool:
        return (
            all(value in scope_values(image, name) for name, value in equal)
            and all(_lies_between(image[name], least, most) for name, least, most in limits)
            and all(image["properties"].get(name) == value for name, value in properties.items())
            and not (reach is not None and reach.has_data(image))
        )

    return _Wanted(tuple(equal), between, matches)


class _Reach:
    """Which zones are live, looked up once each."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._live: dict[str | None, bool] = {None: True}

    def has_data(self, image: Row) -> bool:
        """Whether an image's data are where somebody can get them, or none are due yet. What lies in no zone is in a
        store of its own, which no gateway needs to serve."""
        if image["status"] not in ("active", "deactivated"):
            return True
        return any(
            location["status"] == "active" and self._is_live(location["zone"]) for location in image["locations"]
        )

    def _is_live(self, zone: str | None) -> bool:
        if zone not in self._live:
            row = get_zone(self._view, str(zone))
            self._live[zone] = row is not None and row["live"]
        return self._live[zone]


def _lies_between(value: int | None, least: int | None, most: int | None) -> bool:
    return value is not None and (least is None or value >= least) and (most is None or value <= most)


def _membership(member: str | None, status: str) -> str:
    if member is None:
        raise errors.BadRequest("member_status says something of a project's membership only: name the `member` too")
    if status not in MEMBER_STATUSES:
        raise errors.BadRequest(f"member_status must be one of {', '.join(MEMBER_STATUSES)}, not {status[:40]!r}")
    return member_scope(member, status)
