"""openstacksdk, online and cut off: programs that manage images with the library."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.clients.conftest import DATA, Place, fresh
from tests.clients.driving import Libraries, Library, Refused

pytestmark = pytest.mark.slow

FORMATS = {"disk_format": "raw", "container_format": "bare"}


def test_an_image_is_created_shown_changed_and_deleted(sdk: Library, data: Path) -> None:
    name = fresh("sdk")
    made = sdk.image.create_image(name, filename=str(data), os_distro="debian", **FORMATS)
    image = sdk.image.get_image(made["id"])
    assert (image["status"], image["size"], image["hash_algo"]) == ("active", len(DATA), "sha512")
    assert image["hash_value"] == hashlib.sha512(DATA).hexdigest()
    assert sdk.image.find_image(name)["id"] == made["id"]
    assert sdk.image.update_image(made["id"], min_ram=64, flavour="small")["min_ram"] == 64
    assert sdk.image.get_image(made["id"])["properties"]["flavour"] == "small"
    sdk.image.delete_image(made["id"], ignore_missing=False)
    assert sdk.image.find_image(name) is None


def test_data_is_downloaded_to_memory_and_to_a_file(sdk: Library, data: Path, tmp_path: Path) -> None:
    image = sdk.image.create_image(fresh("download"), filename=str(data), validate_checksum=True, **FORMATS)
    assert image["properties"]["owner_specified.openstack.sha256"] == hashlib.sha256(DATA).hexdigest()
    assert sdk.image.download_image(image["id"]) == DATA
    sdk.image.download_image(image["id"], output=str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == DATA


def test_data_that_was_uploaded_before_is_not_uploaded_again(sdk: Library, data: Path) -> None:
    name = fresh("same")
    first = sdk.image.create_image(name, filename=str(data), validate_checksum=True, **FORMATS)
    assert sdk.image.create_image(name, filename=str(data), validate_checksum=True, **FORMATS)["id"] == first["id"]


def test_lists_take_the_operators_of_the_api(sdk: Library) -> None:
    mark, one, two = fresh("mark"), fresh("one"), fresh("two")
    for name in (one, two):
        sdk.image.create_image(name, allow_duplicates=True, tags=[mark, name], **FORMATS)

    def names(**query: str | int) -> list[str]:
        return [image["name"] for image in sdk.image.images(sort="name:asc", **query)]

    assert names(tag=mark) == [one, two]
    assert names(tag=mark, limit=1) == [one, two]
    assert names(name=f"in:{one},{two}") == [one, two]
    assert names(tag=two) == [two]
    assert names(tag=mark, created_at="gt:2020-01-01T00:00:00Z", status="queued") == [one, two]
    assert names(tag=mark, created_at="lt:2020-01-01T00:00:00Z") == []
    assert names(tag=mark, visibility="private") == []
    with pytest.raises(Refused, match="400"):
        names(name=f"neq:{one}")


def test_tags_and_members_are_managed(sdk: Library, place: Place, libraries: Libraries) -> None:
    bob = libraries.sdk(place.url, place.bob.token)
    image = sdk.image.create_image(fresh("shared"), allow_duplicates=True, **FORMATS)["id"]
    sdk.image.add_tag(image, "golden")
    assert sdk.image.get_image(image)["tags"] == ["golden"]
    sdk.image.remove_tag(image, "golden")
    assert sdk.image.get_image(image)["tags"] == []
    sdk.image.add_member(image, member_id="other")
    assert [member["status"] for member in sdk.image.members(image)] == ["pending"]
    bob.image.update_member("other", image, status="accepted")
    assert sdk.image.get_member("other", image)["status"] == "accepted"
    assert image in [found["id"] for found in bob.image.images()]
    sdk.image.remove_member("other", image, ignore_missing=False)
    with pytest.raises(Refused) as refused:
        bob.image.get_image(image)
    assert refused.value.status == 404


def test_an_image_is_deactivated_and_reactivated(sdk: Library, place: Place, libraries: Libraries, data: Path) -> None:
    root = libraries.sdk(place.url, place.root.token)
    image = sdk.image.create_image(fresh("deactivated"), filename=str(data), **FORMATS)["id"]
    root.image.deactivate_image(image)
    # The library takes the refusal's text for the data, and refuses that.
    with pytest.raises(Refused, match="checksum mismatch"):
        sdk.image.download_image(image)
    root.image.reactivate_image(image)
    assert sdk.image.download_image(image) == DATA


def test_schemas_stores_and_import_methods_are_told(sdk: Library) -> None:
    properties = sdk.image.get_image_schema()["properties"]
    assert {"id", "name", "status", "visibility", "os_hash_value", "stores"} <= set(properties)
    for schema in ("images", "member", "members", "task", "tasks"):
        assert getattr(sdk.image, f"get_{schema}_schema")()["properties"]
    assert "fra" in [store["id"] for store in sdk.image.stores()]
    assert "glance-direct" in sdk.image.get_import_info()["import_methods"]["value"]
    assert all(task["type"] == "api_image_import" for task in sdk.image.tasks())
    assert isinstance(sdk.image.metadef_namespaces(), list)


def test_a_refusal_carries_status_and_sentence(sdk: Library) -> None:
    with pytest.raises(Refused) as refused:
        sdk.image.create_image(fresh("bad"), allow_duplicates=True, disk_format="floppy", container_format="bare")
    assert refused.value.status == 400
    assert "floppy" in refused.value.message
