"""The store of a stopped peer, checked from end to end without writing to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from raftreg import state_machine
from raftreg.state_scrub import Pass
from raftreg.store import Store, StoreError

_STEP_ROWS = 5_000
_STEP_BYTES = 8 << 20


@dataclass
class Report:
    """`findings` are sentences; none means that everything is as it was written."""

    peer: str
    applied: int = 0
    log_entries: int = 0
    rows: int = 0
    digest: str | None = None
    findings: list[str] = field(default_factory=list)


def check(data_dir: Path, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Report:
    """Check log, meta rows, every row of the state against its digest, derived rows and invariants.

    `progress(rows read, rows in all)` is called now and then. Holds all images in memory while it compares them.
    Raises StoreError when the store cannot even be opened.
    """
    store = Store(data_dir, map_size_bytes=0, read_only=True)
    try:
        report = Report(store.identity.peer)
        marked = store.damage()
        if marked is not None:
            report.findings.append(f"this peer stopped for good because {marked}")
        _check_log(store, report)
        _check_rows(store, report, progress)
        return report
    finally:
        store.close()


def _check_log(store: Store, report: Report) -> None:
    try:
        entries = store.load_log()
        report.log_entries = len(entries)
        store.check_log(entries, state_machine.applied_index)
    except StoreError as error:
        report.findings.append(str(error))


def _check_rows(store: Store, report: Report, progress: Callable[[int, int], None]) -> None:
    view, run, total = store.view(), Pass(), store.state_rows()
    try:
        while not run.step(view, _STEP_ROWS, _STEP_BYTES):
            progress(run.rows, total)
        progress(total, total)
        report.applied, report.digest = state_machine.applied_index(view), state_machine.digest(view)
        if not run.findings:
            state_machine.validate_state(view)
    except AssertionError as broken:
        run.findings.append(f"the state contradicts itself: {broken}")
    except Exception as error:
        # Bytes that are no rows any more can fail anywhere in reading them.
        run.findings.append(f"the state cannot be read: {error!r}")
    report.rows = run.rows
    report.findings += run.findings
