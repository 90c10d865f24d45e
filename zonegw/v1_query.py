"""The query of a v1 list, as the use case takes it. Pure; what both versions share is image_query's."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from zonegw import image_query, visibility
from zonegw.errors import BadRequest
from zonegw.identity import Identity
from zonegw.image_query import Image, ListQuery
from zonegw.limits import Limits
from zonegw.v1_headers import TRUE_WORDS, whole

# Parameters with the same meaning in v2.
SHARED = (
    "limit", "sort_key", "sort_dir", "owner", "protected", "size_min", "size_max", "min_disk", "min_ram",
)  # fmt: skip
EQUAL = ("status", "container_format", "disk_format")


def parse(pairs: Iterable[tuple[str, str]], who: Identity, limits: Limits) -> ListQuery:
    """Check the query's parameters; those that v1 does not know it passes over. Raises BadRequest."""
    given = dict(pairs)
    query = image_query.parse([(name, given[name]) for name in SHARED if name in given], limits)
    query.sort = [("number" if key == "id" else key, descending) for key, descending in query.sort]
    query.member_statuses = visibility.MEMBER_STATUSES  # v1 asks no member whether it accepts
    query.predicates.append(lambda image: image["number"] is not None)
    _choose_public(query, who, given.get("is_public", "true").lower())
    for name, value in given.items():
        _filter(query, name, value)
    if who.is_admin and given.get("deleted", "").lower() in TRUE_WORDS:
        query.predicates.append(lambda image: False)  # a zone keeps nothing of deleted images
    return query


def _choose_public(query: ListQuery, who: Identity, is_public: str) -> None:
    """Administrators see what everyone does unless they ask; others have no choice."""
    if not who.is_admin or is_public in TRUE_WORDS:
        query.as_project = True
        query.predicates.append(lambda image: _is_listed(who, image))
    elif is_public == "false":
        query.predicates.append(lambda image: image["visibility"] != "public")
    elif is_public != "none":
        raise BadRequest(f"is_public must be True, False or None, not {is_public!r:.60}")


def _is_listed(who: Identity, image: Image) -> bool:
    own = image["owner"] == who.project
    return own or image["visibility"] == "public" or visibility.is_shared_with(image, who.project)


def _filter(query: ListQuery, name: str, value: str) -> None:
    if name == "name":
        query.name = value
        query.predicates.append(_equal("name", value))
    elif name in EQUAL:
        query.predicates.append(_equal(name, value))
    elif name.startswith("property-"):
        key = name.removeprefix("property-")
        query.predicates.append(lambda image: image["properties"].get(key) == value)
    elif name == "changes-since":
        since = _moment(value)
        query.predicates.append(lambda image: image["updated_at"] >= since)
    elif name == "marker":
        query.marker_number = whole(name, value)


def _equal(name: str, value: str) -> Callable[[Image], bool]:
    return lambda image: image[name] == value


def _moment(text: str) -> int:
    """Microseconds; a time without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000_000)
    except (ValueError, OverflowError):
        raise BadRequest(f"changes-since takes a time as 2026-01-31T00:00:00, not {text!r:.60}") from None
