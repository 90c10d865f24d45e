"""The ID pool: every number once, rising, with runway on hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from zonegw import store_identity
from zonegw.id_pool import NUMBER_MAX, IdPool
from zonegw.limits import Limits
from zonegw.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store", Limits())
    yield store
    store.close()


def add(pool: IdPool, store: Store, first: int, last: int) -> None:
    with store.transaction() as txn:
        pool.add(txn, first, last, 1)


def take(pool: IdPool, store: Store, count: int = 1) -> list[int | None]:
    with store.transaction() as txn:
        return [pool.take(txn) for _ in range(count)]


def test_numbers_rise_through_the_blocks_and_end(store: Store) -> None:
    pool = IdPool(Limits())
    add(pool, store, 10, 12)
    add(pool, store, 20, 21)
    assert take(pool, store, 6) == [10, 11, 12, 20, 21, None]


def test_a_create_that_fails_gives_its_number_back(store: Store) -> None:
    pool = IdPool(Limits())
    add(pool, store, 1, 9)

    def create_and_fail() -> None:
        with store.transaction() as txn:
            assert pool.take(txn) == 1
            raise RuntimeError("the create is refused")

    with pytest.raises(RuntimeError):
        create_and_fail()
    assert take(pool, store) == [1]


def test_numbers_are_not_taken_again_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", Limits())
    add(IdPool(Limits()), store, 1, 9)
    assert take(IdPool(Limits()), store, 3) == [1, 2, 3]
    store.close()
    store = Store(tmp_path / "store", Limits())
    assert take(IdPool(Limits()), store) == [4]
    store.close()


def test_sealed_numbers_are_never_handed_out_not_even_when_granted_again(store: Store) -> None:
    pool = IdPool(Limits())
    add(pool, store, 1, 9)
    take(pool, store, 2)
    with store.transaction() as txn:
        assert pool.seal(txn, "test") == 7
    assert take(pool, store) == [None]
    for first, last in ((3, 9), (5, 20), (9, 9)):
        with pytest.raises(ValueError, match="granted"):
            add(pool, store, first, last)
    add(pool, store, 10, 11)
    assert take(pool, store) == [10]


@pytest.mark.parametrize(("first", "last"), [(0, 5), (5, 4), (1, NUMBER_MAX + 1), (-3, -1)])
def test_impossible_blocks_are_refused(store: Store, first: int, last: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        add(IdPool(Limits()), store, first, last)


def test_the_wanted_block_follows_the_rate_so_that_the_runway_holds(store: Store) -> None:
    now = [0.0]
    limits = Limits(runway_h=24, id_block_min=100, id_block_max=1_000_000, id_rate_window_s=3600)
    pool = IdPool(limits, clock=lambda: now[0])
    assert pool.wanted(store.read()) == 100
    add(pool, store, 1, 1_000_000)
    assert pool.wanted(store.read()) is None
    for _ in range(36_000):  # ten a second for an hour
        now[0] += 0.1
        pool._count_take()
    assert 5.5 < pool.rate_per_s() < 7  # 1 - 1/e of ten, after one window
    assert pool.wanted(store.read()) is None  # 43 hours at that rate
    with store.transaction() as txn:
        pool.seal(txn, "test")
    wanted = pool.wanted(store.read())
    assert wanted is not None
    assert wanted == pytest.approx(pool.rate_per_s() * 24 * 3600, rel=0.01)
    now[0] += 100 * 3600
    assert pool.wanted(store.read()) == 100


def test_a_copied_store_is_noticed_and_a_moved_clock_is_not(tmp_path: Path) -> None:
    original = Store(tmp_path / "original", Limits())
    with original.transaction() as txn:
        assert store_identity.unchanged(txn, original.directory)
    original.close()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "data.mdb").write_bytes((tmp_path / "original" / "data.mdb").read_bytes())
    original, copy = Store(tmp_path / "original", Limits()), Store(tmp_path / "copy", Limits())
    with original.transaction() as txn:
        assert store_identity.unchanged(txn, original.directory)
    with copy.transaction() as txn:
        assert not store_identity.unchanged(txn, copy.directory)
    original.close()
    copy.close()


def test_birth_time_is_read_where_the_file_system_has_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    born = store_identity.birth_time_ns(path)
    if born is None:
        pytest.skip("this file system keeps no birth times")
    assert abs(born - path.stat().st_ctime_ns) < 10**9
    path.chmod(0o600)
    assert store_identity.birth_time_ns(path) == born
    assert store_identity.birth_time_ns(tmp_path / "missing") is None
