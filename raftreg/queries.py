"""Reading the replicated state: pure functions on a View, for the API, the changefeed and leases.

Each call reads a bounded number of rows, so that it fits between two turns of the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raftreg import errors
from raftreg.commands import MEMBER_STATUSES
from raftreg.tables import (
    BLOCKS,
    GATEWAYS,
    INDEXES,
    PROJECTS,
    SESSIONS,
    SORTS,
    ZONES,
    Head,
    Index,
    Row,
    View,
    block_key,
    change_key,
    image_key,
    member_scope,
    new_project,
    number_of_index_key,
    prefix_end,
    project_key,
    read_head,
    scope_value,
    scope_values,
    session_key,
    tombstone_key,
    u64,
    unpack,
    uuid_key,
)

Filter = tuple[str, str]

LIST_SCAN_ROWS_MAX = 1000
"""Index rows looked at by one call of `list_images`, whatever part of them passes the filters."""

# From the filter that usually leaves the fewest images to the one that leaves the most.
_SELECTIVE_FIRST = ("name", "member", "member_status", "tag", "owner", "home_zone", "data_zone", "status", "visibility")


# -- images -------------------------------------------------------------------------------------------------------


def get_image(view: View, ref: Row) -> Row | None:
    """The image that `ref` ({"number"}, {"uuid"} or both) names; with both, by number.

    Of a deleted one {"deleted": True, "number", "uuid", "version", "revision", "deleted_at"}; of an unknown one None.
    """
    number = ref.get("number")
    if number is None:
        found = view.get(uuid_key(ref["uuid"]))
        if found is None:
            return None
        number = int.from_bytes(found, "big")
    value = view.get(image_key(number))
    if value is not None:
        image: Row = unpack(value)
        return image
    tombstone = _tombstone(view, number)
    if tombstone is None:
        return None
    return {"deleted": True} | {
        name: tombstone[name] for name in ("number", "uuid", "version", "revision", "deleted_at")
    }


def _tombstone(view: View, number: int) -> Row | None:
    value = view.get(tombstone_key(number))
    return None if value is None else unpack(value)


def list_images(
    view: View,
    *,
    owner: str | None = None,
    visibility: str | None = None,
    name: str | None = None,
    status: str | None = None,
    home_zone: str | None = None,
    data_zone: str | None = None,
    member: str | None = None,
    member_status: str | None = None,
    tags: Sequence[str] = (),
    sort: str = "created_at",
    descending: bool = False,
    marker: int | None = None,
    limit: int,
) -> tuple[list[Row], int | None]:
    """A page of images behind `marker`, and the marker to go on from, or None at the end.

    `data_zone` is a zone that holds the data, `member` a project that the image is shared with (with `member_status`:
    in that state), `tags` are those that it must all have.

    The page may be short, even empty, before the end: one call looks at LIST_SCAN_ROWS_MAX rows at most. Images of
    one sort value are ordered by number. A marker may name an image that was deleted meanwhile. Raises BadRequest.
    """
    scope, others = _filters({
        "owner": owner, "visibility": visibility, "name": name, "status": status, "home_zone": home_zone,
        "data_zone": data_zone, **_membership(member, member_status),
    }, tags)  # fmt: skip
    index = _index_for(scope and scope[0], sort)
    prefix = index.prefix + (scope_value(scope[1]) if scope else b"")
    start, end = _range(prefix, _position(view, index, marker), descending)
    page: list[Row] = []
    if limit <= 0:
        return page, None
    number = 0
    for scanned, (key, _) in enumerate(view.scan(start, end, reverse=descending)):
        if len(page) == limit or scanned == LIST_SCAN_ROWS_MAX:
            return page, number
        number = number_of_index_key(key)
        image = _image(view, number)
        if all(value in scope_values(image, name) for name, value in others):
            page.append(image)
    return page, None


def _image(view: View, number: int) -> Row:
    value = view.get(image_key(number))
    assert value is not None, f"a listing index names image {number}, which is not there"
    image: Row = unpack(value)
    return image


def _membership(member: str | None, status: str | None) -> dict[str, str | None]:
    if status is None:
        return {"member": member}
    if member is None:
        raise errors.BadRequest("member_status says something of a project's membership only: name the `member` too")
    if status not in MEMBER_STATUSES:
        raise errors.BadRequest(f"member_status must be one of {', '.join(MEMBER_STATUSES)}, not {status[:40]!r}")
    return {"member_status": member_scope(member, status)}


def _filters(single: dict[str, str | None], tags: Sequence[str]) -> tuple[Filter | None, list[Filter]]:
    """The filter that an index answers, if there is one, and those that are left."""
    wanted = [(name, value) for name, value in single.items() if value is not None] + [("tag", tag) for tag in tags]
    wanted.sort(key=lambda pair: _SELECTIVE_FIRST.index(pair[0]))
    return (wanted[0] if wanted else None), wanted[1:]


def _index_for(scope: str | None, sort: str) -> Index:
    """The index of that scope; an order among the images of one value is not offered by every index."""
    if sort not in SORTS:
        raise errors.BadRequest(f"images are not sorted by {sort[:40]!r}; use one of {', '.join(SORTS)}")
    candidates = [index for index in INDEXES if index.scope == scope]
    return next((index for index in candidates if index.sort == sort), candidates[0])


def _position(view: View, index: Index, marker: int | None) -> bytes | None:
    """Where the marker stands in the index, whether or not it is in it."""
    if marker is None:
        return None
    value = view.get(image_key(marker))
    row = _tombstone(view, marker) if value is None else unpack(value)
    if row is None:
        raise errors.BadRequest(f"marker {marker} is no image number; use the number of the last image of a page")
    return SORTS[index.sort](row) + u64(marker)


def _range(prefix: bytes, position: bytes | None, descending: bool) -> tuple[bytes, bytes]:
    # Sort values never begin with 0xff: times are far below, and UTF-8 has no such byte.
    end = prefix + b"\xff"
    if position is None:
        return prefix, end
    return (prefix, prefix + position) if descending else (prefix + position + b"\x00", end)


def state_chunk(view: View, after_number: int, limit: int) -> list[Row]:
    """At most `limit` images with a number above `after_number`, by number: a part of a bootstrap."""
    images: list[Row] = []
    if limit <= 0:
        return images
    for _, value in view.scan(image_key(after_number + 1), prefix_end(image_key(0)[:1])):
        images.append(unpack(value))
        if len(images) == limit:
            break
    return images


# -- changes ------------------------------------------------------------------------------------------------------


def revision(view: View) -> int:
    """The registry-wide revision reached."""
    return read_head(view).revision


def compaction_floor(view: View) -> int:
    """The lowest revision still in the feed (or to come)."""
    return read_head(view).floor


def changes_since(view: View, after: int, limit_rows: int, limit_bytes: int) -> list[Row]:
    """Change records behind revision `after`, in order: up to `limit_rows`, or one beyond `limit_bytes`."""
    changes: list[Row] = []
    size = 0
    for _, value in view.scan(change_key(after + 1), prefix_end(change_key(0)[:1])):
        if len(changes) >= limit_rows or size >= limit_bytes:
            break
        changes.append(unpack(value))
        size += len(value)
    return changes


def oldest_change_time(view: View) -> int | None:
    """When the oldest change in the feed was applied, in microseconds; None of an empty feed."""
    changes = changes_since(view, compaction_floor(view) - 1, 1, 1)
    return changes[0]["time"] if changes else None


def first_change_since(view: View, time_us: int) -> int:
    """The lowest revision of a change that was applied at `time_us` or later; the next revision when there is none.

    Times never decrease with the revision, so that a few rows are enough to find it.
    """
    low, high = compaction_floor(view), revision(view) + 1
    while low < high:
        middle = (low + high) // 2
        changes = changes_since(view, middle - 1, 1, 1)
        if changes and changes[0]["time"] < time_us:
            low = middle + 1
        else:
            high = middle
    return low


# -- zones and sessions -------------------------------------------------------------------------------------------


def zones(view: View) -> dict[str, Row]:
    """All zones by name: {"zone", "version", "endpoint", "capabilities", "live", "since", "gateways"}."""
    return {row["zone"]: row for row in _rows(view, ZONES)}


def gateways(view: View) -> dict[str, Row]:
    """All gateways by name: {"gateway", "zone", "session", "token", "sessions"}; `session` is the one in force."""
    return {row["gateway"]: row for row in _rows(view, GATEWAYS)}


def sessions(view: View) -> dict[str, Row]:
    """All remembered sessions by UUID, fenced ones included."""
    return {row["session"]: row for row in _rows(view, SESSIONS)}


def get_session(view: View, session: str) -> Row | None:
    """The head of a session: gateway, zone, token, last sequence and hash, fenced (why, or None), live blocks."""
    value = view.get(session_key(session))
    return None if value is None else unpack(value)


def blocks(view: View, *, gateway: str | None = None, after: int = 0, limit: int) -> tuple[list[Row], int | None]:
    """A page of ID blocks that begin behind number `after`, by number, and where to go on, or None at the end.

    {"first", "last", "gateway", "zone", "session", "token", "sealed"} each; what an epoch skipped has no gateway. One
    call looks at LIST_SCAN_ROWS_MAX rows at most, so that a page may be short, even empty, before the end.
    """
    page: list[Row] = []
    seen = after
    for scanned, (_, value) in enumerate(view.scan(block_key(after + 1), prefix_end(BLOCKS))):
        if len(page) == limit or scanned == LIST_SCAN_ROWS_MAX:
            return page, seen
        block = unpack(value)
        seen = block["first"]
        if gateway in (None, block["gateway"]):
            page.append(block)
    return page, None


def _rows(view: View, prefix: bytes) -> list[Row]:
    return [unpack(value) for _, value in view.scan(prefix, prefix_end(prefix))]


# -- projects -----------------------------------------------------------------------------------------------------


def get_project(view: View, project: str) -> Row:
    """What a project owns and may own: {"project", "images", "bytes", "images_max", "bytes_max"}; None: no bound."""
    value = view.get(project_key(project))
    row: Row = new_project(project) if value is None else unpack(value)
    return row


def list_projects(view: View, after: str | None, limit: int) -> tuple[list[Row], str | None]:
    """A page of projects that own images or have a quota, in the order of their keys, and where to go on."""
    start = PROJECTS if after is None else project_key(after) + b"\x00"
    page: list[Row] = []
    if limit <= 0:
        return page, None
    for _, value in view.scan(start, prefix_end(PROJECTS)):
        if len(page) == limit:
            return page, str(page[-1]["project"])
        page.append(unpack(value))
    return page, None


# -- counts -------------------------------------------------------------------------------------------------------


def counts(view: View) -> dict[str, int]:
    """Rows of each kind, the next number and the revision; costs one row."""
    head: Head = read_head(view)
    names = (
        "images", "tombstones", "changes", "keys", "zones", "gateways", "sessions", "blocks", "projects",
        "next_id", "revision",
        "floor", "time_us",
    )  # fmt: skip
    counted: dict[str, Any] = {name: getattr(head, name) for name in names}
    return counted
