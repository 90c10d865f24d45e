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
from zonegw.catalogue import Catalogue
from zonegw.errors import StorageFull
from zonegw.limits import Limits
from zonegw.parking import Parking
from zonegw.retries import Retries
from zonegw.rewind import Rewind
from zonegw.store import Store, unpack
from zonegw.write_queue import INITIAL_HASH, PendingWrite, Session, WriteQueue, chain_hash

# An update that changes nothing.
NOTHING: dict[str, Any] = {"set": {}, "unset": [], "add_locations": [], "remove_locations": []}
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


def test_writes_are_parked_behind_the_refused_one_unless_they_were_sent_or_are_settled(store: Store) -> None:
    queue, session = WriteQueue(Limits()), Session("s", 1)
    for uuid in (A, B, A, B, A):
        append(queue, store, uuid)
    first, second = send(queue, store, session, 2)
    with store.transaction() as txn:
        queue.park(txn, session, first, {"code": "conflict", "message": "m"})
        behind = queue.park_behind(txn, 1, [2, 3, 5, 9])
    assert [w.position for w in behind] == [3, 5]
    assert [w.position for w in queue.pending(store.read())] == [2, 4]
    assert [(row["write"]["position"], row["behind"]) for row in queue.parked(store.read())] == [
        (1, None),
        (3, 1),
        (5, 1),
    ]
    with store.transaction() as txn:
        queue.ack(txn, session, second, {})
    assert send(queue, store, session)[0].sequence == 3


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
    now = [0.0]
    queue = WriteQueue(Limits(queue_retain_h=1, queue_retain_max_writes=3), clock=lambda: now[0])
    session = Session("s", 1)
    for _ in range(5):
        append(queue, store)
        write = send(queue, store, session)[0]
        with store.transaction() as txn:
            queue.ack(txn, session, write, {"revision": 1})
    with store.transaction() as txn:
        assert queue.prune(txn) == 2
        assert queue.prune(txn) == 0
    now[0] = 3600.1
    with store.transaction() as txn:
        assert queue.prune(txn) == 3


def test_a_step_of_the_wall_clock_takes_no_drained_write_away(tmp_path: Path) -> None:
    """A year forwards, also over a restart; and backwards."""
    wall, year_us = [10**15], 365 * 86400 * 10**6
    for step in (0, year_us, -year_us):
        wall[0] += step
        store = Store(tmp_path / "store", Limits())
        queue = WriteQueue(Limits(queue_retain_h=1), now_us=lambda: wall[0])
        session = queue.session(store.read()) or Session("s", 1)
        append(queue, store)
        write = send(queue, store, session)[0]
        with store.transaction() as txn:
            queue.ack(txn, session, write, {"revision": 1})
        wall[0] += step
        with store.transaction() as txn:
            assert queue.prune(txn) == 0
        store.close()


class QueueLife(RuleBasedStateMachine):
    """Against a list: whatever is queued is, at any time, pending, acked or parked, once; order is kept. What a
    restored registry lacks is pending again."""

    @initialize()
    def open(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.queue = WriteQueue(Limits())
        self.store = Store(Path(self.directory.name), Limits())
        self.session = Session("s1", 1)
        self.acked: dict[int, tuple[int, int]] = {}  # (ordinal of the session, sequence) by position
        self.hashes = {(1, 0): INITIAL_HASH}
        self.enqueued: list[int] = []

    @rule(uuid=st.sampled_from([A, B]))
    def enqueue(self, uuid: str) -> None:
        image = {"number": 7, "uuid": uuid}
        self.enqueued.append(append(self.queue, self.store, uuid, image=image, **NOTHING))

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
                later = [w.position for w in self.queue.pending(txn, write.position) if w.uuid == write.uuid]
                self.queue.park_behind(txn, write.position, later)
            else:
                self.queue.ack(txn, self.session, write, {"number": 7})
                self.acked[write.position] = self.session.ordinal, self.session.acked_sequence
        self.hashes[self.session.ordinal, self.session.acked_sequence] = self.session.acked_hash

    @rule()
    def lose_session(self) -> None:
        parking = Parking(self.store, self.queue, Catalogue(), Limits(park_batch_max=2))
        ordinal = self.session.ordinal + 1
        with self.store.transaction() as txn:
            reason = {"code": "session_lost", "message": "m", "session": self.session.uuid}
            parking.lose(txn, reason)
            self.session = Session(f"s{ordinal}", ordinal)
            self.queue.save_session(txn, self.session)
            self.hashes[ordinal, 0] = INITIAL_HASH
        while parking.step() is not None:
            pass

    @rule()
    def retry(self) -> None:
        """An operator puts the oldest parked write back, with what is to follow it: under new positions."""
        head = next(self.queue.parked(self.store.read()), None)
        if head is None:
            return
        retries = Retries(self.store, self.queue, Catalogue(), Limits(park_batch_max=2), on_queued=lambda: None)
        before = {row["write"]["position"] for row in self.queue.parked(self.store.read())}
        highest = self.queue.highest_position(self.store.read())
        moved, _ = retries._retry_some(head, head["write"]["uuid"])
        gone = before - {row["write"]["position"] for row in self.queue.parked(self.store.read())}
        assert len(gone) == moved
        self.enqueued = [position for position in self.enqueued if position not in gone]
        self.enqueued += range(highest + 1, highest + 1 + moved)

    @rule(part=st.floats(0, 1), knows_older_sessions=st.booleans())
    def restore(self, part: float, knows_older_sessions: bool) -> None:
        """The registry has a part of what it acknowledged in this session; or nothing, of any session."""
        ordinal = self.session.ordinal
        last = int(self.session.acked_sequence * part) if knows_older_sessions else 0
        follows = {"session": f"s{ordinal - 1}", "last_sequence": 10**6} if knows_older_sessions else None
        rewind = Rewind(self.store, self.queue, Catalogue(), Limits(rewind_batch_max=2))
        answer = {"epoch": 2, "last_sequence": last, "last_hash": self.hashes[ordinal, last], "follows": follows}
        with self.store.transaction() as txn:
            rewind.begin(txn, self.session, answer)
        while rewind.step():
            pass
        point = (ordinal, last) if knows_older_sessions else (0, 0)
        self.acked = {position: place for position, place in self.acked.items() if place <= point}

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
        assert list(self.acked) == sorted(self.acked)
        retained = [unpack(row)["write"] for _, row in read.scan("retained")]
        assert [write["position"] for write in retained if write is not None] == list(self.acked)
        sent = [w.sequence for w in self.queue.pending(read) if w.sequence is not None]
        assert sent == list(range(self.session.acked_sequence + 1, self.session.highest_sequence + 1))

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()


TestQueueLife = QueueLife.TestCase
TestQueueLife.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
