"""Many schedules on all cores: seeds in, outcomes out, and what they add up to."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from chaos.simulation import ablations
from chaos.simulation.processes import Templates
from chaos.simulation.schedule import Outcome, Schedule
from raftreg import certificates
from raftreg.certificates import Subject
from raftreg.config import TlsFiles

# Seeds handed to a worker at once: enough that handing over costs nothing, few enough that the end comes together.
BATCH = 4
# Objects that may wait to be looked at for unreachable cycles.
GARBAGE_MAX = 100_000


@dataclass(frozen=True)
class Job:
    """One seed and how it is to be run."""

    seed: int
    voters: int
    observers: int | None = None
    kinds: tuple[str, ...] = ()
    without: str | None = None


@dataclass
class Totals:
    """What many schedules add up to."""

    schedules: int = 0
    acknowledged: int = 0
    reads: int = 0
    steps: int = 0
    installs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    stuck: int = 0
    failed: list[tuple[Job, Outcome]] = field(default_factory=list)

    def add(self, job: Job, outcome: Outcome) -> None:
        self.schedules += 1
        self.acknowledged += outcome.acknowledged
        self.reads += outcome.reads
        self.steps += outcome.steps
        self.installs += outcome.installs
        self.faults.update(outcome.faults)
        self.stuck += outcome.stuck
        if outcome.violation is not None:
            self.failed.append((job, outcome))


class Bench:
    """A place where this process runs schedules: a directory on a real disk, certificates, prepared stores."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sim-", dir=directory))
        authority = certificates.create_authority("simulation")
        # Nobody shakes hands in a simulation, so all peers may share what a peer wants to start.
        self._tls: TlsFiles = certificates.issue(authority, Subject("simulated", "peer"), self.directory / "tls")
        context = certificates.client_context(self._tls)
        certificates.client_context = certificates.server_context = lambda _tls: context  # type: ignore[assignment]
        self._templates = Templates(self.directory / "templates")

    def run(self, job: Job) -> Outcome:
        """One schedule, from its seed alone."""
        place = self.directory / "run"
        with ablations.without(job.without):
            schedule = Schedule(
                place, job.seed, job.voters, self._templates, self._tls, observers=job.observers, kinds=job.kinds
            )
            try:
                return schedule.run()
            finally:
                schedule.close()
                shutil.rmtree(place, ignore_errors=True)

    def close(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


_bench: Bench | None = None


def _prepare(directory: Path) -> None:
    global _bench
    logging.disable(logging.CRITICAL)
    _bench = Bench(directory)
    # What is loaded by now stays, and what a schedule leaves behind is small: looking for cycles is 5 % of the time.
    gc.freeze()
    gc.set_threshold(GARBAGE_MAX)


def _run_batch(jobs: Sequence[Job]) -> list[tuple[Job, Outcome]]:
    assert _bench is not None
    return [(job, _bench.run(job)) for job in jobs]


def run_all(jobs: Sequence[Job], directory: Path, workers: int | None = None) -> Iterator[tuple[Job, Outcome]]:
    """Outcomes as they come, from one process per core. Stop taking them to stop early."""
    batches = [jobs[at : at + BATCH] for at in range(0, len(jobs), BATCH)]
    count = min(workers or os.cpu_count() or 1, len(batches))
    place = Path(tempfile.mkdtemp(prefix="sims-", dir=directory))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_prepare, initargs=(place,))
    try:
        for done in as_completed([pool.submit(_run_batch, batch) for batch in batches]):
            yield from done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(place, ignore_errors=True)
