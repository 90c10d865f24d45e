"""Which of a peer's scheduled backups stay. What this peer has not made itself, here, is never removed.

A file is the peer's own when its name says so (cluster, peer, time) and its label says the same. One whose label cannot
be read is left to a person.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from raftreg.backup_file import BackupError, read_label
from raftreg.store import sync_directory

_SUFFIX = ".backup"
_STAMP = re.compile(r"\d{8}T\d{6}\.\d{6}Z")


@dataclass(frozen=True)
class Kept:
    """A whole backup of this peer's schedule: its file, when the state was of (µs since 1970), and its size."""

    file: Path
    created_us: int
    size_bytes: int

    @property
    def day(self) -> datetime.date:
        return _utc(self.created_us).date()


def file_name(cluster_id: str, peer: str, created_us: int) -> str:
    """What a scheduled backup is called. Peers may share a directory."""
    return f"{cluster_id}-{peer}-{_utc(created_us):%Y%m%dT%H%M%S.%fZ}{_SUFFIX}"


def own(directory: Path, cluster_id: str, peer: str) -> list[Kept]:
    """This peer's scheduled backups in a directory, oldest first. Raises OSError."""
    found = []
    with os.scandir(directory) as entries:
        files = [directory / entry.name for entry in entries if _is_name(entry.name, cluster_id, peer)]
    for file in files:
        try:
            label = read_label(file)
        except (BackupError, FileNotFoundError):
            continue
        if (label.cluster_id, label.peer) == (cluster_id, peer):
            found.append(Kept(file, label.created_us, file.stat().st_size))
    return sorted(found, key=lambda kept: kept.created_us)


def remove_partial(directory: Path, cluster_id: str, peer: str) -> int:
    """Remove what a process left behind that was killed while it made a backup; how many. Raises OSError."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries]
    partial = [
        name
        for name in names
        if name.startswith(".")
        and name.endswith(".partial")
        and _is_name(name.removeprefix(".").removesuffix(".partial"), cluster_id, peer)
    ]
    for name in partial:
        (directory / name).unlink(missing_ok=True)
    return len(partial)


def expired(backups: Iterable[Kept], made: Kept, *, keep: int, keep_daily: int) -> list[Kept]:
    """Those that are kept no longer, oldest first, now that `made` was made and read through. That one always stays."""
    newest_first = sorted({*backups, made}, key=lambda kept: kept.created_us, reverse=True)
    of_days: dict[datetime.date, Kept] = {}
    for one in newest_first:
        of_days.setdefault(one.day, one)
    stay = {made, *newest_first[:keep], *list(of_days.values())[:keep_daily]}
    return [one for one in reversed(newest_first) if one not in stay]


def remove(backups: Iterable[Kept]) -> int:
    """Remove these files; how many. Raises OSError."""
    count = 0
    for one in backups:
        one.file.unlink(missing_ok=True)
        count += 1
        sync_directory(one.file.parent)
    return count


def _is_name(name: str, cluster_id: str, peer: str) -> bool:
    start = f"{cluster_id}-{peer}-"
    if not (name.startswith(start) and name.endswith(_SUFFIX)):
        return False
    return _STAMP.fullmatch(name.removeprefix(start).removesuffix(_SUFFIX)) is not None


def _utc(time_us: int) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=time_us)
