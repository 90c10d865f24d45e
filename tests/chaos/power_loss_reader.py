"""The program that reads rebuilt files in test_power_loss, in a process of its own: LMDB may crash on a broken file.

    python -m tests.chaos.power_loss_reader RECORD BASE DIRECTORY SEED MOMENTS

For power losses drawn by the seed, at MOMENTS (`any`: random ones of the record; `end`: its end), it checks that each
file is exactly the last marked transaction or the next. It prints the first that is not and ends with status 1, else 0.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb

from chaos.power_loss.rebuild import Disk, Kept, notes
from tests.chaos import power_loss_writer as writer

# Enough that a rule broken at one kind of moment is met; each opens one file.
POWER_LOSSES = 150


def contents(data: bytes, directory: Path) -> dict[bytes, bytes]:
    """All rows of a rebuilt file, read through LMDB. Raises lmdb.Error if it is no environment any more."""
    directory.mkdir(exist_ok=True)
    (directory / "data.mdb").write_bytes(data)
    with lmdb.open(str(directory), map_size=writer.MAP_BYTES, lock=False, readonly=True) as env, env.begin() as txn:
        return dict(txn.cursor())


def power_losses(record: Path, base: bytes, seed: int, moments: str) -> Iterator[tuple[int, bytes, str]]:
    """(last mark, rebuilt file, what was drawn) for each power loss, in the order of the record."""
    chance = random.Random(seed)
    every = list(notes(record))
    chosen = sorted(len(every) if moments == "end" else chance.randrange(len(every) + 1) for _ in range(POWER_LOSSES))
    disk, done = Disk(base), 0
    for moment in chosen:
        for note in every[done:moment]:
            disk.take(note)
        done = moment
        kept = chance.choice(list(Kept))
        drawn = f"after note {moment} of {len(every)}, {disk.pending_writes} pending, kept {kept} (seed {seed})"
        yield (disk.marks[-1] if disk.marks else 0), disk.after_power_loss(kept, chance), drawn


def found_wrong(record: Path, base: bytes, directory: Path, seed: int, moments: str) -> str | None:
    """The first power loss after which the file isn't exactly the last marked transaction or the next, if any."""
    for marked, data, drawn in power_losses(record, base, seed, moments):
        try:
            rows = contents(data, directory)
        except lmdb.Error as error:
            return f"{drawn}: does not open: {error}"
        if rows not in (writer.expected(marked), writer.expected(marked + 1)):
            return f"{drawn}: transaction {rows.get(b'n')!r} instead of {marked} or the next, or not whole"
    return None


if __name__ == "__main__":
    wrong = found_wrong(
        Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    )
    print(wrong or "all are exactly the last transaction or the next")
    sys.exit(1 if wrong else 0)
