"""A scrub: all rows of a state are read again and compared with what is known of them.

The digest that apply keeps up to date does not see a row that rots on the disk: it is never read for it. A pass sums
the hashes of all canonical rows in bounded steps, without a read transaction across them: apply corrects the sum by
what it changes behind the pass meanwhile (`tables.RowWatch`), so that at the end it is exactly the digest of the head,
or a row is not what was written. In the same pass derived rows are compared with canonical ones, both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raftreg.records import DamagedRecord
from raftreg.tables import (
    DIGEST_MODULUS,
    DIGESTED,
    HEAD,
    IMAGES,
    INDEXES,
    KEYS,
    KEYS_BY_AGE,
    LISTING,
    PROJECTS,
    TOMBSTONES,
    UUIDS,
    IndexPlan,
    Row,
    RowWatch,
    View,
    image_key,
    index_keys,
    project_key,
    read_head,
    row_hash,
    tombstone_key,
    u64,
    unpack,
    uuid_key,
)

FINDINGS_MAX = 20
"""A disk that loses whole pages makes a finding of every row; the first few say enough."""

_END = b"\xff"
_PLAN_BY_CODE = {index.code: IndexPlan.of([index]) for index in INDEXES}


class Pass:
    """One pass, from the first row to the last. `watch` must be on every view that entries are applied to meanwhile.

    `findings` are sentences; damage is certain as soon as there is one. A pass is of one generation of the state: when
    a snapshot has replaced it, begin another.
    """

    def __init__(self) -> None:
        self.watch = RowWatch()
        self.rows = 0
        self.findings: list[str] = []

    def step(self, view: View, rows_max: int, bytes_max: int) -> bool:
        """Go on for at most so many rows and bytes (at least one row); True when the pass is over."""
        watch, size = self.watch, 0
        rows_end = self.rows + rows_max
        for key, value in view.scan(watch.position, _END):
            if self.rows >= rows_end or size >= bytes_max:
                return False
            if key[0] in DIGESTED:
                watch.total += row_hash(key, value)
            self._check(view, key, value)
            # The next key in order: this row counts as read from here on.
            watch.position = key + b"\x00"
            self.rows += 1
            size += len(key) + len(value)
        watch.position = _END
        if not self._adds_up(view):
            self._found("the rows of the state are not those that its digest was made of")
        return True

    def _adds_up(self, view: View) -> bool:
        return self.watch.total % DIGEST_MODULUS == read_head(view).rows_digest % DIGEST_MODULUS

    def _check(self, view: View, key: bytes, value: bytes) -> None:
        check = _CHECKS.get(key[0])
        if check is None:
            return
        try:
            problem = check(view, key, value)
        except Exception as error:
            # Bytes that are no row any more can fail anywhere in decoding.
            problem = f"it cannot be read: {error!r}"
        if problem is not None:
            self._found(f"row {_name(key)}: {problem}")

    def _found(self, sentence: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(sentence)


def checked_rows(view: View, pieces: Iterator[list[tuple[bytes, bytes]]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Pass all rows of a view on, as lists in key order. Raises DamagedRecord at the end when they are not those of its
    digest."""
    total = 0
    for piece in pieces:
        # Most lists are of a single table that the digest does not see.
        first, last = piece[0][0][0], piece[-1][0][0]
        if first != last or first in DIGESTED:
            total += sum(row_hash(key, value) for key, value in piece if key[0] in DIGESTED)
        yield piece
    if total % DIGEST_MODULUS != read_head(view).rows_digest % DIGEST_MODULUS:
        raise DamagedRecord("the rows of the state are not those that its digest was made of")


def _name(key: bytes) -> str:
    return f"{chr(key[0])}:{key[1:].hex()}"


# -- canonical rows, and the derived ones that must be there for them -------------------------------------------------


def _check_image(view: View, key: bytes, value: bytes) -> str | None:
    image: Row = unpack(value)
    if key != image_key(image["number"]):
        return f"it holds image {image['number']}"
    missing = sum(view.get(listed) is None for listed in index_keys(image))
    if missing:
        return f"{missing} rows of its listing indexes are missing"
    return _check_uuid_of(view, image)


def _check_tombstone(view: View, key: bytes, value: bytes) -> str | None:
    tombstone: Row = unpack(value)
    if key != tombstone_key(tombstone["number"]):
        return f"it holds tombstone {tombstone['number']}"
    return _check_uuid_of(view, tombstone)


def _check_uuid_of(view: View, row: Row) -> str | None:
    return None if view.get(uuid_key(row["uuid"])) == u64(row["number"]) else "its UUID does not lead to it"


def _check_project(_view: View, key: bytes, value: bytes) -> str | None:
    project: Row = unpack(value)
    return None if key == project_key(project["project"]) else f"it holds project {project['project']}"


def _check_idempotency(view: View, key: bytes, value: bytes) -> str | None:
    by_age = KEYS_BY_AGE + u64(unpack(value)[0]) + key[1:]
    return "its row by age is missing" if view.get(by_age) is None else None


# -- derived rows, and the canonical ones that they are derived from --------------------------------------------------


def _check_uuid(view: View, key: bytes, value: bytes) -> str | None:
    number = int.from_bytes(value, "big")
    row = view.get(image_key(number)) or view.get(tombstone_key(number))
    return None if row is not None and uuid_key(unpack(row)["uuid"]) == key else f"{number} does not have this UUID"


def _check_listed(view: View, key: bytes, value: bytes) -> str | None:
    number = key[-8:]
    row = view.get(IMAGES + number)
    if value or row is None or key not in index_keys(unpack(row), _PLAN_BY_CODE[key[1]]):
        return f"image {int.from_bytes(number, 'big')} is not to be listed there"
    return None


def _check_by_age(view: View, key: bytes, value: bytes) -> str | None:
    row = view.get(KEYS + key[9:])
    if value or row is None or u64(unpack(row)[0]) != key[1:9]:
        return "no idempotency row is that old"
    return None


def _check_unknown(_view: View, key: bytes, _value: bytes) -> str | None:
    return None if key[0] in DIGESTED or key == HEAD else "no table has such rows"


_CHECKS: dict[int, Callable[[View, bytes, bytes], str | None]] = {
    **{code: _check_unknown for code in range(256) if code not in DIGESTED},
    IMAGES[0]: _check_image,
    TOMBSTONES[0]: _check_tombstone,
    PROJECTS[0]: _check_project,
    KEYS[0]: _check_idempotency,
    UUIDS[0]: _check_uuid,
    LISTING[0]: _check_listed,
    KEYS_BY_AGE[0]: _check_by_age,
}
