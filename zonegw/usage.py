"""What every project uses: one row each, which moves with every image that readers see, in the same transaction.

So a quota costs one row to ask for, and is exact after a restart and a resync. An image with several copies counts as
often in bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from zonegw.store import Txn

Image = dict[str, Any]
# Set once the rows stand for all images.
_KEPT = b"usage.kept"


@dataclass(frozen=True, slots=True)
class Used:
    """Sums over the images of one project."""

    images: int = 0
    size_bytes: int = 0


def of(txn: Txn, project: str | None) -> Used:
    row = None if project is None else txn.row("usage", _key(project))
    return Used() if row is None else Used(*row)


def moved(txn: Txn, before: Image | None, after: Image | None) -> None:
    """Readers see `after` in the place of `before`."""
    old, new = _share(before), _share(after)
    if old != new:
        _add(txn, *old, sign=-1)
        _add(txn, *new, sign=1)


def begin(txn: Txn, images: Iterable[Image]) -> None:
    """Count all `images`, where that was not done in this store yet."""
    if txn.get("meta", _KEPT) is None:
        for image in images:
            _add(txn, *_share(image), sign=1)
        txn.put("meta", _KEPT, b"")


def _share(image: Image | None) -> tuple[str | None, int, int]:
    """Whose the image is, and what it adds to the sums."""
    if image is None or image["owner"] is None:
        return None, 0, 0
    return image["owner"], 1, (image["size"] or 0) * len(image["locations"])


def _add(txn: Txn, project: str | None, images: int, size_bytes: int, *, sign: int) -> None:
    if project is None:
        return
    used = of(txn, project)
    row = [used.images + sign * images, used.size_bytes + sign * size_bytes]
    if row[0]:
        txn.put_row("usage", _key(project), row)
    else:
        txn.delete("usage", _key(project))


def _key(project: str) -> bytes:
    return blake2b(project.encode(), digest_size=16).digest()
