"""Bodies of create and update: from the JSON of the Images API v2 to attributes, properties and tags."""

from typing import Any
from uuid import UUID

from zonegw.errors import BadRequest, BodyTooLarge, Conflict, Forbidden, UnsupportedMediaType
from zonegw.images import WRITABLE, Changes, Image
from zonegw.images_schema import READ_ONLY, RESERVED_PREFIX
from zonegw.limits import Limits

PATCH_V21 = "application/openstack-images-v2.1-json-patch"
PATCH_V20 = "application/openstack-images-v2.0-json-patch"
OPERATIONS = ("add", "remove", "replace")


def parse_create(body: Any) -> tuple[str | None, dict[str, Any], dict[str, str], list[str]]:
    """(UUID or None, attributes, properties, tags) of a create's body."""
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object with the image's attributes")
    body = dict(body)
    uuid = _uuid(body.pop("id", None))
    tags = _tags(body.pop("tags", []))
    attributes: dict[str, Any] = {}
    properties: dict[str, str] = {}
    for name, value in body.items():
        _refuse_read_only(name)
        (attributes if name in WRITABLE else properties)[name] = value
    return uuid, attributes, properties, tags


def _uuid(value: Any) -> str | None:
    if value is None:
        return None
    try:
        if isinstance(value, str) and str(UUID(value)) == value.lower():
            return value.lower()
    except ValueError:
        pass
    raise BadRequest(f"Invalid image id format: {value!r} is no UUID")


def _tags(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise BadRequest("tags must be a list of texts")
    return list(dict.fromkeys(value))


def _refuse_read_only(name: str) -> None:
    if name in READ_ONLY:
        raise Forbidden(f"Attribute '{name}' is read-only.")
    if name.startswith(RESERVED_PREFIX):
        raise Forbidden(f"Attribute '{name}' is reserved.")


def parse_patch(content_type: str, body: Any, image: Image, limits: Limits) -> Changes:
    """The changes that a PATCH makes to `image`."""
    if content_type not in (PATCH_V21, PATCH_V20):
        raise UnsupportedMediaType(f"PATCH takes Content-Type {PATCH_V21}, not {content_type or 'none'}")
    if not isinstance(body, list):
        raise BadRequest("Request body must be a JSON array of operation objects.")
    if len(body) > limits.patch_operations_max:
        raise BodyTooLarge(f"a PATCH has at most {limits.patch_operations_max} operations")
    editor = _Editor(image)
    for operation in body:
        editor.apply(*_operation(content_type, operation))
    return Changes(editor.set, sorted(editor.unset))


def _operation(content_type: str, operation: Any) -> tuple[str, str, Any]:
    """(operation, name, value)"""
    if not isinstance(operation, dict):
        raise BadRequest("Operations must be JSON objects.")
    if content_type == PATCH_V20:
        verb = next((v for v in OPERATIONS if v in operation), None)
        path = operation.get(verb) if verb else None
    else:
        verb, path = operation.get("op"), operation.get("path")
    if verb not in OPERATIONS:
        raise BadRequest(f"Operations must be one of add, remove, replace, not {verb!r}")
    if verb != "remove" and "value" not in operation:
        raise BadRequest(f'Operation "{verb}" requires a member named "value".')
    return verb, _pointer(path), operation.get("value")


def _pointer(path: Any) -> str:
    """The name in a JSON pointer of one step; of two only below `locations`, which no client writes."""
    if not isinstance(path, str) or not path.startswith("/"):
        raise BadRequest(f"Pointer {path!r} must start with '/'.")
    name = "locations" if path.startswith("/locations/") else path[1:]
    if not name or "/" in name:
        raise BadRequest(f"Pointer {path!r} does not name an attribute of the image.")
    if "~" in name.replace("~0", "").replace("~1", ""):
        raise BadRequest(f"Pointer {path!r} contains '~' not part of a recognized escape sequence.")
    return name.replace("~1", "/").replace("~0", "~")


class _Editor:
    """Applies operations one by one, each seeing the ones before it."""

    def __init__(self, image: Image) -> None:
        self._present = frozenset(image["properties"])
        self._properties = dict(image["properties"])
        self.set: dict[str, Any] = {}
        self.unset: set[str] = set()

    def apply(self, verb: str, name: str, value: Any) -> None:
        _refuse_read_only(name)
        if name == "tags":
            self._tags(verb, value)
        elif name in WRITABLE:
            if verb == "remove":
                raise Forbidden(f"Property {name} may not be removed.")
            self.set[name] = value
        else:
            self._property(verb, name, value)

    def _tags(self, verb: str, value: Any) -> None:
        self.set["tags"] = [] if verb == "remove" else _tags(value)

    def _property(self, verb: str, name: str, value: Any) -> None:
        attribute = f"properties.{name}"
        if verb != "add" and name not in self._properties:
            raise Conflict(f"Property {name} does not exist.")
        if verb == "remove":
            del self._properties[name]
            self.set.pop(attribute, None)
            if name in self._present:  # else it was added and removed by this very PATCH
                self.unset.add(attribute)
            return
        self._properties[name] = value
        self.unset.discard(attribute)
        self.set[attribute] = value
