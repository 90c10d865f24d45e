"""An OpenAPI document for tests: its operations, what its references name, and answers compared with its schemas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

METHODS = ("get", "head", "post", "put", "patch", "delete")


class Document:
    """One document; `raw` is as it is published."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self._closed = closed(raw["components"])

    def operations(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Every documented operation by method and path."""
        return {
            (method.upper(), path): item[method]
            for path, item in self.raw["paths"].items()
            for method in METHODS
            if method in item
        }

    def resolved(self, value: dict[str, Any]) -> dict[str, Any]:
        """The component that a reference names, or the value itself. Raises KeyError for one that names nothing."""
        while "$ref" in value:
            found: Any = self.raw
            for part in value["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            value = found
        return value

    def parameters(self, method: str, path: str) -> dict[str, dict[str, Any]]:
        """Parameters of an operation by name, those of its path included."""
        item = self.raw["paths"][path]
        named = [*item.get("parameters", []), *item[method.lower()].get("parameters", [])]
        return {parameter["name"]: parameter for parameter in map(self.resolved, named)}

    def check(self, value: Any, schema: dict[str, Any]) -> None:
        """Raises ValidationError when the value is not as the schema, closed, says."""
        Draft202012Validator({**closed(schema), "components": self._closed}).validate(value)

    def components_that_nobody_names(self) -> set[str]:
        """After every reference was followed. Raises KeyError for one that names nothing."""
        named = {part["$ref"] for part in walk(self.raw) if isinstance(part.get("$ref"), str)}
        for reference in named:
            assert self.resolved({"$ref": reference}), reference
        made = {f"#/components/{kind}/{name}" for kind, parts in self.raw["components"].items() for name in parts}
        return made - named

    def check_schemas(self) -> None:
        """Raises where a schema is none, or asks for a field that it does not describe."""
        for name, schema in self.raw["components"]["schemas"].items():
            Draft202012Validator.check_schema(schema)
            assert set(schema.get("required", [])) <= set(schema.get("properties", {})), name
        for part in walk(self.raw["paths"]):
            if "schema" in part:
                Draft202012Validator.check_schema(part["schema"])

    def check_operations(self) -> None:
        """Raises where an operation has no name of its own, or does not say what it does and takes."""
        names = [operation["operationId"] for operation in self.operations().values()]
        assert len(set(names)) == len(names)
        tags = {tag["name"] for tag in self.raw["tags"]}
        for (method, path), operation in self.operations().items():
            assert operation["summary"], path
            assert set(operation["tags"]) <= tags
            found = self.parameters(method, path)
            in_path = {name for name, parameter in found.items() if parameter["in"] == "path"}
            assert in_path == set(re.findall(r"\{(\w+)\}", path)), path
            assert all(found[name].get("required") for name in in_path), path


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every map in a document."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(item)


def closed(value: Any) -> Any:
    """The same with no further fields allowed where the document lists fields."""
    if isinstance(value, list):
        return [closed(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {name: closed(item) for name, item in value.items()}
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made
