"""A snapshot file holds exactly the state of one committed moment, or is refused; one chunk of it is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raftreg.snapshot_copy import CopyProcess
from raftreg.snapshot_file import Malformed, copy_to_spool, frame_end, read_chunk, read_header, read_rows
from raftreg.store import Store, initialise
from raftreg.tables import Head, read_head, write_head

LAST, BEFORE = (b"command 8", 8, 3), (b"command 7", 7, 2)
CHUNK_BYTES = 2000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A committed state that has applied entry 8: many small rows, and some that are larger than a chunk."""
    initialise(tmp_path, cluster_id="test", peer="a", peers="a")
    store = Store(tmp_path, map_size_bytes=1 << 26)
    for entry, index, term in (BEFORE, LAST):
        store.put_log(index, term, entry)
    view = store.view()
    write_head(view, Head(8, 0, read_head(view).counters()))
    for number in range(1000):
        view.put(b"small%06d" % number, b"value" * (number % 7))
    for number in range(5):
        view.put(b"large%d" % number, bytes(9000))
    store.commit()
    yield store
    store.close()


def rows_of(store: Store) -> list[tuple[bytes, bytes]]:
    reader = store.begin_read()
    try:
        return list(reader.rows())
    finally:
        reader.close()


def copied(store: Store, path: Path) -> Path:
    reader = store.begin_read()
    try:
        copy_to_spool(reader, 8, path, CHUNK_BYTES, 60.0)
    finally:
        reader.close()
    return path


def test_what_is_read_back_is_what_was_committed(store: Store, tmp_path: Path) -> None:
    path = copied(store, tmp_path / "snapshot")
    chunks = list(read_rows(path))
    assert read_header(path) == (LAST, BEFORE)
    assert [row for rows in chunks for row in rows] == rows_of(store)
    sizes = [sum(len(key) + len(value) for key, value in rows) for rows in chunks]
    assert len(chunks) > 5
    assert max(sizes) < CHUNK_BYTES + 9010


def test_a_copy_that_takes_too_long_or_that_nobody_waits_for_is_given_up(store: Store, tmp_path: Path) -> None:
    reader = store.begin_read()
    with pytest.raises(TimeoutError, match="snapshot_reader_max_s"):
        copy_to_spool(reader, 8, tmp_path / "late", CHUNK_BYTES, 0.0)
    with pytest.raises(InterruptedError):
        copy_to_spool(reader, 8, tmp_path / "alone", CHUNK_BYTES, 60.0, lambda: False)
    reader.close()


def test_a_file_that_was_cut_off_or_changed_anywhere_is_refused(store: Store, tmp_path: Path) -> None:
    content = copied(store, tmp_path / "snapshot").read_bytes()
    damaged = tmp_path / "damaged"
    for length in range(0, len(content), 997):
        damaged.write_bytes(content[:length])
        with pytest.raises(Malformed):
            list(read_rows(damaged))
    for position in range(0, len(content), 997):
        damaged.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(Malformed):
            list(read_rows(damaged))


def test_a_chunk_left_out_or_taken_twice_is_refused(store: Store, tmp_path: Path) -> None:
    content = copied(store, tmp_path / "snapshot").read_bytes()
    with (tmp_path / "snapshot").open("rb") as file:
        ends = []
        while (end := frame_end(file, len(content))) is not None:
            ends.append(end)
            file.seek(end)
    frames = [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    damaged = tmp_path / "damaged"
    for parts in (frames[:2] + frames[3:], frames[:3] + frames[2:], frames[:-2] + frames[-1:]):
        damaged.write_bytes(b"".join(parts))
        with pytest.raises(Malformed):
            list(read_rows(damaged))


def test_another_process_copies_what_was_committed_last(store: Store, tmp_path: Path) -> None:
    """What is written and not committed is in no copy; the peer goes on meanwhile."""
    before = rows_of(store)
    store.view().put(b"small000000", b"not committed")
    copy = CopyProcess(tmp_path, tmp_path / "snapshot", chunk_bytes=CHUNK_BYTES, reader_max_s=60.0)
    copy.wait()
    assert copy.succeeded()
    assert read_header(tmp_path / "snapshot") == (LAST, BEFORE)
    assert [row for rows in read_rows(tmp_path / "snapshot") for row in rows] == before


def test_a_copying_process_that_fails_or_is_ended_says_so(store: Store, tmp_path: Path) -> None:
    late = CopyProcess(tmp_path, tmp_path / "late", chunk_bytes=CHUNK_BYTES, reader_max_s=0.0)
    late.wait()
    assert late.succeeded() is False
    ended = CopyProcess(tmp_path, tmp_path / "ended", chunk_bytes=CHUNK_BYTES, reader_max_s=60.0)
    ended.end()
    assert ended.succeeded() is False
    assert store.check_readers() in (0, 1)


def test_a_file_that_still_grows_is_read_as_far_as_its_frames_are_whole(store: Store, tmp_path: Path) -> None:
    path = copied(store, tmp_path / "snapshot")
    with path.open("rb") as file:
        end = frame_end(file, path.stat().st_size)
        assert end is not None
        assert frame_end(file, end - 1) is None
        assert frame_end(file, 3) is None
        assert read_chunk(file) is not None
        assert file.tell() == end
