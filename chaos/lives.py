"""The images of a history: all that was done to each, and what registry and zones show of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from chaos.history import Operation
from chaos.verdict import Image


@dataclass
class Life:
    """All operations on one image, by kind, in order of invocation."""

    uuid: str
    by_kind: dict[str, list[Operation]] = field(default_factory=lambda: defaultdict(list))

    def acknowledged(self, kind: str) -> list[Operation]:
        return [operation for operation in self.by_kind.get(kind, ()) if operation.acknowledged]

    def possible(self, kind: str) -> list[Operation]:
        return [operation for operation in self.by_kind.get(kind, ()) if operation.possible]

    @property
    def created(self) -> bool:
        return bool(self.acknowledged("create"))

    @property
    def surely_there(self) -> bool:
        """Acknowledged, and nobody can have deleted it."""
        return self.created and not self.possible("delete")


def lives(operations: Iterable[Operation]) -> dict[str, Life]:
    """Every image that an operation names, by UUID."""
    found: dict[str, Life] = {}
    for operation in operations:
        if uuid := operation.value("uuid"):
            found.setdefault(uuid, Life(uuid)).by_kind[operation.kind].append(operation)
    return found


def rows(images: Iterable[Image]) -> dict[str, Image]:
    """Images by UUID."""
    return {uuid_of(image): image for image in images}


def uuid_of(image: Image) -> str:
    """The UUID of a registry's image, or of an Images API's."""
    return str(image["uuid"] if "uuid" in image else image["id"])


def number_of(image: Image) -> int | None:
    """The image number, of either API; None while there is none."""
    number = image["number"] if "number" in image else image.get("os_glance_v1_id")
    return None if number is None else int(number)
