"""Parking: what the registry refuses goes to where a human sees it, with what was to follow it.

Refused writes are parked in the transaction that takes the verdict. What is long is done a bounded number of writes at
a time, with turns of the loop in between: the many writes behind a refused one, and all that was pending when the
session was lost. Until that is through nothing is sent, and a crash in the middle goes on where it was.
"""

from itertools import islice
from typing import Any

from zonegw.catalogue import Catalogue
from zonegw.limits import Limits
from zonegw.store import Store, Txn
from zonegw.write_queue import PendingWrite, Session, WriteQueue

# Jobs: {"uuid", "head", "after"}, what is pending of an image behind its parked write `head`, from a position on; or
# {"upto", "reason"}, all up to a position.
_JOBS = b"parking"


class Parking:
    """The way from the queue to the parked writes."""

    def __init__(self, store: Store, queue: WriteQueue, catalogue: Catalogue, limits: Limits) -> None:
        self._store = store
        self._queue = queue
        self._catalogue = catalogue
        self._batch_max = limits.park_batch_max

    def refuse(self, txn: Txn, session: Session, write: PendingWrite, reason: dict[str, Any]) -> list[PendingWrite]:
        """Take the registry's refusal of `write`; returns what was parked."""
        create = self._catalogue.create_pending(txn, write.uuid)
        behind = create["position"] if create is not None and create["state"] == "parked" else None
        self._queue.park(txn, session, write, reason, behind)
        return self._park_followers(txn, write, behind)

    def retract(self, txn: Txn, session: Session, write: PendingWrite, reason: dict[str, Any]) -> list[PendingWrite]:
        """Take `write` out, which the registry would not even take into the session; returns what was parked."""
        self._queue.retract(txn, session, write, reason)
        return self._park_followers(txn, write, None)

    def _park_followers(self, txn: Txn, write: PendingWrite, behind: int | None) -> list[PendingWrite]:
        self._catalogue.park(txn, write.uuid, write.position)
        head = write.position if behind is None else behind
        return [write, *self._follow(txn, {"uuid": write.uuid, "head": head, "after": write.position})]

    def _follow(self, txn: Txn, job: dict[str, Any]) -> list[PendingWrite]:
        """Park the first of what is pending of an image and was never sent; where there may be more, that is a job."""
        positions = self._catalogue.positions(txn, job["uuid"], job["after"], self._batch_max)
        parked = self._queue.park_behind(txn, job["head"], positions)
        for write in parked:
            self._catalogue.park(txn, write.uuid, write.position)
        if len(positions) == self._batch_max:
            self._save(txn, [*self._jobs(txn), job | {"after": positions[-1]}])
        return parked

    def lose(self, txn: Txn, reason: dict[str, Any]) -> None:
        """The session is lost: all that is pending will be parked, by `step`."""
        self._save(txn, [*self._jobs(txn), {"upto": self._queue.highest_position(txn), "reason": reason}])

    def step(self) -> list[PendingWrite] | None:
        """Park some of what is still to be parked, in one transaction; None where that is through."""
        jobs = self._jobs(self._store.read())
        if not jobs:
            return None
        job = jobs[0]
        with self._store.transaction() as txn:
            self._save(txn, jobs[1:])
            return self._lose(txn, job) if "upto" in job else self._follow(txn, job)

    def _lose(self, txn: Txn, job: dict[str, Any]) -> list[PendingWrite]:
        lost = [write for write in islice(self._queue.pending(txn), self._batch_max) if write.position <= job["upto"]]
        parked: list[PendingWrite] = []
        if lost:
            self._save(txn, [job, *self._jobs(txn)])
        for write in lost:
            head = self._queue.park_lost(txn, write, job["reason"])
            self._catalogue.park(txn, write.uuid, write.position)
            # What was acknowledged since then of this image was made on top of it.
            newer = {"uuid": write.uuid, "head": head, "after": job["upto"]}
            parked += [write, *self._follow(txn, newer)]
        return parked

    def _jobs(self, txn: Txn) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = txn.row("meta", _JOBS) or []
        return jobs

    @staticmethod
    def _save(txn: Txn, jobs: list[dict[str, Any]]) -> None:
        if jobs:
            txn.put_row("meta", _JOBS, jobs)
        else:
            txn.delete("meta", _JOBS)
