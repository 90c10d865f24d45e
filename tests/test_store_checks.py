"""A disk that gives back other bytes than were written is noticed at start: log, hard state, identity, head, and rows
of `meta` that nobody asks for. What the rows say must fit together as well, checksums or not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lmdb
import msgpack
import pytest

from raftreg import state_machine
from raftreg.records import DamagedRecord, log_entry, log_key, log_record, seal, unseal
from raftreg.store import Store, StoreError, initialise
from raftreg.tables import HEAD, pack

MAP_BYTES = 1 << 26
LAST = 6
TERM = 3
COMMAND = b"a command that is long enough to be found in the file"


def entry(index: int) -> bytes:
    return COMMAND + b" %d" % index


def opened(directory: Path) -> Store:
    return Store(directory, map_size_bytes=MAP_BYTES, peer="b", peers="abc")


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A data directory with a log 1..6, a hard state, positions and a state that has applied entry 5."""
    initialise(tmp_path, cluster_id="test", peer="b", peers="abc")
    store = opened(tmp_path)
    for index in range(1, LAST + 1):
        store.put_log(index, min(index, TERM), entry(index))
    store.put_hard_state(TERM, "a")
    store.put_commit_index(LAST - 1)
    store.put_positions({"a": (TERM, 5, "store-of-a")})
    for index in range(2, LAST):
        state_machine.apply(store.view(), index, None)
    store.commit()
    store.close()
    return tmp_path


def start(directory: Path) -> Store:
    """What a peer does before anything else."""
    store = opened(directory)
    try:
        store.check_log(store.load_log(), state_machine.applied_index)
    except BaseException:
        store.close()
        raise
    return store


def flip(directory: Path, written: bytes, offset: int) -> None:
    """Flip one bit of a value, in every copy of it that the file holds."""
    path = directory / "store" / "data.mdb"
    content = bytearray(path.read_bytes())
    place = found = content.find(written)
    assert found >= 0, "the value is not in the file"
    while place >= 0:
        content[place + offset] ^= 0x10
        place = content.find(written, place + 1)
    path.write_bytes(content)


def head(directory: Path) -> bytes:
    store = opened(directory)
    value = store.view().get(HEAD)
    store.close()
    assert value is not None
    return value


def meta(directory: Path, key: bytes) -> bytes:
    with lmdb.open(str(directory / "store"), max_dbs=4, readonly=True) as env, env.begin() as txn:
        value: bytes | None = txn.get(key, db=env.open_db(b"meta", txn=txn, create=False))
    assert value is not None
    return value


def put(directory: Path, change: Callable[[Store], None]) -> None:
    store = opened(directory)
    change(store)
    store.commit()
    store.close()


def test_an_intact_store_starts(stopped: Path) -> None:
    store = start(stopped)
    assert store.hard_state() == (TERM, "a")
    store.close()


@pytest.mark.parametrize("offset", [0, 7, 8, 11, 12, 30])
def test_a_flipped_bit_anywhere_in_a_log_entry_is_refused_with_peer_entry_and_remedy(
    stopped: Path, offset: int
) -> None:
    flip(stopped, log_record(4, TERM, entry(4)), offset)
    with pytest.raises(StoreError, match=r"peer b .*log entry 4 .*checksum.*raftreg rejoin"):
        start(stopped)


@pytest.mark.parametrize("key", [b"hard_state", b"identity", b"positions", b"commit_index"])
@pytest.mark.parametrize("offset", [0, 3, -1])
def test_a_flipped_bit_in_a_meta_row_is_refused_with_its_name_and_the_remedy(
    stopped: Path, key: bytes, offset: int
) -> None:
    value = meta(stopped, key)
    flip(stopped, key + value, len(key) + (offset if offset >= 0 else len(value) - 1))
    with pytest.raises(StoreError, match=rf"peer b .*'{key.decode()}'.*checksum.*raftreg rejoin"):
        start(stopped)


def test_a_flipped_bit_anywhere_in_the_head_of_the_state_is_refused(stopped: Path) -> None:
    value = head(stopped)
    flip(stopped, HEAD + value, 1 + len(value) // 2)
    with pytest.raises(StoreError, match=r"head of the state.*checksum.*raftreg rejoin"):
        start(stopped)


def test_a_checksum_covers_the_place_of_a_record_too() -> None:
    with pytest.raises(DamagedRecord, match="log entry 5"):
        log_entry(log_key(5), log_record(4, TERM, entry(4)))
    with pytest.raises(DamagedRecord, match="'term'"):
        unseal(b"term", seal(b"vote", b"value"))
    with pytest.raises(DamagedRecord, match="cut short"):
        log_entry(log_key(4), log_record(4, TERM, b"")[:-1])
    assert log_entry(log_key(4), log_record(4, TERM, entry(4))) == (entry(4), 4, TERM)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda store: store.delete_log(4, 4), "jumps from index 3 to 5"),
        (lambda store: store.put_log(LAST + 1, 1, b"x"), "goes back from term 3 to 1 at index 7"),
        (lambda store: store.put_commit_index(LAST + 1), "the commit index is 7, but the log ends at 6"),
        (lambda store: store.put_hard_state(TERM - 1, None), "ends in term 3, but the latest term known is 2"),
        (lambda store: store.put_log(LAST + 1, TERM + 1, b"x"), "ends in term 4, but the latest term known is 3"),
        (lambda store: state_machine.apply(store.view(), LAST + 1, None), "has applied 7, but the log holds 1 to 6"),
        (lambda store: store.delete_log(1, 6) or store.put_log(7, TERM, b"x"), "has applied 5, but the log holds 7"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(
    stopped: Path, change: Callable[[Store], None], sentence: str
) -> None:
    """Rows that are intact by themselves, but were lost or never belonged together."""
    put(stopped, change)
    with pytest.raises(StoreError, match=sentence) as refusal:
        start(stopped)
    assert "raftreg rejoin" in str(refusal.value)


def test_a_store_that_was_marked_as_damaged_is_refused_for_ever(stopped: Path) -> None:
    put(stopped, lambda store: store.put_damage("a row has rotted"))
    for _ in range(2):
        with pytest.raises(StoreError, match=r"peer b .*stopped for good because a row has rotted.*raftreg rejoin"):
            opened(stopped)


def test_a_file_whose_first_pages_are_lost_is_refused_with_the_remedy(stopped: Path) -> None:
    path = stopped / "store" / "data.mdb"
    path.write_bytes(bytes(2 * 4096) + path.read_bytes()[2 * 4096 :])
    with pytest.raises(StoreError, match="raftreg rejoin"):
        start(stopped)


def test_an_entry_that_rots_while_the_peer_runs_is_not_handed_on_with_a_snapshot(stopped: Path) -> None:
    store = start(stopped)
    store.txn.put(log_key(5), pack("rotten"), db=store._log)
    store.commit()
    reader = store.begin_read()
    assert reader.log_entry(4) == (entry(4), 4, TERM)
    with pytest.raises(DamagedRecord):
        reader.log_entry(5)
    reader.close()
    store.close()


def test_the_rows_of_meta_are_msgpack_behind_a_checksum_of_four_bytes(stopped: Path) -> None:
    assert msgpack.unpackb(meta(stopped, b"hard_state")[4:]) == [TERM, "a"]
