"""The JSON form of images in the Images API v2, and the schemas that describe it."""

from datetime import UTC, datetime
from typing import Any

from zonegw.images import CONTAINER_FORMATS, DISK_FORMATS, VISIBILITIES
from zonegw.stores import store_name

Image = dict[str, Any]

# Attributes of ours are base properties under this prefix: clients then never copy them into new images.
RESERVED_PREFIX = "os_glance_"
# On an image whose data are being imported, or were not imported everywhere (`imports`).
IMPORT_STATE = ("os_glance_importing_to_stores", "os_glance_failed_import")
IMAGE_STATUSES = (
    "queued",
    "saving",
    "active",
    "killed",
    "deleted",
    "uploading",
    "importing",
    "pending_delete",
    "deactivated",
)

_TEXT = {"type": ["null", "string"]}
_UUID = "^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$"


def _read_only(kind: Any, description: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "readOnly": True, "description": description, **more}


IMAGE_PROPERTIES: dict[str, dict[str, Any]] = {
    "id": {"type": "string", "pattern": _UUID, "description": "An identifier for the image"},
    "name": {**_TEXT, "maxLength": 255, "description": "Descriptive name for the image"},
    "status": _read_only("string", "Status of the image", enum=list(IMAGE_STATUSES)),
    "visibility": {"type": "string", "enum": list(VISIBILITIES), "description": "Who can find the image"},
    "protected": {"type": "boolean", "description": "If true, the image cannot be deleted"},
    "os_hidden": {"type": "boolean", "description": "If true, the image is left out of the default list"},
    "checksum": _read_only(["null", "string"], "md5 of the image data", maxLength=32),
    "os_hash_algo": _read_only(["null", "string"], "Algorithm of os_hash_value", maxLength=64),
    "os_hash_value": _read_only(["null", "string"], "Digest of the image data by os_hash_algo", maxLength=128),
    "owner": {**_TEXT, "maxLength": 255, "description": "Project that owns the image"},
    "size": _read_only(["null", "integer"], "Size of the image data in bytes"),
    "virtual_size": _read_only(["null", "integer"], "Size of the disk inside the image in bytes"),
    "container_format": {**_TEXT, "enum": [None, *CONTAINER_FORMATS], "description": "Format of the container"},
    "disk_format": {**_TEXT, "enum": [None, *DISK_FORMATS], "description": "Format of the disk"},
    "created_at": _read_only("string", "When the image was registered"),
    "updated_at": _read_only("string", "When the image was last changed"),
    "tags": {"type": "array", "items": {"type": "string", "maxLength": 255}, "description": "Labels of the image"},
    "direct_url": _read_only("string", "URL of the image data, where shown"),
    "min_ram": {"type": "integer", "description": "Memory in MB that a server needs to boot the image"},
    "min_disk": {"type": "integer", "description": "Disk in GB that a server needs to boot the image"},
    "self": _read_only("string", "Path of the image"),
    "file": _read_only("string", "Path of the image data"),
    "stores": _read_only("string", "Stores that hold the image data, separated by commas"),
    "schema": _read_only("string", "Path of the image's schema"),
    "locations": {"type": "array", "items": {"type": "object"}, "description": "Locations of the data, where shown"},
    "os_glance_v1_id": _read_only(["null", "integer"], "The image number: the integer ID of the Images API v1"),
    "os_glance_home_zone": _read_only(["null", "string"], "Zone whose gateways may change the image while cut off"),
    "os_glance_importing_to_stores": _read_only("string", "Stores that the data are being imported to"),
    "os_glance_failed_import": _read_only("string", "Stores that the last import failed for"),
    "os_glance_parked": _read_only("boolean", "True when the registry refused the image: only this zone knows it"),
}
# What a client may never send; anything else under the reserved prefix neither.
READ_ONLY = frozenset(n for n, p in IMAGE_PROPERTIES.items() if p.get("readOnly")) | {"id", "locations"}

MEMBER_PROPERTIES: dict[str, dict[str, Any]] = {
    "member_id": {"type": "string", "description": "Project that the image is shared with"},
    "image_id": {"type": "string", "pattern": _UUID, "description": "The image"},
    "status": {"type": "string", "enum": ["pending", "accepted", "rejected"], "description": "The member's answer"},
    "created_at": {"type": "string", "description": "When the membership was made"},
    "updated_at": {"type": "string", "description": "When the membership was last changed"},
    "schema": {"type": "string", "readOnly": True, "description": "Path of the schema"},
}


def _many(name: str, one: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "properties": {
            name: {"type": "array", "items": one},
            "first": {"type": "string"},
            "next": {"type": "string"},
            "schema": {"type": "string"},
        },
        "links": [
            {"rel": "first", "href": "{first}"},
            {"rel": "next", "href": "{next}"},
            {"rel": "describedby", "href": "{schema}"},
        ],
    }


_IMAGE = {
    "name": "image",
    "properties": IMAGE_PROPERTIES,
    "additionalProperties": {"type": "string"},
    "links": [
        {"rel": "self", "href": "{self}"},
        {"rel": "enclosure", "href": "{file}"},
        {"rel": "describedby", "href": "{schema}"},
    ],
}
_TASK = {
    "name": "task",
    "properties": {
        "id": {"type": "string", "pattern": _UUID, "description": "An identifier for the task"},
        "type": {"type": "string", "enum": ["import", "api_image_import"], "description": "What the task does"},
        "status": {"type": "string", "enum": ["pending", "processing", "success", "failure"], "description": "State"},
        "input": {"type": ["null", "object"], "description": "What the task works on"},
        "result": {"type": ["null", "object"], "description": "What it made"},
        "owner": {"type": "string", "description": "Project that asked for it"},
        "message": {"type": "string", "description": "What a person should know of it"},
        "expires_at": {"type": ["null", "string"], "description": "When the record is removed"},
        "created_at": {"type": "string", "description": "When it was asked for"},
        "updated_at": {"type": "string", "description": "When its state changed"},
        "self": _read_only("string", "Path of the task"),
        "schema": _read_only("string", "Path of the schema"),
    },
}
_NAMESPACE = {
    "name": "namespace",
    "properties": {
        "namespace": {"type": "string", "maxLength": 80, "description": "The unique name"},
        "display_name": {"type": "string", "maxLength": 80, "description": "The name that people see"},
        "description": {"type": "string", "maxLength": 500, "description": "What it is about"},
        "visibility": {"type": "string", "enum": ["public", "private"], "description": "Who finds it"},
        "protected": {"type": "boolean", "description": "If true, the namespace cannot be deleted"},
        "owner": {"type": "string", "maxLength": 255, "description": "Owner of the namespace"},
        "resource_type_associations": {"type": "array", "items": {"type": "object"}},
        "properties": {"type": "object", "additionalProperties": {"type": "object"}},
        "objects": {"type": "array", "items": {"type": "object"}},
        "tags": {"type": "array", "items": {"type": "object"}},
        "created_at": _read_only("string", "When it was made"),
        "updated_at": _read_only("string", "When it was last changed"),
        "self": _read_only("string", "Path of the namespace"),
        "schema": _read_only("string", "Path of the schema"),
    },
    "required": ["namespace"],
}
_MEMBER = {"name": "member", "properties": MEMBER_PROPERTIES}
SCHEMAS: dict[str, dict[str, Any]] = {
    "image": _IMAGE,
    "images": _many("images", _IMAGE),
    "member": _MEMBER,
    "members": {"name": "members", "properties": _many("members", _MEMBER)["properties"]},
    "task": _TASK,
    "tasks": _many("tasks", _TASK),
    "metadefs/namespace": _NAMESPACE,
    "metadefs/namespaces": _many("namespaces", _NAMESPACE),
}


def timestamp(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def present(image: Image) -> dict[str, Any]:
    """The image as the API shows it: custom properties at top level, below the attributes of the schema."""
    path = f"/v2/images/{image['uuid']}"
    shown = {name: value for name, value in image["properties"].items() if name not in IMAGE_PROPERTIES}
    for name in (
        "name", "disk_format", "container_format", "visibility", "size", "virtual_size", "status", "checksum",
        "protected", "min_ram", "min_disk", "owner", "os_hidden", "os_hash_algo", "os_hash_value",
    ):  # fmt: skip
        shown[name] = image[name]
    shown |= {
        "id": image["uuid"], "created_at": timestamp(image["created_at"]), "updated_at": timestamp(image["updated_at"]),
        "tags": image["tags"], "self": path, "file": f"{path}/file", "schema": "/v2/schemas/image",
        "os_glance_v1_id": image["number"], "os_glance_home_zone": image["home_zone"],
        "os_glance_parked": bool(image.get("parked")),
    }  # fmt: skip
    for name in IMPORT_STATE:
        if name in image:
            shown[name] = image[name]
    if image["locations"]:
        shown["stores"] = ",".join(dict.fromkeys(store_name(location) for location in image["locations"]))
    return shown
