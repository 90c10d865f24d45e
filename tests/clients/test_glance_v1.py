"""Clients that still speak the first version of the API, with integer IDs, online and cut off."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.clients.conftest import DATA, Place, fresh, glance_of, openstack_of
from tests.clients.driving import Commands, Libraries, Library, Shell

pytestmark = pytest.mark.slow

FORMATS = ("--disk-format", "raw", "--container-format", "bare")
VERSION_1 = ("--os-image-api-version", "1")


@pytest.fixture
def glance(place: Place, shell: Shell) -> Commands:
    """The glance command of alice, version 1."""
    return glance_of(place, shell, place.alice, *VERSION_1)


def create(glance: Commands, name: str, *options: str) -> str:
    """The number of a new image of that name."""
    number = glance("image-create", "--name", name, *FORMATS, *options).properties["id"]
    assert number.isdigit()
    return number


def names(glance: Commands, *options: str) -> list[str]:
    return [row["Name"] for row in glance("image-list", *options).rows]


def test_an_image_is_created_from_a_file_and_shown_by_number_and_by_name(
    glance: Commands, data: Path, tmp_path: Path
) -> None:
    name = fresh("v1")
    made = glance("image-create", "--name", name, *FORMATS, "--file", str(data), "--property", "os_distro=x").properties
    assert (made["status"], made["size"], made["is_public"]) == ("active", str(len(DATA)), "False")
    assert made["checksum"] == hashlib.md5(DATA).hexdigest()
    by_number, by_name = glance("image-show", made["id"]).properties, glance("image-show", name).properties
    assert by_number == by_name
    assert by_number["Property 'os_distro'"] == "x"
    glance("image-download", made["id"], "--file", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == DATA


def test_it_is_the_same_image_in_the_second_version(glance: Commands, library: Library, data: Path) -> None:
    number = create(glance, fresh("both"), "--file", str(data), "--property", "flavour=small")
    uuid = glance("image-show", number).properties["Property 'os_glance_uuid'"]
    image = library.images.get(uuid)
    assert (str(image["os_glance_v1_id"]), image["flavour"], image["visibility"]) == (number, "small", "shared")
    library.images.update(uuid, flavour="large")
    assert glance("image-show", number).properties["Property 'flavour'"] == "large"
    glance("image-delete", number)
    assert uuid not in [found["id"] for found in library.images.list()]


def test_data_comes_from_standard_input_and_later(glance: Commands, data: Path) -> None:
    image = glance("image-create", "--name", fresh("stdin"), *FORMATS, stdin=data).properties
    assert image["size"] == str(len(DATA))
    number = create(glance, fresh("queued"))
    assert glance("image-show", number).properties["status"] == "queued"
    assert glance("image-update", number, "--file", str(data)).properties["status"] == "active"
    said = glance.refused("image-update", number, "--file", str(data))
    assert "active" in said


def test_a_wrong_checksum_is_refused(glance: Commands, data: Path) -> None:
    name = fresh("checksum")
    wrong = hashlib.md5(b"something else").hexdigest()
    said = glance.refused("image-create", "--name", name, *FORMATS, "--file", str(data), "--checksum", wrong)
    assert "400" in said
    assert name not in names(glance, "--status", "active")


def test_properties_stay_unless_they_are_purged(glance: Commands) -> None:
    number = create(glance, fresh("properties"), "--property", "a=1", "--property", "b=2")
    kept = glance("image-update", number, "--property", "a=3", "--min-ram", "64").properties
    assert (kept["Property 'a'"], kept["Property 'b'"], kept["min_ram"]) == ("3", "2", "64")
    purged = glance("image-update", number, "--property", "a=4", "--purge-props").properties
    assert purged["Property 'a'"] == "4"
    assert "Property 'b'" not in purged


def test_lists_are_filtered_sorted_and_paged(glance: Commands, data: Path) -> None:
    mark = fresh("mark")
    one, two, three = fresh("a"), fresh("b"), fresh("c")
    create(glance, one, "--property", f"set={mark}", "--file", str(data))
    create(glance, two, "--property", f"set={mark}")
    create(glance, three, "--property", f"set={mark}", "--min-disk", "3")
    ours = ("--property-filter", f"set={mark}")
    assert names(glance, *ours) == [one, two, three]
    assert names(glance, *ours, "--page-size", "1", "--sort-dir", "desc") == [three, two, one]
    assert names(glance, *ours, "--sort-key", "id", "--page-size", "2") == [one, two, three]
    assert names(glance, *ours, "--status", "queued") == [two, three]
    assert names(glance, *ours, "--size-min", "1") == [one]
    assert names(glance, *ours, "--status", "active", "--size-max", str(len(DATA))) == [one]
    assert names(glance, *ours, "--status", "active", "--size-max", "1") == []
    assert names(glance, "--name", two) == [two]
    assert names(glance, *ours, "--disk-format", "qcow2") == []
    assert names(glance, *ours, "--owner", "demo") == [one, two, three]
    assert names(glance, *ours, "--changes-since", "2020-01-01T00:00:00") == [one, two, three]


def test_an_image_is_shared_without_being_accepted(
    glance: Commands, place: Place, shell: Shell, data: Path, tmp_path: Path
) -> None:
    bob, name = glance_of(place, shell, place.bob, *VERSION_1), fresh("shared")
    number = create(glance, name, "--file", str(data))
    assert "No image" in bob.refused("image-show", number)
    glance("member-create", number, "other", "--can-share")
    rows = glance("member-list", "--image-id", number).rows
    assert [(row["Image ID"], row["Member ID"], row["Can Share"]) for row in rows] == [(number, "other", "True")]
    assert number in [row["Image ID"] for row in bob("member-list", "--tenant-id", "other").rows]
    assert name in names(bob)
    bob("image-download", number, "--file", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == DATA
    glance("member-delete", number, "other")
    assert name not in names(bob)


def test_images_are_deleted_by_number_and_by_name(glance: Commands) -> None:
    first, second = fresh("delete"), fresh("delete")
    number = create(glance, first)
    create(glance, second)
    glance("image-delete", number, second)
    assert not {first, second} & set(names(glance))
    glance.refused("image-show", number)


def test_data_that_lie_elsewhere_are_refused_with_a_sentence(glance: Commands) -> None:
    for option in ("--location", "--copy-from"):
        assert "400" in glance.refused("image-create", "--name", fresh("v1"), *FORMATS, option, "http://192.0.2.1/x")


def test_a_protected_image_is_not_deleted(glance: Commands) -> None:
    number = create(glance, fresh("protected"), "--is-protected", "True")
    assert "403" in glance("image-delete", number).stdout
    assert glance("image-show", number).properties["protected"] == "True"


def test_both_versions_are_discovered_and_the_second_is_chosen(place: Place, shell: Shell) -> None:
    assert '"v1.1"' in place.ask("GET", "/versions")[1].decode()
    # A command that only the second version has.
    glance_of(place, shell, place.alice)("stores-info")


def test_numbers_are_listed_by_openstackclient_and_the_sdk(
    glance: Commands, place: Place, shell: Shell, libraries: Libraries, data: Path
) -> None:
    name = fresh("listed")
    number = create(glance, name, "--file", str(data))
    openstack = openstack_of(place, shell, place.alice, version="1")
    rows = openstack("image", "list", "-f", "json").json
    assert [(str(row["ID"]), row["Status"]) for row in rows if row["Name"] == name] == [(number, "active")]
    images = libraries.sdk(place.url, place.alice.token, version="1").image.images()
    assert [image["checksum"] for image in images if image["name"] == name] == [hashlib.md5(DATA).hexdigest()]


def test_the_library_of_a_service_finds_updates_and_deletes_by_number(
    place: Place, libraries: Libraries, data: Path
) -> None:
    library = libraries.glanceclient(place.url, place.alice.token, version="1")
    made = library.images.create(name=fresh("library"), disk_format="raw", container_format="bare", data=data)
    assert isinstance(made["id"], int) or made["id"].isdigit()
    assert library.images.data(made["id"]) == DATA
    assert library.images.update(made["id"], min_ram=32)["min_ram"] == 32
    assert made["id"] in [image["id"] for image in library.images.list()]
    library.images.delete(made["id"])
    assert made["id"] not in [image["id"] for image in library.images.list()]
