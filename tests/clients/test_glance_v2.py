"""The glance command, version 2 of the API, online and cut off: whatever it does in the own zone works."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.clients.conftest import DATA, Place, fresh, glance_of
from tests.clients.driving import Commands, Shell

pytestmark = pytest.mark.slow

FORMATS = ("--disk-format", "raw", "--container-format", "bare")


def create(glance: Commands, name: str, *options: str) -> str:
    """The ID of a new image of that name."""
    return glance("image-create", "--name", name, *FORMATS, *options).properties["id"]


def names(glance: Commands, *options: str) -> list[str]:
    return [row["Name"] for row in glance("image-list", *options).rows]


def test_an_image_is_created_with_its_data_from_a_file_and_comes_back_byte_for_byte(
    glance: Commands, data: Path, tmp_path: Path
) -> None:
    made = glance("image-create", "--name", fresh("file"), *FORMATS, "--file", str(data)).properties
    assert (made["status"], made["size"], made["visibility"]) == ("active", str(len(DATA)), "shared")
    assert made["checksum"] == hashlib.md5(DATA).hexdigest()
    assert made["os_hash_value"] == hashlib.sha512(DATA).hexdigest()
    copy = tmp_path / "copy"
    glance("image-download", made["id"], "--file", str(copy))
    assert copy.read_bytes() == DATA


def test_data_comes_from_standard_input_as_well(glance: Commands, data: Path, tmp_path: Path) -> None:
    image = glance("image-create", "--name", fresh("stdin"), *FORMATS, stdin=data).properties
    assert image["size"] == str(len(DATA))
    empty = create(glance, fresh("stdin"))
    glance("image-upload", empty, stdin=data)
    assert glance("image-show", empty).properties["checksum"] == hashlib.md5(DATA).hexdigest()


def test_a_queued_image_takes_its_data_once(glance: Commands, data: Path) -> None:
    image = create(glance, fresh("queued"))
    assert glance("image-show", image).properties["status"] == "queued"
    glance("image-upload", image, "--file", str(data), "--size", str(len(DATA)))
    assert glance("image-show", image).properties["status"] == "active"
    said = glance.refused("image-upload", image, "--file", str(data))
    assert "Image status transition from active to saving is not allowed" in said


def test_an_image_is_updated_with_attributes_and_properties(glance: Commands) -> None:
    name = fresh("update")
    image = create(glance, name, "--property", "os_distro=debian", "--property", "flavour=small")
    new = fresh("updated")
    shown = glance(
        "image-update", image, "--name", new, "--min-ram", "512", "--protected", "True", "--hidden", "True",
        "--property", "os_distro=fedora", "--remove-property", "flavour",
    ).properties  # fmt: skip
    assert (shown["name"], shown["min_ram"], shown["os_distro"]) == (new, "512", "fedora")
    assert (shown["protected"], shown["os_hidden"]) == ("True", "True")
    assert "flavour" not in shown
    assert new not in names(glance)
    assert new in names(glance, "--hidden", "True")


def test_a_deleted_image_is_gone_and_a_protected_one_stays(glance: Commands) -> None:
    image = create(glance, fresh("delete"), "--protected", "True")
    # The client has a sentence of its own for this refusal.
    assert "not permitted to delete" in glance.refused("image-delete", image)
    assert glance("image-show", image).properties["protected"] == "True"
    glance("image-update", image, "--protected", "False")
    glance("image-delete", image)
    assert "404" in glance.refused("image-show", image)


def test_lists_are_filtered(glance: Commands, data: Path, place: Place) -> None:
    mark = fresh("mark")
    one, two = fresh("one"), fresh("two")
    first = create(glance, one, "--property", f"set={mark}", "--tags", "red", "blue", "--file", str(data))
    create(glance, two, "--property", f"set={mark}", "--tags", "red", "--visibility", "private")
    ours = ("--property-filter", f"set={mark}")
    assert names(glance, *ours) == [one, two]
    assert names(glance, *ours, "--tag", "red") == [one, two]
    assert names(glance, *ours, "--tag", "blue") == [one]
    assert names(glance, *ours, "--visibility", "private") == [two]
    assert names(glance, *ours, "--visibility", "shared") == [one]
    assert names(glance, *ours, "--checksum", hashlib.md5(DATA).hexdigest()) == [one]
    assert names(glance, *ours, "--hash", hashlib.sha512(DATA).hexdigest()) == [one]
    assert names(glance, *ours, "--owner", place.alice.project) == [one, two]
    assert names(glance, *ours, "--property-filter", "status=queued") == [two]
    assert names(glance, *ours, "--property-filter", "size_min=1") == [one]
    assert names(glance, "--property-filter", f"name=in:{one},{two}") == [one, two]
    assert names(glance, *ours, "--property-filter", "created_at=lt:2020-01-01T00:00:00Z") == []
    rows = glance("--verbose", "image-list", *ours).rows
    assert [(row["Status"], row["Owner"]) for row in rows] == [("active", "demo"), ("queued", "demo")]
    listed = glance("image-list", *ours, "--include-stores").rows
    assert [row["Stores"] for row in listed if row["ID"] == first] == ["fra"]


def test_a_bad_filter_is_refused_with_a_sentence(glance: Commands) -> None:
    assert "400" in glance.refused("image-list", "--visibility", "secret")
    assert "400" in glance.refused("image-list", "--property-filter", "created_at=lt:yesterday")
    assert "400" in glance.refused("image-list", "--property-filter", "size_min=many")


def test_pages_follow_each_other_in_the_order_that_was_asked_for(glance: Commands) -> None:
    mark = fresh("mark")
    made = [fresh(letter) for letter in "abcde"]
    for name in made:
        create(glance, name, "--property", f"set={mark}")
    ours = ("--property-filter", f"set={mark}")
    assert names(glance, *ours, "--page-size", "2") == made
    assert names(glance, *ours, "--page-size", "2", "--sort", "name:desc") == made[::-1]
    assert names(glance, *ours, "--page-size", "1", "--sort", "status:asc,created_at:asc") == made
    by_keys = ("--sort-key", "status", "--sort-dir", "asc", "--sort-key", "name", "--sort-dir", "desc")
    assert names(glance, *ours, *by_keys) == made[::-1]
    assert names(glance, *ours, "--limit", "3") == made[:3]


def test_tags_come_and_go(glance: Commands) -> None:
    image = create(glance, fresh("tags"))
    glance("image-tag-update", image, "golden")
    glance("image-tag-update", image, "golden")
    assert glance("image-show", image).properties["tags"] == '["golden"]'
    glance("image-tag-delete", image, "golden")
    assert glance("image-show", image).properties["tags"] == "[]"
    assert "404" in glance.refused("image-tag-delete", image, "golden")


def test_an_image_is_shared_with_a_project_that_accepts_and_then_rejects_it(
    glance: Commands, place: Place, shell: Shell, data: Path, tmp_path: Path
) -> None:
    bob, name = glance_of(place, shell, place.bob), fresh("shared")
    image = create(glance, name, "--file", str(data))
    assert "404" in bob.refused("image-show", image)
    shared = glance("member-create", image, "other").rows
    assert [(row["Member ID"], row["Status"]) for row in shared] == [("other", "pending")]
    assert name not in names(bob)
    assert names(bob, "--visibility", "shared", "--member-status", "pending") == [name]
    assert bob("member-update", image, "other", "accepted").rows[0]["Status"] == "accepted"
    assert name in names(bob)
    assert [row["Status"] for row in glance("member-list", "--image-id", image).rows] == ["accepted"]
    assert bob("member-get", image, "other").properties["status"] == "accepted"
    bob("image-download", image, "--file", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == DATA
    assert "403" in bob.refused("image-update", image, "--name", "mine")
    assert "403" in glance.refused("member-update", image, "other", "rejected")
    bob("member-update", image, "other", "rejected")
    assert name not in names(bob)
    glance("member-delete", image, "other")
    assert "404" in bob.refused("image-show", image)


def test_a_deactivated_image_can_be_downloaded_by_administrators_only(
    glance: Commands, place: Place, shell: Shell, data: Path, tmp_path: Path
) -> None:
    root, copy = glance_of(place, shell, place.root), tmp_path / "copy"
    image = create(glance, fresh("deactivated"), "--file", str(data))
    root("image-deactivate", image)
    assert glance("image-show", image).properties["status"] == "deactivated"
    assert "403" in glance.refused("image-download", image, "--file", str(copy))
    root("image-download", image, "--file", str(copy))
    assert copy.read_bytes() == DATA
    root("image-reactivate", image)
    glance("image-download", image, "--file", str(copy))


def test_discovery_without_a_version_finds_version_2(place: Place, shell: Shell) -> None:
    glance = glance_of(place, shell, place.alice)
    # The second version of the API has this command, the first has not.
    assert "glance-direct" in glance("import-info").properties["import-methods"]
    assert '"v2.17"' in place.ask("GET", "/versions")[1].decode()


def test_what_the_service_offers_is_told(glance: Commands, place: Place) -> None:
    stores = glance("stores-info").stdout
    assert re.search(r'"id": "fra"', stores), stores
    assert {row["Quota"] for row in glance("usage").rows} >= {"image_size_total", "image_count_total"}
    glance("task-list")
    glance("md-namespace-list")
    assert "x-openstack-request-id" in place.ask("GET", "/v2/tasks")[0].headers
