"""[quotas] of zonegw.toml: how much a project may have in this gateway's sight. A quota that is not named is no bound.

[quotas]                        for every project
image_size_total = 1000000      MiB of image data; an image with copies in several zones counts as often
image_stage_total = 100000      MiB that wait for their import
image_count_total = 5000
image_count_uploading = 20      images whose data are coming in or wait for their import
[quotas.projects.PROJECT]       for one project, in the place of the above; -1: no bound
image_count_total = -1
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zonegw.errors import ConfigError

SIZE, STAGE, COUNT, UPLOADING = "image_size_total", "image_stage_total", "image_count_total", "image_count_uploading"
NAMES = (SIZE, STAGE, COUNT, UPLOADING)
UNBOUNDED = -1


@dataclass(frozen=True, slots=True)
class QuotaRules:
    """Bounds by name, for every project and for single ones."""

    default: Mapping[str, int] = field(default_factory=dict)
    projects: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def bound(self, project: str, name: str) -> int:
        """As it is configured; UNBOUNDED where it is not."""
        return self.projects.get(project, {}).get(name, self.default.get(name, UNBOUNDED))


def parse(table: Mapping[str, Any]) -> QuotaRules:
    """Raises ConfigError that names the key."""
    projects = table.get("projects", {})
    if not isinstance(projects, dict) or not all(isinstance(row, dict) for row in projects.values()):
        raise ConfigError("write the quotas of one project as a table [quotas.projects.PROJECT]")
    default = _bounds("quotas", {name: value for name, value in table.items() if name != "projects"})
    return QuotaRules(default, {name: _bounds(f"quotas.projects.{name}", row) for name, row in projects.items()})


def _bounds(where: str, table: Mapping[str, Any]) -> dict[str, int]:
    for name, value in table.items():
        if name not in NAMES:
            raise ConfigError(f"unknown key {where}.{name}; known are: {', '.join(NAMES)}, projects")
        if type(value) is not int or value < UNBOUNDED:
            raise ConfigError(f"{where}.{name} must be a whole number, or {UNBOUNDED} for no bound")
    return dict(table)
