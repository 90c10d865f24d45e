"""What a consumer wants of the changefeed: the same filter for the feed, its bootstrap, and the consumer itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raftreg import errors
from raftreg.commands import MEMBER_CHARS_MAX, VISIBILITIES

KINDS = ("image", "zone", "session", "block", "epoch", "project", "level")
"""Kinds of changes."""

FILTERS = ("kind", "tenant", "visibility")
"""Query parameters of a filter."""

_SEEN_BY_ALL = ("community", "public")


@dataclass(frozen=True, slots=True)
class FeedFilter:
    """An empty set wants everything; of several values any one is enough, and all three must be content.

    `kinds` of changes. `tenants` see what Images v2 shows to them by its ID: images that they own, that are public or
    community, and shared ones of which they are members, whatever they answered; hidden images are no exception,
    since hiding is for lists only. `tenants` narrows the changes of projects too. `visibilities` of images.
    """

    kinds: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    visibilities: frozenset[str] = frozenset()

    @property
    def images_are_narrowed(self) -> bool:
        return bool(self.tenants or self.visibilities)

    def wants(self, kind: str) -> bool:
        return not self.kinds or kind in self.kinds

    def shows(self, image: Mapping[str, Any]) -> bool:
        """Whether the image is in the filter; it needs `owner`, `visibility` and `members` (names, or a map by name).

        A consumer with a narrower filter than before finds by it what to drop.
        """
        if not self.wants("image"):
            return False
        visibility = image["visibility"]
        if self.visibilities and visibility not in self.visibilities:
            return False
        if not self.tenants or visibility in _SEEN_BY_ALL or image["owner"] in self.tenants:
            return True
        return visibility == "shared" and not self.tenants.isdisjoint(image["members"])

    def shows_project(self, project: str) -> bool:
        return not self.tenants or project in self.tenants

    def to_query(self, prefix: str = "") -> dict[str, list[str]]:
        """Query parameters, repeated for each value."""
        values = {"kind": self.kinds, "tenant": self.tenants, "visibility": self.visibilities}
        return {prefix + name: sorted(chosen) for name, chosen in values.items() if chosen}


ALL = FeedFilter()


def parse_filter(values: Callable[[str], Sequence[str]], values_max: int, prefix: str = "") -> FeedFilter:
    """The filter that `values` (all values of a query parameter by name) describe. Raises BadRequest."""

    def taken(name: str, known: Collection[str] | None) -> frozenset[str]:
        name = prefix + name
        chosen = values(name)
        if len(chosen) > values_max:
            raise errors.BadRequest(f"{name} is named {len(chosen)} times; at most {values_max} are allowed")
        for value in chosen:
            if known is not None and value not in known:
                raise errors.BadRequest(f"{name}={value[:40]!r} is none of {', '.join(known)}")
            if not 0 < len(value) <= MEMBER_CHARS_MAX:
                raise errors.BadRequest(f"{name} must have 1 to {MEMBER_CHARS_MAX} characters")
        return frozenset(chosen)

    return FeedFilter(*map(taken, FILTERS, (KINDS, None, VISIBILITIES)))
