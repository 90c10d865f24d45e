"""Drainer: brings pending writes to the registry, in order, exactly once; keeps the session open and IDs on hand.

One batch is in flight at a time. Its writes are marked as sent, durably, before they leave, and sent again unchanged
until the registry's verdict on them is known. A refused write is parked. When the session is lost, IDs are sealed,
everything pending is parked, and a new session lets the zone go on. A registry of a new epoch gets what it lacks first
(`rewind`), once the catalogue is of that epoch too.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from zonegw import errors, overlay
from zonegw.catalogue import Catalogue
from zonegw.config import Config
from zonegw.errors import (
    Conflict,
    Degraded,
    Forbidden,
    GatewayError,
    NotFound,
    OutcomeUnknown,
    RegistryAway,
    RegistryRefused,
)
from zonegw.id_pool import IdPool
from zonegw.metrics import GatewayMetrics
from zonegw.sessions import LOST, SessionLost, Sessions, refusing_fence
from zonegw.store import Store, Txn, pack
from zonegw.write_queue import PendingWrite, Session, WriteQueue

log = logging.getLogger(__name__)


class Link(Protocol):
    """What draining needs of the uplink, beside what its session needs."""

    @property
    def up(self) -> bool: ...

    async def open_session(self, session: dict[str, Any]) -> dict[str, Any]: ...

    async def session_operations(self, session: str, operations: list[dict[str, Any]]) -> list[dict[str, Any]]: ...

    async def grant_block(self, *, gateway: str, session: str, size: int, token: int) -> dict[str, Any]: ...


class Drainer:
    """The session of one gateway; `on_deleted` gets the locations whose bytes nobody owns any more, and the image where
    it was deleted."""

    def __init__(
        self, store: Store, queue: WriteQueue, ids: IdPool, catalogue: Catalogue, link: Link, config: Config,
        metrics: GatewayMetrics, *, on_deleted: Callable[[Txn, list[dict[str, Any]], dict[str, Any] | None], None],
    ) -> None:  # fmt: skip
        self._store = store
        self._queue = queue
        self._ids = ids
        self._catalogue = catalogue
        self._link = link
        self._config = config
        self._limits = config.limits
        self._metrics = metrics
        self._on_deleted = on_deleted
        self._sessions = Sessions(store, queue, ids, catalogue, link, config)
        self.rewind = self._sessions.rewind
        self._wake = asyncio.Event()
        self._verdicts: dict[int, asyncio.Future[None]] = {}
        self.last_error: str | None = None
        self.on_drained: Callable[[], None] = lambda: None

    @property
    def grant_error(self) -> str | None:
        """Why the registry grants no image numbers, where it does not."""
        return self._sessions.grant_error

    # For the use cases.

    def wake(self) -> None:
        """Something was queued."""
        self._wake.set()

    def link_changed(self, up: bool) -> None:
        """A new connection starts with the handshake."""
        self._sessions.reopen()
        self._wake.set()

    def may_enter(self, epoch: int) -> bool:
        """Whether the catalogue may become one of `epoch`: once the session is there. Else that is seen to."""
        if self._sessions.has_entered(epoch):
            return True
        self._sessions.reopen()
        self._wake.set()
        return False

    async def verdict(self, position: int, wait_s: float) -> None:
        """Wait for the registry's verdict on a write; raises its refusal, of which nothing is kept then unless other
        writes were to follow."""
        read = self._store.read()
        if (row := self._queue.parked_at(read, position)) is not None:
            raise _refusal(row["reason"])
        if self._queue.get(read, position) is None:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._verdicts[position] = future
        self._wake.set()
        try:
            async with asyncio.timeout(wait_s):
                await future
        except TimeoutError:
            raise OutcomeUnknown(
                f"the registry gave no verdict within {wait_s:g} s; this zone holds the write durably as position "
                f"{position} of its queue, and will drain it, or park it where the registry refuses it"
            ) from None
        finally:
            del self._verdicts[position]

    # The loop.

    async def run(self) -> None:
        """For ever: drain what is there, then wait for more."""
        delay = self._limits.retry_delay_min_s
        while True:
            self._wake.clear()
            try:
                if await self._step():
                    delay = self._limits.retry_delay_min_s
                    continue
                self.last_error = None
                self.on_drained()
                await self._idle()
            except SessionLost as lost:
                self._lose_session(str(lost))
                # Two gateways with one certificate would fence each other for ever: at least not fast.
                await asyncio.sleep(delay)
                delay = min(delay * 2, self._limits.retry_delay_max_s)
            except (RegistryAway, RegistryRefused) as error:
                self.last_error = str(error)
                self._sessions.reopen()
                await asyncio.sleep(delay)
                delay = min(delay * 2, self._limits.retry_delay_max_s)

    async def _idle(self) -> None:
        try:
            async with asyncio.timeout(self._limits.retry_delay_max_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _step(self) -> bool:
        """Handshake, IDs, one batch; whether there may be more to do at once.

        Base versions are compared with the catalogue's: nothing is sent into an epoch before that has come there.
        """
        await self._park()
        if not self._link.up:
            return False
        session = await self._sessions.open()
        if self._catalogue.epoch(self._store.read()) not in (0, session.epoch):
            return False
        batch = await self._next_batch(session)
        if not batch:
            self._prune()
            return False
        await self._send(session, batch)
        return True

    async def _park(self) -> None:
        """Go on with what is still to be parked, and tell those who wait for a verdict on it."""
        while (parked := self._sessions.parking.step()) is not None:
            self._tell_parked(parked)
            await self._store.durable()

    def _lose_session(self, reason: str) -> None:
        """Everything pending will be parked."""
        self._sessions.lose(reason)
        self.last_error = reason

    # Batches.

    async def _next_batch(self, session: Session) -> list[PendingWrite]:
        """What was sent without a verdict, else new writes, marked as sent durably."""
        read = self._store.read()
        sent: list[PendingWrite] = []
        for write in self._queue.pending(read):
            if write.sequence is None or len(sent) >= self._limits.session_window:
                break
            sent.append(write)
        if sent:
            await self._store.durable()
            return sent
        fresh = self._pick(read)
        if fresh:
            with self._store.transaction() as txn:
                for write in fresh:
                    self._queue.mark_sent(txn, session, write, self._final(txn, session, write))
                self._queue.save_session(txn, session)
            await self._store.durable()
        return fresh

    def _pick(self, txn: Txn) -> list[PendingWrite]:
        """Writes in order, until one depends on a verdict that is still out, or the batch is full.

        An image's create may be followed by one write: it names the create, so the registry refuses both or none.
        """
        picked: list[PendingWrite] = []
        changed: set[str] = set()
        size = 0
        for write in self._queue.pending(txn):
            size += len(pack(write.command))
            full = len(picked) >= self._limits.session_window or size > self._limits.drain_batch_max_bytes
            if write.uuid in changed or (picked and full):
                break
            if write.command["op"] != "create_image":
                changed.add(write.uuid)
            picked.append(write)
        return picked

    def _final(self, txn: Txn, session: Session, write: PendingWrite) -> dict[str, Any]:
        """The command as it goes out: the image named by the surest name there is, the base version up to date."""
        command = dict(write.command)
        if command["op"] == "create_image":
            return command
        create = self._queue.get(txn, write.create_position) if write.create_position is not None else None
        if create is not None:
            command.pop("base_version", None)
            return command | {"image": {"sequence": create.sequence}}
        command["image"] = {name: value for name, value in command["image"].items() if value is not None}
        image = self._catalogue.registered(txn, write.uuid)
        if image is not None and "number" not in command["image"]:
            # Only then: after a restore the UUID may be another zone's image's, under another number.
            command["image"]["number"] = image["number"]
        if "base_version" in command:
            members = [f"members.{project}" for project in command.get("set_members", ())]
            attributes = [*command["set"], *command["unset"], *members]
            older = write.epoch not in (0, session.epoch)
            base = self._catalogue.base_for(
                txn, write.uuid, command["base_version"], attributes,
                older_than_revision=session.epoch_revision if older else None,
            )  # fmt: skip
            command["base_version"] = max(1, base)
        return command

    async def _send(self, session: Session, batch: list[PendingWrite]) -> None:
        operations = [{"sequence": w.sequence, "previous_hash": w.previous_hash, "payload": w.payload} for w in batch]
        try:
            results = await refusing_fence(self._link.session_operations(session.uuid, operations))
        except RegistryRefused as refused:
            if not refused.malformed:
                raise
            if len(batch) > 1:  # find the write that is to blame
                await self._send(session, batch[:1])
            else:
                await self._retract(session, batch[0], refused)
            return
        await self._settle(session, batch, results)

    async def _retract(self, session: Session, write: PendingWrite, refused: RegistryRefused) -> None:
        """The registry would not even take the write into the session: park it; what came behind gets new sequences.

        An earlier try may have been taken, its answer lost or unreadable: the registry is asked, not the refusal.
        """
        epoch = session.epoch
        if await self._sessions.compare(session) > session.acked_sequence or session.epoch != epoch:
            raise RegistryAway(f"position {write.position} was applied, though a later try was refused: {refused}")
        reason = {"code": refused.code, "message": refused.message}
        with self._store.transaction() as txn:
            _, *followers = self._sessions.parking.retract(txn, session, write, reason)
        log.error("write %d parked: %s", write.position, refused)
        self._tell(write, _refusal(reason))
        self._tell_parked(followers)

    async def _settle(self, session: Session, batch: list[PendingWrite], results: list[dict[str, Any]]) -> None:
        """Take the verdicts in order; ack or park is one transaction with what readers see. Clients get their turns in
        between: what is not taken when the process ends will be told again."""
        for number, (write, result) in enumerate(zip(batch, results, strict=False), 1):
            if number % self._limits.turn_rows_max == 0:
                await self._store.turn()
            if "error" in result:
                self._check_outer(result["error"])
                return
            inner = result["ok"]["result"]
            followers: list[PendingWrite] | None = None
            with self._store.transaction() as txn:
                if "ok" in inner:
                    self._acked(txn, session, write, inner["ok"])
                else:
                    followers = self._refused(txn, session, write, inner["error"])
            self._tell(write, None if followers is None else _refusal(inner["error"]))
            self._tell_parked(followers or [])
        if len(results) < len(batch):
            raise RegistryAway(f"the registry answered {len(results)} of {len(batch)} operations")

    @staticmethod
    def _check_outer(error: dict[str, Any]) -> None:
        if error["code"] in LOST:
            raise SessionLost(f"{error['code']}: {error['message']}")
        if error["code"] == "sequence_gap":
            raise RegistryAway(f"sequence_gap: {error['message']}")
        raise RegistryRefused(error["code"], error["message"])

    def _acked(self, txn: Txn, session: Session, write: PendingWrite, ok: dict[str, Any]) -> None:
        before = self._catalogue.registered(txn, write.uuid)
        self._queue.ack(txn, session, write, {name: ok.get(name) for name in ("number", "version", "revision")})
        self._catalogue.acknowledge(txn, write.uuid, write.position, ok)
        if write.command["op"] == "delete_image" and before is not None:
            self._on_deleted(txn, before["locations"], before)
        self._metrics.drained.labels("acked").inc()

    def _refused(
        self, txn: Txn, session: Session, write: PendingWrite, error: dict[str, Any]
    ) -> list[PendingWrite] | None:
        """Returns the writes that were parked because they were to follow; None where the refusal says that what was
        asked for is done already."""
        reason = {name: value for name, value in error.items() if name != "image"}
        if write.command["op"] == "delete_image" and error["code"] == "image_deleted":
            self._queue.refuse(txn, session, write)
            self._catalogue.delete_was_done(txn, write.uuid, write.position, error.get("revision"))
            return None
        if (ours := self._very_image(txn, write, error)) is not None:
            ok = {name: ours[name] for name in ("number", "uuid", "revision")} | {"version": 1, "image": ours}
            self._acked(txn, session, write, ok)
            return None
        if error["code"] == "block_not_held" and self._ids.covers(txn, error["number"]):
            self._ids.seal(txn, "the registry does not know the block")  # or every create to come would be refused
        if write.position in self._verdicts and not self._has_followers(txn, write):
            self._queue.refuse(txn, session, write)
            self._catalogue.take_off(txn, write.uuid, write.position)
            self._on_deleted(txn, write.command.get("add_locations", []), None)  # bytes that nobody will own
            parked = []
        else:
            _, *parked = self._sessions.parking.refuse(txn, session, write, reason)
            log.error("write %d on image %s parked: %s", write.position, write.uuid, reason)
        self._metrics.drained.labels("refused").inc()
        return parked

    def _very_image(self, txn: Txn, write: PendingWrite, error: dict[str, Any]) -> dict[str, Any] | None:
        """The image that has the UUID of a refused create, where it is the very one that this creates: an earlier life
        of the write was applied, and the answer lost with its session."""
        registered = self._catalogue.registered(txn, write.uuid)
        if error["code"] != "uuid_taken" or registered is None:
            return None
        return registered if overlay.same_create(overlay.initial(write.command), registered) else None

    def _has_followers(self, txn: Txn, write: PendingWrite) -> bool:
        """Whether something that was acknowledged to others needs the image that `write` creates."""
        return write.command["op"] == "create_image" and bool(
            self._catalogue.positions(txn, write.uuid, write.position, 1)
        )

    def _tell(self, write: PendingWrite, refusal: GatewayError | None) -> None:
        future = self._verdicts.get(write.position)
        if future is None or future.done():
            return
        if refusal is None:
            future.set_result(None)
        else:
            future.set_exception(refusal)

    def _tell_parked(self, parked: list[PendingWrite]) -> None:
        """To those who wait for them: whether these writes will come is for an operator to say."""
        for write in parked:
            said = f"the write is parked as position {write.position}: an operator retries or discards it"
            self._tell(write, OutcomeUnknown(said))

    def _prune(self) -> None:
        """Forget drained writes past their time, sooner when the quota presses."""
        pressed = self._store.used_bytes() > self._limits.store_soft_limit_bytes * 3 // 4
        read = self._store.read()
        if not self._queue.prunable(read, under_pressure=pressed):
            return
        with self._store.transaction() as txn:
            self._queue.prune(txn, under_pressure=pressed)
        self._wake.set()


def _refusal(error: dict[str, Any]) -> GatewayError:
    """The registry's refusal as the client's answer."""
    code, message = error["code"], error["message"]
    if code in ("image_not_found", "image_deleted"):
        return NotFound(message)
    if code in ("protected", "forbidden"):
        return Forbidden(message)
    if code.startswith("home_zone"):
        return Degraded(message)
    if code == "invalid":
        return errors.BadRequest(message)
    return Conflict(message)
