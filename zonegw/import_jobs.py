"""Import jobs: what was asked for, how far it came, how it ended.

Durable rows, with a copy in memory: whatever shows an image looks there. A row in state `pending` or `processing` is
work for the next life of the gateway too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from zonegw.identity import Identity
from zonegw.images import Request
from zonegw.limits import Limits
from zonegw.store import Txn, unpack

HOUR_US = 3_600_000_000


@dataclass(slots=True)
class Job:
    """One import. `stores` are still without the data, `placed` are locations that the image does not own yet,
    `owned` tells how many it owns; `virtual_size` is what inspection found."""

    id: str
    uuid: str
    method: str
    stores: list[str]
    must_succeed: bool
    user: str
    project: str
    roles: list[str]
    created_us: int
    updated_us: int
    request_id: str | None = None
    uri: str | None = None
    status: str = "pending"
    message: str = ""
    failed: list[str] = field(default_factory=list)
    placed: list[dict[str, Any]] = field(default_factory=list)
    owned: int = 0
    virtual_size: int | None = None
    starts: int = 0

    @property
    def done(self) -> bool:
        return self.status in ("success", "failure")

    @property
    def request(self) -> Request:
        """In whose name the job changes the image."""
        return Request(Identity(self.user, self.project, frozenset(self.roles)), self.request_id)


class Jobs:
    """`imports` by job ID."""

    def __init__(self, rows: Iterator[tuple[bytes, bytes]], limits: Limits) -> None:
        self._limits = limits
        found = sorted((Job(**unpack(row)) for _, row in rows), key=lambda job: job.created_us)
        self._jobs = {job.id: job for job in found}
        self._latest = {job.uuid: job for job in found}

    def latest(self, uuid: str) -> Job | None:
        """The last import of an image that is remembered."""
        return self._latest.get(uuid)

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def all(self) -> list[Job]:
        """Oldest first."""
        return list(self._jobs.values())

    def unfinished(self) -> list[Job]:
        return [job for job in self._jobs.values() if not job.done]

    def save(self, txn: Txn, job: Job) -> None:
        txn.put_row("imports", UUID(job.id).bytes, {name: getattr(job, name) for name in Job.__slots__})
        self._jobs[job.id] = self._latest[job.uuid] = job

    def prune(self, txn: Txn, now_us: int) -> None:
        """Forget jobs that ended long ago, and those that are too many."""
        over = [job for job in self._jobs.values() if job.done]
        surplus = len(over) - self._limits.import_results_max
        oldest = now_us - int(self._limits.import_results_keep_h * HOUR_US)
        for index, job in enumerate(over):
            if index < surplus or job.updated_us < oldest:
                self._forget(txn, job)

    def _forget(self, txn: Txn, job: Job) -> None:
        txn.delete("imports", UUID(job.id).bytes)
        del self._jobs[job.id]
        if self._latest.get(job.uuid) is job:
            del self._latest[job.uuid]
