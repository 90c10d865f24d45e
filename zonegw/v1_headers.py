"""The Images API v1's forms of an image: `x-image-meta-*` headers in both directions, and the JSON document. Pure.

A header's name knows no case, and `-` in it is read as `_`: names of properties are matched by that *plain* form. What
a header can't carry is percent-encoded as glanceclient does it, both in names and in values; what comes is decoded.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from string import ascii_lowercase, ascii_uppercase
from typing import Any
from urllib.parse import quote, unquote

from zonegw.errors import BadRequest, Forbidden
from zonegw.images import Changes, Image
from zonegw.images_schema import IMAGE_STATUSES, RESERVED_PREFIX

META = "x-image-meta-"
PROPERTY = META + "property-"
COPY_FROM = "x-glance-api-copy-from"
UUID_PROPERTY = RESERVED_PREFIX + "uuid"
TRUE_WORDS = frozenset({"true", "t", "1", "yes", "y", "on"})
AMAZON_FORMATS = frozenset({"ami", "ari", "aki"})

_PLAIN = str.maketrans(ascii_uppercase + "-", ascii_lowercase + "_")
# A % is only taken for the beginning of an encoded byte where it looks like one; outer spaces are lost on the way.
_NOT_IN_VALUES = re.compile(r"%(?=[0-9A-Fa-f]{2})|[^\x20-\x7e]|\A | \Z")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9!#$&'*+.^_`|~-]")


@dataclass(slots=True)
class Meta:
    """What a request says of an image: `attributes` as the use cases name them, properties by plain name."""

    attributes: dict[str, Any] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    is_public: bool | None = None
    number: int | None = None
    size: int | None = None
    checksum: str | None = None
    store: str | None = None
    # Where the data are to be had instead of in the body, by the header that says so.
    source: str | None = None


def plain(name: str) -> str:
    return name.translate(_PLAIN)


def encode_value(text: str) -> str:
    return _NOT_IN_VALUES.sub(_quoted, text)


def encode_name(name: str) -> str:
    return _NOT_IN_NAMES.sub(_quoted, name)


def _quoted(match: re.Match[str]) -> str:
    return quote(match[0], safe="")


def decode(text: str) -> str:
    """Raises BadRequest for what is no UTF-8; encoded bytes that are none stay as they came."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest("a header of the image is not UTF-8") from None
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


# From headers.


def from_headers(headers: Iterable[tuple[str, str]]) -> Meta:
    """Raises BadRequest for a value that is no such value. What only the gateway sets is passed over, for clients send
    back what they were shown."""
    meta = Meta()
    for header, text in headers:
        prefix = next((one for one in (PROPERTY, META, COPY_FROM) if header.lower().startswith(one)), None)
        if prefix is None:
            continue
        name, value = plain(decode(header[len(prefix) :])), decode(text)
        if prefix == META:
            _ATTRIBUTES.get(name, _passed_over)(meta, name, value)
        elif prefix == COPY_FROM:
            meta.source = COPY_FROM if value else meta.source
        elif not name.startswith(RESERVED_PREFIX):
            meta.properties[name] = value
    return meta


def _text(meta: Meta, name: str, value: str) -> None:
    meta.attributes[name] = value or None


def _owner(meta: Meta, name: str, value: str) -> None:
    if value:
        meta.attributes[name] = value


def _minimum(meta: Meta, name: str, value: str) -> None:
    meta.attributes[name] = whole(name, value or "0")


def _truth(meta: Meta, name: str, value: str) -> None:
    meta.attributes[name] = value.lower() in TRUE_WORDS


def _is_public(meta: Meta, name: str, value: str) -> None:
    meta.is_public = value.lower() in TRUE_WORDS


def _number(meta: Meta, name: str, value: str) -> None:
    meta.number = whole(name, value) if value else None


def _size(meta: Meta, name: str, value: str) -> None:
    meta.size = whole(name, value) if value else None


def _checksum(meta: Meta, name: str, value: str) -> None:
    meta.checksum = value.lower() or None


def _store(meta: Meta, name: str, value: str) -> None:
    meta.store = value or None


def _location(meta: Meta, name: str, value: str) -> None:
    if value:
        meta.source = META + name


def _status(meta: Meta, name: str, value: str) -> None:
    if value and value not in IMAGE_STATUSES:
        raise BadRequest(f"Invalid image status {value!r:.60}; it is one of {', '.join(IMAGE_STATUSES)}")


def _passed_over(meta: Meta, name: str, value: str) -> None:
    pass


_ATTRIBUTES = {
    "id": _number, "name": _text, "disk_format": _text, "container_format": _text, "owner": _owner,
    "min_disk": _minimum, "min_ram": _minimum, "protected": _truth, "is_public": _is_public, "size": _size,
    "checksum": _checksum, "store": _store, "location": _location, "status": _status,
}  # fmt: skip


def whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise BadRequest(f"{name} must be a whole number, not {text!r:.60}")
    return int(text)


# To use cases.


def new_image(meta: Meta) -> tuple[dict[str, Any], dict[str, str]]:
    """(attributes, properties) of a create. Raises Forbidden for a number: those that are free are not the client's to
    know."""
    if meta.number is not None:
        raise Forbidden("x-image-meta-id can't be chosen: numbers come from the registry; leave it out")
    visibility = "public" if meta.is_public else "shared"
    attributes = {"disk_format": None, "container_format": None} | meta.attributes | {"visibility": visibility}
    return attributes | _amazon_formats(attributes), meta.properties


def changes(meta: Meta, image: Image, *, purge: bool) -> Changes:
    """What an update with these headers changes of the image; `purge` removes the properties that it does not name."""
    if meta.number not in (None, image["number"]):
        raise Forbidden(f"x-image-meta-id can't be changed; the image is {image['number']}")
    wanted = meta.attributes | _visibility(meta, image)
    wanted |= _amazon_formats(image | wanted)
    values = {name: value for name, value in wanted.items() if image[name] != value}
    names = named(image["properties"])
    for key, value in meta.properties.items():
        name = names.get(key, key)
        if image["properties"].get(name) != value:
            values[f"properties.{name}"] = value
    purged = [f"properties.{name}" for key, name in names.items() if key not in meta.properties] if purge else []
    return Changes(values, purged)


def _visibility(meta: Meta, image: Image) -> dict[str, str]:
    """v1 knows public or not; of those that are not, a public image becomes one that can have members."""
    if meta.is_public is None or meta.is_public == (image["visibility"] == "public"):
        return {}
    return {"visibility": "public" if meta.is_public else "shared"}


def _amazon_formats(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Both formats of an Amazon image, which are the same; one that is left out is the other."""
    given = {attributes["disk_format"], attributes["container_format"]} - {None}
    if not given & AMAZON_FORMATS:
        return {}
    if len(given) > 1:
        raise BadRequest("Invalid mix of disk and container formats: for an Amazon image both must be the same")
    return dict.fromkeys(("disk_format", "container_format"), given.pop())


# From use cases.


def named(properties: Mapping[str, str]) -> dict[str, str]:
    """Properties that v1 can speak of, by plain name: of several with the same plain name only one, and none of ours.
    The others it neither shows in headers nor changes nor purges."""
    ordered = sorted(name for name in properties if not plain(name).startswith(RESERVED_PREFIX))
    return {plain(name): name for name in reversed(ordered)}


def document(image: Image) -> dict[str, Any]:
    """The image as JSON."""
    shown = {name: image[name] for name in (
        "name", "disk_format", "container_format", "checksum", "status", "protected", "min_disk", "min_ram", "owner",
    )}  # fmt: skip
    return shown | {
        "id": image["number"], "size": image["size"] or 0, "is_public": image["visibility"] == "public",
        "created_at": _time(image["created_at"]), "updated_at": _time(image["updated_at"]), "deleted": False,
        "deleted_at": None, "properties": image["properties"] | {UUID_PROPERTY: image["uuid"]},
    }  # fmt: skip


def summary(image: Image) -> dict[str, Any]:
    """The image in a list without details."""
    shown = document(image)
    return {name: shown[name] for name in ("id", "name", "size", "disk_format", "container_format", "checksum")}


def to_headers(image: Image) -> dict[str, str]:
    """The image as headers."""
    shown = document(image)
    del shown["properties"]
    headers = {META + name: _header_value(value) for name, value in shown.items()}
    for name in named(image["properties"]).values():
        headers[PROPERTY + encode_name(name)] = encode_value(image["properties"][name])
    return headers | {PROPERTY + UUID_PROPERTY: image["uuid"]}


def _header_value(value: Any) -> str:
    return "" if value is None else encode_value(str(value))


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
