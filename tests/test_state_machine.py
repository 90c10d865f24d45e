"""What commands do to the replicated state. After every entry the whole state is validated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftreg import commands, queries, state_machine, tables
from raftreg.state_machine import UnknownEntry
from raftreg.tables import pack
from tests.state_life import (
    Document,
    Gateway,
    Life,
    a_state,
    create,
    delete,
    location,
    update,
    uuid_of,
)

ADMIN = {"actor": {"user": "root", "admin": True}}


# -- entries ------------------------------------------------------------------------------------------------------


def test_an_empty_state_has_applied_nothing(life: Life) -> None:
    assert state_machine.applied_index(life.view) == 0
    state_machine.validate_state(life.view)


def test_an_entry_without_commands_only_advances_the_applied_index(life: Life) -> None:
    before = life.digest()
    assert state_machine.apply(life.view, 5, None) == []
    assert state_machine.applied_index(life.view) == 5
    assert life.digest() == before


def test_an_entry_is_never_applied_twice(life: Life) -> None:
    life.do(create("a"))
    with pytest.raises(ValueError, match="applied already"):
        state_machine.apply(life.view, life.index, pack([1, life.now_us, []]))


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\x01", pack([2, 1, []]), pack([1, "now", []]), pack([1, 1, {}]), pack([1, 1, [{"op": "new"}]])],
)
def test_an_entry_that_cannot_be_read_stops_the_peer_and_changes_nothing(life: Life, payload: bytes) -> None:
    with pytest.raises(UnknownEntry):
        state_machine.apply(life.view, 1, payload)
    assert state_machine.applied_index(life.view) == 0


def test_a_malformed_command_is_refused_and_the_others_of_its_entry_are_applied(life: Life) -> None:
    first, second, third = life.do({"op": "create_image"}, create("a"), create("b", min_ram=-1))
    assert first["error"]["code"] == third["error"]["code"] == "invalid"
    assert second["ok"]["number"] == 1


def test_time_never_runs_back(life: Life) -> None:
    late = life.ok(create("late"))["image"]["created_at"]
    life.now_us -= 1_000_000
    assert life.ok(create("early"))["image"]["created_at"] == late


# -- create -------------------------------------------------------------------------------------------------------


def test_a_created_image_is_public_whole_and_numbered_from_one(life: Life) -> None:
    ok = life.ok(create("a", owner="p1", properties={"os": "linux"}, tags=["t"], actor={"user": "u"}))
    image = ok["image"]
    assert (ok["number"], ok["version"], ok["revision"]) == (1, 1, 1)
    assert image == queries.get_image(life.view, {"uuid": uuid_of("a")})
    assert image == {
        "number": 1, "uuid": uuid_of("a"), "version": 1, "revision": 1, "home_zone": None, "owner": "p1", "name": "a",
        "status": "queued", "visibility": "shared", "disk_format": None, "container_format": None, "min_disk": 0,
        "min_ram": 0, "size": None, "virtual_size": None, "checksum": None, "os_hash_algo": None,
        "os_hash_value": None, "protected": False, "os_hidden": False, "created_at": life.now_us,
        "updated_at": life.now_us, "tags": ["t"], "properties": {"os": "linux"}, "locations": [],
        "members": {}, "attribute_versions": {},
    }  # fmt: skip


def test_a_uuid_is_bound_once_even_after_its_image_was_deleted(life: Life) -> None:
    life.do(create("a"))
    assert life.refused(create("a"))["code"] == "uuid_taken"
    life.do(delete(1))
    assert life.refused(create("a"))["code"] == "uuid_taken"


def test_a_refused_create_uses_up_no_number(life: Life) -> None:
    life.do(create("a"))
    life.refused(create("a"))
    assert life.ok(create("b"))["number"] == 2


def test_an_image_is_at_home_only_in_a_registered_zone(life: Life) -> None:
    assert life.refused(create("a", home_zone="fra"))["code"] == "zone_not_found"
    life.do({"op": "register_zone", "zone": "fra"})
    assert life.ok(create("a", home_zone="fra"))["image"]["home_zone"] == "fra"


def test_numbers_end_at_the_largest_that_json_keeps(life: Life) -> None:
    head = tables.read_head(life.view)
    head.next_id = tables.NUMBER_MAX
    tables.write_head(life.view, head)
    assert life.ok(create("last"))["number"] == tables.NUMBER_MAX
    assert life.refused(create("none"))["code"] == "ids_exhausted"
    assert life.refused({"op": "allocate_ids", "count": 1})["code"] == "ids_exhausted"


# -- numbers and blocks -------------------------------------------------------------------------------------------


def test_allocated_numbers_and_blocks_come_from_one_counter(life: Life, gateway: Gateway) -> None:
    assert life.ok({"op": "allocate_ids", "count": 10})["last"] == 10
    block = gateway.grant(100)
    assert (block["first"], block["last"], block["token"]) == (11, 110, gateway.token)
    assert life.ok(create("a"))["number"] == 111
    assert gateway.grant(1)["first"] == 112


def test_a_number_of_a_block_is_bound_by_its_session_alone_and_once(life: Life, gateway: Gateway) -> None:
    gateway.grant(3)
    assert gateway.send(create("a", number=2))["ok"]["number"] == 2
    assert gateway.send(create("b", number=2))["error"]["code"] == "number_taken"
    assert gateway.send(create("c", number=4))["error"]["code"] == "block_not_held"
    other = Gateway(life, "gw2", "ber", "s2")
    other.open()
    assert other.send(create("d", number=3))["error"]["code"] == "block_not_held"
    assert life.refused(create("e", number=3))["code"] == "block_not_held"
    assert life.ok(create("f", number=3, actor={"gateway": "gw1", "zone": "fra"}))["number"] == 3


def test_a_number_is_not_bound_again_after_its_image_was_deleted(life: Life, gateway: Gateway) -> None:
    gateway.grant(3)
    gateway.send(create("a", number=1))
    life.do(delete(1))
    assert gateway.send(create("b", number=1))["error"]["code"] == "number_taken"


def test_a_number_that_the_registry_issued_is_in_no_block(life: Life, gateway: Gateway) -> None:
    issued = life.ok(create("a"))["number"]
    gateway.grant(3)
    assert gateway.send(create("b", number=issued))["error"]["code"] == "block_not_held"


def test_a_sealed_block_is_refused(life: Life, gateway: Gateway) -> None:
    gateway.grant(3)
    assert life.ok({"op": "seal_blocks", "gateway": "gw1", "session": gateway.session})["sealed"] == 1
    assert gateway.send(create("a", number=1))["error"]["code"] == "block_not_held"
    gateway.grant(3)
    assert life.ok({"op": "seal_blocks", "gateway": "gw1"})["sealed"] == 1
    assert life.refused({"op": "seal_blocks", "gateway": "gw9"})["code"] == "session_unknown"


def test_a_block_is_granted_only_for_the_right_token(life: Life, gateway: Gateway) -> None:
    assert life.refused(gateway.asking(1, token=gateway.token + 1))["code"] == "session_fenced"
    assert life.refused(gateway.asking(1, session=uuid_of("?")))["code"] == "session_unknown"
    assert life.refused(gateway.asking(1, gateway="gw2"))["code"] == "session_unknown"


def test_a_session_with_too_many_blocks_loses_the_oldest(
    life: Life, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftreg.state_numbers.BLOCKS_PER_SESSION_MAX", 2)
    for _ in range(3):
        gateway.grant(1)
    assert gateway.send(create("a", number=1))["error"]["code"] == "block_not_held"
    assert [gateway.send(create(f"b{n}", number=n))["ok"]["number"] for n in (2, 3)] == [2, 3]


# -- references ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ({"number": 9}, "image_not_found"),
        ({"uuid": uuid_of("?")}, "image_not_found"),
        ({"number": 9, "uuid": uuid_of("?")}, "image_not_found"),
        ({"number": 1, "uuid": uuid_of("?")}, "image_mismatch"),
        ({"number": 9, "uuid": uuid_of("a")}, "image_mismatch"),
        ({"number": 2, "uuid": uuid_of("a")}, "image_mismatch"),
        ({"number": 1, "uuid": uuid_of("gone")}, "image_mismatch"),
        ({"number": 3}, "image_deleted"),
        ({"uuid": uuid_of("gone")}, "image_deleted"),
        ({"number": 3, "uuid": uuid_of("gone")}, "image_deleted"),
        ({"sequence": 1}, "invalid"),
    ],
)
@pytest.mark.parametrize("op", ["update_image", "delete_image"])
def test_a_reference_that_names_no_single_image_is_refused(life: Life, op: str, reference: Document, code: str) -> None:
    life.do(create("a"), create("b"), create("gone"), delete(3))
    assert life.refused({"op": op, "image": reference})["code"] == code


def test_number_uuid_or_both_name_the_image(life: Life) -> None:
    life.do(create("a"))
    for reference in ({"number": 1}, {"uuid": uuid_of("a")}, {"number": 1, "uuid": uuid_of("a")}):
        life.ok({"op": "update_image", "image": reference, "set": {"min_ram": 5}})


# -- update -------------------------------------------------------------------------------------------------------


def test_an_update_raises_version_and_revision_and_names_what_it_changed(life: Life) -> None:
    life.do(create("a", properties={"old": "x", "kept": "y"}))
    life.now_us += 1
    changes = {"set": {"name": "b", "min_ram": 0, "tags": ["t"], "properties.new": "z"}, "unset": ["properties.old"]}
    ok = life.ok(update(1, **changes))
    image = ok["image"]
    assert (ok["version"], ok["revision"], image["updated_at"] - image["created_at"]) == (2, 2, 1)
    assert image["properties"] == {"kept": "y", "new": "z"}
    changed = ["name", "tags", "properties.new", "properties.old"]
    assert image["attribute_versions"] == dict.fromkeys(changed, 2)
    assert queries.changes_since(life.view, 1, 9, 1 << 20)[0]["changed"] == changed


def test_updates_conflict_only_where_the_same_attribute_changed(life: Life) -> None:
    life.do(create("a"))
    life.ok(update(1, base_version=1, set={"name": "b"}))
    life.ok(update(1, base_version=1, set={"min_ram": 1}))
    refusal = life.refused(update(1, base_version=1, set={"name": "c", "min_disk": 1}))
    assert (refusal["code"], refusal["attributes"], refusal["version"]) == ("conflict", ["name"], 3)
    assert refusal["image"] == queries.get_image(life.view, {"number": 1})
    life.ok(update(1, base_version=3, set={"name": "c"}))
    life.ok(update(1, set={"name": "d"}))


def test_a_removed_property_conflicts_as_a_changed_one_does(life: Life) -> None:
    life.do(create("a", properties={"p": "1"}))
    life.ok(update(1, base_version=1, unset=["properties.p"]))
    assert life.refused(update(1, base_version=1, set={"properties.p": "2"}))["attributes"] == ["properties.p"]
    assert life.refused(update(1, base_version=1, unset=["properties.p"]))["attributes"] == ["properties.p"]


def test_an_attribute_that_was_set_to_what_it_was_has_not_changed(life: Life) -> None:
    life.do(create("a"))
    life.ok(update(1, set={"name": "a"}))
    life.ok(update(1, base_version=1, set={"name": "b"}))


def test_deactivation_and_narrowed_visibility_win_over_what_changed_meanwhile(life: Life) -> None:
    life.do(create("a", status="active", locations=[location("k")]))
    life.ok(update(1, set={"status": "deactivated", "visibility": "public"}))
    assert life.refused(update(1, base_version=1, set={"status": "active"}))["code"] == "conflict"
    life.ok(update(1, base_version=1, set={"status": "deactivated"}))
    life.ok(update(1, base_version=1, set={"visibility": "private"}))
    assert life.refused(update(1, base_version=1, set={"visibility": "public"}))["code"] == "conflict"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"set": {"status": "active"}}, "invalid"),
        ({"set": {"status": "deactivated"}}, "invalid_transition"),
        ({"set": {"properties.a": "x"}, "unset": ["properties.a"]}, "invalid"),
        ({"set": {f"properties.p{n}": "" for n in range(129)}}, "invalid"),
        ({"set": {"properties.a": "x" * 40_000, "properties.b": "x" * 40_000}}, "invalid"),
    ],
)
def test_an_update_that_would_break_the_image_is_refused_and_changes_nothing(
    life: Life, changes: Document, code: str
) -> None:
    life.do(create("a"))
    before = life.digest()
    assert life.refused(update(1, **changes))["code"] == code
    assert life.digest() == before


def test_an_image_becomes_active_with_its_data_and_never_without(life: Life) -> None:
    life.do(create("a"))
    life.ok(update(1, set={"status": "saving"}))
    image = life.ok(update(1, set={"status": "active", "size": 1}, add_locations=[location("k1")]))["image"]
    assert [entry["key"] for entry in image["locations"]] == ["k1"]
    assert life.refused(update(1, remove_locations=["k1"]))["code"] == "invalid"
    moved = life.ok(update(1, add_locations=[location("k2", "ber")], remove_locations=["k1", "k9"]))["image"]
    assert [entry["key"] for entry in moved["locations"]] == ["k2"]


def test_the_bytes_of_an_image_are_fixed_once_it_has_them(life: Life) -> None:
    """Two gateways that are cut off may both upload; the first that drains decides."""
    life.do(create("a"))
    life.ok(update(1, set={"status": "active", "size": 1, "checksum": "c" * 32}, add_locations=[location("k1")]))
    second = update(1, set={"status": "active", "size": 2, "checksum": "d" * 32}, add_locations=[location("k2")])
    assert life.refused(second)["code"] == "data_already_there"
    life.ok(update(1, set={"status": "active", "size": 1, "checksum": "c" * 32}, add_locations=[location("k2")]))


def test_locations_of_two_sides_are_merged_without_conflict(life: Life) -> None:
    life.do(create("a"))
    life.ok(update(1, base_version=1, add_locations=[location("k1")]))
    life.ok(update(1, base_version=1, add_locations=[location("k2")]))
    assert life.ok(update(1, base_version=1, add_locations=[location("k2")]))["image"]["locations"] == [
        location("k1"),
        location("k2"),
    ]


def test_locations_of_one_image_are_bounded(life: Life) -> None:
    life.validate = False
    life.do(create("a", locations=[location(f"k{n}") for n in range(commands.LOCATIONS_MAX)]))
    assert life.refused(update(1, add_locations=[location("one more")]))["code"] == "invalid"


def test_a_member_is_pending_until_it_says_otherwise_and_keeps_what_is_not_changed(life: Life) -> None:
    life.do(create("a", visibility="shared"))
    began = life.now_us
    life.ok(update(1, set_members={"p2": {"can_share": True}}))
    life.now_us += 5
    member = life.ok(update(1, set_members={"p2": {"status": "accepted"}}))["image"]["members"]["p2"]
    assert member == {"status": "accepted", "can_share": True, "created_at": began, "updated_at": began + 5}
    assert life.ok(update(1, remove_members=["p2", "never"]))["image"]["members"] == {}
    assert [change["changed"] for change in queries.changes_since(life.view, 1, 9, 1 << 20)] == [["members.p2"]] * 3


def test_members_conflict_one_by_one_and_removing_wins(life: Life) -> None:
    life.do(create("a"), update(1, set_members={"p2": {}, "p3": {}}))
    life.ok(update(1, base_version=2, remove_members=["p2"]))
    life.ok(update(1, base_version=2, set_members={"p3": {"status": "accepted"}}))
    refusal = life.refused(update(1, base_version=2, set_members={"p2": {"status": "accepted"}, "p4": {}}))
    assert (refusal["code"], refusal["attributes"]) == ("conflict", ["members.p2"])
    assert life.ok(update(1, base_version=2, remove_members=["p3"]))["image"]["members"] == {}
    both = life.refused(update(1, set_members={"p2": {}}, remove_members=["p2"]))
    assert (both["code"], "p2 is both in" in both["message"]) == ("invalid", True)


def test_members_of_one_image_are_bounded(life: Life) -> None:
    life.validate = False
    life.do(create("a"))
    life.ok(update(1, set_members={f"p{n}": {} for n in range(commands.MEMBERS_MAX)}))
    assert life.refused(update(1, set_members={"one more": {}}))["code"] == "invalid"
    assert life.ok(update(1, set_members={"one more": {}}, remove_members=["p0"]))


@pytest.mark.parametrize(
    "members",
    [[], {"": {}}, {"p" * 256: {}}, {"p": None}, {"p": {"status": "maybe"}}, {"p": {"can_share": 1}}],
)
def test_members_that_are_none_are_refused(life: Life, members: Any) -> None:
    life.do(create("a"))
    assert life.refused(update(1, set_members=members))["code"] == "invalid"


def test_what_a_project_owns_is_counted_by_image_and_by_zone_that_holds_it(life: Life) -> None:
    life.do(create("a", owner="p", size=10), create("b", owner="p", size=5, locations=[location("k")]), create("c"))
    assert _owned(life, "p") == (2, 5)
    life.ok(update(1, add_locations=[location("k1"), location("k2", "ber"), {**location("k3"), "status": "pending"}]))
    assert _owned(life, "p") == (2, 25)
    life.ok(update(2, set={"owner": "q"}))
    life.ok(update(1, set={"name": "other"}))
    assert (_owned(life, "p"), _owned(life, "q")) == ((1, 20), (1, 5))
    life.do(delete(1), delete(2))
    assert (_owned(life, "p"), queries.list_projects(life.view, None, 9)) == ((0, 0), ([], None))


def _owned(life: Life, project: str) -> tuple[int, int]:
    row = queries.get_project(life.view, project)
    return row["images"], row["bytes"]


def test_a_quota_refuses_what_would_go_beyond_it_and_nothing_else(life: Life, gateway: Gateway) -> None:
    def quota(**most: int | None) -> Document:
        return {"op": "set_quota", "project": "p", **most}

    life.do(create("a", owner="p", size=10, locations=[location("k")]), create("b", owner="p"))
    life.ok(quota(images_max=1, bytes_max=10))
    for refused in (create("c", owner="p"), update(1, add_locations=[location("k2")])):
        refusal = life.refused(refused)
        assert (refusal["code"], refusal["project"]) == ("quota_exceeded", "p")
    by_gateway = gateway.send(create("d", owner="p"))
    assert by_gateway["error"]["code"] == "quota_exceeded"
    life.ok(update(1, set={"name": "still mine"}))
    life.ok(delete(2))
    life.ok(quota(images_max=2))
    assert queries.get_project(life.view, "p") == {
        "project": "p", "images": 1, "bytes": 10, "images_max": 2, "bytes_max": 10
    }  # fmt: skip
    life.ok(create("c", owner="p"))
    assert life.refused({"op": "atomic", "operations": [delete(1), create("e", owner="p"), create("f", owner="p")]})
    life.ok({"op": "atomic", "operations": [delete(1), create("e", owner="p")]})
    life.ok(quota(images_max=None, bytes_max=None))
    life.do(delete(3), delete(4))
    before = queries.revision(life.view)
    assert life.ok(quota(images_max=None))["revision"] == before


def test_projects_are_paged(life: Life) -> None:
    names = ["a", "b", "p" * 100, "\u00e4"]
    life.do(*(create(name, owner=name) for name in names))
    page, following = queries.list_projects(life.view, None, 3)
    rest, end = queries.list_projects(life.view, following, 3)
    assert sorted(row["project"] for row in page + rest) == sorted(names)
    assert (len(page), end) == (3, None)


def test_remembered_attribute_versions_are_bounded_and_forgetting_errs_towards_a_conflict(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftreg.state_images.ATTRIBUTE_VERSIONS_MAX", 8)
    life.do(create("a"))
    for n in range(20):
        life.do(update(1, set={f"properties.p{n}": "x"}), update(1, unset=[f"properties.p{n}"]))
    image = queries.get_image(life.view, {"number": 1})
    assert image is not None
    assert len(image["attribute_versions"]) <= 9
    assert life.refused(update(1, base_version=2, set={"properties.p1": "y"}))["code"] == "conflict"
    life.ok(update(1, base_version=image["version"], set={"properties.p1": "y"}))


# -- delete -------------------------------------------------------------------------------------------------------


def test_a_delete_leaves_a_tombstone_and_wins_over_concurrent_updates(life: Life) -> None:
    life.do(create("a"))
    life.ok(update(1, set={"name": "b"}))
    ok = life.ok(delete(1, base_version=1))
    assert ok == {"number": 1, "uuid": uuid_of("a"), "version": 3, "revision": 3}
    found = queries.get_image(life.view, {"number": 1})
    assert found == {"deleted": True, **ok, "deleted_at": life.now_us, "holders": []}
    change = queries.changes_since(life.view, 2, 9, 1 << 20)[0]
    assert (change["op"], change["deleted"], change["version"]) == ("delete_image", True, 3)
    assert "image" not in change


def test_a_protected_image_is_not_deleted(life: Life) -> None:
    life.do(create("a", protected=True))
    assert life.refused(delete(1, force=True, **ADMIN))["code"] == "protected"
    life.do(update(1, set={"protected": False}))
    life.ok(delete(1))


# -- home zones ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["update_image", "delete_image"])
@pytest.mark.parametrize(
    ("actor", "extra", "live", "accepted"),
    [
        ({"zone": "fra", "gateway": "gw1"}, {}, False, True),
        ({"zone": "ber", "gateway": "gw2"}, {}, True, True),
        ({"zone": "ber", "gateway": "gw2"}, {}, False, False),
        ({"zone": "ber", "gateway": "gw2"}, {"force": True}, False, False),
        ({"zone": "ber", "gateway": "gw2", "admin": True}, {}, False, False),
        ({"zone": "ber", "gateway": "gw2", "admin": True}, {"force": True}, False, True),
        ({}, {}, False, True),
    ],
)
def test_another_zone_writes_only_while_the_home_zone_is_live(
    life: Life, op: str, actor: Document, extra: Document, live: bool, accepted: bool
) -> None:
    life.do({"op": "register_zone", "zone": "fra"}, create("a", home_zone="fra"))
    life.now_us += 5
    life.do({"op": "set_zone_lease", "zone": "fra", "live": True})
    since = life.now_us
    if not live:
        since = life.now_us = life.now_us + 5
        life.do({"op": "set_zone_lease", "zone": "fra", "live": False})
    (result,) = life.do({"op": op, "image": {"number": 1}, "actor": actor, **extra})
    if accepted:
        assert "ok" in result
    else:
        error = result["error"]
        assert (error["code"], error["home_zone"], error["since"]) == ("home_zone_away", "fra", since)


def test_an_image_of_the_registry_itself_has_no_home_that_could_be_away(life: Life) -> None:
    life.do(create("a"))
    life.ok(update(1, set={"name": "b"}, actor={"zone": "ber", "gateway": "gw2"}))


# -- zones and gateways -------------------------------------------------------------------------------------------


def test_registering_a_zone_again_changes_only_what_is_said_anew(life: Life) -> None:
    zone = life.ok({"op": "register_zone", "zone": "fra", "endpoint": "https://a"})["zone"]
    assert (zone["version"], zone["live"], zone["gateways"]) == (1, False, {})
    again = life.ok({"op": "register_zone", "zone": "fra", "endpoint": "https://a"})
    assert (again["zone"]["version"], again["revision"]) == (1, 1)
    changed = life.ok({"op": "register_zone", "zone": "fra", "capabilities": {"a": "b"}})
    assert changed["zone"] == zone | {"version": 2, "capabilities": {"a": "b"}}
    assert queries.zones(life.view) == {"fra": changed["zone"]}


def test_a_gateway_belongs_to_one_zone_for_ever(life: Life) -> None:
    registration = {"op": "register_gateway", "gateway": "gw1", "endpoint": "https://a"}
    ok = life.ok({**registration, "zone": "fra"})
    assert (ok["zone"]["gateways"], ok["revision"]) == ({"gw1": {"endpoint": "https://a"}}, 1)
    assert life.ok({**registration, "zone": "fra"})["revision"] == 1
    assert life.ok({**registration, "zone": "fra", "endpoint": "https://b"})["revision"] == 2
    assert life.refused({**registration, "zone": "ber"})["code"] == "gateway_elsewhere"
    assert life.refused(Gateway(life, "gw1", "ber").opening())["code"] == "gateway_elsewhere"


def test_a_lease_changes_only_on_top_of_the_version_that_it_was_decided_on(life: Life) -> None:
    life.do({"op": "register_zone", "zone": "fra"})
    lease = {"op": "set_zone_lease", "zone": "fra"}
    assert life.ok({**lease, "live": True, "if_version": 1})["zone"]["version"] == 2
    assert life.refused({**lease, "live": False, "if_version": 1})["code"] == "conflict"
    assert life.ok({**lease, "live": True, "if_version": 2})["zone"]["version"] == 2
    assert life.refused({**lease, "zone": "ber", "live": True})["code"] == "zone_not_found"


def test_zones_and_gateways_are_bounded(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftreg.state_zones.ZONES_MAX", 1)
    monkeypatch.setattr("raftreg.state_zones.GATEWAYS_PER_ZONE_MAX", 1)
    life.ok({"op": "register_gateway", "zone": "fra", "gateway": "gw1"})
    assert life.refused({"op": "register_zone", "zone": "ber"})["code"] == "too_many_zones"
    assert life.refused({"op": "register_gateway", "zone": "fra", "gateway": "gw2"})["code"] == "too_many_gateways"


# -- atomic batches -----------------------------------------------------------------------------------------------


def test_an_atomic_command_does_all(life: Life) -> None:
    ok = life.ok({"op": "atomic", "operations": [create("a"), create("b"), update(1, set={"name": "c"}), delete(2)]})
    assert [list(result) for result in ok["results"]] == [["ok"]] * 4
    assert ok["revision"] == 4


def test_an_atomic_command_does_nothing_when_one_operation_is_refused(life: Life) -> None:
    life.do(create("kept", properties={"p": "1"}), {"op": "register_zone", "zone": "fra"}, create("doomed"))
    before, counts = life.digest(), queries.counts(life.view)
    operations = [
        {"op": "allocate_ids", "count": 10}, create("a"), update(1, set={"name": "x"}), update(1, set={"name": "y"}),
        delete(2), create("b", home_zone="fra"), {"op": "register_zone", "zone": "ber"}, create("kept"),
    ]  # fmt: skip
    refusal = life.refused({"op": "atomic", "operations": operations})
    assert (refusal["code"], refusal["failed"], refusal["cause"]["code"]) == ("atomic_refused", 7, "uuid_taken")
    assert (life.digest(), queries.counts(life.view)) == (before, counts)
    assert life.ok(create("a"))["number"] == 3


def test_an_atomic_command_with_a_key_happens_once(life: Life) -> None:
    command = {"op": "atomic", "operations": [create("a"), {"op": "allocate_ids", "count": 1}], "key": "k"}
    first = life.ok(command)
    assert life.ok(command) == {**first, "replayed": True}
    assert queries.counts(life.view)["next_id"] == 3


# -- compaction ---------------------------------------------------------------------------------------------------


def test_compaction_forgets_changes_below_the_floor_and_never_lowers_it(life: Life) -> None:
    life.do(*(create(str(n)) for n in range(5)))
    assert life.ok({"op": "compact_changes", "floor": 4}) == {"floor": 4, "more": False, "revision": 5}
    assert [change["revision"] for change in queries.changes_since(life.view, 0, 9, 1 << 20)] == [4, 5]
    assert life.ok({"op": "compact_changes", "floor": 2})["floor"] == 4
    assert life.ok({"op": "compact_changes", "floor": 99})["floor"] == 6
    assert queries.compaction_floor(life.view) == 6


def test_one_compaction_removes_a_bounded_number_of_rows(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftreg.state_machine.COMPACT_ROWS_MAX", 2)
    life.do(*(create(str(n)) for n in range(5)))
    assert life.ok({"op": "compact_changes", "floor": 5})["floor"] == 3
    assert life.ok({"op": "compact_changes", "floor": 5}) == {"floor": 5, "more": False, "revision": 5}


# -- digest -------------------------------------------------------------------------------------------------------


def test_a_copy_of_all_rows_has_the_same_digest_and_goes_on_alike(life: Life, gateway: Gateway, tmp_path: Path) -> None:
    gateway.grant(5)
    gateway.send(create("a", number=2))
    life.do(create("b", key="k"), update(2, set={"name": "c"}), delete(2))
    with a_state(tmp_path, "copy") as view:
        for key, value in life.view.scan(b"\x00", b"\xff"):
            view.put(key, value)
        copy = Life(view)
        assert copy.digest() == life.digest()
        command = gateway.carry(create("d", number=3))
        assert copy.do(command) == life.do(command)
        assert copy.digest() == life.digest()


@pytest.mark.parametrize("damage", ["changed", "lost", "added"])
def test_a_row_damaged_behind_the_state_machines_back_shows_in_the_recomputed_digest(life: Life, damage: str) -> None:
    life.do(create("a"))
    key = tables.image_key(1)
    if damage == "lost":
        life.view.delete(key)
    else:
        life.view.put(key if damage == "changed" else tables.image_key(2), pack({"number": 1}))
    assert state_machine.recompute_digest(life.view) != life.digest()
    with pytest.raises((AssertionError, KeyError)):
        state_machine.validate_state(life.view)
