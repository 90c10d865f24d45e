"""What a command may hold: `validate` is pure, and is asked by the API before proposing and by apply again.

The bounds below decide results of apply, so they are part of the format and no setting: peers that disagreed on one
would part ways. Raising one needs a feature level; lowering one is not possible. The wording of refusals is part of the
format too, since sessions and idempotency rows remember them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from raftreg import tables

Command = dict[str, Any]

NUMBER_MAX = 2**53 - 1
"""Integers stay exact in JSON readers that know only doubles."""

# -- texts, as the Images API has them --
NAME_CHARS_MAX = 255
ACTOR_CHARS_MAX = 255
ACTOR_ROLES_MAX = 64
TAGS_MAX = 128
TAG_CHARS_MAX = 255
PROPERTIES_MAX = 128
PROPERTY_NAME_CHARS_MAX = 255
# Properties and tags of one image together; an image travels whole in changes, results and listings.
METADATA_BYTES_MAX = 64 * 1024
# One per data store that holds the data; a page of images must stay small enough to send.
LOCATIONS_MAX = 128
# Projects that one image is shared with; as many as Glance allows unless told otherwise.
MEMBERS_MAX = 128
MEMBER_CHARS_MAX = 255
ENDPOINT_CHARS_MAX = 255
CAPABILITIES_BYTES_MAX = 4096
# Zone and gateway names are parts of keys and of URLs.
IDENTIFIER_CHARS_MAX = 63

# -- commands --
IDEMPOTENCY_KEY_BYTES_MAX = 128
ATOMIC_OPERATIONS_MAX = 512
IDS_PER_COMMAND_MAX = 65_536
# 24 hours at 190 creates per second; a lost block costs as much of the 53 bits.
BLOCK_SIZE_MAX = 1 << 24
# A session's payload shares an entry (1 MiB) with others, and its result must fit the window.
PAYLOAD_BYTES_MAX = 512 * 1024
HASH_BYTES = 16
# Numbers given up by a new epoch: the life before may have granted one largest block more than is known.
EPOCH_IDS_SKIPPED = 1 << 24
# Numbers that a gateway's report may make a new epoch skip besides: four largest blocks, 3 % of what old clients count.
FLOOR_RAISE_MAX = 1 << 26

# -- state --
SESSION_WINDOW = 256
ZONES_MAX = 10_000
GATEWAYS_PER_ZONE_MAX = 64
# Blocks of one session that may still be used; more are sealed from the oldest on.
BLOCKS_PER_SESSION_MAX = 64
# Fenced sessions of one gateway that are remembered; one that is not is recognised by its acked sequence.
SESSIONS_PER_GATEWAY_MAX = 64
IDEMPOTENCY_RETENTION_US = 24 * 3600 * 1_000_000
IDEMPOTENCY_ROWS_MAX = 20_000_000
# Every keyed command forgets up to so many expired rows, so that they shrink faster than they grow.
IDEMPOTENCY_PRUNE_MAX = 2
# Deletions that one command confirms: a fraction of a millisecond of apply.
CONFIRMATIONS_MAX = 512
# Changes removed by one command; the proposer repeats until the floor is reached.
COMPACT_ROWS_MAX = 1000
# Rows of a migration to the next feature level by one command; it is repeated until the last one.
MIGRATION_ROWS_MAX = 1000
# Attributes of one image whose last change is remembered, beyond those that it has; older ones are summed up.
ATTRIBUTE_VERSIONS_MAX = 256

VISIBILITIES = ("private", "shared", "community", "public")
"""From narrow to wide."""
STATUSES = ("queued", "saving", "active", "deactivated")
DISK_FORMATS = frozenset(("ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop"))
CONTAINER_FORMATS = frozenset(("ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"))
LOCATION_STATUSES = frozenset(("active", "pending", "deleted"))
MEMBER_STATUSES = ("pending", "accepted", "rejected")


class Invalid(Exception):
    """The command cannot be carried out as it stands; the message says what to change."""


# -- kinds of values ----------------------------------------------------------------------------------------------

Check = Callable[[Any, str], None]
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
_IDENTIFIER = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{IDENTIFIER_CHARS_MAX - 1}}}").fullmatch


def _shown(value: Any) -> str:
    return repr(value)[:60]


def _text(chars_max: int, *, empty: bool = True) -> Check:
    def check(value: Any, name: str) -> None:
        if type(value) is not str:
            raise Invalid(f"{name} must be a string, not {_shown(value)}")
        if len(value) > chars_max or not (value or empty):
            raise Invalid(f"{name} has {len(value)} characters; {0 if empty else 1} to {chars_max} are allowed")
        if not value.isascii():
            _check_unicode(value, name)
        if "\x00" in value:
            raise Invalid(f"{name} contains the character U+0000; remove it")

    return check


def _check_unicode(value: str, name: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Invalid(f"{name} contains half a surrogate pair; send valid Unicode") from None


def _integer(least: int, most: int = NUMBER_MAX) -> Check:
    def check(value: Any, name: str) -> None:
        if type(value) is not int:
            raise Invalid(f"{name} must be a whole number, not {_shown(value)}")
        if not least <= value <= most:
            raise Invalid(f"{name} must be {least} to {most}, not {value}")

    return check


def _boolean(value: Any, name: str) -> None:
    if type(value) is not bool:
        raise Invalid(f"{name} must be true or false, not {_shown(value)}")


def _one_of(values: frozenset[str] | tuple[str, ...]) -> Check:
    def check(value: Any, name: str) -> None:
        if type(value) is not str or value not in values:
            raise Invalid(f"{name} must be one of {', '.join(sorted(values))}, not {_shown(value)}")

    return check


def _or_null(check: Check) -> Check:
    def checked(value: Any, name: str) -> None:
        if value is not None:
            check(value, name)

    return checked


def _uuid(value: Any, name: str) -> None:
    if type(value) is not str or not _UUID(value):
        raise Invalid(f"{name} must be a UUID in lower case with hyphens, not {_shown(value)}")


def _identifier(value: Any, name: str) -> None:
    if type(value) is not str or not _IDENTIFIER(value):
        raise Invalid(
            f"{name} must be 1 to {IDENTIFIER_CHARS_MAX} of A-Z a-z 0-9 . _ - and start with a letter or digit, "
            f"not {_shown(value)}"
        )


def _bytes(least: int, most: int) -> Check:
    def check(value: Any, name: str) -> None:
        if type(value) is not bytes:
            raise Invalid(f"{name} must be bytes, not {_shown(value)}")
        if not least <= len(value) <= most:
            raise Invalid(f"{name} has {len(value)} bytes; {least} to {most} are allowed")

    return check


def _hex(digits: int) -> Check:
    matches = re.compile(rf"[0-9a-f]{{{digits}}}").fullmatch

    def check(value: Any, name: str) -> None:
        if type(value) is not str or not matches(value):
            raise Invalid(f"{name} must be {digits} hexadecimal digits in lower case, not {_shown(value)}")

    return check


def _map(value: Any, name: str) -> None:
    if type(value) is not dict:
        raise Invalid(f"{name} must be a map, not {_shown(value)}")


def _list(value: Any, name: str, items_max: int) -> None:
    if type(value) is not list:
        raise Invalid(f"{name} must be a list, not {_shown(value)}")
    if len(value) > items_max:
        raise Invalid(f"{name} has {len(value)} items; at most {items_max} are allowed")


# -- images -------------------------------------------------------------------------------------------------------

_short = _text(NAME_CHARS_MAX)
_tag = _text(TAG_CHARS_MAX, empty=False)
_property_name = _text(PROPERTY_NAME_CHARS_MAX, empty=False)
_property_value = _text(METADATA_BYTES_MAX)

ATTRIBUTES: Mapping[str, Check] = {
    "name": _or_null(_short),
    "owner": _or_null(_short),
    "status": _one_of(STATUSES),
    "visibility": _one_of(VISIBILITIES),
    "disk_format": _or_null(_one_of(DISK_FORMATS)),
    "container_format": _or_null(_one_of(CONTAINER_FORMATS)),
    "min_disk": _integer(0),
    "min_ram": _integer(0),
    "size": _or_null(_integer(0)),
    "virtual_size": _or_null(_integer(0)),
    "checksum": _or_null(_hex(32)),
    "os_hash_algo": _or_null(_one_of(frozenset(("sha512", "sha256")))),
    "os_hash_value": _or_null(_text(128)),
    "protected": _boolean,
    "os_hidden": _boolean,
}
"""Core attributes that clients set, each by itself."""

DEFAULTS: Mapping[str, Any] = {
    "owner": None, "name": None, "status": "queued", "visibility": "shared", "disk_format": None,
    "container_format": None, "min_disk": 0, "min_ram": 0, "size": None, "virtual_size": None, "checksum": None,
    "os_hash_algo": None, "os_hash_value": None, "protected": False, "os_hidden": False,
}  # fmt: skip

PROPERTY_PREFIX = "properties."
MEMBER_PREFIX = "members."


def check_attributes(attributes: Any, name: str) -> None:
    """Core attributes by name."""
    _map(attributes, name)
    for attribute, value in attributes.items():
        check = ATTRIBUTES.get(attribute)
        if check is None:
            raise Invalid(f"{name} has the unknown attribute {_shown(attribute)}; known are {', '.join(ATTRIBUTES)}")
        check(value, attribute)


def _tags(value: Any, name: str) -> None:
    _list(value, name, TAGS_MAX)
    for tag in value:
        _tag(tag, "a tag")
    if len(set(value)) != len(value):
        raise Invalid(f"{name} names a tag twice")


def _properties(value: Any, name: str) -> None:
    _map(value, name)
    if len(value) > PROPERTIES_MAX:
        raise Invalid(f"{name} has {len(value)} items; at most {PROPERTIES_MAX} are allowed")
    for key, text in value.items():
        _property_name(key, "the name of a property")
        _property_value(text, f"property {key}")


def check_metadata_size(properties: Mapping[str, str], tags: list[str]) -> None:
    """The bound on properties and tags of one image together."""
    size = sum(len(key.encode()) + len(value.encode()) for key, value in properties.items())
    size += sum(len(tag.encode()) for tag in tags)
    if size > METADATA_BYTES_MAX:
        raise Invalid(f"properties and tags have {size} bytes; an image may have {METADATA_BYTES_MAX}")


_LOCATION: Mapping[str, Check] = {
    "zone": _or_null(_identifier),
    "store": _text(NAME_CHARS_MAX, empty=False),
    "key": _text(NAME_CHARS_MAX, empty=False),
    "size": _or_null(_integer(0)),
    "md5": _or_null(_hex(32)),
    "sha512": _or_null(_hex(128)),
    "status": _one_of(LOCATION_STATUSES),
}


def _locations(value: Any, name: str) -> None:
    _list(value, name, LOCATIONS_MAX)
    for location in value:
        _fields(location, "a location", _LOCATION, ("zone", "store", "key"))
    if len({location["key"] for location in value}) != len(value):
        raise Invalid(f"{name} names a key twice; every location has a key of its own")


def _location_keys(value: Any, name: str) -> None:
    _list(value, name, LOCATIONS_MAX)
    for key in value:
        _short(key, "the key of a location")


_member = _text(MEMBER_CHARS_MAX, empty=False)
_MEMBER: Mapping[str, Check] = {"status": _one_of(MEMBER_STATUSES), "can_share": _boolean}


def _members(value: Any, name: str) -> None:
    _map(value, name)
    if len(value) > MEMBERS_MAX:
        raise Invalid(f"{name} has {len(value)} items; at most {MEMBERS_MAX} are allowed")
    for project, fields in value.items():
        _member(project, f"a project in {name}")
        _fields(fields, f"member {project}", _MEMBER, ())


def _member_names(value: Any, name: str) -> None:
    _list(value, name, MEMBERS_MAX)
    for project in value:
        _member(project, f"a project in {name}")


_number = _integer(1)


def _numbers(value: Any, name: str) -> None:
    _list(value, name, CONFIRMATIONS_MAX)
    for number in value:
        _number(number, f"a number in {name}")


def _set(value: Any, name: str) -> None:
    _map(value, name)
    for attribute, item in value.items():
        if type(attribute) is not str:
            raise Invalid(f"{name}: the name of an attribute must be a string, not {_shown(attribute)}")
        if attribute.startswith(PROPERTY_PREFIX):
            _property_name(attribute[len(PROPERTY_PREFIX) :], "the name of a property")
            _property_value(item, attribute)
        elif attribute == "tags":
            _tags(item, attribute)
        elif (check := ATTRIBUTES.get(attribute)) is not None:
            check(item, attribute)
        else:
            raise Invalid(
                f"{name}: {_shown(attribute)} cannot be changed; known are {', '.join(ATTRIBUTES)}, tags and "
                f"{PROPERTY_PREFIX}NAME"
            )


def _unset(value: Any, name: str) -> None:
    _list(value, name, PROPERTIES_MAX)
    for attribute in value:
        if type(attribute) is not str or not attribute.startswith(PROPERTY_PREFIX):
            raise Invalid(f"{name}: only {PROPERTY_PREFIX}NAME can be removed, not {_shown(attribute)}")
        _property_name(attribute[len(PROPERTY_PREFIX) :], "the name of a property")


def check_reference(value: Any, name: str) -> None:
    """{"number", "uuid"}, one of them or both; inside a session also {"sequence"} alone."""
    _fields(value, name, {"number": _integer(1), "uuid": _uuid, "sequence": _integer(1)}, ())
    if not value or ("sequence" in value and len(value) > 1):
        raise Invalid(f"{name} must name an image by number, by uuid, by both, or by the sequence of its create")


# -- commands -----------------------------------------------------------------------------------------------------


def _actor(value: Any, name: str) -> None:
    if value is None:
        return
    _map(value, name)
    for key, item in value.items():
        check = _ACTOR.get(key)
        if check is None:
            raise Invalid(f"{name} has the unknown field {_shown(key)}; known are {', '.join(_ACTOR)}")
        if item is not None:
            check(item, key)


def _roles(value: Any, name: str) -> None:
    _list(value, name, ACTOR_ROLES_MAX)
    for role in value:
        _short(role, "a role")


_actor_text = _text(ACTOR_CHARS_MAX)
_ACTOR: Mapping[str, Check] = {
    "user": _actor_text, "project": _actor_text, "zone": _identifier, "gateway": _identifier,
    "request_id": _actor_text, "roles": _roles, "admin": _boolean,
}  # fmt: skip


def _key(value: Any, name: str) -> None:
    if type(value) is not str or not 0 < len(value.encode("utf-8", "replace")) <= IDEMPOTENCY_KEY_BYTES_MAX:
        raise Invalid(f"{name} must be a string of 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes")
    _check_unicode(value, name)


def _op(_value: Any, _name: str) -> None:
    """Was looked up already."""


def _capabilities(value: Any, name: str) -> None:
    """A shallow map; deeper ones can come with a later feature level."""
    _map(value, name)
    size = 0
    for key, item in value.items():
        _short(key, f"a key of {name}")
        if type(item) not in (str, int, bool, type(None)):
            raise Invalid(f"{name}: {_shown(key)} must be a string, a whole number, true, false or null")
        if type(item) is int:
            _integer(-NUMBER_MAX)(item, key)
        if type(item) is str:
            _short(item, key)
        size += len(key.encode()) + (len(item.encode()) if type(item) is str else 8)
    if size > CAPABILITIES_BYTES_MAX:
        raise Invalid(f"{name} has {size} bytes; at most {CAPABILITIES_BYTES_MAX} are allowed")


def _fields(value: Any, name: str, checks: Mapping[str, Check], required: tuple[str, ...]) -> None:
    _map(value, name)
    for field, item in value.items():
        check = checks.get(field)
        if check is None:
            raise Invalid(f"{name} has the unknown field {_shown(field)}; known are {', '.join(checks)}")
        check(item, field)
    for field in required:
        if field not in value:
            raise Invalid(f"{name} needs {field}")


def _operations(level: int) -> Check:
    """Operations of an atomic command at a feature level."""

    def check(value: Any, name: str) -> None:
        _list(value, name, ATOMIC_OPERATIONS_MAX)
        for position, operation in enumerate(value):
            op = operation.get("op") if type(operation) is dict else None
            if op not in ATOMIC_OPS:
                raise Invalid(f"operation {position}: op must be one of {', '.join(sorted(ATOMIC_OPS))}")
            if "key" in operation:
                raise Invalid(f"operation {position}: key belongs to the atomic command, not to its operations")
            try:
                validate(operation, level)
            except Invalid as invalid:
                raise Invalid(f"operation {position}: {invalid}") from None

    return check


_COMMON: Mapping[str, Check] = {"op": _op, "actor": _actor, "key": _key}
_UPDATE_REFERENCE: Mapping[str, Check] = {
    "image": check_reference, "base_version": _or_null(_integer(1)), "force": _boolean,
}  # fmt: skip
_SESSION: Mapping[str, Check] = {"gateway": _identifier, "session": _uuid}

_OPS: Mapping[str, tuple[Mapping[str, Check], tuple[str, ...]]] = {
    "create_image": (
        {
            "uuid": _uuid, "attributes": check_attributes, "properties": _properties, "tags": _tags,
            "home_zone": _or_null(_identifier), "number": _or_null(_integer(1)), "locations": _locations,
            "created_at": _integer(1),
        },
        ("uuid", "attributes"),
    ),
    "update_image": (
        {
            **_UPDATE_REFERENCE, "set": _set, "unset": _unset,
            "add_locations": _locations, "remove_locations": _location_keys,
            "set_members": _members, "remove_members": _member_names,
        },
        ("image",),
    ),
    "delete_image": (_UPDATE_REFERENCE, ("image",)),
    "confirm_deletions": ({"zone": _identifier, "numbers": _numbers}, ("zone", "numbers")),
    "allocate_ids": ({"count": _integer(1, IDS_PER_COMMAND_MAX)}, ("count",)),
    "open_session": (
        {
            **_SESSION, "zone": _identifier, "highest_sequence": _integer(0), "acked_sequence": _integer(0),
            "acked_hash": _bytes(HASH_BYTES, HASH_BYTES), "epoch": _integer(0), "epoch_began": _integer(0),
            "highest_number": _integer(0),
        },
        ("gateway", "session", "zone", "highest_sequence", "acked_sequence", "acked_hash"),
    ),
    "grant_block": (
        {**_SESSION, "size": _integer(1, BLOCK_SIZE_MAX), "token": _integer(0)},
        ("gateway", "session", "size", "token"),
    ),
    "seal_blocks": ({"gateway": _identifier, "session": _or_null(_uuid)}, ("gateway",)),
    "session_operation": (
        {
            **_SESSION, "sequence": _integer(1), "previous_hash": _bytes(HASH_BYTES, HASH_BYTES),
            "payload": _bytes(1, PAYLOAD_BYTES_MAX),
        },
        ("gateway", "session", "sequence", "previous_hash", "payload"),
    ),
    "register_zone": (
        {"zone": _identifier, "endpoint": _or_null(_text(ENDPOINT_CHARS_MAX)), "capabilities": _or_null(_capabilities)},
        ("zone",),
    ),
    "register_gateway": (
        {"zone": _identifier, "gateway": _identifier, "endpoint": _or_null(_text(ENDPOINT_CHARS_MAX))},
        ("zone", "gateway"),
    ),
    "set_zone_lease": (
        {"zone": _identifier, "live": _boolean, "if_version": _or_null(_integer(1))},
        ("zone", "live"),
    ),
    "compact_changes": ({"floor": _integer(1)}, ("floor",)),
    "set_quota": (
        {
            "project": _text(NAME_CHARS_MAX, empty=False), "images_max": _or_null(_integer(0)),
            "bytes_max": _or_null(_integer(0)),
        },
        ("project",),
    ),
    "begin_epoch": ({"epoch": _integer(2), "id_floor": _or_null(_integer(1))}, ("epoch",)),
    "raise_level": ({"level": _integer(2)}, ("level",)),
    "atomic": ({}, ("operations",)),  # its operations are checked at a level, see `_checks`
}  # fmt: skip

NEWER: Mapping[str, int] = {}
"""The feature level of each op, and of each field (as OP.FIELD), that is not of level 1. Before that level is in force
the proposer refuses it, and apply judges as the releases do that do not know it."""

OPS = frozenset(_OPS)
ATOMIC_OPS = frozenset(("create_image", "update_image", "delete_image", "allocate_ids", "register_zone"))
"""What an atomic command may consist of."""
SESSION_OPS = frozenset(("create_image", "update_image", "delete_image"))
"""What a session operation may carry."""


@cache
def _checks(level: int) -> Mapping[str, tuple[Mapping[str, Check], tuple[str, ...]]]:
    """The fields of every command at a feature level, as a release that knows nothing above it has them."""
    known = {}
    for op, (own, required) in _OPS.items():
        if NEWER.get(op, 1) <= level:
            fields = {name: check for name, check in own.items() if NEWER.get(f"{op}.{name}", 1) <= level}
            known[op] = ({**_COMMON, **fields}, required)
    atomic, required = known["atomic"]
    return known | {"atomic": ({**atomic, "operations": _operations(level)}, required)}


def level_of(command: Command) -> int:
    """The feature level that a valid command needs."""
    if not NEWER:
        return 1
    op = command["op"]
    inner = [level_of(operation) for operation in command["operations"]] if op == "atomic" else []
    return max(NEWER.get(op, 1), *(NEWER.get(f"{op}.{field}", 1) for field in command), *inner)


def validate(command: Command, level: int | None = None) -> None:
    """Check types, lengths, enumerations and ranges, not the state, at a feature level (default: the highest that this
    release supports). Raises Invalid."""
    if type(command) is not dict:
        raise Invalid(f"a command must be a map, not {_shown(command)}")
    op: Any = command.get("op")
    known = _checks(tables.FEATURE_LEVEL if level is None else level)
    checks = known.get(op) if type(op) is str else None
    if checks is None:
        raise Invalid(f"op {_shown(op)} is not known; known are {', '.join(sorted(known))}")
    _fields(command, op, *checks)
    if op == "create_image":
        _check_create(command)


def _check_create(command: Command) -> None:
    properties, tags = command.get("properties"), command.get("tags")
    if properties or tags:
        check_metadata_size(properties or {}, tags or [])
    status = command["attributes"].get("status", "queued")
    if status not in ("queued", "active"):
        raise Invalid(f"status of a new image must be queued or active, not {status}")
    if status == "active" and not command.get("locations"):
        raise Invalid("an image is active only with data: name its locations")
