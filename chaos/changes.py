"""Messages of the changefeed, less what the judge does not look at."""

from __future__ import annotations

from typing import Any

# A run makes a registry of its own; only a restore begins another epoch.
FIRST_EPOCH = 1


def change_of(message: dict[str, Any]) -> dict[str, Any]:
    """A change of an image, or the word that one has left a filter."""
    return {"revision": revision_of(message["cursor"]), "uuid": message["uuid"], "version": message["version"]}


def owner_of(message: dict[str, Any]) -> str | None:
    """Whose image it is; None where the message does not say."""
    owner: str | None = (message.get("image") or {}).get("owner")
    return owner


def revision_of(cursor: str) -> int:
    """The revision in EPOCH.REVISION."""
    return int(cursor.partition(".")[2])
