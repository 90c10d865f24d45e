"""What tells a data directory from its copies: a copied or restored one must not hand out its IDs again."""

import ctypes
import os
from pathlib import Path
from typing import Any

from zonegw.store import Txn

MACHINE_ID = Path("/etc/machine-id")
# statx(2): AT_FDCWD, the mask and offset of stx_btime, and the size of struct statx.
_AT_FDCWD, _STATX_BTIME, _BTIME_OFFSET, _STATX_BYTES = -100, 0x800, 0x50, 256


def current(directory: Path) -> dict[str, Any]:
    """Machine, file system, inode and birth time of the environment's file in `directory`."""
    path = directory / "data.mdb"
    stat = path.stat()
    return {"machine": machine_id(), "device": stat.st_dev, "inode": stat.st_ino, "born": birth_time_ns(path)}


def machine_id() -> str | None:
    try:
        return MACHINE_ID.read_text().strip()
    except OSError:
        return None


def birth_time_ns(path: Path) -> int | None:
    """When the file was made, or None where file system or kernel doesn't say."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    try:
        statx = ctypes.CDLL(None, use_errno=True).statx
    except (OSError, AttributeError):
        return None
    if statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME, buffer) != 0:
        return None
    mask = int.from_bytes(buffer.raw[:4], "little")
    if not mask & _STATX_BTIME:
        return None
    raw = buffer.raw[_BTIME_OFFSET : _BTIME_OFFSET + 12]
    return int.from_bytes(raw[:8], "little", signed=True) * 1_000_000_000 + int.from_bytes(raw[8:], "little")


def unchanged(txn: Txn, directory: Path) -> bool:
    """Whether the directory is the one that the store was made in; a first start records it."""
    now = current(directory)
    recorded = txn.row("meta", b"identity")
    if recorded is None:
        txn.put_row("meta", b"identity", now)
        return True
    return bool(recorded == now)


def record(txn: Txn, directory: Path) -> None:
    """Take the present identity as the right one: done when a block was granted to it."""
    txn.put_row("meta", b"identity", current(directory))
