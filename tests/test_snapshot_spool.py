"""A spool is read while it is still being written, and what a generation left behind goes without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftreg.snapshot_file import Malformed, copy_to_spool
from raftreg.snapshot_spool import Spool, SpoolReader
from raftreg.store import Store, initialise


@pytest.fixture
def store(tmp_path: Path) -> Store:
    initialise(tmp_path, cluster_id="test", peer="a", peers="a")
    store = Store(tmp_path, map_size_bytes=1 << 26)
    store.put_log(1, 1, b"x")
    store.put_log(2, 1, b"y")
    for number in range(500):
        store.view().put(b"key%06d" % number, bytes(100))
    store.commit()
    return store


def snapshot(store: Store, path: Path) -> bytes:
    reader = store.begin_read()
    copy_to_spool(reader, 2, path, 1000, 60.0)
    reader.close()
    return path.read_bytes()


def take_all(reader: SpoolReader) -> list[tuple[int, bool]]:
    taken = []
    while (following := reader.take()) is not None:
        taken.append((following[0][1], following[1]))
        if following[1]:
            break
    return taken


def test_chunks_are_taken_as_they_are_written_and_the_last_is_known_as_the_last(store: Store, tmp_path: Path) -> None:
    content = snapshot(store, tmp_path / "whole")
    spool = Spool(tmp_path / "growing", 0.0)
    taken: list[tuple[int, bool]] = []
    reader: SpoolReader | None = None
    for written in range(0, len(content) + 4096, 4096):
        spool.path.write_bytes(content[:written])
        spool.read_header()
        if spool.index and reader is None:
            reader = SpoolReader(spool)
        if reader is not None:
            taken += take_all(reader)
    assert reader is not None
    assert spool.index == 2
    assert not any(last for _, last in taken)
    spool.complete = True
    taken += take_all(reader)
    assert [sequence for sequence, _ in taken] == list(range(len(taken)))
    assert [last for _, last in taken] == [False] * (len(taken) - 1) + [True]
    assert take_all(SpoolReader(spool, 7))[0] == (7, False)
    store.close()


def test_a_spool_that_ends_early_is_not_taken_for_complete(store: Store, tmp_path: Path) -> None:
    content = snapshot(store, tmp_path / "whole")
    spool = Spool(tmp_path / "short", 0.0, complete=True)
    spool.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(Malformed, match="ends before"):
        take_all(SpoolReader(spool))
    store.close()


@pytest.mark.parametrize(("rows_max", "whole_rows_max", "steps"), [(100, 0, 5), (100, 1000, 1), (100, 250, 4)])
def test_an_old_generation_goes_in_steps_until_what_is_left_may_go_at_once(
    store: Store, rows_max: int, whole_rows_max: int, steps: int
) -> None:
    store.begin_install()
    store.install_rows([(b"a", b"b")])
    store.flip_generation()
    store.commit()
    before = store.used_bytes()
    taken = 0
    while store.reclaim(rows_max, whole_rows_max):
        store.commit()
        taken += 1
        assert taken < 100
    assert taken == steps
    assert store.abandoned_generations == 0
    assert store.used_bytes() < before
    assert store.view().get(b"a") == b"b"
    store.close()
