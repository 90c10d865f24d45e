"""Who may do what: visibility, the table of actions with its overrides, property protections."""

import pytest

from zonegw import visibility
from zonegw.errors import ConfigError, Forbidden
from zonegw.identity import Identity
from zonegw.policy import DEFAULTS, Image, Policy
from zonegw.property_protection import OPERATIONS, PropertyProtections

OWNER = Identity("o", "mine", frozenset({"member"}))
READER = Identity("r", "mine", frozenset({"reader"}))
MEMBER = Identity("m", "friend", frozenset({"member"}))
STRANGER = Identity("s", "other", frozenset({"member"}))
SERVICE = Identity("svc", "service", frozenset({"service"}))
ADMIN = Identity("a", "admin", frozenset({"admin"}))


def image(visibility: str = "shared", **more: object) -> Image:
    friend = {"status": "pending", "can_share": False, "created_at": 1, "updated_at": 1}
    return {"owner": "mine", "visibility": visibility, "members": {"friend": friend}, **more}


@pytest.mark.parametrize(
    ("kind", "seers"),
    [
        ("private", {OWNER, READER, ADMIN}),
        ("shared", {OWNER, READER, ADMIN, MEMBER}),
        ("community", {OWNER, READER, ADMIN, MEMBER, STRANGER, SERVICE}),
        ("public", {OWNER, READER, ADMIN, MEMBER, STRANGER, SERVICE}),
    ],
)
def test_an_image_exists_for_those_its_visibility_names(kind: str, seers: set[Identity]) -> None:
    everyone = (OWNER, READER, ADMIN, MEMBER, STRANGER, SERVICE)
    assert {who for who in everyone if visibility.may_see(who, image(kind))} == seers


@pytest.mark.parametrize("status", visibility.MEMBER_STATUSES)
def test_a_shared_image_exists_for_a_member_whatever_it_answered(status: str) -> None:
    shared = image()
    shared["members"]["friend"]["status"] = status
    assert visibility.may_see(MEMBER, shared)


@pytest.mark.parametrize(
    ("action", "allowed"),
    [
        ("modify_image", {OWNER, ADMIN}),
        ("delete_image", {OWNER, ADMIN}),
        ("upload_image", {OWNER, ADMIN}),
        ("deactivate", {OWNER, ADMIN}),
        ("add_member", {OWNER, ADMIN}),
        ("get_members", {OWNER, READER, MEMBER, ADMIN}),
        ("modify_member", {MEMBER, ADMIN}),
        ("publicize_image", {ADMIN}),
        ("set_image_owner", {ADMIN}),
        ("download_deactivated_image", {ADMIN}),
        ("get_image_location", {SERVICE, ADMIN}),
        ("get_image", {OWNER, READER, MEMBER, STRANGER, SERVICE, ADMIN}),
        ("add_image", {OWNER, MEMBER, STRANGER, SERVICE, ADMIN}),
    ],
)
def test_the_table_says_who_may_do_what(action: str, allowed: set[Identity]) -> None:
    everyone = (OWNER, READER, MEMBER, STRANGER, SERVICE, ADMIN)
    assert {who for who in everyone if Policy().allows(action, who, image())} == allowed


def test_an_override_changes_its_action_alone() -> None:
    policy = Policy({"publicize_image": "role:publisher and owner or admin", "delete_image": "nobody"})
    publisher = Identity("p", "mine", frozenset({"member", "publisher"}))
    assert policy.allows("publicize_image", publisher, image())
    assert not policy.allows("publicize_image", publisher, image(owner="other"))
    assert not policy.allows("delete_image", ADMIN, image())
    assert policy.allows("modify_image", OWNER, image())
    with pytest.raises(Forbidden, match="delete_image"):
        policy.require("delete_image", OWNER, image())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"fly": "admin"}, "unknown action policy.fly"),
        ({"add_image": "root"}, "'root' is none of"),
        ({"add_image": "admin or"}, "none of"),
        ({"add_image": ""}, "must be a rule"),
        ({"add_image": ["admin"]}, "must be a rule"),
        ({"add_image": "role:"}, "none of"),
    ],
)
def test_a_rule_that_means_nothing_is_refused_at_start(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Policy(overrides)


def test_every_action_has_a_rule_that_can_be_asked_without_an_image() -> None:
    for action in DEFAULTS:
        Policy().allows(action, OWNER)


def protections(*rows: tuple[str, dict[str, list[str]]]) -> PropertyProtections:
    nobody = {operation: ["!"] for operation in OPERATIONS}
    return PropertyProtections([{"pattern": pattern, **nobody, **roles} for pattern, roles in rows])


def test_the_first_pattern_that_matches_decides_and_what_none_matches_is_nobodys() -> None:
    free = {operation: ["@"] for operation in OPERATIONS}
    rules = protections(("x_secret", {"read": ["admin"]}), ("x_.*", free))
    assert not rules.allows("read", OWNER, "x_secret")
    assert rules.allows("read", ADMIN, "x_secret")
    assert rules.allows("update", OWNER, "x_open")
    assert not rules.allows("read", ADMIN, "y")
    assert rules.readable(OWNER, {"x_secret": "1", "x_open": "2", "y": "3"}) == {"x_open": "2"}


def test_writing_is_a_creation_or_an_update_and_each_has_its_roles() -> None:
    rules = protections(("billing", {"create": ["admin"], "update": ["member"], "delete": ["admin"], "read": ["@"]}))
    assert rules.refused(OWNER, (), ["billing"], ()) == "billing"
    assert rules.refused(OWNER, ["billing"], ["billing"], ()) == ""
    assert rules.refused(OWNER, ["billing"], (), ["billing"]) == "billing"
    assert rules.refused(ADMIN, (), ["billing"], ()) == ""


def test_without_protections_all_properties_are_free() -> None:
    properties = {"a": "b"}
    assert PropertyProtections().readable(OWNER, properties) is properties
    assert PropertyProtections().refused(OWNER, (), ["a"], ["b"]) == ""


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"pattern": ".*"}, "tables"),
        ([{"pattern": ".*"}], "has the keys pattern"),
        ([{"pattern": "(", **{operation: ["@"] for operation in OPERATIONS}}], "no regular expression"),
        ([{"pattern": ".*", **dict.fromkeys(OPERATIONS, "@")}], "must be a list"),
    ],
)
def test_a_protection_that_means_nothing_is_refused_at_start(rows: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PropertyProtections(rows)
