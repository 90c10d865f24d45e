"""Reading the replicated state: pure functions on a View, for the API, the changefeed and leases.

Each call reads a bounded number of rows, so that it fits between two turns of the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftreg.tables import (
    BLOCKS,
    EPOCHS,
    GATEWAYS,
    PROJECTS,
    SESSIONS,
    ZONES,
    Head,
    Row,
    View,
    block_key,
    change_key,
    image_key,
    new_project,
    prefix_end,
    project_key,
    read_head,
    session_key,
    tombstone_key,
    unpack,
    uuid_key,
    zone_key,
)

SCAN_ROWS_MAX = 1000
"""Rows looked at by one call, whatever part of them is wanted."""


# -- images -------------------------------------------------------------------------------------------------------


def get_image(view: View, ref: Row) -> Row | None:
    """The image that `ref` ({"number"}, {"uuid"} or both) names; with both, by number.

    Of a deleted one {"deleted": True, "number", "uuid", "version", "revision", "deleted_at", "holders"}, with
    the registered zones that have not said yet that its bytes are gone; of an unknown one None.
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
    kept = {name: tombstone[name] for name in ("number", "uuid", "version", "revision", "deleted_at")}
    holders = [zone for zone in tombstone["holders"] if view.get(zone_key(zone)) is not None]
    return {"deleted": True, **kept, "holders": holders}


def fate(view: View, ref: Row) -> Row:
    """What has become of the image with this number and this UUID: {"fate": "live"}, {"fate": "deleted", "revision"} or
    {"fate": "unknown"}, also where the two are not the same image's: nothing was ever said of such a one."""
    found = get_image(view, {"number": ref["number"]})
    if found is None or found["uuid"] != ref["uuid"]:
        return {"fate": "unknown"}
    return {"fate": "deleted", "revision": found["revision"]} if found.get("deleted") else {"fate": "live"}


def _tombstone(view: View, number: int) -> Row | None:
    value = view.get(tombstone_key(number))
    return None if value is None else unpack(value)


def state_chunk(
    view: View, after_number: int, limit: int, wanted: Callable[[Row], bool] | None = None
) -> tuple[list[Row], int | None]:
    """At most `limit` images with a number above `after_number` that are `wanted`, by number: a part of a bootstrap.

    Also the number to go on behind, or None at the end. One call looks at SCAN_ROWS_MAX rows at most, so that a chunk
    may be short, even empty, before the end.
    """
    images: list[Row] = []
    number = after_number
    for scanned, (_, value) in enumerate(view.scan(image_key(after_number + 1), prefix_end(image_key(0)[:1]))):
        if len(images) >= limit or scanned == SCAN_ROWS_MAX:
            return images, number
        image: Row = unpack(value)
        number = image["number"]
        if wanted is None or wanted(image):
            images.append(image)
    return images, None


# -- the state as a whole -----------------------------------------------------------------------------------------


def level(view: View) -> int:
    """The feature level in force."""
    return read_head(view).level


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


def get_zone(view: View, zone: str) -> Row | None:
    """One zone."""
    value = view.get(zone_key(zone))
    return None if value is None else unpack(value)


def list_zones(view: View, after: str | None, limit: int) -> tuple[list[Row], str | None]:
    """A page of zones by name, and the name to give as `after`, or None at the end."""
    return _page(view, ZONES, None if after is None else zone_key(after), limit, "zone")


def gateways(view: View) -> dict[str, Row]:
    """All gateways by name: {"gateway", "zone", "session", "token", "sessions"}; `session` is the one in force."""
    return {row["gateway"]: row for row in _rows(view, GATEWAYS)}


def list_sessions(view: View, after: str | None, limit: int) -> tuple[list[Row], str | None]:
    """A page of remembered sessions by UUID, fenced ones included, and where to go on, or None at the end."""
    return _page(view, SESSIONS, None if after is None else session_key(after), limit, "session")


def get_session(view: View, session: str) -> Row | None:
    """The head of a session: gateway, zone, token, last sequence and hash, fenced (why, or None), live blocks."""
    value = view.get(session_key(session))
    return None if value is None else unpack(value)


def blocks(view: View, *, gateway: str | None = None, after: int = 0, limit: int) -> tuple[list[Row], int | None]:
    """A page of ID blocks that begin behind number `after`, by number, and where to go on, or None at the end.

    {"first", "last", "gateway", "zone", "session", "token", "sealed"} each; what an epoch skipped has no gateway. One
    call looks at SCAN_ROWS_MAX rows at most, so that a page may be short, even empty, before the end.
    """
    page: list[Row] = []
    seen = after
    for scanned, (_, value) in enumerate(view.scan(block_key(after + 1), prefix_end(BLOCKS))):
        if len(page) == limit or scanned == SCAN_ROWS_MAX:
            return page, seen
        block = unpack(value)
        seen = block["first"]
        if gateway in (None, block["gateway"]):
            page.append(block)
    return page, None


def _rows(view: View, prefix: bytes) -> list[Row]:
    return [unpack(value) for _, value in view.scan(prefix, prefix_end(prefix))]


def _page(view: View, prefix: bytes, after: bytes | None, limit: int, name: str) -> tuple[list[Row], str | None]:
    """At most `limit` (1 or more) rows of a table behind the key `after`, and the last one's name where more follow."""
    page: list[Row] = []
    for _, value in view.scan(prefix if after is None else after + b"\x00", prefix_end(prefix)):
        if len(page) == limit:
            return page, str(page[-1][name])
        page.append(unpack(value))
    return page, None


# -- projects -----------------------------------------------------------------------------------------------------


def get_project(view: View, project: str) -> Row:
    """What a project owns and may own: {"project", "images", "bytes", "images_max", "bytes_max"}; None: no bound."""
    value = view.get(project_key(project))
    row: Row = new_project(project) if value is None else unpack(value)
    return row


def list_projects(view: View, after: str | None, limit: int) -> tuple[list[Row], str | None]:
    """A page of projects that own images or have a quota, in the order of their keys, and where to go on."""
    return _page(view, PROJECTS, None if after is None else project_key(after), limit, "project")


# -- numbers ------------------------------------------------------------------------------------------------------


def numbers_skipped(view: View) -> int:
    """How many numbers new epochs have skipped altogether: nobody was issued them."""
    return sum(row["next_id"] - row["skipped_from"] for row in _rows(view, EPOCHS))


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
