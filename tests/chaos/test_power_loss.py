"""The recorder and the rebuilder of power failures, on plain LMDB: what LMDB promises holds in every rebuilt file, and
an LMDB that was told not to sync is found out."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from chaos.power_loss import recorder
from chaos.power_loss.rebuild import BadRecord, Disk, Kept, Note, disk_of, notes, rebuild
from ops.dev import environment, processes
from tests.chaos import power_loss_writer as writer

TRANSACTIONS = 60
WRITER_TIMEOUT_S = 60
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def library() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="recorder-") as directory:
        try:
            yield recorder.compile_recorder(Path(directory))
        except recorder.NoRecorder as reason:
            pytest.skip(str(reason))


@pytest.fixture
def base(tmp_path: Path) -> bytes:
    """A new, empty environment, as it is before recording begins."""
    with lmdb.open(str(tmp_path / "env"), map_size=writer.MAP_BYTES) as env, env.begin(write=True) as txn:
        txn.put(b"n", b"0")
    return (tmp_path / "env" / "data.mdb").read_bytes()


def start_writer(library: Path, directory: Path, count: int, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, writer.__file__, str(directory / "env"), str(count), json.dumps(options)],
        env=environment.clean(os.environ) | recorder.preload(library, directory / "record"),
    )


def record_writer(library: Path, directory: Path, **options: Any) -> Path:
    process = start_writer(library, directory, TRANSACTIONS, **options)
    assert process.wait(WRITER_TIMEOUT_S) == 0
    return directory / "record"


def read_rebuilt(record: Path, base: bytes, directory: Path, seed: int, moments: str = "any") -> tuple[int, str]:
    """Exit status and words of the reader: 0 if every rebuilt file was right, 1 if not, negative if LMDB crashed."""
    (directory / "base").write_bytes(base)
    places = [str(record), str(directory / "base"), str(directory / "found")]
    read = subprocess.run(
        [sys.executable, "-m", "tests.chaos.power_loss_reader", *places, str(seed), moments],
        cwd=ROOT,
        env=environment.clean(os.environ),
        capture_output=True,
        text=True,
        timeout=WRITER_TIMEOUT_S,
        check=False,
    )
    return read.returncode, read.stdout + read.stderr


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_rebuilt_file_opens_and_has_exactly_the_last_committed_transaction_or_the_next(
    library: Path, base: bytes, tmp_path: Path, seed: int
) -> None:
    record = record_writer(library, tmp_path)
    kinds = [note.kind for note in notes(record)]
    assert kinds.count("N") == TRANSACTIONS
    assert kinds.count("S") >= TRANSACTIONS, "LMDB syncs the data of every transaction"
    assert kinds.count("D") >= TRANSACTIONS, "LMDB writes every meta page through a synchronous descriptor"
    status, said = read_rebuilt(record, base, tmp_path, seed)
    assert status == 0, said


def test_the_record_misses_nothing_of_what_was_written(library: Path, base: bytes, tmp_path: Path) -> None:
    record = record_writer(library, tmp_path)
    everything = disk_of(record, base).after_power_loss(Kept.EVERYTHING, random.Random(0))
    assert everything == (tmp_path / "env" / "data.mdb").read_bytes()


@pytest.mark.parametrize("options", [{"sync": False}, {"metasync": False}], ids=str)
def test_an_environment_that_does_not_sync_is_found_out(
    library: Path, base: bytes, tmp_path: Path, options: dict[str, bool]
) -> None:
    record = record_writer(library, tmp_path, **options)
    status, said = read_rebuilt(record, base, tmp_path, seed=1)
    # Such a file may also be so broken that LMDB crashes on it.
    assert (status == 1 and "instead of" in said) or "does not open" in said or status < 0, (status, said)


def test_writes_through_a_shared_map_are_refused_instead_of_being_missed(
    library: Path, base: bytes, tmp_path: Path
) -> None:
    record = record_writer(library, tmp_path, writemap=True)
    with pytest.raises(BadRecord, match="WRITEMAP"):
        disk_of(record, base)


def test_a_killed_process_leaves_a_record_that_rebuilds(library: Path, base: bytes, tmp_path: Path) -> None:
    process = start_writer(library, tmp_path, 1_000_000)
    try:
        assert processes.wait_until(lambda: size(tmp_path / "record") > 1_000_000, WRITER_TIMEOUT_S)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(WRITER_TIMEOUT_S)
    for seed in (1, 2):
        status, said = read_rebuilt(tmp_path / "record", base, tmp_path, seed, moments="end")
        assert status == 0, said


def test_a_rebuilt_file_takes_the_place_of_the_real_one_and_is_the_same_for_the_same_seed(
    library: Path, base: bytes, tmp_path: Path
) -> None:
    record, files = record_writer(library, tmp_path, sync=False), [tmp_path / name for name in ("one", "two")]
    said = [rebuild(record, base, file, seed=7) for file in files]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert all("seed 7" in words for words in said)
    assert len({rebuild(record, base, files[1], seed=seed) for seed in range(20)}) > 1


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def test_a_process_that_cannot_record_does_not_run(library: Path, base: bytes, tmp_path: Path) -> None:
    (tmp_path / "record").mkdir()
    process = start_writer(library, tmp_path, TRANSACTIONS)
    assert process.wait(WRITER_TIMEOUT_S) == recorder.STATUS_CANNOT_RECORD


def write(sequence: int, offset: int, data: bytes) -> Note:
    return Note("W", sequence, offset, len(data), data)


def possible(disk: Disk, kept: Kept) -> set[bytes]:
    return {disk.after_power_loss(kept, random.Random(seed)) for seed in range(64)}


def test_a_sector_is_old_or_new_and_never_half() -> None:
    disk = Disk(b"o" * 1024)
    disk.take(write(1, 0, b"n" * 1024))
    old, new = b"o" * 512, b"n" * 512
    assert possible(disk, Kept.SECTORS) == {old + old, old + new, new + old, new + new}
    assert possible(disk, Kept.PAGES) == {old + old, new + new}
    assert possible(disk, Kept.NOTHING) == {old + old}


def test_a_sector_may_hold_any_version_since_the_sync() -> None:
    disk = Disk(b"a" * 512)
    for sequence, letter in enumerate((b"b", b"c", b"d"), 1):
        disk.take(write(sequence, 0, letter * 512))
    assert possible(disk, Kept.SECTORS) == {letter * 512 for letter in (b"a", b"b", b"c", b"d")}
    disk.take(Note("S", 0, 0, 0))
    for kept in Kept:
        assert possible(disk, kept) == {b"d" * 512}


def test_a_synchronous_write_stores_its_page_and_no_other() -> None:
    disk = Disk(bytes(2 * 4096))
    disk.take(write(1, 4000, b"x" * 200))
    disk.take(write(2, 0, b"meta"))
    disk.take(Note("D", 2, 0, 4))
    found = possible(disk, Kept.NOTHING)
    assert found == {b"meta" + bytes(3996) + b"x" * 96 + bytes(4096)}
    disk.take(write(3, 0, b"late"))
    assert {data[:4] for data in possible(disk, Kept.WRITES)} == {b"meta", b"late"}


def test_of_a_write_that_failed_half_way_only_that_half_can_be_found() -> None:
    disk = Disk()
    disk.take(write(1, 0, b"whole"))
    disk.take(Note("R", 1, 0, 2))
    assert possible(disk, Kept.EVERYTHING) == {b"wh"}
    disk.take(write(2, 2, b"never"))
    disk.take(Note("R", 2, 0, 0))
    assert possible(disk, Kept.EVERYTHING) == {b"wh"}


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecord, match="damaged"):
        Disk().take(Note("D", 7, 0, 4))
    (tmp_path / "record").write_bytes(b"?" * 32)
    with pytest.raises(BadRecord, match="damaged"):
        disk_of(tmp_path / "record")
