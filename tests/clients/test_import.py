"""Import: staged data, data from the web, and copies in other zones, with all three clients, online and cut off."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import DATA, Place, fresh, soon
from tests.clients.driving import Commands, Library

pytestmark = pytest.mark.slow

FORMATS = ("--disk-format", "raw", "--container-format", "bare")
SHA512 = hashlib.sha512(DATA).hexdigest()


def create(glance: Commands, name: str, *options: str) -> str:
    return glance("image-create", "--name", fresh(name), *FORMATS, *options).properties["id"]


def shown(place: Place, image: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(place.ask("GET", f"/v2/images/{image}")[1])
    return document


def becomes_active(place: Place, image: str) -> None:
    """Wait until the image has the right data, and nothing is left of its import."""
    soon(lambda: shown(place, image)["status"] == "active", f"image {image} is active")
    document = shown(place, image)
    assert (document["os_hash_value"], document["stores"]) == (SHA512, "fra")
    assert not document.get("os_glance_importing_to_stores")
    assert not document.get("os_glance_failed_import")


def test_staged_data_is_imported(glance: Commands, place: Place, data: Path) -> None:
    image = create(glance, "staged")
    glance("image-stage", image, "--file", str(data))
    assert glance("image-show", image).properties["status"] == "uploading"
    assert "409" in glance.refused("image-stage", image, "--file", str(data))
    glance("image-import", image, "--import-method", "glance-direct")
    becomes_active(place, image)


def test_an_image_is_created_via_import(glance: Commands, place: Place, data: Path, source: str) -> None:
    staged = glance("image-create-via-import", "--name", fresh("via"), *FORMATS, "--file", str(data)).properties["id"]
    becomes_active(place, staged)
    from_web = ("--import-method", "web-download", "--uri", f"{source}/image")
    fetched = glance("image-create-via-import", "--name", fresh("via"), *FORMATS, *from_web).properties["id"]
    becomes_active(place, fetched)


def test_data_are_fetched_from_the_web(glance: Commands, place: Place, source: str, tmp_path: Path) -> None:
    image = create(glance, "web")
    glance("image-import", image, "--import-method", "web-download", "--uri", f"{source}/image")
    becomes_active(place, image)
    glance("image-download", image, "--file", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == DATA


def test_what_may_not_be_fetched_is_refused_and_the_image_stays_as_it_was(
    glance: Commands, place: Place, source: str
) -> None:
    image = create(glance, "web")
    for uri in ("http://127.0.0.1:22/image", "file:///etc/passwd", "ftp://example.org/image"):
        said = glance.refused("image-import", image, "--import-method", "web-download", "--uri", uri)
        assert "400" in said
        assert shown(place, image)["status"] == "queued"


def test_a_failed_import_is_told_and_can_be_tried_again(glance: Commands, place: Place, source: str) -> None:
    image = create(glance, "web")
    glance("image-import", image, "--import-method", "web-download", "--uri", f"{source}/missing")
    soon(lambda: shown(place, image).get("os_glance_failed_import") == "fra", "the failure is told")
    assert shown(place, image)["status"] == "queued"
    assert "failure" in [row["Status"] for row in glance("image-tasks", image).rows]
    glance("image-import", image, "--import-method", "web-download", "--uri", f"{source}/image")
    becomes_active(place, image)


def test_openstackclient_stages_and_imports(openstack: Commands, place: Place, data: Path, source: str) -> None:
    made = [openstack("image", "create", *FORMATS, "-f", "json", fresh("osc")).json["id"] for _ in range(2)]
    openstack("image", "stage", "--file", str(data), made[0])
    openstack("image", "import", "--method", "glance-direct", made[0])
    openstack("image", "import", "--method", "web-download", "--uri", f"{source}/image", made[1])
    for image in made:
        becomes_active(place, image)
    name = fresh("osc")
    openstack("image", "create", *FORMATS, "--import", "--file", str(data), name)
    becomes_active(place, openstack("image", "show", "-f", "json", name).json["id"])


def test_the_sdk_stages_and_imports(sdk: Library, place: Place, data: Path, source: str) -> None:
    formats = {"disk_format": "raw", "container_format": "bare", "allow_duplicates": True}
    made = [sdk.image.create_image(fresh("sdk"), **formats)["id"] for _ in range(2)]
    sdk.image.stage_image(sdk.image.get_image.result(made[0]), filename=str(data))
    sdk.image.import_image(sdk.image.get_image.result(made[0]), method="glance-direct")
    sdk.image.import_image(sdk.image.get_image.result(made[1]), method="web-download", uri=f"{source}/image")
    for image in made:
        becomes_active(place, image)


def test_data_are_copied_to_another_zone_unless_that_is_cut_off(
    glance: Commands, place: Place, data: Path, tmp_path: Path
) -> None:
    image = create(glance, "copied", "--file", str(data))
    copying = ("image-import", image, "--import-method", "copy-image", "--stores", "ams")
    if place.cut_off:
        assert "503" in glance.refused(*copying)
        assert shown(place, image)["stores"] == "fra"
        return
    glance(*copying)
    soon(lambda: set(shown(place, image)["stores"].split(",")) == {"fra", "ams"}, "ams has the data as well")
    assert shown(place, image)["status"] == "active"
    glance("stores-delete", "--store", "ams", image)
    soon(lambda: shown(place, image)["stores"] == "fra", "ams has given them up")


def test_data_go_to_the_store_that_was_chosen_or_nowhere(
    glance: Commands, place: Place, data: Path, tmp_path: Path
) -> None:
    own = create(glance, "own store", "--file", str(data), "--store", "fra")
    assert shown(place, own)["stores"] == "fra"
    image = create(glance, "other store")
    uploading = ("image-upload", image, "--file", str(data), "--store", "ams")
    if place.cut_off:
        assert "503" in glance.refused(*uploading)
        assert shown(place, image)["status"] == "queued"
        return
    glance(*uploading)
    assert shown(place, image)["stores"] == "ams"
    glance("image-download", image, "--file", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == DATA


def test_an_unknown_store_is_named(glance: Commands, place: Place, data: Path) -> None:
    image = create(glance, "copied", "--file", str(data))
    body = json.dumps({"method": {"name": "copy-image"}, "stores": ["nowhere"]})
    answer, said = place.ask("POST", f"/v2/images/{image}/import", body=body, Content_Type="application/json")
    assert answer.status == 400
    assert b"nowhere" in said


def test_a_create_says_how_data_may_come(place: Place) -> None:
    answer, _ = place.ask("POST", "/v2/images", body="{}", Content_Type="application/json")
    methods = answer.headers["OpenStack-image-import-methods"].split(",")
    assert {"glance-direct", "web-download", "copy-image"} <= set(methods)
    assert "fra" in answer.headers["OpenStack-image-store-ids"].split(",")
