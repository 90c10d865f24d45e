"""Which roles may create, read, update and delete custom properties, by patterns of their names.

The first pattern that matches a name decides; a name that none matches is nobody's, so that a list ends with ".*" where
the rest is free. Without any pattern all properties are free. In a list of roles "@" is everyone and "!" nobody.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zonegw.errors import ConfigError
from zonegw.identity import Identity

OPERATIONS = ("create", "read", "update", "delete")
EVERYONE, NOBODY = "@", "!"


@dataclass(frozen=True, slots=True)
class _Protection:
    pattern: re.Pattern[str]
    roles: Mapping[str, frozenset[str]]


class PropertyProtections:
    """The protections in order. Raises ConfigError for what is no list of them."""

    def __init__(self, rows: Any = ()) -> None:
        if not isinstance(rows, list | tuple):
            raise ConfigError("write property protections as [[property_protections]] tables")
        self._protections = [_protection(row) for row in rows]

    def allows(self, operation: str, who: Identity, name: str) -> bool:
        """Whether `who` may do `operation`, one of OPERATIONS, with the property `name`."""
        if not self._protections:
            return True
        found = next((one for one in self._protections if one.pattern.fullmatch(name)), None)
        if found is None:
            return False
        roles = found.roles[operation]
        return NOBODY not in roles and (EVERYONE in roles or bool(roles & who.roles))

    def readable(self, who: Identity, properties: dict[str, str]) -> dict[str, str]:
        """Those of the properties that `who` may read."""
        if not self._protections:
            return properties
        return {name: value for name, value in properties.items() if self.allows("read", who, name)}

    def refused(self, who: Identity, present: Iterable[str], written: Iterable[str], removed: Iterable[str]) -> str:
        """The first name that `who` may not write or remove; empty when all is well.

        `present` are the names that the image has: writing one of them is an update, any other a creation.
        """
        if not self._protections:
            return ""
        known = set(present)
        asked = [("update" if name in known else "create", name) for name in written]
        asked += [("delete", name) for name in removed]
        return next((name for operation, name in asked if not self.allows(operation, who, name)), "")


def _protection(row: Any) -> _Protection:
    if not isinstance(row, dict) or set(row) != {"pattern", *OPERATIONS}:
        raise ConfigError(f"a property protection has the keys pattern, {', '.join(OPERATIONS)}")
    try:
        pattern = re.compile(row["pattern"])
    except (re.error, TypeError) as error:
        raise ConfigError(f"property_protections: {row['pattern']!r} is no regular expression: {error}") from None
    return _Protection(pattern, {operation: _roles(row, operation) for operation in OPERATIONS})


def _roles(row: dict[str, Any], operation: str) -> frozenset[str]:
    roles = row[operation]
    if not isinstance(roles, list) or not all(isinstance(role, str) and role for role in roles):
        raise ConfigError(f'property_protections: {operation} must be a list of roles, "@" or "!"')
    return frozenset(roles)
