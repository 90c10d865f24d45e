"""PATCH bodies against a model: a plain document that the operations are applied to, one after the other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zonegw import overlay
from zonegw.errors import Conflict, Forbidden, GatewayError
from zonegw.image_patch import PATCH_V20, PATCH_V21, parse_patch
from zonegw.images import WRITABLE
from zonegw.images_schema import READ_ONLY, RESERVED_PREFIX
from zonegw.limits import Limits

NAMES = ("a", "b", "c/d", "e~f", "ünicode")
CREATE = {
    "uuid": "0" * 8 + "-0000-4000-8000-" + "0" * 12, "home_zone": "fra", "created_at": 1,
    "attributes": {**WRITABLE, "owner": "demo"}, "tags": ["old"], "properties": {"a": "1", "c/d": "2"},
}  # fmt: skip
TEXT = st.text(max_size=5)
CORE_VALUES = {"name": TEXT, "min_disk": st.integers(0, 9), "protected": st.booleans(), "os_hidden": st.booleans()}


def escaped(name: str) -> str:
    return "/" + name.replace("~", "~0").replace("/", "~1")


@st.composite
def operations(draw: st.DrawFn) -> tuple[str, str, Any]:
    """(verb, name, value), most of them possible."""
    kind = draw(st.sampled_from(("property", "property", "property", "core", "tags")))
    if kind == "property":
        return draw(st.sampled_from(("add", "replace", "remove"))), draw(st.sampled_from(NAMES)), draw(TEXT)
    if kind == "tags":
        return draw(st.sampled_from(("add", "replace"))), "tags", draw(st.lists(TEXT, max_size=3))
    name = draw(st.sampled_from(sorted(CORE_VALUES)))
    return draw(st.sampled_from(("add", "replace"))), name, draw(CORE_VALUES[name])


def model(document: dict[str, Any], done: list[tuple[str, str, Any]]) -> dict[str, Any] | None:
    """The document afterwards; None where an operation names a property that is not there."""
    document = dict(document)
    for verb, name, value in done:
        if verb != "add" and name in NAMES and name not in document:
            return None
        if verb == "remove":
            del document[name]
        else:
            document[name] = list(dict.fromkeys(value)) if name == "tags" else value
    return document


def body(content_type: str, done: list[tuple[str, str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for verb, name, value in done:
        row = {verb: escaped(name)} if content_type == PATCH_V20 else {"op": verb, "path": escaped(name)}
        rows.append(row | ({} if verb == "remove" else {"value": value}))
    return rows


def flat(image: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = image["properties"]
    return {name: image[name] for name in (*CORE_VALUES, "tags")} | properties


@pytest.mark.parametrize("content_type", [PATCH_V20, PATCH_V21])
@given(done=st.lists(operations(), max_size=8))
def test_a_patch_makes_what_its_operations_make_one_after_the_other(
    content_type: str, done: list[tuple[str, str, Any]]
) -> None:
    image = overlay.initial(CREATE)
    wanted = model(flat(image), done)
    if wanted is None:
        with pytest.raises(Conflict):
            parse_patch(content_type, body(content_type, done), image, Limits())
        return
    changes = parse_patch(content_type, body(content_type, done), image, Limits())
    assert not set(changes.set) & set(changes.unset), "the registry refuses a name that is in both"
    empty: dict[str, Any] = {"add_locations": [], "remove_locations": [], "time": 2}
    assert flat(overlay.patched(image, {"set": changes.set, "unset": changes.unset, **empty})) == wanted


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner)
)
ROUGHLY = st.fixed_dictionaries(
    {},
    optional={
        "op": st.sampled_from(("add", "remove", "replace", "move", "test", "copy")) | JSON,
        "path": st.sampled_from(("/a", "/", "", "a", "/a/b", "/tags/1", "/~2", "/id", "/locations")) | JSON,
        "value": JSON,
        "add": JSON,
    },
)


@pytest.mark.parametrize("content_type", [PATCH_V20, PATCH_V21, "application/json"])
@given(said=JSON | st.lists(ROUGHLY | JSON, max_size=4))
def test_any_body_is_taken_or_refused_with_a_sentence(content_type: str, said: Any) -> None:
    refusal: GatewayError | None = None
    try:
        parse_patch(content_type, said, overlay.initial(CREATE), Limits())
    except GatewayError as error:
        refusal = error
    assert refusal is None or (refusal.message and 400 <= refusal.http_status < 500)


@given(
    name=st.sampled_from(sorted(READ_ONLY)) | TEXT.map(RESERVED_PREFIX.__add__),
    verb=st.sampled_from(("add", "replace")),
)
def test_what_is_not_a_clients_to_write_is_refused(name: str, verb: str) -> None:
    with pytest.raises(Forbidden):
        parse_patch(PATCH_V21, body(PATCH_V21, [(verb, name, "x")]), overlay.initial(CREATE), Limits())
