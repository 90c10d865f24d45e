"""[inspection] of zonegw.toml: what uploaded data are held to.

[inspection]
off = []                  disk formats whose data are taken as they are, as ["vmdk"]
allow_mismatch = false    take data of another format than their image says; unsafe ones are refused all the same
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zonegw.errors import ConfigError

DISK_FORMATS = ("ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "ploop", "iso")


@dataclass(frozen=True, slots=True)
class InspectionRules:
    """The operator's switches."""

    off: frozenset[str] = frozenset()
    allow_mismatch: bool = False


def parse(table: Mapping[str, Any]) -> InspectionRules:
    """Raises ConfigError that names the key."""
    if unknown := [key for key in table if key not in ("off", "allow_mismatch")]:
        raise ConfigError(f"unknown key inspection.{unknown[0]}; known are: allow_mismatch, off")
    off, allow = table.get("off", []), table.get("allow_mismatch", False)
    if not isinstance(off, list) or any(name not in DISK_FORMATS for name in off):
        raise ConfigError(f"inspection.off must be a list of disk formats, which are {', '.join(DISK_FORMATS)}")
    if not isinstance(allow, bool):
        raise ConfigError("inspection.allow_mismatch must be true or false")
    return InspectionRules(frozenset(off), allow)
