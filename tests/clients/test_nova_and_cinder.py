"""What Nova and Cinder do with images, through the client library that they use, online and cut off."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import DATA, Place, fresh, soon
from tests.clients.driving import Library, Refused

pytestmark = pytest.mark.slow

# Secrets and signatures have to come back byte for byte, whatever is in them.
SIGNED = {
    "img_signature": "k6/+Zm9v==\n",
    "img_signature_hash_method": "SHA-256",
    "img_signature_key_type": "RSA-PSS",
    "img_signature_certificate_uuid": "b3d5a1f4-9d21-4c6e-8f52-0a8e6f5d7c11",
    "cinder_encryption_key_id": "81b0a9d8-50b1-4f3c-a5b5-9c3c3e6c2a10",
    "cinder_encryption_key_deletion_policy": "on_image_deletion",
    "description": 'ünïcode, "quotes", {braces} and   blanks ',
}


def image_with_data(library: Library, data: Path, name: str, **properties: Any) -> dict[str, Any]:
    image = library.images.create(
        name=fresh(name), disk_format="raw", container_format="bare", visibility="private", **properties
    )
    library.images.upload(image["id"], data)
    made: dict[str, Any] = library.images.get(image["id"])
    return made


def inherited(place: Place, base: dict[str, Any]) -> dict[str, Any]:
    """What Nova hands down from a base image to the instance's snapshots: all that the schema doesn't name."""
    named = json.loads(place.ask("GET", "/v2/schemas/image")[1])["properties"]
    return {name: value for name, value in base.items() if name not in named}


def test_an_instance_is_booted_from_an_image_and_snapshotted(place: Place, library: Library, data: Path) -> None:
    base = image_with_data(
        library, data, "base", hw_disk_bus="virtio", os_distro="debian", min_ram=256, kernel_id=str(uuid.uuid4())
    )
    # Boot: the data, as the image's hash says that they are.
    fetched = library.images.data(base["id"])
    assert hashlib.new(base["os_hash_algo"], fetched).hexdigest() == base["os_hash_value"]
    nova = {
        "image_type": "snapshot", "base_image_ref": base["id"], "instance_uuid": str(uuid.uuid4()),
        "user_id": "demo", "image_location": "snapshot", "image_state": "available", "owner_id": "demo",
        "boot_roles": "member,reader",
    }  # fmt: skip
    made = library.images.create(
        name=fresh("snapshot"), disk_format="raw", container_format="bare", visibility="private",
        min_ram=base["min_ram"], **inherited(place, base), **nova,
    )  # fmt: skip
    assert made["status"] == "queued"
    library.images.upload(made["id"], data)
    soon(lambda: library.images.get(made["id"])["status"] == "active", "the instance snapshot is active")
    snapshot = library.images.get(made["id"])
    assert {name: snapshot[name] for name in nova} == nova
    assert (snapshot["hw_disk_bus"], snapshot["os_distro"]) == ("virtio", "debian")
    assert snapshot["kernel_id"] == base["kernel_id"]
    assert snapshot["checksum"] == hashlib.md5(DATA).hexdigest()
    listed = library.images.list(filters={"instance_uuid": nova["instance_uuid"], "image_type": "snapshot"})
    assert [image["id"] for image in listed] == [made["id"]]


def test_a_snapshot_of_a_snapshot_is_made_in_the_same_way(place: Place, library: Library, data: Path) -> None:
    base = image_with_data(library, data, "base", hw_disk_bus="virtio")
    again = image_with_data(library, data, "first", **inherited(place, base), base_image_ref=base["id"])
    last = image_with_data(library, data, "second", **inherited(place, again))
    assert (last["hw_disk_bus"], last["base_image_ref"]) == ("virtio", base["id"])


def test_a_failed_snapshot_is_cleaned_up(library: Library) -> None:
    image = library.images.create(name=fresh("failed"), disk_format="raw", container_format="bare")
    library.images.delete(image["id"])
    with pytest.raises(Refused) as refused:
        library.images.get(image["id"])
    assert refused.value.status == 404


def test_a_volume_is_made_from_an_image(library: Library, data: Path) -> None:
    image = image_with_data(library, data, "for a volume", min_disk=1, **SIGNED)
    shown = library.images.get(image["id"])
    assert {name: shown[name] for name in SIGNED} == SIGNED
    assert (shown["size"], shown["min_disk"]) == (len(DATA), 1)
    assert library.images.data(image["id"]) == DATA


def test_a_volume_is_uploaded_to_an_image(library: Library, data: Path) -> None:
    # Cinder makes the image, tells the user its ID, and uploads when the volume has been read.
    image = library.images.create(
        name=fresh("volume"), disk_format="raw", container_format="bare", visibility="private", **SIGNED
    )
    changed = library.images.update(image["id"], cinder_encryption_key_id=SIGNED["cinder_encryption_key_id"])
    assert changed["status"] == "queued"
    library.images.upload(image["id"], data)
    shown = library.images.get(image["id"])
    assert {name: shown[name] for name in SIGNED} == SIGNED
    assert (shown["status"], shown["size"]) == ("active", len(DATA))
    assert shown["os_hash_value"] == hashlib.sha512(DATA).hexdigest()


def test_a_property_that_was_made_anew_for_the_copy_replaces_the_old_one(library: Library, data: Path) -> None:
    image = image_with_data(library, data, "rekeyed", **SIGNED)
    key = str(uuid.uuid4())
    library.images.update(image["id"], remove_props=["img_signature"], cinder_encryption_key_id=key)
    shown = library.images.get(image["id"])
    assert shown["cinder_encryption_key_id"] == key
    assert "img_signature" not in shown
    assert shown["description"] == SIGNED["description"]
