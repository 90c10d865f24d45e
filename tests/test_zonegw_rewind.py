"""A rewind that is cut off at any point is completed after the restart, as if it had not been."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from zonegw.catalogue import Catalogue
from zonegw.images import WRITABLE
from zonegw.limits import Limits
from zonegw.rewind import Contradiction, Rewind
from zonegw.store import Store
from zonegw.write_queue import Session, WriteQueue

LIMITS = Limits(rewind_batch_max=2)
WRITES = 7
KNOWN = 2


class PowerCut(Exception):
    pass


class Side:
    """A gateway's store with an epoch behind it: creates that were acked, each with the number of its position."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.session = Session("s", 1, epoch=1)
        self.open()
        self.hashes = [self.session.acked_hash]
        for n in range(1, WRITES + 1):
            self.create(n)
        self.store.commit()

    def open(self) -> None:
        self.store = Store(self.directory, LIMITS)
        self.queue, self.catalogue = WriteQueue(LIMITS), Catalogue()
        self.rewind = Rewind(self.store, self.queue, self.catalogue, LIMITS)
        self.session = self.queue.session(self.store.read()) or self.session

    def create(self, n: int, *, acked: bool = True) -> None:
        with self.store.transaction() as txn:
            uuid = str(UUID(int=n))
            command: dict[str, Any] = {
                "op": "create_image", "uuid": uuid, "attributes": {**WRITABLE, "name": str(n), "owner": "p"},
                "properties": {}, "tags": [], "home_zone": "fra", "created_at": n,
            }  # fmt: skip
            write = self.queue.get(txn, self.queue.append(txn, uuid, command))
            assert write is not None
            self.queue.mark_sent(txn, self.session, write, command)
            if acked:
                self.queue.ack(txn, self.session, write, {"number": n, "version": 1, "revision": n})
                self.hashes.append(self.session.acked_hash)

    def begin(self, last_hash: bytes | None = None) -> None:
        answer = {"epoch": 2, "last_sequence": KNOWN, "last_hash": last_hash or self.hashes[KNOWN], "follows": None}
        with self.store.transaction() as txn:
            self.rewind.begin(txn, self.session, answer)

    def rewind_all(self) -> None:
        while self.rewind.step():
            self.store.commit()

    def crash(self) -> None:
        """The process ends: what was not committed is gone."""
        self.store._closed = True
        self.store._txn.abort()
        self.store.env.close()
        os.close(self.store._lock)
        self.open()

    def rewound(self) -> None:
        """Everything that is lacking is pending again, once and in order, and shows."""
        read = self.store.read()
        pending = list(self.queue.pending(read))
        assert [write.command["number"] for write in pending] == list(range(KNOWN + 1, WRITES + 1))
        assert all(write.reoffered and write.sequence is None for write in pending)
        assert read.count("retained") == KNOWN
        for n in range(KNOWN + 1, WRITES + 1):
            shown = self.catalogue.by_number(read, n)
            assert shown is not None
            assert shown["name"] == str(n)
        session = self.queue.session(read)
        assert session is not None
        assert session.acked_sequence == session.highest_sequence == KNOWN
        assert session.acked_hash == session.highest_hash == self.hashes[KNOWN]
        assert [reoffer["writes"] for reoffer in self.rewind.reoffers(read)] == [WRITES - KNOWN]
        assert not self.rewind.is_under_way(read)


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    side = Side(tmp_path / "store")
    yield side
    side.store.close()


def test_what_a_registry_lacks_is_pending_again_with_its_numbers(side: Side) -> None:
    side.begin()
    side.rewind_all()
    side.rewound()


def test_what_was_sent_and_not_answered_is_sent_anew_behind_what_is_offered_again(side: Side) -> None:
    side.create(WRITES + 1, acked=False)
    side.begin()
    side.rewind_all()
    pending = list(side.queue.pending(side.store.read()))
    assert [write.sequence for write in pending] == [None] * (WRITES + 1 - KNOWN)
    with side.store.transaction() as txn:
        for write in pending:
            side.queue.mark_sent(txn, side.session, write, write.command)
    assert [write.sequence for write in pending] == list(range(KNOWN + 1, WRITES + 2))
    assert pending[0].previous_hash == side.hashes[KNOWN]


def test_an_update_comes_back_with_the_base_version_that_it_was_sent_with(side: Side) -> None:
    """That one had been moved over the zone's own changes, which the backup may have and nobody else knows as own."""
    uuid = str(UUID(int=1))
    places: dict[str, list[Any]] = {"add_locations": [], "remove_locations": []}
    command: dict[str, Any] = {
        "op": "update_image", "image": {"number": None, "uuid": uuid}, "set": {"name": "n"}, "unset": [],
        "base_version": 1, **places,
    }  # fmt: skip
    with side.store.transaction() as txn:
        write = side.queue.get(txn, side.queue.append(txn, uuid, command, epoch=1))
        assert write is not None
        side.queue.mark_sent(txn, side.session, write, command | {"base_version": 5})
        side.queue.ack(txn, side.session, write, {"number": 1, "version": 6, "revision": 9})
    side.begin()
    side.rewind_all()
    *_, update = side.queue.pending(side.store.read())
    assert update.command == command | {"base_version": 5, "image": {"number": 1, "uuid": uuid}}
    assert update.epoch == 1


@pytest.mark.parametrize("at", range(1, WRITES - KNOWN + 1))
def test_a_crash_in_the_middle_of_a_rewind_changes_nothing_of_its_outcome(
    side: Side, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The process ends while it lays the write number `at` back."""
    side.begin()
    side.store.commit()
    laid = 0
    lay_again = side.catalogue.lay_again

    def cut(*arguments: Any) -> None:
        nonlocal laid
        laid += 1
        if laid == at:
            raise PowerCut
        lay_again(*arguments)

    monkeypatch.setattr(side.catalogue, "lay_again", cut)
    with pytest.raises(PowerCut):
        side.rewind_all()
    side.crash()
    assert side.rewind.is_under_way(side.store.read())
    assert side.queue.depth(side.store.read()) == (at - 1) // 2 * 2
    side.rewind_all()
    side.rewound()


def test_another_operation_than_the_remembered_one_is_a_contradiction_and_ends_the_rewind(side: Side) -> None:
    side.begin(last_hash=bytes(16))
    with pytest.raises(Contradiction, match="operation 2 of the session"):
        side.rewind_all()
    read = side.store.read()
    assert not side.rewind.is_under_way(read)
    assert side.rewind.reoffers(read) == []


def test_a_second_epoch_in_the_middle_of_a_rewind_takes_back_all_that_it_lacks(side: Side) -> None:
    """It is of an older backup than the first: one operation is known, where two were."""
    side.begin()
    side.rewind.step()
    answer = {"epoch": 3, "last_sequence": 1, "last_hash": side.hashes[1], "follows": None}
    with side.store.transaction() as txn:
        side.rewind.begin(txn, side.session, answer)
    side.rewind_all()
    pending = list(side.queue.pending(side.store.read()))
    assert [write.command["number"] for write in pending] == list(range(2, WRITES + 1))
    assert [reoffer["writes"] for reoffer in side.rewind.reoffers(side.store.read())] == [WRITES - 1]


def test_where_nothing_is_lacking_nothing_is_done(side: Side) -> None:
    answer = {"epoch": 2, "last_sequence": WRITES, "last_hash": side.hashes[WRITES], "follows": None}
    with side.store.transaction() as txn:
        side.rewind.begin(txn, side.session, answer)
    assert not side.rewind.is_under_way(side.store.read())
    assert side.store.read().count("retained") == WRITES
