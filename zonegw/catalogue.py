"""Catalogue: the gateway's copy of the registry's image metadata, with the zone's own pending writes laid over it.

Every method runs inside the caller's transaction. Readers see `get`: registry's image plus overlay. Indexes and the
number table follow what readers see. The feed position is written with the rows that it stands for, and never goes back
within an epoch.
"""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any
from uuid import UUID

from zonegw import folding, listing, overlay, usage
from zonegw.store import Txn, u64, unpack

Image = dict[str, Any]
Position = tuple[int, int]
_POSITION = b"feed.position"
_PASS = b"feed.pass"
_EPOCH_PASS = b"feed.epoch_pass"


def key_of(uuid: str) -> bytes:
    return UUID(uuid).bytes


class Catalogue:
    """Reads and changes of the catalogue."""

    def __init__(self, *, now_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self.now_us = now_us
        # Whether the tenant set has an image; what it has not is here only while own writes of it are pending.
        self.shows: Callable[[Image], bool] = lambda image: True

    # What readers see.

    def get(self, txn: Txn, uuid: str) -> Image | None:
        key = key_of(uuid)
        return overlay.effective(self._registered(txn, key), txn.row("overlay", key))

    def by_number(self, txn: Txn, number: int) -> Image | None:
        key = txn.get("numbers", u64(number))
        return None if key is None else self.get(txn, str(UUID(bytes=key)))

    def walk_numbers(self, txn: Txn, *, reverse: bool, after: bytes | None) -> Iterator[tuple[bytes, str]]:
        """(place, UUID) of every image that has a number, in their order, from behind the place `after`."""
        start = b"" if after is None or reverse else after + b"\x00"
        end = after if reverse else None
        return ((place, str(UUID(bytes=key))) for place, key in txn.scan("numbers", start, end, reverse=reverse))

    def known(self, txn: Txn, uuid: str) -> bool:
        """Whether the UUID names or named an image, as far as this zone remembers."""
        key = key_of(uuid)
        return any(txn.get(table, key) is not None for table in ("catalogue", "overlay", "deleted"))

    def remember_deleted(self, txn: Txn, uuid: str, rows_max: int) -> None:
        """Note that the UUID is used up, for the registry gives it to no other image. Beyond `rows_max` some are
        forgotten, whichever they are."""
        txn.put("deleted", key_of(uuid), b"")
        if txn.count("deleted") > rows_max:
            txn.delete("deleted", next(txn.scan("deleted"))[0])

    def registered(self, txn: Txn, uuid: str) -> Image | None:
        """The image as the registry has it: the catalogue's or the acked one, whichever is newer."""
        key = key_of(uuid)
        row = txn.row("overlay", key)
        if row is None:
            return self._registered(txn, key)
        return None if row["deleted"] else overlay.newest(self._registered(txn, key), row["base"])

    def base_for(
        self, txn: Txn, uuid: str, base: int, attributes: list[str], *, older_than_revision: int | None = None
    ) -> int:
        """The base version with which an update of `attributes`, made on version `base`, goes to the registry.

        `older_than_revision` began the present epoch, where `base` was read in an older one: what was seen then is no
        more than the version that the image had at that moment, for later ones count what the registry lost.
        """
        registered = self.registered(txn, uuid)
        row = txn.row("overlay", key_of(uuid)) or overlay.empty()
        if registered is None:
            return base if older_than_revision is None else 1
        own = row["own_versions"]
        if older_than_revision is not None:
            before = overlay.version_before(registered, older_than_revision)
            base = min(base, before)
            own = own + [version for version in row["own_before"] if version <= before]
        return overlay.base_version(registered, own, base, attributes)

    def create_pending(self, txn: Txn, uuid: str) -> dict[str, Any] | None:
        """The patch of the image's create while that is pending or parked."""
        row = txn.row("overlay", key_of(uuid))
        return None if row is None else overlay.created(row)

    def positions(self, txn: Txn, uuid: str, after: int, rows: int) -> list[int]:
        """Positions of the image's own writes behind `after` that are not settled yet, in order, the first `rows`."""
        key = key_of(uuid)
        row = txn.row("overlay", key) or overlay.empty()
        folded = txn.scan("folded", key + u64(after + 1), key + u64(2**64 - 1))
        found = {int.from_bytes(one[16:], "big") for one, _ in islice(folded, rows)}
        found.update(patch["position"] for patch in row["patches"] if patch["position"] > after)
        return sorted(found)[:rows]

    def all(self, txn: Txn) -> Iterator[Image]:
        """Every image that readers see; don't write to the listing meanwhile."""
        for _, uuid in listing.walk(txn, [listing.ALL], "created_at", reverse=False):
            image = self.get(txn, uuid)
            if image is not None:
                yield image

    def count(self, txn: Txn) -> int:
        return txn.count("catalogue")

    # Own writes.

    def lay(self, txn: Txn, uuid: str, patch: dict[str, Any]) -> Image | None:
        """Lay a pending write over the image; returns what readers see from now on."""
        key = key_of(uuid)
        before = self.get(txn, uuid)
        row = txn.row("overlay", key) or overlay.empty()
        row["patches"].append({"state": "pending", "time": self.now_us()} | patch)
        self._fold(txn, key, row)
        return self._save(txn, key, row, before)

    def lay_again(self, txn: Txn, uuid: str, patch: dict[str, Any]) -> None:
        """Lay a write over the image that was acknowledged by an epoch that was lost."""
        key = key_of(uuid)
        before = self.get(txn, uuid)
        row = txn.row("overlay", key) or overlay.empty()
        overlay.lay_again(row, patch)
        self._fold(txn, key, row)
        self._save(txn, key, row, before)

    def lay_instead(self, txn: Txn, uuid: str, position: int, patch: dict[str, Any]) -> None:
        """A parked write, whose old position that was, is pending again."""
        key = key_of(uuid)
        before = self.get(txn, uuid)
        row = txn.row("overlay", key) or overlay.empty()
        overlay.remove(row, position)
        overlay.lay_before_parked(row, patch)
        self._fold(txn, key, row)
        self._save(txn, key, row, before)

    def take_off(self, txn: Txn, uuid: str, position: int) -> None:
        """A write of which nothing is kept is not laid over its image any more."""
        key = key_of(uuid)
        row = txn.row("overlay", key)
        if row is not None:
            before = self.get(txn, uuid)
            self._settle(txn, key, row, position)
            overlay.remove(row, position)
            self._save(txn, key, row, before)

    @staticmethod
    def _fold(txn: Txn, key: bytes, row: dict[str, Any]) -> None:
        """Keep the row small; the positions that it then does not name any more have rows of their own."""
        for position in folding.fold(row["patches"]):
            txn.put("folded", key + u64(position), b"")

    @staticmethod
    def _settle(txn: Txn, key: bytes, row: dict[str, Any], position: int) -> None:
        if any(folding.is_folded(patch) for patch in row["patches"]):
            txn.delete("folded", key + u64(position))

    def acknowledge(self, txn: Txn, uuid: str, position: int, result: dict[str, Any]) -> None:
        """The registry applied the pending write at `position`; `result` is its ok value."""
        key = key_of(uuid)
        before = self.get(txn, uuid)
        row = txn.row("overlay", key) or overlay.empty()
        self._settle(txn, key, row, position)
        overlay.acknowledge(row, position, result["revision"], result.get("version"), result.get("image"))
        if row["base"] is not None and not self.shows(row["base"]):
            # No change record will come that takes the row away: the next one of any image does (`leave_outside`).
            txn.put("outside", key, b"")
            row["acked"] = max(row["acked"], (self.position(txn) or (0, 0))[1] + 1)
        self._save(txn, key, row, before)

    def delete_was_done(self, txn: Txn, uuid: str, position: int, revision: int | None) -> None:
        """Another side deleted the image, as `revision` where that is known, before the delete at `position`: it stays
        gone until the feed says so too, which it may have done already."""
        self.acknowledge(txn, uuid, position, {"revision": revision or overlay.WHEN_THE_FEED_SAYS})

    def park(self, txn: Txn, uuid: str, position: int) -> None:
        key = key_of(uuid)
        before = self.get(txn, uuid)
        row = txn.row("overlay", key)
        if row is not None:
            self._settle(txn, key, row, position)
            overlay.park(row, position)
            self._adopt(txn, key, row)
            self._save(txn, key, row, before)

    # The registry's changes.

    def apply_change(self, txn: Txn, change: dict[str, Any]) -> Image | None:
        """Apply one image change of the feed; returns the image that it deleted, if it did. Older than what is
        here changes nothing."""
        key = key_of(change["uuid"])
        before = self.get(txn, change["uuid"])
        known = self._registered(txn, key)
        row = txn.row("overlay", key) or overlay.empty()
        if change.get("deleted"):
            txn.delete("catalogue", key)
            overlay.tombstone(row, change["revision"])
        else:
            self._put_newer(txn, key, known, change["image"])
            self._adopt(txn, key, row)
        overlay.reached(row, change["revision"])
        self._save(txn, key, row, before, reached=change["revision"])
        return known if change.get("deleted") else None

    def leave(self, txn: Txn, uuid: str, revision: int) -> list[Image]:
        """Since `revision` the image is none that the tenant set has; returns it as it was last known. Its bytes stay,
        for it is not deleted. What own pending writes are laid over stays too, until the verdict on them
        (`leave_outside`)."""
        key = key_of(uuid)
        before, known = self.get(txn, uuid), self._registered(txn, key)
        row = txn.row("overlay", key) or overlay.empty()
        txn.delete("catalogue", key)
        stays = overlay.is_pending(row) or row["acked"] > revision
        last = overlay.newest(known, row["base"])
        row["base"] = last if stays else None
        if stays:
            txn.put("outside", key, b"")
        self._save(txn, key, row, before, reached=revision)
        return [last] if last is not None and not stays else []

    def leave_outside(self, txn: Txn, revision: int, rows_max: int) -> list[Image]:
        """Drop images that the tenant set has not once the verdict on own writes of them is there and `revision` has
        come, which could have brought them in; looks at up to `rows_max`, and returns those that left."""
        left: list[Image] = []
        for key, _ in list(islice(txn.scan("outside"), rows_max)):
            row = txn.row("overlay", key) or overlay.empty()
            if overlay.is_pending(row) or row["acked"] > revision:
                continue
            txn.delete("outside", key)
            shown = overlay.newest(self._registered(txn, key), row["base"])
            if shown is not None and not self.shows(shown):
                left += self.leave(txn, str(UUID(bytes=key)), revision)
        return left

    def removed_locations(self, txn: Txn, change: dict[str, Any]) -> list[dict[str, Any]]:
        """What a change that is about to be applied takes from the locations of its image: said explicitly, never by
        an image's absence."""
        if change.get("deleted") or "locations" not in change.get("changed", ()):
            return []
        key = key_of(change["uuid"])
        known = self._registered(txn, key)
        if known is None or known["version"] >= change["image"]["version"] or self._is_of_another_epoch(txn, key):
            return []
        kept = {location["key"] for location in change["image"]["locations"]}
        return [location for location in known["locations"] if location["key"] not in kept]

    def put_bootstrapped(self, txn: Txn, image: Image) -> None:
        """Take one image of a bootstrap; merged by version."""
        key = key_of(image["uuid"])
        before = self.get(txn, image["uuid"])
        self._put_newer(txn, key, self._registered(txn, key), image)
        listing_after = overlay.effective(self._registered(txn, key), txn.row("overlay", key))
        self._index(txn, before, listing_after)

    def _put_newer(self, txn: Txn, key: bytes, known: Image | None, image: Image) -> None:
        if known is None or image["version"] >= known["version"] or self._is_of_another_epoch(txn, key):
            known = image
        txn.put_row("catalogue", key, [self._pass(txn), known])

    # Feed position and bootstrap.

    def position(self, txn: Txn) -> Position | None:
        """(epoch, revision) up to which the catalogue contains every change; None before the first bootstrap."""
        row = txn.row("meta", _POSITION)
        return None if row is None else (row[0], row[1])

    def epoch(self, txn: Txn) -> int:
        """The epoch that versions here are of; 0 before the first bootstrap."""
        position = self.position(txn)
        return 0 if position is None else position[0]

    def advance(self, txn: Txn, position: Position) -> None:
        """Record that everything up to `position` is applied."""
        now = self.position(txn)
        if now is not None and position < now:
            raise AssertionError(f"feed position would go back from {now} to {position}")
        txn.put_row("meta", _POSITION, list(position))

    def begin_epoch(self, txn: Txn, position: Position) -> None:
        """Positions of another epoch can't be compared with `position`: forget one."""
        now = self.position(txn)
        if now is not None and now[0] != position[0]:
            txn.delete("meta", _POSITION)

    def forget_epoch(self, txn: Txn, after: bytes, rows: int) -> bytes | None:
        """The bootstrap under way is of another epoch, whose versions can't be compared with those that are here: what
        it brings replaces them, and acks of the epoch before say nothing any more. That is done for the next `rows`;
        returns where to go on."""
        txn.put_row("meta", _EPOCH_PASS, self._pass(txn))
        found = list(islice(txn.scan("overlay", after), rows))
        for key, data in found:
            row = unpack(data)
            before = overlay.effective(self._registered(txn, key), row)
            overlay.forget_acks(row)
            self._save(txn, key, row, before)
        return found[-1][0] + b"\x00" if len(found) == rows else None

    def _is_of_another_epoch(self, txn: Txn, key: bytes) -> bool:
        row = txn.row("catalogue", key)
        return row is not None and row[0] != self._pass(txn) == txn.row("meta", _EPOCH_PASS)

    def begin_bootstrap(self, txn: Txn) -> None:
        """Images not seen again by this pass will be forgotten when it ends."""
        txn.put_row("meta", _PASS, self._pass(txn) + 1)

    def unseen(self, txn: Txn, after: bytes, rows: int) -> tuple[list[bytes], bytes | None]:
        """Keys among the next `rows` that the present pass has not seen, and where to go on."""
        present = self._pass(txn)
        doomed: list[bytes] = []
        last: bytes | None = None
        for n, (key, data) in enumerate(txn.scan("catalogue", after)):
            if n == rows:
                return doomed, last
            if unpack(data)[0] != present:
                doomed.append(key)
            last = key + b"\x00"
        return doomed, None

    def forget(self, txn: Txn, key: bytes) -> list[Image]:
        """Drop an image that the registry no longer has, or that the tenant set has not, and return it as it was last
        known, unless its delete is: its bytes stay, for absence proves no delete."""
        uuid = str(UUID(bytes=key))
        before, known = self.get(txn, uuid), self.registered(txn, uuid)
        if known is not None and not self.shows(known):
            self.leave(txn, uuid, 0)
            return [known]
        txn.delete("catalogue", key)
        self._index(txn, before, overlay.effective(None, txn.row("overlay", key)))
        return [] if known is None else [known]

    def acked_only(self, txn: Txn, after: bytes, rows: int) -> tuple[list[Image], bytes | None]:
        """Images among the next `rows` of the overlay that own acks brought and the catalogue has not, nor has an own
        delete of them; and where to go on."""
        found = list(islice(txn.scan("overlay", after), rows))
        bases = [(key, unpack(data)["base"]) for key, data in found]
        images = [base for key, base in bases if base is not None and txn.get("catalogue", key) is None]
        return images, found[-1][0] + b"\x00" if len(found) == rows else None

    def settle_overlay(self, txn: Txn, revision: int, after: bytes, rows: int) -> bytes | None:
        """After a bootstrap: drop those of the next `rows` of the overlay that the catalogue contains at `revision`;
        returns where to go on."""
        found = list(islice(txn.scan("overlay", after), rows))
        for key, data in found:
            row = unpack(data)
            registered = self._registered(txn, key)
            if registered is None and not row["acked"]:
                continue  # only pending, as nearly all are after a long outage: the bootstrap says nothing of them
            before = overlay.effective(registered, row)
            self._adopt(txn, key, row)
            if row["deleted"] and registered is None:
                row["acked"] = revision
            overlay.reached(row, revision)
            self._save(txn, key, row, before, reached=revision)
        return found[-1][0] + b"\x00" if len(found) == rows else None

    def _adopt(self, txn: Txn, key: bytes, row: dict[str, Any]) -> None:
        registered = self._registered(txn, key)
        if registered is not None:
            overlay.adopt(row, registered)

    def _pass(self, txn: Txn) -> int:
        return int(txn.row("meta", _PASS) or 0)

    # Rows.

    def _registered(self, txn: Txn, key: bytes) -> Image | None:
        row = txn.row("catalogue", key)
        return None if row is None else row[1]

    def _save(
        self, txn: Txn, key: bytes, row: dict[str, Any], before: Image | None, *, reached: int | None = None
    ) -> Image | None:
        """Write the overlay row, or drop it when the catalogue contains all of it; keep the indexes right."""
        position = self.position(txn)
        at = max(reached or 0, position[1] if position else 0)
        if overlay.reached(row, at):
            txn.delete("overlay", key)
            after = self._registered(txn, key)
        else:
            txn.put_row("overlay", key, row)
            after = overlay.effective(self._registered(txn, key), row)
        self._index(txn, before, after)
        return after

    @staticmethod
    def _index(txn: Txn, before: Image | None, after: Image | None) -> None:
        listing.reindex(txn, before, after)
        usage.moved(txn, before, after)
        number = None if after is None else after["number"]
        if before is not None and before["number"] is not None and before["number"] != number:
            txn.delete("numbers", u64(before["number"]))
        if after is not None and number is not None:
            txn.put("numbers", u64(number), key_of(after["uuid"]))

    def overlaid(self, txn: Txn) -> Iterator[str]:
        """UUIDs with an overlay row."""
        for key, _ in txn.scan("overlay"):
            yield str(UUID(bytes=key))
