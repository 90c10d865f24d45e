"""Parking with a long queue: what a step costs does not depend on how much is pending."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.test_zonegw_catalogue import image, update
from zonegw import store as gateway_store
from zonegw import write_queue
from zonegw.catalogue import Catalogue
from zonegw.limits import Limits
from zonegw.parking import Parking
from zonegw.store import Store
from zonegw.write_queue import Session, WriteQueue

REFUSED = {"code": "conflict", "message": "m"}
PENDING, OWN, BATCH = 1000, 50, 20


def uuid_of(number: int) -> str:
    return str(UUID(int=number))


class Zone:
    """A queue and a catalogue with an image that has many pending updates among many others that have one."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self.store = store
        self.queue, self.catalogue = WriteQueue(limits), Catalogue()
        self.parking = Parking(store, self.queue, self.catalogue, limits)
        self.session = Session("s", 1)
        with store.transaction() as txn:
            for number in range(1, PENDING + 1):
                self.write(txn, uuid_of(1 if number % (PENDING // OWN) == 1 else number))

    def write(self, txn: Any, uuid: str) -> None:
        position = self.queue.append(txn, uuid, {"op": "update_image"})
        patch = update(position, name=f"n{position}")
        if self.catalogue.registered(txn, uuid) is None:
            self.catalogue.put_bootstrapped(txn, image(uuid=uuid, number=position))
        self.catalogue.lay(txn, uuid, patch)

    def send(self, count: int) -> list[write_queue.PendingWrite]:
        with self.store.transaction() as txn:
            writes = [write for write, _ in zip(self.queue.pending(txn), range(count), strict=False)]
            for write in writes:
                self.queue.mark_sent(txn, self.session, write, write.command)
            self.queue.save_session(txn, self.session)
        return writes

    def parked(self) -> list[tuple[int, int | None]]:
        return [(row["write"]["position"], row["behind"]) for row in self.queue.parked(self.store.read())]


@pytest.fixture
def zone(tmp_path: Path) -> Iterator[Zone]:
    store = Store(tmp_path / "store", Limits())
    yield Zone(store, Limits(park_batch_max=BATCH))
    store.close()


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows the queue has decoded."""
    count = [0]
    unpack = gateway_store.unpack

    def counting(data: bytes) -> Any:
        count[0] += 1
        return unpack(data)

    monkeypatch.setattr(write_queue, "unpack", counting)
    return count


OF_THE_FIRST = list(range(1, PENDING + 1, PENDING // OWN))


def test_a_refusal_reads_the_images_own_writes_and_parks_them_some_at_a_time(zone: Zone, rows_read: list[int]) -> None:
    first, *_ = zone.send(1)
    rows_read[0] = 0
    with zone.store.transaction() as txn:
        gone = zone.parking.refuse(txn, zone.session, first, REFUSED)
    assert [write.position for write in gone] == OF_THE_FIRST[: BATCH + 1]
    assert rows_read[0] < 2 * BATCH
    sizes = []
    while (parked := zone.parking.step()) is not None:
        sizes.append(len(parked))
    assert sizes == [BATCH, OWN - 1 - 2 * BATCH]
    assert zone.parked() == [(1, None), *((position, 1) for position in OF_THE_FIRST[1:])]
    assert zone.queue.depth(zone.store.read()) == PENDING - OWN


def test_a_write_that_is_taken_back_leaves_the_long_queue_unread(zone: Zone, rows_read: list[int]) -> None:
    first, *_ = zone.send(1)
    rows_read[0] = 0
    with zone.store.transaction() as txn:
        zone.parking.retract(txn, zone.session, first, REFUSED)
    while zone.parking.step() is not None:
        pass
    assert rows_read[0] < 2 * OWN
    assert len(zone.parked()) == len(OF_THE_FIRST)


def test_a_lost_session_costs_one_small_transaction_and_then_steps_of_one_size(
    zone: Zone, rows_read: list[int]
) -> None:
    rows_read[0] = 0
    with zone.store.transaction() as txn:
        zone.parking.lose(txn, {"code": "session_lost", "message": "m", "session": "s"})
    assert rows_read[0] == 0
    sizes, reads = [], []
    while (parked := zone.parking.step()) is not None:
        sizes.append(len(parked))
        reads.append(rows_read[0])
        rows_read[0] = 0
    assert sizes == [BATCH] * (PENDING // BATCH) + [0]
    assert max(reads) < 4 * BATCH
    assert [position for position, _ in zone.parked()] == list(range(1, PENDING + 1))
    behind = {position: head for position, head in zone.parked() if head is not None}
    assert behind == dict.fromkeys(OF_THE_FIRST[1:], 1)
    assert zone.store.read().count("folded") == 0
