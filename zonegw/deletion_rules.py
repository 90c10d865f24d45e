"""[deletion] of zonegw.toml: what happens to bytes of deleted images.

[deletion]
delay_h = 0     hours that they are kept, counted while the gateway runs; 0: they go at once
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zonegw.config_checks import only, positive_or_zero


@dataclass(frozen=True, slots=True)
class DeletionRules:
    """For how long an operator can undelete."""

    delay_h: float = 0


def parse(table: Mapping[str, Any]) -> DeletionRules:
    """Raises ConfigError that names the key."""
    only(table, "deletion.", {"delay_h"})
    return DeletionRules(positive_or_zero(table, "deletion.delay_h", 0))
