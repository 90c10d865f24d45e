"""The query of a list request: what to show, in which order, from where on."""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from zonegw.errors import BadRequest
from zonegw.limits import Limits
from zonegw.listing import SORT_CODES
from zonegw.visibility import MEMBER_STATUSES

Image = dict[str, Any]
Predicate = Callable[[Image], bool]

IN_FILTERS = ("id", "name", "status", "container_format", "disk_format")
VISIBILITIES = ("public", "private", "shared", "community", "all")
EQUAL = ("checksum", "os_hash_algo", "os_hash_value")
OPERATORS: dict[str, Callable[[int, int], bool]] = {
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "neq": lambda a, b: a != b,
}


@dataclass(slots=True)
class ListQuery:
    """A checked list query; `sort` is [(key, descending)], every predicate must hold. v1 alone sorts by `number`."""

    limit: int
    marker: str | None = None
    # The marker by its image number instead.
    marker_number: int | None = None
    # A place of the order to go on behind, whose image need not be there any more, nor be visible.
    after: bytes | None = None
    sort: list[tuple[str, bool]] = field(default_factory=list)
    visibility: str | None = None
    owner: str | None = None
    number: int | None = None
    # What the projects of other owners' shared images answered, for those images to be listed.
    member_statuses: tuple[str, ...] = ("accepted",)
    # For an administrator: what any other of the project would list.
    as_project: bool = False
    name: str | None = None
    predicates: list[Predicate] = field(default_factory=list)

    def matches(self, image: Image) -> bool:
        return all(predicate(image) for predicate in self.predicates)


def parse(pairs: Iterable[tuple[str, str]], limits: Limits) -> ListQuery:
    """Check the query's parameters. Raises BadRequest that names the wrong one."""
    query = ListQuery(limits.page_images_default)
    sorts: dict[str, list[str]] = {"sort": [], "sort_key": [], "sort_dir": []}
    hidden = False
    for name, value in pairs:
        if name in sorts:
            sorts[name].append(value)
        elif name == "os_hidden":
            hidden = _truth(name, value)
        else:
            _PARAMETERS.get(name, _property)(query, name, value, limits)
    query.sort = _sort(sorts)
    query.predicates.append(lambda image: image["os_hidden"] == hidden)
    return query


def _limit(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    query.limit = min(_natural(name, value), limits.page_images_max)


def _marker(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    try:
        query.marker = str(UUID(value))
    except ValueError:
        raise BadRequest(f"marker must be the ID of an image, not {value!r}") from None


def _visibility(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    if value not in VISIBILITIES:
        raise BadRequest(f"Invalid visibility value: {value}; it is one of {', '.join(VISIBILITIES)}")
    query.visibility = value
    if value != "all":
        query.predicates.append(lambda image: image["visibility"] == value)


def _member_status(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    if value not in (*MEMBER_STATUSES, "all"):
        raise BadRequest(f"Invalid member_status value: {value}; it is one of {', '.join(MEMBER_STATUSES)}, all")
    query.member_statuses = MEMBER_STATUSES if value == "all" else (value,)


def _owner(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    query.owner = value
    query.predicates.append(lambda image: image["owner"] == value)


def _choice(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    """Equality, or one of several with `in:`."""
    attribute = "uuid" if name == "id" else name
    operator, colon, rest = value.partition(":")
    if colon and operator == "in":
        wanted = _members(name, rest)
        query.predicates.append(lambda image: image[attribute] in wanted)
        return
    if colon and operator in (*OPERATORS, "nin"):
        raise BadRequest(f"Unable to filter by unknown operator '{operator}' on {name}")
    if name == "name":
        query.name = value
    query.predicates.append(lambda image: image[attribute] == value)


def _members(name: str, text: str) -> frozenset[str]:
    """A comma list with optional double quotes."""
    if text.count('"') % 2:
        raise BadRequest(f"Invalid filter value {text!r} for {name}: a double quote is not closed")
    try:
        rows = list(csv.reader(io.StringIO(text), skipinitialspace=True))
    except csv.Error:
        raise BadRequest(f"Invalid filter value {text!r:.60} for {name}: put double quotes around it") from None
    return frozenset(rows[0] if rows else ())


def _time(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    operator, colon, rest = value.partition(":")
    if not colon or operator not in OPERATORS:
        operator, rest = "eq", value
    try:
        moment = datetime.fromisoformat(rest)
    except ValueError:
        raise BadRequest(f"{name} takes OPERATOR:ISO8601, as gt:2026-01-31T00:00:00Z, not {value!r}") from None
    wanted = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    compare = OPERATORS[operator]
    query.predicates.append(lambda image: compare(image[name] // 1_000_000, wanted))


def _size(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    bound, least = _natural(name, value), name == "size_min"
    query.predicates.append(
        lambda image: image["size"] is not None and (image["size"] >= bound if least else image["size"] <= bound)
    )


def _minimum(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    wanted = _natural(name, value)
    query.predicates.append(lambda image: image[name] == wanted)


def _protected(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    wanted = _truth(name, value)
    query.predicates.append(lambda image: image["protected"] == wanted)


def _tag(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    query.predicates.append(lambda image: value in image["tags"])


def _equal(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    query.predicates.append(lambda image: image[name] == value)


def _property(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    query.predicates.append(lambda image: image["properties"].get(name) == value)


def _number(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    query.number = _natural(name, value)


def _home_zone(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    query.predicates.append(lambda image: image["home_zone"] == value)


def _store(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    """Images whose data a store holds, by its ID: the zone's name, with the store's unless it is the default."""
    zone, _, store = value.partition(".")
    wanted = (zone, store or "default")
    query.predicates.append(lambda image: any((at["zone"], at["store"]) == wanted for at in image["locations"]))


def _ignored(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    pass


def _changes_since(query: ListQuery, name: str, value: str, limits: Limits) -> None:
    raise BadRequest("changes-since is not offered by the Images API v2; use updated_at=gt:TIME")


_PARAMETERS: dict[str, Callable[[ListQuery, str, str, Limits], None]] = {
    "limit": _limit,
    "marker": _marker,
    "visibility": _visibility,
    "member_status": _member_status,
    "owner": _owner,
    **dict.fromkeys(IN_FILTERS, _choice),
    "created_at": _time,
    "updated_at": _time,
    "size_min": _size,
    "size_max": _size,
    "min_disk": _minimum,
    "min_ram": _minimum,
    "protected": _protected,
    "tag": _tag,
    **dict.fromkeys(EQUAL, _equal),
    "store": _store,
    "os_glance_home_zone": _home_zone,
    "os_glance_v1_id": _number,
    "deleted": _ignored,
    "changes-since": _changes_since,
}


def _natural(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise BadRequest(f"{name} must be a whole number, not {value!r}")
    return int(value)


def _truth(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise BadRequest(f"Invalid value '{value}' for '{name}' filter. Valid values are True or False.")
    return value.lower() == "true"


def _sort(given: dict[str, list[str]]) -> list[tuple[str, bool]]:
    """The order asked for; one direction goes for all keys. Default: newest first."""
    if given["sort"] and (given["sort_key"] or given["sort_dir"]):
        raise BadRequest("Old and new sorting syntax cannot be combined: use either sort or sort_key and sort_dir")
    if given["sort"]:
        pairs = [part.partition(":")[::2] for text in given["sort"] for part in text.split(",")]
        chosen = [(key.strip(), direction.strip() or "desc") for key, direction in pairs]
    else:
        keys = given["sort_key"] or ["created_at"]
        directions = given["sort_dir"] or ["desc"]
        if len(directions) == 1:
            directions = directions * len(keys)
        if len(directions) != len(keys):
            raise BadRequest("Number of sort dirs does not match the number of sort keys")
        chosen = list(zip(keys, directions, strict=True))
    for key, direction in chosen:
        if key not in SORT_CODES:
            raise BadRequest(f"Invalid sort key: {key}. It must be one of the following: {', '.join(SORT_CODES)}.")
        if direction not in ("asc", "desc"):
            raise BadRequest(f"Invalid sort direction: {direction}. It must be one of the following: asc, desc.")
    return [(key, direction == "desc") for key, direction in chosen]
