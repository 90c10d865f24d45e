"""Metadata definitions, read-only: namespaces that describe properties, from JSON files of an operator's directory.

A file holds one namespace as the API shows it: {"namespace", "display_name", ..., "properties": {NAME: schema},
"objects": [...], "tags": [...], "resource_type_associations": [...]}. They are read once, at start.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zonegw.errors import BadRequest, ConfigError, NotFound

Document = dict[str, Any]

# Enough for every namespace that is known of, with room; they are held in memory.
NAMESPACES_MAX = 1000
FILE_BYTES_MAX = 1 << 20
_PARTS = ("properties", "objects", "tags", "resource_type_associations")


@dataclass(frozen=True, slots=True)
class Metadefs:
    """Namespaces by name, in order of their names."""

    namespaces: Mapping[str, Document]

    def page(self, limit: int, marker: str | None) -> tuple[list[Document], str | None]:
        """(namespaces without their parts, where the next page starts). Raises BadRequest for an unknown marker."""
        names = list(self.namespaces)
        if marker is not None and marker not in self.namespaces:
            raise BadRequest(f"Marker {marker} is not the name of a namespace")
        start = 0 if marker is None else names.index(marker) + 1
        shown = names[start : start + limit]
        more = bool(shown) and start + limit < len(names)
        return [_outline(self.namespaces[name]) for name in shown], shown[-1] if more else None

    def namespace(self, name: str) -> Document:
        """The whole namespace. Raises NotFound."""
        if name not in self.namespaces:
            raise NotFound(f"Metadata definition namespace={name} was not found.")
        return self.namespaces[name]


def load(directory: Path | None) -> Metadefs:
    """The namespaces of a directory's *.json files. Raises ConfigError that names the file."""
    found: dict[str, Document] = {}
    for path in sorted(directory.glob("*.json")) if directory is not None else ():
        document = _read(path)
        if document["namespace"] in found:
            raise ConfigError(f"{path}: there is a namespace {document['namespace']} already")
        found[document["namespace"]] = document
    if directory is not None and not directory.is_dir():
        raise ConfigError(f"images.metadefs_dir: there is no directory {directory}")
    if len(found) > NAMESPACES_MAX:
        raise ConfigError(f"{directory} has more than {NAMESPACES_MAX} namespaces")
    return Metadefs(dict(sorted(found.items())))


def _read(path: Path) -> Document:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(f"{path} is larger than {FILE_BYTES_MAX} bytes")
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("namespace"), str) or not document["namespace"]:
        raise ConfigError(f'{path} is no metadata definition: it has no "namespace"')
    return _shown(document)


def _shown(document: Document) -> Document:
    path = f"/v2/metadefs/namespaces/{document['namespace']}"
    rest = {"visibility": "public", "protected": True, "self": path, "schema": "/v2/schemas/metadefs/namespace"}
    return rest | document


def _outline(document: Document) -> Document:
    return {name: value for name, value in document.items() if name not in _PARTS}
