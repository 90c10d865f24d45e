"""[cache] of zonegw.toml: how bytes of other zones' images come here.

[cache]
bandwidth_max_bytes_per_s = 0       of all fetches from other zones together; 0: no bound
[cache.prefetch]                    without this table nothing is fetched before a client asks
visibility = ["public"]             images that are fetched as soon as they have data; also "community"
max_image_bytes = 10737418240       larger ones wait for a client
pin = true                          keep them until an operator unpins them, or they are deleted
again = false                       fetch again what was evicted
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zonegw.config_checks import only, some_of, truth, whole
from zonegw.errors import ConfigError

# A piece of 1 MiB must pass within the time that the sending zone waits for progress.
BANDWIDTH_MIN = 64 << 10


@dataclass(frozen=True, slots=True)
class PrefetchRules:
    """Which images come here by themselves."""

    visibility: tuple[str, ...] = ("public",)
    max_image_bytes: int = 10 << 30
    pin: bool = True
    again: bool = False

    def match(self, image: Mapping[str, Any]) -> bool:
        return image["visibility"] in self.visibility and (image["size"] or 0) <= self.max_image_bytes


@dataclass(frozen=True, slots=True)
class CacheRules:
    """Without `prefetch` nothing comes by itself."""

    bandwidth_max_bytes_per_s: int = 0
    prefetch: PrefetchRules | None = None


def parse(table: Mapping[str, Any]) -> CacheRules:
    """Raises ConfigError that names the key."""
    only(table, "cache.", {"bandwidth_max_bytes_per_s", "prefetch"})
    prefetch = table.get("prefetch")
    if prefetch is not None and not isinstance(prefetch, dict):
        raise ConfigError("[cache.prefetch] must be a table")
    bandwidth = whole(table, "cache.bandwidth_max_bytes_per_s", 0, least=BANDWIDTH_MIN)
    return CacheRules(bandwidth, None if prefetch is None else _prefetch(prefetch))


def _prefetch(table: Mapping[str, Any]) -> PrefetchRules:
    prefix, default = "cache.prefetch.", PrefetchRules()
    only(table, prefix, PrefetchRules.__slots__)
    return PrefetchRules(
        visibility=some_of(table, prefix + "visibility", default.visibility, ("public", "community")),
        max_image_bytes=whole(table, prefix + "max_image_bytes", default.max_image_bytes),
        pin=truth(table, prefix + "pin", default.pin),
        again=truth(table, prefix + "again", default.again),
    )
