"""The program whose disk loses power in test_power_loss: commits transactions to an LMDB environment and marks each.

    python power_loss_writer.py DIRECTORY COUNT OPTIONS     (OPTIONS: JSON arguments for lmdb.open)

After transaction n the environment holds exactly `expected(n)`; then the mark n is put into the record.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys

import lmdb

MAP_BYTES = 1 << 24
KEYS = 40


def expected(n: int) -> dict[bytes, bytes]:
    """All rows after transaction n: the counter, and rows of many sizes, some of several pages, some absent."""
    rows = {b"n": b"%d" % n}
    for key in range(KEYS):
        last = last_change(n, key)
        size = random.Random(f"{last}.{key}").choice([0, 10, 200, 1500, 9000])
        if last and size:
            rows[b"key-%d" % key] = (b"%d.%d|" % (last, key)) * (size // 4)
    return rows


def last_change(n: int, key: int) -> int:
    """The last transaction up to n that wrote this key: one in seven does, another one for each key."""
    return n - (n - key) % 7 if n - (n - key) % 7 > 0 else 0


def commit(env: lmdb.Environment, n: int) -> None:
    """Transaction n, which may only follow n - 1."""
    before, after = expected(n - 1), expected(n)
    with env.begin(write=True) as txn:
        for key in before.keys() - after.keys():
            txn.delete(key)
        for key, value in after.items():
            if before.get(key) != value:
                txn.put(key, value)


def main(directory: str, count: str, options: str) -> None:
    recorder = ctypes.CDLL(None)
    with lmdb.open(directory, map_size=MAP_BYTES, **json.loads(options)) as env:
        for n in range(1, int(count) + 1):
            commit(env, n)
            recorder.power_loss_mark(ctypes.c_uint64(n))


if __name__ == "__main__":
    main(*sys.argv[1:])
