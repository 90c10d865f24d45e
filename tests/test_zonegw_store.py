"""The store: all or nothing, one fsync for many, and a process that stops rather than guess."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zonegw.errors import ConfigError, StorageFull
from zonegw.limits import Limits
from zonegw.store import EXIT_STORAGE, FORMAT, Store, u64

KIB = 1024


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store", Limits())
    yield store
    store.close()


def test_a_use_case_that_raises_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        with store.transaction() as txn:
            txn.put("queue", b"k", b"v")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.read().get("queue", b"k") is None


async def test_writes_of_one_turn_share_one_commit_and_are_durable_after_it(store: Store) -> None:
    commits: list[float] = []
    store.on_commit = commits.append

    async def write(n: int) -> None:
        with store.transaction() as txn:
            txn.put("queue", u64(n), b"v")
        await store.durable()

    await asyncio.gather(*(write(n) for n in range(50)))
    assert len(commits) == 1
    with store.env.begin() as committed:
        assert committed.stat(store.env.open_db(b"queue", txn=committed, create=False))["entries"] == 50


async def test_clients_see_what_is_written_once_it_is_durable(store: Store) -> None:
    told: list[bytes | None] = []
    store.on_durable = lambda: told.append(store.committed().get("queue", b"k"))
    assert store.committed().get("queue", b"k") is None
    with store.transaction() as txn:
        txn.put("queue", b"k", b"v")
    assert store.read().get("queue", b"k") == b"v"
    assert store.committed().get("queue", b"k") is None
    waiting = store.durable()
    assert not waiting.done()
    await waiting
    assert store.committed().get("queue", b"k") == b"v"
    assert told == [b"v"]
    assert store.durable().done()


async def test_views_that_are_kept_take_no_places_from_other_readers(store: Store) -> None:
    """Requests that pause in the middle of a list keep theirs, and there may be more of them than LMDB has places."""
    kept = []
    for number in range(100):
        with store.transaction() as txn:
            txn.put("queue", u64(number), b"v")
        await store.durable()
        view = store.committed()
        assert view.count("queue") == len(list(view.scan("queue"))) == number + 1
        kept.append(view)
    with pytest.raises(AttributeError):
        kept[0].count("queue")


class LongWork:
    """Writes rows one by one, with a turn of the loop after each."""

    def __init__(self, store: Store) -> None:
        self.store, self.written, self.commits = store, 0, list[int]()
        store.on_commit = lambda seconds: self.commits.append(self.written)

    async def write(self, rows: int) -> None:
        for _ in range(rows):
            with self.store.transaction() as txn:
                txn.put("queue", u64(self.written), b"v")
            self.written += 1
            await self.store.turn()


async def test_long_work_is_committed_in_the_end_and_every_so_often(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", Limits(commit_postponed_turns_max=5))
    work = LongWork(store)
    await work.write(40)
    assert 2 <= len(work.commits) <= 8
    await store.durable()
    assert work.commits[-1] == 40
    store.close()


async def test_work_that_ends_with_a_turn_is_committed_without_anybody_asking(store: Store) -> None:
    work = LongWork(store)
    await work.write(3)
    async with asyncio.timeout(20):
        while not work.commits:  # noqa: ASYNC110 - every turn of the loop is looked at
            await asyncio.sleep(0)
    assert work.commits == [3]


async def test_who_waits_in_the_middle_of_long_work_does_not_wait_for_its_end(store: Store) -> None:
    work = LongWork(store)
    rows = store.limits.commit_postponed_turns_max
    working = asyncio.create_task(work.write(rows))
    while work.written == 0:  # noqa: ASYNC110 - every turn of the loop is looked at
        await asyncio.sleep(0)
    await store.durable()
    assert work.commits
    assert work.written < rows
    await working


def test_growth_is_refused_above_the_quota_and_shrinking_makes_room(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", Limits(store_soft_limit_bytes=256 * KIB))
    n = 0

    def fill() -> None:
        nonlocal n
        while True:
            with store.transaction(grows=True) as txn:
                txn.put("queue", u64(n), b"x" * 2000)
            n += 1

    with pytest.raises(StorageFull, match="quota"):
        fill()
    with store.transaction() as txn:
        for gone in range(n // 2):
            txn.delete("queue", u64(gone))
    with store.transaction(grows=True) as txn:
        txn.put("queue", u64(n), b"fits again")
    store.close()


def test_a_full_map_refuses_one_use_case_and_harms_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", Limits(store_map_size_bytes=512 * KIB))
    with store.transaction() as txn:
        txn.put("queue", b"kept", b"v")

    def fill() -> None:
        with store.transaction() as txn:
            for n in range(1000):
                txn.put("queue", u64(n), b"x" * 2000)

    with pytest.raises(StorageFull):
        fill()
    with store.transaction() as txn:
        txn.put("queue", b"after", b"v")
    read = store.read()
    assert (read.get("queue", b"kept"), read.get("queue", b"after"), read.get("queue", u64(0))) == (b"v", b"v", None)
    store.close()


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", Limits(disk_reserve_bytes=1 << 60))
    with pytest.raises(StorageFull, match="disk"), store.transaction(grows=True):
        raise AssertionError("not reached")
    store.close()


def test_a_store_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", Limits())
    with store.transaction() as txn:
        txn.put_row("meta", b"format", FORMAT + 1)
    store.close()
    with pytest.raises(ConfigError, match="newer release"):
        Store(tmp_path / "store", Limits())


def test_scans_go_both_ways_within_their_bounds(store: Store) -> None:
    with store.transaction() as txn:
        for n in range(10):
            txn.put("queue", u64(n), b"")
    read = store.read()

    def numbers(*bounds: bytes | None, reverse: bool = False) -> list[int]:
        return [int.from_bytes(key, "big") for key, _ in read.scan("queue", *bounds, reverse=reverse)]  # type: ignore[arg-type]

    assert numbers() == list(range(10))
    assert numbers(u64(3), u64(6)) == [3, 4, 5]
    assert numbers(u64(3), u64(6), reverse=True) == [5, 4, 3]
    assert numbers(b"", None, reverse=True) == list(range(9, -1, -1))
    assert numbers(b"", u64(99), reverse=True) == list(range(9, -1, -1))
    assert numbers(u64(99), None, reverse=True) == []


FAILING_DISK = """
import resource, signal, sys
from pathlib import Path
from zonegw.limits import Limits
from zonegw.store import Store
store = Store(Path(sys.argv[1]), Limits())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with store.transaction() as txn:
    for n in range(200):
        txn.put("queue", n.to_bytes(8, "big"), b"x" * 2000)
print("survived")
"""


def test_a_failed_write_stops_the_process_at_once(tmp_path: Path) -> None:
    """The file-size limit makes the kernel refuse the writes of the commit, as a full or broken disk would."""
    done = subprocess.run(
        [sys.executable, "-c", FAILING_DISK, str(tmp_path / "store")], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == EXIT_STORAGE, done.stderr
    assert b"survived" not in done.stdout
    store = Store(tmp_path / "store", Limits())
    assert store.read().count("queue") == 0
    store.close()
