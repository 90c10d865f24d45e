"""Who is asking: what access rules, policy and audit know of a client. How it was found out is `auth`'s."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Identity:
    """A user in a project; the project is the owner of what it creates."""

    user: str
    project: str
    roles: frozenset[str]

    @property
    def is_admin(self) -> bool:
        return "admin" in self.roles

    @property
    def is_reader_only(self) -> bool:
        return bool(self.roles) and self.roles <= {"reader"}

    def actor(self, zone: str, gateway: str, request_id: str | None) -> dict[str, Any]:
        """As it travels in commands, for audit."""
        return {
            "user": self.user, "project": self.project, "zone": zone, "gateway": gateway, "request_id": request_id,
            "roles": sorted(self.roles), "admin": self.is_admin,
        }  # fmt: skip
