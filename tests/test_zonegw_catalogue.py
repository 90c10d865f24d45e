"""Catalogue and overlay: what readers see while own writes and the registry's changes meet in any order."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zonegw import listing, overlay
from zonegw.catalogue import Catalogue, key_of
from zonegw.limits import Limits
from zonegw.store import Store

UUID = "00000000-0000-4000-8000-00000000000a"
OTHER = "00000000-0000-4000-8000-00000000000b"


def image(version: int = 1, **attributes: Any) -> dict[str, Any]:
    return {
        "number": 7, "uuid": UUID, "version": version, "revision": version, "home_zone": "fra", "owner": "p",
        "name": "n", "status": "queued", "visibility": "private", "disk_format": None, "container_format": None,
        "min_disk": 0, "min_ram": 0, "size": None, "virtual_size": None, "checksum": None, "os_hash_algo": None,
        "os_hash_value": None, "protected": False, "os_hidden": False, "created_at": 1, "updated_at": 1, "tags": [],
        "properties": {}, "locations": [], "members": {}, "attribute_versions": {},
    } | attributes  # fmt: skip


def update(position: int, **values: Any) -> dict[str, Any]:
    return {
        "position": position, "kind": "update", "set": values, "unset": [], "add_locations": [], "remove_locations": [],
    }  # fmt: skip


class Side:
    """A catalogue in a store, driven by hand."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.catalogue = Catalogue(now_us=lambda: 5)

    def lay(self, patch: dict[str, Any]) -> None:
        with self.store.transaction() as txn:
            self.catalogue.lay(txn, UUID, patch)
        self.check()

    def ack(self, position: int, revision: int, shown: dict[str, Any] | None) -> None:
        with self.store.transaction() as txn:
            self.catalogue.acknowledge(txn, UUID, position, {"revision": revision, "image": shown})
        self.check()

    def park(self, position: int) -> None:
        with self.store.transaction() as txn:
            self.catalogue.park(txn, UUID, position)
        self.check()

    def change(self, revision: int, shown: dict[str, Any] | None) -> None:
        change = {"uuid": UUID, "revision": revision, **({"deleted": True} if shown is None else {"image": shown})}
        with self.store.transaction() as txn:
            self.catalogue.apply_change(txn, change)
            self.catalogue.advance(txn, (1, revision))
        self.check()

    def leave(self, revision: int) -> list[dict[str, Any]]:
        """As the feed says that the image is none of the tenant set's any more; returns what left."""
        with self.store.transaction() as txn:
            self.catalogue.advance(txn, (1, revision))
            left = self.catalogue.leave(txn, UUID, revision)
        self.check()
        return left

    def heartbeat(self, revision: int) -> list[dict[str, Any]]:
        with self.store.transaction() as txn:
            self.catalogue.advance(txn, (1, revision))
            left = self.catalogue.leave_outside(txn, revision, 10)
        self.check()
        return left

    def outside(self) -> int:
        return self.store.read().count("outside")

    def seen(self) -> dict[str, Any] | None:
        return self.catalogue.get(self.store.read(), UUID)

    def check(self) -> None:
        """The indexes and the number table hold exactly what readers see."""
        read = self.store.read()
        assert {key for key, _ in read.scan("listing")} == listing.keys(self.seen())
        seen = self.seen()
        expected = set() if seen is None or seen["number"] is None else {seen["number"]}
        assert {int.from_bytes(key, "big") for key, _ in read.scan("numbers")} == expected

    def overlaid(self) -> bool:
        return list(self.catalogue.overlaid(self.store.read())) == [UUID]


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    store = Store(tmp_path / "store", Limits())
    yield Side(store)
    store.close()


def test_a_pending_create_is_seen_until_the_feed_has_brought_it(side: Side) -> None:
    side.lay({"position": 1, "kind": "create", "image": image(0, number=None)})
    assert side.seen() == image(0, number=None) | {"parked": False}
    side.ack(1, 10, image(1, number=70))
    assert (side.seen() or {})["number"] == 70
    assert side.overlaid()
    side.change(10, image(1, number=70))
    assert side.seen() == image(1, number=70)
    assert not side.overlaid()


def test_the_feed_may_be_faster_than_the_ack(side: Side) -> None:
    side.lay({"position": 1, "kind": "create", "image": image(0)})
    side.change(10, image(1))
    side.change(12, image(2, name="other side"))
    side.ack(1, 10, image(1))
    assert (side.seen() or {})["name"] == "other side"
    assert not side.overlaid()


def test_own_writes_stay_laid_over_what_others_change(side: Side) -> None:
    side.change(1, image(1))
    side.lay(update(1, name="mine"))
    side.change(5, image(2, name="theirs", min_ram=3))
    assert ((side.seen() or {})["name"], (side.seen() or {})["min_ram"]) == ("mine", 3)


def test_an_acked_write_is_not_applied_over_a_later_one_of_another_side(side: Side) -> None:
    side.change(1, image(1))
    side.lay(update(1, name="mine"))
    side.ack(1, 5, image(2, name="mine"))
    side.change(6, image(3, name="theirs"))
    assert (side.seen() or {})["name"] == "theirs"
    assert not side.overlaid()


def test_what_was_acked_is_not_unseen_while_the_feed_lags(side: Side) -> None:
    side.change(1, image(1))
    side.lay(update(1, name="one"))
    side.lay(update(2, name="two"))
    side.ack(1, 8, image(2, name="one"))
    side.change(3, image(1))
    assert (side.seen() or {})["name"] == "two"
    side.ack(2, 9, image(3, name="two"))
    side.change(8, image(2, name="one"))
    assert (side.seen() or {})["name"] == "two"
    assert side.overlaid()
    side.change(9, image(3, name="two"))
    assert not side.overlaid()


def test_an_ack_without_its_image_holds_until_the_feed_has_it(side: Side) -> None:
    side.change(1, image(1))
    side.lay(update(1, name="mine"))
    side.ack(1, 5, None)
    side.change(4, image(2, min_ram=1))
    assert (side.seen() or {})["name"] == "mine"
    side.change(5, image(3, name="mine", min_ram=1))
    assert not side.overlaid()


def test_a_deleted_image_stays_deleted_while_the_feed_lags(side: Side) -> None:
    side.change(1, image(1))
    side.lay({"position": 1, "kind": "delete"})
    assert side.seen() is None
    side.ack(1, 5, None)
    side.change(3, image(2, name="late news"))
    assert side.seen() is None
    side.change(5, None)
    assert side.seen() is None
    assert not side.overlaid()


def test_a_delete_by_another_side_wins_over_pending_updates(side: Side) -> None:
    side.change(1, image(1))
    side.lay(update(1, name="mine"))
    side.change(5, None)
    assert side.seen() is None
    side.park(1)
    assert side.seen() is None
    assert not side.overlaid()


def test_a_parked_update_uncovers_the_registrys_image(side: Side) -> None:
    side.change(1, image(1, name="theirs"))
    side.lay(update(1, name="mine"))
    side.park(1)
    assert (side.seen() or {})["name"] == "theirs"
    assert not side.overlaid()


def test_a_parked_create_stays_readable_with_its_updates_until_the_uuid_is_anothers(side: Side) -> None:
    side.lay({"position": 1, "kind": "create", "image": image(0)})
    side.lay(update(2, name="later"))
    side.park(1)
    side.park(2)
    seen = side.seen() or {}
    assert (seen["parked"], seen["name"]) == (True, "later")
    side.change(9, image(1, number=99, name="theirs"))
    assert (side.seen() or {})["name"] == "theirs"


@pytest.mark.parametrize("feed_first", [True, False])
def test_a_parked_create_that_the_registry_has_all_the_same_covers_nothing(side: Side, feed_first: bool) -> None:
    side.lay({"position": 1, "kind": "create", "image": image(0)})
    side.lay(update(2, name="parked too"))
    if feed_first:
        side.change(9, image(1))
    side.park(1)
    side.park(2)
    if not feed_first:
        side.change(9, image(1))
    assert side.seen() == image(1)
    assert not side.overlaid()
    assert side.catalogue.create_pending(side.store.read(), UUID) is None


def test_the_feed_position_never_goes_back(side: Side) -> None:
    side.change(5, image(1))
    with pytest.raises(AssertionError, match="go back"), side.store.transaction() as txn:
        side.catalogue.advance(txn, (1, 4))
    assert side.catalogue.position(side.store.read()) == (1, 5)


def test_a_bootstrap_merges_by_version_and_forgets_what_is_gone(side: Side) -> None:
    other = "00000000-0000-4000-8000-00000000000b"
    side.change(5, image(3, name="new"))
    with side.store.transaction() as txn:
        side.catalogue.begin_bootstrap(txn)
        side.catalogue.put_bootstrapped(txn, image(2, name="old"))
        side.catalogue.put_bootstrapped(txn, image(1, uuid=other, number=8))
    assert (side.seen() or {})["name"] == "new"
    with side.store.transaction() as txn:
        assert side.catalogue.unseen(txn, b"", 100) == ([], None)
        side.catalogue.begin_bootstrap(txn)
        side.catalogue.put_bootstrapped(txn, image(3, name="new"))
        doomed, after = side.catalogue.unseen(txn, b"", 100)
        assert (len(doomed), after) == (1, None)
        for key in doomed:
            assert [image["uuid"] for image in side.catalogue.forget(txn, key)] == [other]
    side.check()


def test_a_repeated_answer_makes_no_version_of_another_side_an_own_one(side: Side) -> None:
    """The answer to a retry shows the image as it is now, with what others did since our write."""
    side.lay({"position": 1, "kind": "create", "image": image(0)})
    side.lay(update(2, name="ours"))
    now = image(3, name="theirs", attribute_versions={"name": 3, "min_ram": 2})
    with side.store.transaction() as txn:
        side.catalogue.acknowledge(txn, UUID, 1, {"revision": 1, "version": 1, "image": now})
    assert side.catalogue.base_for(side.store.read(), UUID, 0, ["name"]) == 0


def test_a_repeated_answer_keeps_own_versions_own(side: Side) -> None:
    """The image was changed elsewhere since: what we changed before must not look like somebody else's change."""
    side.lay({"position": 1, "kind": "create", "image": image(0)})
    side.lay(update(2, name="ours"))
    side.lay(update(3, name="ours again"))
    now = image(3, name="ours", attribute_versions={"name": 2, "min_ram": 3})
    with side.store.transaction() as txn:
        side.catalogue.acknowledge(txn, UUID, 1, {"revision": 1, "version": 1, "image": now})
        side.catalogue.acknowledge(txn, UUID, 2, {"revision": 2, "version": 2, "image": now})
    assert side.catalogue.base_for(side.store.read(), UUID, 0, ["name"]) == 3


@pytest.mark.parametrize(
    ("changed", "own", "base", "attributes", "expected"),
    [
        ({}, [], 3, ["name"], 9),
        ({"name": 3}, [], 3, ["name"], 9),
        ({"name": 5}, [], 3, ["name"], 3),
        ({"name": 5}, [5], 3, ["name"], 9),
        ({"name": 5, "tags": 6}, [5], 3, ["name", "tags"], 3),
        ({"name": 5, "tags": 6}, [5], 3, ["name"], 9),
        ({"name": 5, "tags": 6}, [5, 6], 0, ["name", "tags"], 9),
        ({"*": 5, "tags": 6}, [], 3, ["name"], 3),
        ({"*": 2, "tags": 6}, [], 3, ["name"], 9),
    ],
)
def test_the_base_version_moves_on_over_own_changes_alone(
    changed: dict[str, int], own: list[int], base: int, attributes: list[str], expected: int
) -> None:
    registered = image(9, attribute_versions=changed)
    assert overlay.base_version(registered, own, base, attributes) == expected


@pytest.mark.parametrize(
    ("revision", "epoch_version", "own_before", "own", "base", "expected"),
    [
        (20, None, [], [], 8, 9),  # not changed in the epoch: version 9 is all that there was
        (20, None, [], [], 3, 3),  # somebody changed it at 5, before the epoch, and was not seen
        (20, None, [5], [], 3, 9),  # it was the zone itself
        (40, 7, [], [], 8, 9),  # 8 counts what was lost; 7 was seen, and 5 with it
        (40, 4, [], [], 8, 4),  # the change at 5 is of this epoch: a conflict
        (40, 4, [], [5], 8, 9),  # unless it was a write that is offered again
        (40, 4, [5], [], 8, 4),  # own version 5 of the lost time line is not this 5
        (40, None, [], [], 8, 1),  # made in this epoch
    ],
)
def test_a_base_version_of_an_older_epoch_is_no_more_than_the_image_had_when_this_one_began(
    side: Side,
    revision: int,
    epoch_version: int | None,
    own_before: list[int],
    own: list[int],
    base: int,
    expected: int,
) -> None:
    """The epoch began with revision 30; `name` was changed last at version 5, of 9."""
    noted = {} if epoch_version is None else {"epoch_version": epoch_version}
    registered = image(9, revision=revision, attribute_versions={"name": 5}, **noted)
    side.change(revision, registered)
    with side.store.transaction() as txn:
        row = overlay.empty() | {"own_before": own_before, "own_versions": own}
        txn.put_row("overlay", key_of(UUID), row)
        assert side.catalogue.base_for(txn, UUID, base, ["name"], older_than_revision=30) == expected
    assert side.catalogue.base_for(side.store.read(), OTHER, base, ["name"], older_than_revision=30) == 1


def test_own_versions_of_an_epoch_that_ended_are_remembered_as_such(side: Side) -> None:
    for position in (1, 2):
        side.lay(update(position, name="ours"))
    with side.store.transaction() as txn:
        side.catalogue.acknowledge(txn, UUID, 1, {"revision": 9, "version": 3, "image": image(3)})
        side.catalogue.forget_epoch(txn, b"", 99)
        row = txn.row("overlay", key_of(UUID))
    assert (row["own_versions"], row["own_before"]) == ([], [3])


def test_a_write_that_is_laid_again_takes_its_place_before_later_ones_and_adds_no_location_twice(side: Side) -> None:
    place = {"key": "k", "zone": "fra"}
    side.change(1, image(1, name="old", locations=[place]))
    side.lay(update(7, name="later"))
    again = update(3, name="earlier") | {"state": "pending", "time": 3, "add_locations": [place]}
    for _ in range(2):
        with side.store.transaction() as txn:
            side.catalogue.lay_again(txn, UUID, again)
        side.check()
    seen = side.seen()
    assert seen is not None
    assert (seen["name"], seen["locations"]) == ("later", [place])
    assert side.catalogue.positions(side.store.read(), UUID, 0, 9) == [3, 7]


def test_places_sort_as_values_do_whatever_their_length() -> None:
    names = [None, "", "a", "a\x01", "aa", "b", "ä"]
    places = [listing.place(image(name=name), "name") for name in names]
    assert places == sorted(places)
    sizes = [None, 0, 1, 255, 256, 2**40]
    assert [listing.place(image(size=s), "size") for s in sizes] == sorted(
        listing.place(image(size=s), "size") for s in sizes
    )
    assert all(len(key) < 511 for key in listing.keys(image(name="ä" * 255, owner="x" * 255)))


# A catalogue by tenant set: of "p" alone.


@pytest.fixture
def narrow(side: Side) -> Side:
    side.catalogue.shows = lambda image: bool(image["owner"] == "p")
    return side


def test_an_image_that_leaves_the_tenant_set_goes_at_once_without_own_writes(narrow: Side) -> None:
    narrow.change(1, image(1))
    assert narrow.leave(2) == [image(1)]
    assert (narrow.seen(), narrow.overlaid(), narrow.outside()) == (None, False, 0)


def test_an_own_pending_write_is_shown_until_its_verdict_has_come_round(narrow: Side) -> None:
    narrow.change(1, image(1))
    narrow.lay(update(1, name="mine"))
    assert narrow.leave(2) == []
    assert (narrow.seen() or {})["name"] == "mine"
    narrow.ack(1, 3, image(3, name="mine", owner="q"))
    assert (narrow.seen() or {})["owner"] == "q"
    assert narrow.heartbeat(3) == [image(3, name="mine", owner="q")]
    assert (narrow.seen(), narrow.overlaid(), narrow.outside()) == (None, False, 0)


def test_an_image_that_comes_back_into_the_set_stays(narrow: Side) -> None:
    narrow.change(1, image(1))
    narrow.lay(update(1, owner="p"))
    narrow.leave(2)
    narrow.ack(1, 3, image(3))
    narrow.change(3, image(3))
    narrow.heartbeat(4)
    assert narrow.seen() == image(3)
    assert (narrow.overlaid(), narrow.outside()) == (False, 0)


def test_a_create_that_nobody_of_the_set_sees_goes_once_the_feed_has_passed_its_ack(narrow: Side) -> None:
    narrow.lay({"position": 1, "kind": "create", "image": image(0, owner="q")})
    narrow.ack(1, 10, image(1, owner="q"))
    narrow.heartbeat(9)
    assert narrow.seen() == image(1, owner="q")
    assert narrow.heartbeat(10) == [image(1, owner="q")]
    assert (narrow.seen(), narrow.overlaid(), narrow.outside()) == (None, False, 0)


def test_it_does_not_go_unnoticed_where_the_feed_was_faster_than_the_ack(narrow: Side) -> None:
    narrow.lay({"position": 1, "kind": "create", "image": image(0, owner="q")})
    narrow.heartbeat(10)
    narrow.ack(1, 10, image(1, owner="q"))
    assert narrow.heartbeat(11) == [image(1, owner="q")]
    assert (narrow.seen(), narrow.overlaid(), narrow.outside()) == (None, False, 0)


def test_parked_writes_do_not_keep_an_image_that_left_the_set_in_sight(narrow: Side) -> None:
    narrow.change(1, image(1))
    narrow.lay(update(1, name="mine"))
    narrow.leave(2)
    narrow.park(1)
    narrow.heartbeat(3)
    assert (narrow.seen(), narrow.outside()) == (None, 0)


def test_what_a_narrower_set_lacks_is_forgotten_but_for_own_pending_writes(narrow: Side) -> None:
    for owner, left in (("q", None), ("p", None)):
        narrow.change(1, image(1, owner=owner))
        with narrow.store.transaction() as txn:
            narrow.catalogue.forget(txn, key_of(UUID))
        assert narrow.seen() == left
    narrow.change(1, image(1, owner="q"))
    narrow.lay(update(1, name="mine"))
    with narrow.store.transaction() as txn:
        narrow.catalogue.forget(txn, key_of(UUID))
    assert (narrow.seen() or {})["name"] == "mine"
