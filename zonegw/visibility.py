"""Who may see and change an image: pure rules on an identity and an image."""

from typing import Any

from zonegw.auth import Identity

Image = dict[str, Any]


def may_see(who: Identity, image: Image) -> bool:
    """Its owner, administrators, and everyone where it is public or community."""
    return who.is_admin or image["owner"] == who.project or image["visibility"] in ("public", "community")


def may_change(who: Identity, image: Image) -> bool:
    """Its owner and administrators, unless they only read."""
    return (who.is_admin or image["owner"] == who.project) and not who.is_reader_only


def may_set_visibility(who: Identity, visibility: str) -> bool:
    """Only administrators publish to everyone's list."""
    return visibility != "public" or who.is_admin


def may_own_as(who: Identity, owner: str | None) -> bool:
    """Only administrators create for others."""
    return who.is_admin or owner == who.project


def may_download(who: Identity, image: Image) -> bool:
    """A deactivated image gives its bytes to administrators alone."""
    return image["status"] != "deactivated" or who.is_admin
