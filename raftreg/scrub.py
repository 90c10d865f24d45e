"""When the rows of this peer's state are read again: a few of them every now and then, or all at once for an operator.

The steps run between turns, on the owner's open transaction; no read transaction pins pages across them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import lmdb

from raftreg.config import Limits, Timing
from raftreg.digests import Pass
from raftreg.engine import now
from raftreg.store import Store

logger = logging.getLogger(__name__)


class Scrubber:
    """`tick` is called at least every few milliseconds. `found(sentence)` is told of damage, as soon as it is seen."""

    def __init__(
        self,
        store: Store,
        *,
        begin_pass: Callable[[], Pass],
        found: Callable[[str], None],
        limits: Limits,
        timing: Timing,
    ) -> None:
        self._store, self._begin_pass, self._found = store, begin_pass, found
        self._limits, self._timing = limits, timing
        self._pass: Pass | None = None
        self._generation = store.generation
        self._fast = False
        self._step_at = now() + timing.scrub_step_s
        self._finished_at: float | None = None
        self._findings: list[str] = []
        self.begun = self.finished = 0

    def hurry(self) -> int:
        """Read everything now; the number of the pass that will tell. A fast pass under way is joined."""
        if not (self._fast and self._pass is not None):
            self._drop()
            self._fast = True
            self._begin()
        self._step_at = now()
        return self.begun

    def tick(self) -> None:
        if now() < self._step_at:
            return
        if self._pass is None or self._store.generation != self._generation:
            self._begin()
        self._step_at = now() + (0.0 if self._fast else self._timing.scrub_step_s)
        if self._step():
            self._finish()

    def _begin(self) -> None:
        if self._pass is None:
            self.begun += 1
        self._pass = self._begin_pass()
        self._generation = self._store.generation
        self._store.row_watch = self._pass.watch

    def _drop(self) -> None:
        self._pass = self._store.row_watch = None

    def _step(self) -> bool:
        """One step; True when the pass is over, also by an error that no further step could get past."""
        running, limits = self._pass, self._limits
        assert running is not None
        rows = limits.scrub_fast_step_rows if self._fast else limits.scrub_step_rows
        size = limits.scrub_fast_step_bytes if self._fast else limits.scrub_step_bytes
        known = len(running.findings)
        try:
            over = running.step(self._store.view(), rows, size)
        except (lmdb.Error, ValueError) as error:
            running.findings.append(f"the rows cannot be read: {error!r}")
            over = True
        for sentence in running.findings[known:]:
            logger.critical("scrub: %s", sentence)
        if len(running.findings) > known:
            self._found(f"a scrub found that {running.findings[0]}")
        return over

    def _finish(self) -> None:
        assert self._pass is not None
        logger.info("scrub: pass %d over %d rows, %d findings", self.begun, self._pass.rows, len(self._pass.findings))
        self._findings = self._pass.findings
        self._drop()
        self._fast = False
        self.finished, self._finished_at = self.begun, now()
        self._step_at = now() + self._timing.scrub_pass_s

    def status(self) -> dict[str, Any]:
        """`pass` and `finished` count since the start; `findings` are those of the pass under way or of the last."""
        running = self._pass
        return {
            "running": running is not None,
            "fast": self._fast,
            "pass": self.begun,
            "rows": 0 if running is None else running.rows,
            "rows_total": self._store.state_rows(),
            "finished": self.finished,
            "finished_age_s": None if self._finished_at is None else now() - self._finished_at,
            "findings": list(running.findings if running is not None and running.findings else self._findings),
        }
