"""Quotas: what a project may still create, upload and stage, by what this gateway knows of its images.

They are asked when something begins, so that a client hears of it early, and again in the transaction that makes it
count: what several uploads bring at the same time stays within them too.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from zonegw import usage
from zonegw.catalogue import Catalogue
from zonegw.errors import QuotaExceeded
from zonegw.quota_rules import COUNT, NAMES, SIZE, STAGE, UNBOUNDED, UPLOADING, QuotaRules
from zonegw.store import Txn

MIB = 1 << 20


class Quotas:
    """`staged`: bytes by UUID that wait for their import. `importing`: UUIDs of images whose import is under way."""

    def __init__(self, rules: QuotaRules, catalogue: Catalogue) -> None:
        self._rules = rules
        self._catalogue = catalogue
        self._uploading: dict[str, str | None] = {}
        self.staged: Callable[[], dict[str, int]] = dict
        self.importing: Callable[[], set[str]] = set

    def table(self, txn: Txn, project: str) -> dict[str, tuple[int, int]]:
        """(bound, used) by name, as Glance tells them: bytes in MiB."""
        return {
            name: (self._rules.bound(project, name), self._used(txn, project, name) // _unit(name)) for name in NAMES
        }

    def check_create(self, txn: Txn, project: str | None) -> None:
        """Raises QuotaExceeded."""
        self._check(txn, project, COUNT, 1)

    def check_size(self, txn: Txn, project: str | None, size: int) -> None:
        """Whether the images may become so many bytes larger. Raises QuotaExceeded."""
        self._check(txn, project, SIZE, size)

    def check_stage(self, txn: Txn, project: str | None, size: int) -> None:
        """Raises QuotaExceeded."""
        self._check(txn, project, STAGE, size)

    def check_uploading(self, txn: Txn, project: str | None) -> None:
        """Whether one image more may have data coming in. Raises QuotaExceeded."""
        self._check(txn, project, UPLOADING, 1)

    @contextmanager
    def uploading(self, txn: Txn, uuid: str, project: str | None) -> Iterator[None]:
        """Data of the image come in meanwhile. Raises QuotaExceeded."""
        self.check_uploading(txn, project)
        self._uploading[uuid] = project
        try:
            yield
        finally:
            del self._uploading[uuid]

    def sized(self, txn: Txn, project: str | None, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The body of an upload, as far as there is room for it."""
        return self._bounded(txn, project, SIZE, body)

    def staging(self, txn: Txn, project: str | None, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The body of staged data, as far as there is room for it."""
        return self._bounded(txn, project, STAGE, body)

    def _check(self, txn: Txn, project: str | None, name: str, more: int) -> None:
        room = self._room(txn, project, name)
        if room is not None and more > room:
            raise self._exceeded(project, name)

    def _room(self, txn: Txn, project: str | None, name: str) -> int | None:
        bound = UNBOUNDED if project is None else self._rules.bound(project, name)
        if project is None or bound == UNBOUNDED:
            return None
        return bound * _unit(name) - self._used(txn, project, name)

    def _exceeded(self, project: str | None, name: str) -> QuotaExceeded:
        bound = self._rules.bound(project or "", name)
        unit = " MiB" if name in (SIZE, STAGE) else ""
        return QuotaExceeded(
            f"Project {project} has a quota of {bound}{unit} ({name}), which this would pass: delete images that are "
            "not needed any more, or have the operator raise it"
        )

    def _bounded(self, txn: Txn, project: str | None, name: str, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        room = self._room(txn, project, name)
        return body if room is None else self._within(room, project, name, body)

    async def _within(
        self, room: int, project: str | None, name: str, body: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        async for piece in body:
            room -= len(piece)
            if room < 0:
                raise self._exceeded(project, name)
            yield piece

    def _used(self, txn: Txn, project: str, name: str) -> int:
        if name in (SIZE, COUNT):
            used = usage.of(txn, project)
            return used.images if name == COUNT else used.size_bytes
        staged = self.staged()
        if name == STAGE:
            return sum(size for uuid, size in staged.items() if self._owner(txn, uuid) == project)
        coming = {*staged, *self.importing(), *self._uploading}
        return sum(self._owner(txn, uuid) == project for uuid in coming)

    def _owner(self, txn: Txn, uuid: str) -> str | None:
        if uuid in self._uploading:
            return self._uploading[uuid]
        image = self._catalogue.get(txn, uuid)
        return None if image is None else image["owner"]


def _unit(name: str) -> int:
    return MIB if name in (SIZE, STAGE) else 1
