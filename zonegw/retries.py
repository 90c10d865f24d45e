"""Retries: parked writes go back into the queue, each with what was to follow it, in order.

A write comes back under a new position, as if its client had asked for it now: its base version is today's, so that
what others have set meanwhile does not refuse it again. A create whose very image the registry has (its answer was
lost, then the session) is not sent a second time; should that not be known here yet, the registry refuses its UUID. A
number that the registry may have sealed is given up for one that it issues, and the image is listed as renumbered.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from uuid import UUID

from zonegw import overlay
from zonegw.catalogue import Catalogue
from zonegw.errors import StorageFull
from zonegw.limits import Limits
from zonegw.store import Store, Txn, u64, unpack
from zonegw.write_queue import PARKED_BEHIND, PendingWrite, WriteQueue

log = logging.getLogger(__name__)

Row = dict[str, Any]
# Of all that was parked for one reason: {"code", "after", "upto", "retried", "left"}; positions below `after` are done.
_JOB = b"retrying"
# The registry refused the number itself.
_NUMBER_REFUSED = ("block_not_held", "number_taken")


@dataclass(slots=True)
class Retries:
    """The way from the parked writes back into the queue; `on_queued` is called when there is something to drain."""

    store: Store
    queue: WriteQueue
    catalogue: Catalogue
    limits: Limits
    on_queued: Callable[[], None]
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    # One write.

    async def retry(self, head: Row, uuid: str) -> int:
        """Put a parked write and what follows it back, for the image `uuid`; returns how many there were."""
        rest: Row | None = head
        count = 0
        while rest is not None:
            moved, rest = self._retry_some(rest, uuid)
            count += moved
            await self.store.durable()
            self.on_queued()
        return count

    def _retry_some(self, head: Row, uuid: str) -> tuple[int, Row | None]:
        """One transaction of it: how many writes, and where to go on."""
        most = self.limits.park_batch_max
        with self.store.transaction() as txn:
            if self.queue.parked_at(txn, head["write"]["position"]) is None:
                return 0, None  # another retry was faster
            rows = list(islice(self.queue.chain(txn, head), most + 1))
            for row in rows[:most]:
                self._put_back(txn, row, uuid)
        return len(rows[:most]), rows[most] if len(rows) > most else None

    def _put_back(self, txn: Txn, row: Row, uuid: str) -> None:
        write = PendingWrite(**row["write"])
        self.queue.unpark(txn, write)
        creates = write.command["op"] == "create_image"
        if creates and self.catalogue.registered(txn, uuid) is not None:
            return self.catalogue.take_off(txn, write.uuid, write.position)
        command = self._new_create(txn, row, write, uuid) if creates else self._of_today(txn, write, uuid)
        create = self.catalogue.create_pending(txn, uuid)
        follows = create["position"] if create is not None and create["state"] == "pending" else None
        position = self.queue.append(txn, uuid, command, follows, epoch=self.catalogue.epoch(txn))
        patch = overlay.patch_of(position, self.catalogue.now_us(), command)
        if uuid != write.uuid:
            self.catalogue.take_off(txn, write.uuid, write.position)
        return self.catalogue.lay_instead(txn, uuid, write.position, patch)

    def _new_create(self, txn: Txn, row: Row, write: PendingWrite, uuid: str) -> Row:
        command = write.command | {"uuid": uuid}
        number = command.get("number")
        session = self.queue.session(txn)
        same_session = session is not None and row.get("session") == session.uuid
        if number is not None and (not same_session or row["reason"]["code"] in _NUMBER_REFUSED):
            del command["number"]
            self._note_renumbered(txn, number, uuid)
        return command

    def _note_renumbered(self, txn: Txn, number: int, uuid: str) -> None:
        txn.put_row("renumbered", u64(number), {"uuid": uuid, "at_us": self.catalogue.now_us()})
        if txn.count("renumbered") > self.limits.renumbered_max:
            txn.delete("renumbered", next(txn.scan("renumbered"))[0])

    def _of_today(self, txn: Txn, write: PendingWrite, uuid: str) -> Row:
        """The update or delete of the image as it is now."""
        registered = self.catalogue.registered(txn, uuid)
        create = self.catalogue.create_pending(txn, uuid)
        image = registered if registered is not None else create and create["image"]
        if not image:
            return write.command | {"image": write.command["image"] | {"uuid": uuid}}
        command = write.command | {"image": {"number": image["number"], "uuid": uuid}}
        if "base_version" in command:
            command["base_version"] = image["version"]
        return command

    # All writes that were parked for one reason.

    def retry_all(self, code: str) -> Row:
        """Have all that is parked for `code` put back, in order, in the background; how far that is."""
        with self.store.transaction() as txn:
            upto = next((int.from_bytes(key, "big") for key, _ in txn.scan("parked", reverse=True)), 0)
            txn.put_row("meta", _JOB, {"code": code, "after": 0, "upto": upto, "retried": 0, "left": 0})
        self._wake.set()
        return self.under_way() or {}

    def under_way(self) -> Row | None:
        """The job, where one has not ended."""
        job: Row | None = self.store.read().row("meta", _JOB)
        return job

    async def run(self) -> None:
        """For ever: work through jobs, also one that an earlier life of the process did not end."""
        while True:
            self._wake.clear()
            while self.under_way() is not None:
                await self._step()
            await self._wake.wait()

    async def _step(self) -> None:
        """Look at some parked writes. Where the queue is full the drainer makes room first."""
        job = self.under_way()
        if job is None:
            return
        rows = list(islice(self.queue.parked(self.store.read(), job["after"]), self.limits.park_batch_max))
        rows = [row for row in rows if row["write"]["position"] <= job["upto"]]
        try:
            for row in rows:
                await self._take(job, row)
        except StorageFull:
            await asyncio.sleep(self.limits.retry_delay_max_s)
        self._save(job, done=not rows)
        await self.store.durable()

    async def _take(self, job: Row, row: Row) -> None:
        write, read = row["write"], self.store.read()
        due = self.queue.parked_at(read, write["position"]) is not None
        if due and row["reason"]["code"] in (job["code"], PARKED_BEHIND["code"]) and not self.waits(read, row):
            if self.names_another(read, row):
                job["left"] += 1
            else:
                job["retried"] += await self._retry_quickly(row)
        job["after"] = write["position"]

    async def _retry_quickly(self, row: Row) -> int:
        """Without a turn of the loop for each of many short chains."""
        moved, rest = self._retry_some(row, row["write"]["uuid"])
        return moved if rest is None else moved + await self.retry(rest, row["write"]["uuid"])

    def _save(self, job: Row, *, done: bool) -> None:
        with self.store.transaction() as txn:
            if done:
                txn.delete("meta", _JOB)
            else:
                txn.put_row("meta", _JOB, job)
        if done:
            log.warning("parked for %(code)s: %(retried)d writes retried, %(left)d creates left parked", job)
        self.on_queued()

    # What a parked write is.

    def waits(self, txn: Txn, row: Row) -> bool:
        """Whether the write is to follow another one that is parked."""
        return row["behind"] is not None and self.queue.parked_at(txn, row["behind"]) is not None

    def names_another(self, txn: Txn, row: Row) -> bool:
        """Whether this is the create of an image whose UUID names another registered one."""
        command = row["write"]["command"]
        if command["op"] != "create_image":
            return False
        registered = self.catalogue.registered(txn, command["uuid"])
        return registered is not None and not overlay.same_create(overlay.initial(command), registered)

    def renumbered(self, txn: Txn, rows: int) -> list[Row]:
        """Images that lost their number, with the one that they have now: the last `rows` of them."""
        found = islice(txn.scan("renumbered", reverse=True), rows)
        return [self._renumbered(txn, int.from_bytes(key, "big"), unpack(data)) for key, data in found]

    def _renumbered(self, txn: Txn, number: int, row: Row) -> Row:
        image = self.catalogue.get(txn, str(UUID(row["uuid"])))
        return {"was": number, "number": None if image is None else image["number"], **row}
