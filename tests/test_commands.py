"""What a command may hold, and what a refusal says."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftreg import commands
from raftreg.commands import Invalid, validate

UUID = "00000000-0000-4000-8000-000000000001"
CREATE: dict[str, Any] = {"op": "create_image", "uuid": UUID, "attributes": {}}
UPDATE: dict[str, Any] = {"op": "update_image", "image": {"number": 1}}
SESSION: dict[str, Any] = {"gateway": "gw1", "session": UUID}
OPERATION: dict[str, Any] = {
    "op": "session_operation", "sequence": 1, "previous_hash": bytes(16), "payload": b"x", **SESSION
}  # fmt: skip
LOCATION: dict[str, Any] = {"zone": "fra", "store": "fra", "key": "k1"}

GOOD: list[dict[str, Any]] = [
    CREATE,
    CREATE | {"attributes": {"name": None, "disk_format": "qcow2", "min_disk": 0, "protected": True}, "tags": ["a"]},
    CREATE | {"attributes": {"status": "active", "size": 0}, "locations": [LOCATION], "home_zone": "fra", "number": 7},
    CREATE | {"properties": {"os_type": "linux", "empty": ""}, "key": "k", "actor": {"user": "u", "roles": ["admin"]}},
    CREATE | {"actor": None, "home_zone": None, "number": None},
    UPDATE | {"set": {"name": "x", "properties.a.b": "c", "tags": []}, "unset": ["properties.d"], "base_version": 3},
    UPDATE | {"image": {"number": 1, "uuid": UUID}, "add_locations": [LOCATION], "remove_locations": ["k"]},
    {"op": "confirm_deletions", "zone": "fra", "numbers": [1, 2]},
    {"op": "delete_image", "image": {"sequence": 3}, "force": True},
    {"op": "allocate_ids", "count": commands.IDS_PER_COMMAND_MAX},
    {
        "op": "open_session",
        "zone": "fra",
        "highest_sequence": 0,
        "acked_sequence": 0,
        "acked_hash": bytes(16),
        **SESSION,
    },
    {"op": "grant_block", "size": commands.BLOCK_SIZE_MAX, "token": 1, **SESSION},
    {"op": "seal_blocks", "gateway": "gw1"},
    OPERATION,
    {"op": "register_zone", "zone": "fra-1.eu", "endpoint": "https://a", "capabilities": {"stores": "a,b", "n": 1}},
    {"op": "register_gateway", "zone": "fra", "gateway": "gw1", "endpoint": None},
    {"op": "set_zone_lease", "zone": "fra", "live": True, "if_version": 1},
    {"op": "compact_changes", "floor": 1},
    {"op": "set_quota", "project": "demo", "images_max": 10, "bytes_max": None},
    {"op": "begin_epoch", "epoch": 2, "id_floor": 7},
    {"op": "raise_level", "level": 2},
    {"op": "atomic", "operations": [CREATE, UPDATE]},
]

BAD: list[tuple[Any, str]] = [
    ([], "a command must be a map"),
    ({}, "op None is not known; known are"),
    ({"op": ["create_image"]}, "is not known"),
    ({"op": "drop_table"}, "'drop_table' is not known"),
    ({"op": "create_image", "attributes": {}}, "create_image needs uuid"),
    (CREATE | {"size": 1}, "unknown field 'size'"),
    (CREATE | {b"uuid": UUID}, "unknown field b'uuid'"),
    (CREATE | {"uuid": UUID.upper().replace("0", "A")}, "uuid must be a UUID in lower case"),
    (CREATE | {"uuid": UUID + "\n"}, "uuid must be a UUID"),
    (CREATE | {"uuid": 5}, "uuid must be a UUID"),
    (CREATE | {"attributes": {"nmae": "x"}}, "unknown attribute 'nmae'"),
    (CREATE | {"attributes": {"name": 5}}, "name must be a string, not 5"),
    (CREATE | {"attributes": {"name": "x" * 256}}, "name has 256 characters; 0 to 255"),
    (CREATE | {"attributes": {"name": "a\x00b"}}, r"U\+0000"),
    (CREATE | {"attributes": {"name": "\ud800"}}, "half a surrogate pair"),
    (CREATE | {"attributes": {"min_ram": True}}, "min_ram must be a whole number"),
    (CREATE | {"attributes": {"min_ram": -1}}, "min_ram must be 0 to"),
    (CREATE | {"attributes": {"min_ram": 2**53}}, "min_ram must be 0 to"),
    (CREATE | {"attributes": {"size": 1.5}}, "size must be a whole number"),
    (CREATE | {"attributes": {"protected": 1}}, "protected must be true or false"),
    (CREATE | {"attributes": {"visibility": "secret"}}, "visibility must be one of community, private"),
    (CREATE | {"attributes": {"disk_format": "exe"}}, "disk_format must be one of"),
    (CREATE | {"attributes": {"visibility": None}}, "visibility must be one of"),
    (CREATE | {"attributes": {"checksum": "XYZ"}}, "checksum must be 32 hexadecimal digits"),
    (CREATE | {"attributes": {"status": "deleted"}}, "status must be one of"),
    (CREATE | {"attributes": {"status": "saving"}}, "status of a new image must be queued or active"),
    (CREATE | {"attributes": {"status": "active"}}, "active only with data"),
    (CREATE | {"attributes": {"created_at": 1}}, "unknown attribute"),
    (CREATE | {"number": 0}, "number must be 1 to"),
    (CREATE | {"number": 2**53}, "number must be 1 to"),
    (CREATE | {"home_zone": ".fra"}, "home_zone must be 1 to 63 of"),
    (CREATE | {"properties": {"a": 1}}, "property a must be a string"),
    (CREATE | {"properties": {"": "x"}}, "name of a property has 0 characters"),
    (CREATE | {"properties": {f"p{n}": "" for n in range(129)}}, "properties has 129 items; at most 128"),
    (CREATE | {"properties": {"a": "x" * 65_536}}, "properties and tags have 65537 bytes"),
    (CREATE | {"tags": ["a", "a"]}, "names a tag twice"),
    (CREATE | {"tags": [str(n) for n in range(129)]}, "tags has 129 items"),
    (CREATE | {"tags": [""]}, "a tag has 0 characters"),
    (CREATE | {"tags": "a"}, "tags must be a list"),
    (CREATE | {"locations": [{"zone": "fra"}]}, "a location needs store"),
    (CREATE | {"locations": [LOCATION, LOCATION]}, "names a key twice"),
    (CREATE | {"locations": [LOCATION | {"url": "x"}]}, "unknown field 'url'"),
    (CREATE | {"key": ""}, "key must be a string of 1 to 128 bytes"),
    (CREATE | {"key": "ä" * 65}, "key must be a string of 1 to 128 bytes"),
    (CREATE | {"actor": {"password": "x"}}, "actor has the unknown field"),
    (CREATE | {"actor": {"zone": "a b"}}, "zone must be 1 to 63 of"),
    (UPDATE | {"image": {}}, "must name an image"),
    (UPDATE | {"image": {"number": 1, "sequence": 1}}, "must name an image"),
    (UPDATE | {"image": 1}, "image must be a map"),
    (UPDATE | {"set": {"home_zone": "fra"}}, "'home_zone' cannot be changed"),
    (UPDATE | {"set": {"number": 1}}, "'number' cannot be changed"),
    (UPDATE | {"set": {1: 1}}, "name of an attribute must be a string"),
    (UPDATE | {"set": {"properties.": "x"}}, "name of a property has 0 characters"),
    (UPDATE | {"set": {"properties.a": None}}, "properties.a must be a string"),
    (UPDATE | {"unset": ["name"]}, "only properties.NAME can be removed"),
    (UPDATE | {"base_version": 0}, "base_version must be 1 to"),
    ({"op": "allocate_ids", "count": 0}, "count must be 1 to 65536"),
    ({"op": "grant_block", "size": commands.BLOCK_SIZE_MAX + 1, "token": 1, **SESSION}, "size must be 1 to"),
    (OPERATION | {"sequence": 0}, "sequence must be 1 to"),
    (OPERATION | {"previous_hash": b""}, "previous_hash has 0 bytes"),
    (OPERATION | {"payload": "x"}, "payload must be bytes"),
    ({"op": "register_zone", "zone": "fra", "capabilities": {"a": []}}, "'a' must be a string, a whole number"),
    ({"op": "register_zone", "zone": "fra", "capabilities": {str(n): "x" * 99 for n in range(50)}}, "at most 4096"),
    ({"op": "set_zone_lease", "zone": "fra"}, "set_zone_lease needs live"),
    ({"op": "compact_changes", "floor": 0}, "floor must be 1 to"),
    ({"op": "set_quota", "project": ""}, "project has 0 characters"),
    ({"op": "set_quota", "project": "demo", "bytes_max": -1}, "bytes_max must be 0 to"),
    (UPDATE | {"set_members": {"p" * 256: {}}}, "a project in set_members has 256 characters"),
    (UPDATE | {"set_members": {f"p{n}": {} for n in range(129)}}, "set_members has 129 items; at most 128"),
    (UPDATE | {"set_members": {"p": {"status": "maybe"}}}, "status must be one of accepted, pending, rejected"),
    (UPDATE | {"remove_members": "p"}, "remove_members must be a list"),
    ({"op": "begin_epoch", "epoch": 1}, "epoch must be 2 to"),
    ({"op": "atomic", "operations": [{"op": "atomic", "operations": []}]}, "operation 0: op must be one of"),
    ({"op": "atomic", "operations": [CREATE, CREATE | {"key": "k"}]}, "operation 1: key belongs to the atomic"),
    ({"op": "atomic", "operations": [CREATE | {"uuid": 1}]}, "operation 0: uuid must be"),
    ({"op": "atomic", "operations": [5]}, "operation 0: op must be one of"),
    ({"op": "atomic", "operations": [CREATE] * 513}, "operations has 513 items"),
]  # fmt: skip


@pytest.mark.parametrize("command", GOOD, ids=lambda command: str(command["op"]))
def test_a_good_command_passes(command: dict[str, Any]) -> None:
    validate(command)


@pytest.mark.parametrize(("command", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_a_bad_command_is_refused_with_a_sentence_that_names_field_and_remedy(command: Any, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        validate(command)


def test_every_op_has_a_good_example_here() -> None:
    assert {command["op"] for command in GOOD} == commands.OPS


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(GOOD),
    st.data(),
)
def test_whatever_stands_in_a_field_is_accepted_or_refused_but_never_breaks(
    value: Any, command: dict[str, Any], data: st.DataObject
) -> None:
    """The values are all that msgpack can carry; what passes must be encodable again, for rows are msgpack."""
    field = data.draw(st.sampled_from([name for name in command if name != "op"]))
    with suppress(Invalid):
        validate(command | {field: value})
        assert msgpack.unpackb(msgpack.packb(command | {field: value})) == command | {field: value}


def test_a_refusal_quotes_only_the_beginning_of_what_was_sent() -> None:
    with pytest.raises(Invalid) as refusal:
        validate({"op": "x" * 1_000_000})
    assert len(str(refusal.value)) < 500
