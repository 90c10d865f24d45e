"""Which images exist for whom: pure rules on an identity and an image. What one may do with them is `policy`'s."""

from typing import Any

from zonegw.identity import Identity

Image = dict[str, Any]

MEMBER_STATUSES = ("pending", "accepted", "rejected")


def may_see(who: Identity, image: Image) -> bool:
    """Its owner, administrators, everyone where it is public or community, and those whom it is shared with, whether
    they accepted it or not."""
    return (
        who.is_admin
        or image["owner"] == who.project
        or image["visibility"] in ("public", "community")
        or is_shared_with(image, who.project)
    )


def is_shared_with(image: Image, project: str) -> bool:
    """Members count while the image is shared; they are kept, and silent, while it is private."""
    return image["visibility"] == "shared" and project in image["members"]
