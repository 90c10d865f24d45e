"""The write-ahead queue: its properties, one by one, on a real store."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raftreg import wire
from zonegw.config import Limits
from zonegw.errors import StorageFull
from zonegw.store import Store
from zonegw.write_queue import INITIAL_HASH, PendingWrite, Session, WriteQueue, chain_hash

A, B = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store", Limits())
    yield store
    store.close()


def send(queue: WriteQueue, store: Store, session: Session, count: int = 1) -> list[PendingWrite]:
    with store.transaction() as txn:
        fresh = [w for w in queue.pending(txn) if w.sequence is None][:count]
        for write in fresh:
            queue.mark_sent(txn, session, write, write.command)
        queue.save_session(txn, session)
    return fresh


def append(queue: WriteQueue, store: Store, uuid: str = A, **command: Any) -> int:
    with store.transaction() as txn:
        return queue.append(txn, uuid, {"op": "update_image", **command})


def test_the_hash_chain_is_the_registrys() -> None:
    assert chain_hash(INITIAL_HASH, b"payload") == wire.chain_hash(wire.CHAIN_START, b"payload")


def test_reading_does_not_remove(store: Store) -> None:
    queue = WriteQueue(Limits())
    append(queue, store)
    assert [w.position for w in queue.pending(store.read())] == [w.position for w in queue.pending(store.read())] == [1]


def test_positions_rise_across_restarts_of_an_emptied_queue(tmp_path: Path) -> None:
    queue, session = WriteQueue(Limits()), Session("s", 1)
    store = Store(tmp_path / "store", Limits())
    for _ in range(3):
        append(queue, store)
    for write in send(queue, store, session, 3):
        with store.transaction() as txn:
            queue.ack(txn, session, write, {})
    store.close()
    store = Store(tmp_path / "store", Limits())
    assert queue.depth(store.read()) == 0
    assert append(queue, store) == 4
    assert queue.session(store.read()) == session
    store.close()


def test_what_was_sent_never_changes(store: Store) -> None:
    queue, session = WriteQueue(Limits()), Session("s", 1)
    append(queue, store, n=1)
    append(queue, store, n=2)
    first = send(queue, store, session)[0]
    again = queue.get(store.read(), first.position)
    assert again == first
    second = send(queue, store, session)[0]
    assert second.previous_hash == chain_hash(first.previous_hash or b"", first.payload or b"")
    assert (first.sequence, second.sequence) == (1, 2)


def test_a_verdict_out_of_order_is_a_bug_and_changes_nothing(store: Store) -> None:
    queue, session = WriteQueue(Limits()), Session("s", 1)
    append(queue, store)
    append(queue, store)
    _, second = send(queue, store, session, 2)
    with pytest.raises(AssertionError), store.transaction() as txn:
        queue.ack(txn, session, second, {})
    assert queue.depth(store.read()) == 2


def test_parking_takes_the_unsent_writes_of_the_image_along_and_no_other(store: Store) -> None:
    queue, session = WriteQueue(Limits()), Session("s", 1)
    for uuid in (A, B, A, B, A):
        append(queue, store, uuid)
    first, second = send(queue, store, session, 2)
    with store.transaction() as txn:
        gone = queue.park(txn, session, first, {"code": "conflict", "message": "m"})
    assert [w.position for w in gone] == [1, 3, 5]
    assert [w.position for w in queue.pending(store.read())] == [2, 4]
    assert [(row["write"]["position"], row["behind"]) for row in queue.parked(store.read())] == [
        (1, None),
        (3, 1),
        (5, 1),
    ]
    with store.transaction() as txn:
        queue.ack(txn, session, second, {})
    assert send(queue, store, session)[0].sequence == 3


def test_parking_looks_only_at_the_images_own_writes_where_they_are_known(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, session = WriteQueue(Limits()), Session("s", 1)
    for uuid in (A, B, A, B):
        append(queue, store, uuid)
    (first,) = send(queue, store, session)

    def refused(*_: Any) -> Any:
        raise AssertionError("the whole queue was looked through")

    with monkeypatch.context() as watched, store.transaction() as txn:
        watched.setattr(queue, "pending", refused)
        gone = queue.park(txn, session, first, {"code": "conflict", "message": "m"}, [1, 3, 7])
    assert [w.position for w in gone] == [1, 3]
    assert [w.position for w in queue.pending(store.read())] == [2, 4]


def test_a_write_that_the_registry_would_not_take_gives_its_sequence_to_the_next(store: Store) -> None:
    queue, session = WriteQueue(Limits()), Session("s", 1)
    append(queue, store, A)
    append(queue, store, B)
    first, second = send(queue, store, session, 2)
    with store.transaction() as txn:
        queue.retract(txn, session, first, {"code": "invalid", "message": "m"})
    resent = send(queue, store, session)[0]
    assert (resent.position, resent.sequence, resent.previous_hash) == (second.position, 1, INITIAL_HASH)


def test_a_full_queue_refuses_and_keeps_what_it_has(store: Store) -> None:
    queue = WriteQueue(Limits(queue_depth_max=2))
    append(queue, store)
    append(queue, store)
    with pytest.raises(StorageFull):
        append(queue, store)
    assert queue.depth(store.read()) == 2
    assert queue.highest_position(store.read()) == 2


def test_drained_writes_are_kept_for_their_time_and_number(store: Store) -> None:
    now = [0]
    queue = WriteQueue(Limits(queue_retain_h=1, queue_retain_max_writes=3), now_us=lambda: now[0])
    session = Session("s", 1)
    for _ in range(5):
        append(queue, store)
        write = send(queue, store, session)[0]
        with store.transaction() as txn:
            queue.ack(txn, session, write, {"revision": 1})
    with store.transaction() as txn:
        assert queue.prune(txn) == 2
        assert queue.prune(txn) == 0
    now[0] = 3_600_000_001
    with store.transaction() as txn:
        assert queue.prune(txn) == 3


class QueueLife(RuleBasedStateMachine):
    """Against a list: whatever is queued is, at any time, pending, acked or parked, once; order is kept."""

    @initialize()
    def open(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.queue = WriteQueue(Limits())
        self.store = Store(Path(self.directory.name), Limits())
        self.session = Session("s", 1)
        self.acked: list[int] = []
        self.enqueued: list[int] = []

    @rule(uuid=st.sampled_from([A, B]))
    def enqueue(self, uuid: str) -> None:
        self.enqueued.append(append(self.queue, self.store, uuid))

    @rule(count=st.integers(1, 3))
    def mark_sent(self, count: int) -> None:
        send(self.queue, self.store, self.session, count)

    @rule(refuse=st.booleans())
    def verdict(self, refuse: bool) -> None:
        write = next(iter(self.queue.pending(self.store.read())), None)
        if write is None or write.sequence is None:
            return
        with self.store.transaction() as txn:
            if refuse:
                self.queue.park(txn, self.session, write, {"code": "conflict", "message": "m"})
            else:
                self.queue.ack(txn, self.session, write, {})
                self.acked.append(write.position)

    @rule()
    def lose_session(self) -> None:
        with self.store.transaction() as txn:
            self.queue.park_all(txn, {"code": "session_lost", "message": "m"})
            self.session = Session(self.session.uuid, self.session.ordinal + 1)
            self.queue.save_session(txn, self.session)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = Store(Path(self.directory.name), Limits())
        self.session = self.queue.session(self.store.read()) or self.session

    @invariant()
    def every_write_is_in_one_place(self) -> None:
        read = self.store.read()
        pending = [w.position for w in self.queue.pending(read)]
        parked = [row["write"]["position"] for row in self.queue.parked(read)]
        assert sorted([*pending, *parked, *self.acked]) == self.enqueued
        assert self.acked == sorted(self.acked)
        sent = [w.sequence for w in self.queue.pending(read) if w.sequence is not None]
        assert sent == list(range(self.session.acked_sequence + 1, self.session.highest_sequence + 1))

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()


TestQueueLife = QueueLife.TestCase
TestQueueLife.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
