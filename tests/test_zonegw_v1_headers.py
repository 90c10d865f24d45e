"""Images as v1's headers, there and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zonegw import overlay
from zonegw.errors import BadRequest, Forbidden
from zonegw.images import WRITABLE, Changes
from zonegw.v1_headers import (
    PROPERTY,
    changes,
    decode,
    document,
    encode_name,
    encode_value,
    from_headers,
    named,
    new_image,
    plain,
    to_headers,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VISIBILITIES = st.sampled_from(["public", "private", "shared", "community"])


def image(**attributes: Any) -> dict[str, Any]:
    properties = attributes.pop("properties", {})
    made = overlay.initial(
        {"attributes": {**WRITABLE, "owner": "demo"}, "uuid": "7ed3bc2c-4f0c-4d8e-9f25-0c6b1a5e7d10", "number": 42,
         "home_zone": "fra", "created_at": 1_700_000_000_000_000, "tags": [], "properties": properties}
    )  # fmt: skip
    return made | attributes


@given(TEXTS)
@example("100% pure")
@example("%41%")
@example(" outer spaces ")
@example("two\nlines\r\n")
def test_any_text_survives_a_header_line(text: str) -> None:
    carried = encode_value(text)
    assert carried.isascii()
    assert carried == carried.strip()
    assert all(char.isprintable() for char in carried)
    assert decode(carried) == text


@given(TEXTS.filter(bool))
@example("a%20b")
@example("Ä b:c")
def test_any_name_of_a_property_survives_a_header_that_knows_no_case(name: str) -> None:
    header = (PROPERTY + encode_name(name)).lower()
    assert all(char.isalnum() or char in "!#$%&'*+-.^_`|~" for char in header)
    assert plain(decode(header.removeprefix(PROPERTY))) == plain(name)


@given(TEXTS, st.dictionaries(TEXTS.filter(bool), TEXTS, max_size=6), VISIBILITIES, st.booleans())
@example("x", {"A": "1", "a": "2", "a-b": "3", "a_b": "4"}, "shared", True)
def test_sending_back_what_was_shown_changes_nothing(
    name: str, properties: dict[str, str], visibility: str, purge: bool
) -> None:
    shown = image(name=name or None, properties=properties, visibility=visibility, size=5, checksum="0" * 32)
    meta = from_headers(to_headers(shown).items())
    assert changes(meta, shown, purge=purge) == Changes()


@given(st.dictionaries(TEXTS.filter(bool), TEXTS, max_size=6))
def test_only_properties_that_v1_can_name_are_purged(properties: dict[str, str]) -> None:
    shown = image(properties=properties)
    purged = changes(from_headers([]), shown, purge=True).unset
    assert sorted(purged) == sorted(f"properties.{name}" for name in named(properties).values())


def test_names_of_ours_are_neither_taken_nor_purged() -> None:
    shown = image(properties={"os_glance_x": "1", "free": "2"})
    meta = from_headers([("X-Image-Meta-Property-OS-Glance-UUID", "other"), (PROPERTY + "free", "2")])
    assert meta.properties == {"free": "2"}
    assert changes(meta, shown, purge=True) == Changes()


def test_a_resent_property_keeps_the_name_that_it_has() -> None:
    shown = image(properties={"OS-Distro": "a"})
    meta = from_headers([(PROPERTY + "os_distro", "b")])
    assert changes(meta, shown, purge=True) == Changes({"properties.OS-Distro": "b"})


@pytest.mark.parametrize(
    ("visibility", "is_public", "expected"),
    [("shared", "True", "public"), ("public", "False", "shared"), ("public", "true", None), ("private", "False", None),
     ("community", "", None), ("public", "None", "shared"), ("private", "TRUE", "public")],
)  # fmt: skip
def test_public_or_not_is_the_visibility(visibility: str, is_public: str, expected: str | None) -> None:
    meta = from_headers([("x-image-meta-is_public", is_public)])
    found = changes(meta, image(visibility=visibility), purge=False)
    assert found.set == ({"visibility": expected} if expected else {})


def test_a_new_image_is_shared_unless_it_is_public() -> None:
    attributes, properties = new_image(from_headers([("x-image-meta-name", "a%20b"), (PROPERTY + "K-1", "v")]))
    assert (attributes["name"], attributes["visibility"], properties) == ("a b", "shared", {"k_1": "v"})
    assert new_image(from_headers([("X-Image-Meta-Is-Public", "True")]))[0]["visibility"] == "public"


def test_an_amazon_image_has_one_format() -> None:
    headers = [("x-image-meta-disk_format", "aki")]
    assert new_image(from_headers(headers))[0]["container_format"] == "aki"
    with pytest.raises(BadRequest):
        new_image(from_headers([*headers, ("x-image-meta-container_format", "bare")]))
    with pytest.raises(BadRequest):
        changes(from_headers(headers), image(container_format="bare"), purge=False)


def test_a_number_is_not_chosen_nor_changed() -> None:
    meta = from_headers([("x-image-meta-id", "7")])
    with pytest.raises(Forbidden):
        new_image(meta)
    with pytest.raises(Forbidden):
        changes(meta, image(), purge=False)
    assert changes(from_headers([("x-image-meta-id", "42")]), image(), purge=False) == Changes()


@pytest.mark.parametrize(
    ("header", "value"),
    [("min_ram", "-1"), ("min_disk", "1.5"), ("size", "big"), ("id", "x"), ("status", "done"), ("name", "\udcff"),
     ("size", "9" * 19), ("min_ram", "²")],
)  # fmt: skip
def test_a_value_that_is_none_is_refused(header: str, value: str) -> None:
    with pytest.raises(BadRequest):
        from_headers([(f"x-image-meta-{header}", value)])


def test_the_document_has_what_clients_of_v1_read() -> None:
    shown = document(image(name=None, properties={"k": "v"}))
    assert shown["properties"] == {"k": "v", "os_glance_uuid": "7ed3bc2c-4f0c-4d8e-9f25-0c6b1a5e7d10"}
    assert (shown["id"], shown["size"], shown["is_public"], shown["deleted"]) == (42, 0, False, False)
    assert shown["created_at"] == "2023-11-14T22:13:20"
    headers = to_headers(image(name=None))
    assert (headers["x-image-meta-name"], headers["x-image-meta-is_public"]) == ("", "False")
