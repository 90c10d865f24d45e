"""When a running peer makes its backups, and what became of them. The work is done by a process: `backup_run`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raftreg.backup_run import DIED, Job
from raftreg.config import PeerConfig

logger = logging.getLogger(__name__)

# A process that does not notice its own deadline, as on a disk that hangs, is killed so long after it.
_OVERDUE_S = 5.0
# A new cluster has something to save as soon as its first leader's entry is on disk.
_NOTHING_YET_RETRY_S = 2.0
_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Last:
    """The newest backup that is known. `seconds` is None when it was made before this peer was started."""

    file: str
    created_us: int
    bytes: int
    seconds: float | None


class BackupKeeper:
    """Makes the backups of one peer. Not for a configuration without a directory or a period.

    `applied()` is the peer's applied index; `failed(reason)` is called once per failure, see `backup_run.REASONS`.
    """

    def __init__(
        self, settings: PeerConfig, cluster_id: str, *, applied: Callable[[], int], failed: Callable[[str], None]
    ) -> None:
        schedule = settings.backup
        assert schedule.directory is not None
        assert schedule.every_s > 0
        self._schedule, self._limits = schedule, settings.limits
        self._applied, self._failed = applied, failed
        self._job = Job(
            data_dir=str(settings.data_dir.absolute()),
            cluster_id=cluster_id,
            peer=settings.name,
            directory=str(schedule.directory.absolute()),
            every_s=schedule.every_s,
            keep=schedule.keep,
            keep_daily=schedule.keep_daily,
            limits=dataclasses.asdict(settings.limits),
        )
        self._reading_since: float | None = None
        self._running, self._started = False, 0.0
        self._trouble: str | None = None
        self._failures = 0
        self._last: Last | None = None

    async def run(self) -> None:
        """For ever. When it is cancelled, the process that is under way ends, and its partial file stays."""
        while True:
            wait_s = await self._once() if self._applied() > 1 else _NOTHING_YET_RETRY_S
            await asyncio.sleep(wait_s)

    def _pause_s(self) -> float:
        """Least time without a reader between two backups, and that until a failed one is tried again."""
        return min(self._limits.backup_retry_s, self._schedule.every_s)

    async def _once(self) -> float:
        """Look whether one is due, and make it; seconds until the next look."""
        self._running, self._started = True, time.monotonic()
        try:
            return await self._attend()
        except (OSError, ValueError, TimeoutError) as error:
            self._fail(DIED, f"the process that makes the backup was lost: {error}")
            return self._pause_s()
        finally:
            self._running, self._reading_since = False, None

    async def _attend(self) -> float:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "raftreg.backup_run", self._job.to_json(),
            cwd=_PACKAGE.parent,  # `-m` finds the very package that runs here
            stdin=DEVNULL, stdout=PIPE,
        )  # fmt: skip
        self._reading_since = self._started
        wait_s: float | None = None
        try:
            while (event := await self._next_event(process)) is not None:
                wait_s = self._note(event, wait_s)
            await process.wait()
        finally:
            await _end(process)
        if wait_s is None or (process.returncode and self._trouble is None):
            raise OSError(f"it ended with status {process.returncode}; its messages stand above")
        return wait_s

    async def _next_event(self, process: Process) -> dict[str, Any] | None:
        """The next thing that it says; None at its end. Raises TimeoutError past the time that its step may take."""
        assert process.stdout is not None
        patience_s = self._limits.snapshot_reader_max_s + _OVERDUE_S
        try:
            async with asyncio.timeout(patience_s):
                line = await process.stdout.readline()
        except TimeoutError:
            raise TimeoutError(f"it said nothing for {patience_s} s; does {self._job.directory} hang?") from None
        event: dict[str, Any] | None = json.loads(line) if line else None
        return event

    def _note(self, event: dict[str, Any], wait_s: float | None) -> float | None:
        """Remember it; the seconds until the next look, as far as they are known."""
        kind = event.pop("event")
        if kind == "failed":
            self._fail(event["reason"], event["message"])
            wait_s = self._pause_s()
        if kind == "nothing_yet":
            wait_s = _NOTHING_YET_RETRY_S
        if kind in ("copied", "not_due"):
            self._reading_since = None
        if kind == "found" and (self._last is None or self._last.file != event["file"]):
            self._last = Last(**event, seconds=None)
        if kind == "not_due" and self._last is not None:
            age_s = max(0.0, time.time() - self._last.created_us / 1e6)
            wait_s = max(0.0, self._schedule.every_s - age_s)
        if kind == "done":
            self._last, self._trouble = Last(**event), None
            logger.info("backup: %s, %d bytes in %.1f s", event["file"], event["bytes"], event["seconds"])
            took_s = time.monotonic() - self._started
            wait_s = max(self._schedule.every_s - took_s, self._pause_s())
        return wait_s

    def _fail(self, reason: str, message: str) -> None:
        logger.error("no backup was made: %s", message)
        self._trouble = message
        self._failures += 1
        self._failed(reason)

    def reader_age_s(self) -> float:
        """How long the backup under way may have pinned pages of the database; 0 when there is none."""
        return 0.0 if self._reading_since is None else time.monotonic() - self._reading_since

    def errors(self) -> list[str]:
        """What is wrong, in a sentence that says since when there is no backup."""
        if self._trouble is None:
            return []
        since = "there is none yet" if self._last is None else f"the last one is {self._last.file}"
        return [f"the last scheduled backup failed, {since}: {self._trouble}"]

    def status(self) -> dict[str, Any]:
        """Plain values; `last` is None as long as no backup of this peer is known."""
        return {
            "directory": self._job.directory,
            "every_s": self._schedule.every_s,
            "keep": self._schedule.keep,
            "keep_daily": self._schedule.keep_daily,
            "running": self._running,
            "last": None if self._last is None else dataclasses.asdict(self._last),
            "failures": self._failures,
            "trouble": self._trouble,
        }


async def _end(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
