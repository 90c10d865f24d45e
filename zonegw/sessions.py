"""The gateway's session with the registry: its handshake, the epoch it lives in, its ID blocks, and its end.

The handshake compares what either side has of the session. In the present epoch a registry that has less than it
acknowledged, or more than was sent, tells of a store that was rolled back or cloned: the session is lost. In a new
epoch less is what a restore took; the session goes back to that and what is lacking is offered again (`rewind`).
"""

import logging
import time
from collections.abc import Awaitable
from typing import Any, Protocol
from uuid import uuid4

from zonegw import store_identity
from zonegw.catalogue import Catalogue
from zonegw.config import Config
from zonegw.errors import RegistryRefused
from zonegw.id_pool import IdPool
from zonegw.parking import Parking
from zonegw.rewind import Contradiction, Rewind
from zonegw.store import Store
from zonegw.write_queue import Session, WriteQueue

log = logging.getLogger(__name__)

# Lost sessions remembered for people.
LOSSES_MAX = 100
LOST = ("session_diverged", "session_fenced")
_OF_THE_EPOCH = ("epoch", "epoch_revision", "epoch_began")


class SessionLost(Exception):
    """The registry fenced the session or found it diverged."""


class Link(Protocol):
    """What a session needs of the uplink."""

    async def open_session(self, session: dict[str, Any]) -> dict[str, Any]: ...

    async def grant_block(self, *, gateway: str, session: str, size: int, token: int) -> dict[str, Any]: ...


class Sessions:
    """The sessions of one gateway, of which one is in force."""

    def __init__(
        self, store: Store, queue: WriteQueue, ids: IdPool, catalogue: Catalogue, link: Link, config: Config
    ) -> None:
        self._store = store
        self._queue = queue
        self._ids = ids
        self._catalogue = catalogue
        self._link = link
        self._config = config
        self._opened = False
        self._grant_at = 0.0
        self.grant_error: str | None = None
        self.rewind = Rewind(store, queue, catalogue, config.limits)
        self.parking = Parking(store, queue, catalogue, config.limits)

    def reopen(self) -> None:
        """Compare accounts before anything else is sent."""
        self._opened = False

    def has_entered(self, epoch: int) -> bool:
        """Whether the session was compared in `epoch`, and what that lacks is back in the queue."""
        read = self._store.read()
        session = self._queue.session(read)
        return session is None or (session.epoch in (0, epoch) and not self.rewind.is_under_way(read))

    async def open(self) -> Session:
        """The session in force, after its handshake and with IDs on hand. Raises SessionLost."""
        session = self._session()
        if not self._opened:
            await self.compare(session)
            self._opened = True
        try:
            while self.rewind.step():
                await self._store.durable()
        except Contradiction as error:
            raise SessionLost(f"session_diverged: {error}") from error
        await self._fill_pool(session)
        return session

    async def compare(self, session: Session) -> int:
        """The handshake; the sequence that the registry applied last. Raises SessionLost."""
        await self._store.durable()
        answer = await refusing_fence(self._link.open_session({
            "gateway": self._config.gateway, "zone": self._config.zone, "session": session.uuid,
            "highest_sequence": session.highest_sequence, "acked_sequence": session.acked_sequence,
            "acked_hash": session.acked_hash, "epoch": session.epoch, "epoch_began": session.epoch_began,
            "highest_number": self._ids.highest(self._store.read()),
        }))  # fmt: skip
        last: int = answer["last_sequence"]
        is_new_epoch = session.epoch not in (0, answer["epoch"])
        lost = answer["diverged"] or last > session.highest_sequence
        lost = lost or (last < session.acked_sequence and not is_new_epoch)
        for name in ("token", *_OF_THE_EPOCH):
            setattr(session, name, answer[name])
        with self._store.transaction() as txn:
            self._queue.save_session(txn, session)
            if is_new_epoch and not lost:
                # Blocks that the epoch may not know; and not one number is worth a collision.
                sealed = self._ids.seal(txn, "the registry began a new epoch")
                self.rewind.begin(txn, session, answer)
                log.warning("the registry is in epoch %d now: %d IDs sealed", session.epoch, sealed)
        if lost:
            raise SessionLost(
                f"session_diverged: the registry has operation {last} of the session, this gateway's store "
                f"{session.acked_sequence} to {session.highest_sequence}: the store is older than what was sent from it"
            )
        return last

    def _session(self) -> Session:
        session = self._queue.session(self._store.read())
        if session is None:
            session = Session(str(uuid4()), 1)
            with self._store.transaction() as txn:
                self._queue.save_session(txn, session)
        return session

    async def _fill_pool(self, session: Session) -> None:
        """Ask for IDs until the runway is on hand. A registry that refuses them takes writes all the same: creates go
        on without numbers then, and it is asked again later."""
        wanted = self._ids.wanted(self._store.read())
        while wanted is not None and time.monotonic() >= self._grant_at:
            try:
                await self._fill(session, wanted)
                self.grant_error = None
            except (RegistryRefused, ValueError) as error:
                self.grant_error = f"no image numbers are granted: {error}"
                self._grant_at = time.monotonic() + self._config.limits.retry_delay_max_s
                log.error("%s", self.grant_error)
            wanted = self._ids.wanted(self._store.read())

    async def _fill(self, session: Session, size: int) -> None:
        """Put one block on hand. Raises ValueError for one that can't be."""
        grant = await refusing_fence(
            self._link.grant_block(
                gateway=self._config.gateway, session=session.uuid, size=size, token=session.token or 0
            )
        )
        with self._store.transaction() as txn:
            self._ids.add(txn, grant["first"], grant["last"], grant["token"])
            store_identity.record(txn, self._store.directory)

    def lose(self, reason: str) -> None:
        """Seal the IDs, have all that is pending parked, start a new session: one transaction, whose size does not
        depend on how much is pending."""
        session = self._session()
        with self._store.transaction() as txn:
            lost_ids, pending = self._ids.seal(txn, reason), self._queue.depth(txn)
            self.parking.lose(txn, {"code": "session_lost", "message": reason, "session": session.uuid})
            losses = txn.row("meta", b"losses") or []
            losses.append({
                "session": session.uuid, "ordinal": session.ordinal, "reason": reason, "at_us": time.time_ns() // 1000,
                "parked": pending, "ids_given_up": lost_ids,
            })  # fmt: skip
            txn.put_row("meta", b"losses", losses[-LOSSES_MAX:])
            of_the_epoch = {name: getattr(session, name) for name in _OF_THE_EPOCH}
            self._queue.save_session(txn, Session(str(uuid4()), session.ordinal + 1, **of_the_epoch))
        self._opened = False
        log.error("session lost (%s): %d pending writes will be parked, %d IDs sealed", reason, pending, lost_ids)


async def refusing_fence(call: Awaitable[Any]) -> Any:
    """The answer of `call`. Raises SessionLost where the registry fenced the session."""
    try:
        return await call
    except RegistryRefused as refused:
        if refused.code in LOST:
            raise SessionLost(str(refused)) from refused
        raise
