"""The openstack command, online and cut off: images by name and by ID, shared with another project, imported."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import DATA, Place, fresh, openstack_of
from tests.clients.driving import Commands, Shell

pytestmark = pytest.mark.slow

FORMATS = ("--disk-format", "raw", "--container-format", "bare")


def create(openstack: Commands, name: str, *options: str) -> dict[str, Any]:
    image: dict[str, Any] = openstack("image", "create", *FORMATS, *options, "-f", "json", name).json
    return image


def show(openstack: Commands, name: str) -> dict[str, Any]:
    image: dict[str, Any] = openstack("image", "show", "-f", "json", name).json
    return image


def names(openstack: Commands, *options: str) -> list[str]:
    return [row["Name"] for row in openstack("image", "list", *options, "-f", "json").json]


def test_an_image_is_created_from_a_file_found_by_name_and_by_id_and_saved(
    openstack: Commands, data: Path, tmp_path: Path
) -> None:
    name = fresh("file")
    made = create(openstack, name, "--file", str(data), "--property", "os_distro=debian", "--tag", "golden")
    by_name = show(openstack, name)
    assert by_name == show(openstack, made["id"])
    assert (by_name["status"], by_name["size"], by_name["tags"]) == ("active", len(DATA), ["golden"])
    properties = by_name["properties"]
    assert properties["os_distro"] == "debian"
    # The client's own note, which it looks for when an image of that name is made again.
    assert properties["owner_specified.openstack.object"] == f"images/{name}"
    copy = tmp_path / "copy"
    openstack("image", "save", "--file", str(copy), name)
    assert copy.read_bytes() == DATA


def test_lists_are_filtered_sorted_and_paged(openstack: Commands, data: Path) -> None:
    mark = fresh("mark")
    ours = ("--property", f"set={mark}")
    first, second, third = fresh("a"), fresh("b"), fresh("c")
    create(openstack, first, *ours, "--file", str(data), "--tag", "red", "--private")
    create(openstack, second, *ours, "--community")
    create(openstack, third, *ours, "--tag", "red", "--tag", "blue")
    assert names(openstack, *ours, "--sort", "name:desc") == [third, second, first]
    assert sorted(names(openstack, *ours, "--page-size", "1")) == [first, second, third]
    assert names(openstack, *ours, "--private") == [first]
    assert names(openstack, *ours, "--community") == [second]
    assert names(openstack, *ours, "--shared") == [third]
    assert names(openstack, *ours, "--status", "active") == [first]
    assert names(openstack, "--name", second, "--all") == [second]
    assert sorted(names(openstack, *ours, "--tag", "red")) == [first, third]
    assert names(openstack, *ours, "--tag", "red", "--tag", "blue") == [third]
    rows = openstack("image", "list", *ours, "--private", "--long", "-f", "json").json
    assert [(row["Status"], row["Size"], row["Checksum"]) for row in rows] == [
        ("active", len(DATA), hashlib.md5(DATA).hexdigest())
    ]


def test_an_image_is_changed_by_name_and_its_properties_and_tags_taken_off(openstack: Commands) -> None:
    name = fresh("set")
    create(openstack, name, "--property", "flavour=small", "--tag", "old")
    changes = ("--min-ram", "256", "--min-disk", "2", "--os-distro", "fedora", "--property", "hw_disk_bus=scsi")
    openstack("image", "set", *changes, "--tag", "new", "--protected", name)
    image = show(openstack, name)
    assert (image["min_ram"], image["min_disk"], image["protected"]) == (256, 2, True)
    assert image["properties"].items() >= {"os_distro": "fedora", "hw_disk_bus": "scsi", "flavour": "small"}.items()
    assert sorted(image["tags"]) == ["new", "old"]
    assert name in openstack.refused("image", "delete", name)
    openstack("image", "unset", "--property", "flavour", "--tag", "old", name)
    image = show(openstack, name)
    assert "flavour" not in image["properties"]
    assert image["tags"] == ["new"]
    renamed = fresh("renamed")
    openstack("image", "set", "--name", renamed, "--unprotected", "--private", name)
    assert show(openstack, renamed)["visibility"] == "private"


def test_a_hidden_image_is_found_by_its_name_and_listed_only_when_asked_for(openstack: Commands) -> None:
    name = fresh("hidden")
    create(openstack, name)
    openstack("image", "set", "--hidden", name)
    assert name not in names(openstack)
    assert name in names(openstack, "--hidden")
    assert show(openstack, name)["properties"]["os_hidden"] is True


def test_an_image_is_shared_accepted_and_taken_back(
    openstack: Commands, place: Place, shell: Shell, identity: str, data: Path, tmp_path: Path
) -> None:
    bob, name = openstack_of(place, shell, place.bob, OS_IDENTITY_ENDPOINT_OVERRIDE=identity), fresh("shared")
    image = create(openstack, name, "--file", str(data))["id"]
    openstack("image", "add", "project", name, "other")
    rows = openstack("image", "member", "list", image, "-f", "json").json
    assert [(row["Member ID"], row["Status"]) for row in rows] == [("other", "pending")]
    bob("image", "set", "--accept", "--project", "other", image)
    assert names(bob, "--shared") == [name]
    assert bob("image", "member", "get", image, "other", "-f", "json").json["status"] == "accepted"
    bob("image", "save", "--file", str(tmp_path / "copy"), name)
    assert (tmp_path / "copy").read_bytes() == DATA
    openstack("image", "remove", "project", name, "other")
    assert names(bob, "--shared") == []


def test_an_image_is_deactivated_and_activated_by_an_administrator(
    openstack: Commands, place: Place, shell: Shell, data: Path, tmp_path: Path
) -> None:
    root = openstack_of(place, shell, place.root)
    image = create(openstack, fresh("deactivated"), "--file", str(data))["id"]
    root("image", "set", "--deactivate", image)
    assert show(openstack, image)["status"] == "deactivated"
    openstack.refused("image", "save", "--file", str(tmp_path / "copy"), image)
    root("image", "set", "--activate", image)
    openstack("image", "save", "--file", str(tmp_path / "copy"), image)


def test_images_are_deleted_by_name_together(openstack: Commands) -> None:
    made = [fresh("delete"), fresh("delete")]
    for name in made:
        create(openstack, name)
    openstack("image", "delete", *made)
    assert made[0] in openstack.refused("image", "show", made[0])
    assert not set(made) & set(names(openstack))


def test_a_public_image_is_an_administrators(openstack: Commands, place: Place, shell: Shell) -> None:
    name = fresh("public")
    assert "403" in openstack.refused("image", "create", *FORMATS, "--public", name)
    create(openstack_of(place, shell, place.root), name, "--public")
    assert name in names(openstack, "--public")


def test_what_the_service_offers_is_told(openstack: Commands) -> None:
    assert "fra" in [row["ID"] for row in openstack("image", "stores", "list", "-f", "json").json]
    assert "glance-direct" in openstack("image", "import", "info", "-f", "json").json["import-methods"]
    for listing in (("task", "list"), ("metadef", "namespace", "list")):
        assert isinstance(openstack("image", *listing, "-f", "json").json, list)


def test_a_client_without_authentication_discovers_the_version_at_the_root(place: Place, shell: Shell) -> None:
    options = ("--os-auth-type", "none", "--os-endpoint", place.url)
    # It finds /v2 and sends no token that this zone would know: it is told so, and not that there is nothing.
    assert "401" in Commands(shell, "openstack", options).refused("image", "list")
