"""One scheduled backup, in a process of its own: `python -m raftreg.backup_run JOB`, started by `backup_schedule`.

All that touches the target directory happens here: a disk or a network file system that hangs must not hold up the
peer. It says on stdout, one JSON map a line, what has come to pass:

    {"event": "found", "file", "created_us", "bytes"}     the newest backup that was there before
    {"event": "not_due"}                                  it is younger than the period; there is nothing to do
    {"event": "nothing_yet"}                              the peer has applied nothing so far
    {"event": "copied"}                                   no page of the database is pinned any more
    {"event": "done", "file", "created_us", "bytes", "seconds"}
    {"event": "removed", "count"}
    {"event": "failed", "reason", "message"}              reason: one of REASONS
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raftreg import backup, backup_retention
from raftreg.backup import BackupError, NoRoom, NothingYet
from raftreg.backup_retention import Kept
from raftreg.config import Limits
from raftreg.store import StoreError

NO_ROOM, TOO_SLOW, UNREADABLE, OTHER, DIED = REASONS = ("no_room", "too_slow", "unreadable", "other", "died")
_NICENESS = 10  # clients come first
_NO_ROOM_ERRORS = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Job:
    """What to save, where, and what stays of what was saved before."""

    data_dir: str
    cluster_id: str
    peer: str
    directory: str
    every_s: float
    keep: int
    keep_daily: int
    limits: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        return cls(**json.loads(text))


class _Unreadable(BackupError):
    """What was written cannot be read back."""


Tell = Callable[..., None]


def run(job: Job, tell: Tell, go_on: Callable[[], bool], now_us: int) -> None:
    """Make a backup if one is due, read it through, then remove what is not kept any longer. `tell(event, **facts)`.

    Raises BackupError, StoreError, OSError; older backups are all there then.
    """
    directory = Path(job.directory)
    directory.mkdir(mode=0o700, exist_ok=True)
    backup_retention.remove_partial(directory, job.cluster_id, job.peer)
    before = backup_retention.own(directory, job.cluster_id, job.peer)
    past = [kept for kept in before if kept.created_us <= now_us]  # a clock that was ahead puts nothing off
    if past:
        tell("found", **_facts(past[-1]))
    if past and now_us < past[-1].created_us + job.every_s * 1_000_000:
        tell("not_due")
        return
    made = _make(job, directory, tell, go_on, now_us)
    expired = backup_retention.expired(before, made, keep=job.keep, keep_daily=job.keep_daily)
    tell("removed", count=backup_retention.remove(expired))


def _make(job: Job, directory: Path, tell: Tell, go_on: Callable[[], bool], now_us: int) -> Kept:
    started = time.monotonic()
    file = directory / backup_retention.file_name(job.cluster_id, job.peer, now_us)
    backup.create_at(Path(job.data_dir), job.peer, Limits(**job.limits), file, now_us=now_us, go_on=go_on)
    tell("copied")
    try:
        backup.verify(file)
    except BackupError as error:
        file.unlink()
        raise _Unreadable(f"the backup was not read back as it was written: {error}") from error
    made = Kept(file, now_us, file.stat().st_size)
    tell("done", **_facts(made), seconds=time.monotonic() - started)
    return made


def _facts(kept: Kept) -> dict[str, Any]:
    return {"file": str(kept.file), "created_us": kept.created_us, "bytes": kept.size_bytes}


def reason_of(error: Exception) -> str:
    """One word for metrics."""
    if isinstance(error, NoRoom) or (isinstance(error, OSError) and error.errno in _NO_ROOM_ERRORS):
        return NO_ROOM
    if isinstance(error, TimeoutError):
        return TOO_SLOW
    return UNREADABLE if isinstance(error, _Unreadable) else OTHER


def _tell(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def main(text: str) -> int:
    parent = os.getppid()
    os.nice(_NICENESS)
    try:
        run(Job.from_json(text), _tell, lambda: os.getppid() == parent, time.time_ns() // 1000)
    except NothingYet:
        _tell("nothing_yet")
    except (StoreError, OSError) as error:
        _tell("failed", reason=reason_of(error), message=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
