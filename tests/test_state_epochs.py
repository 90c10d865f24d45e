"""A new epoch in the state: which numbers and sessions of the life before it go on."""

from __future__ import annotations

from typing import Any

import pytest

from raftreg import commands, queries, state_machine
from raftreg.commands import EPOCH_IDS_SKIPPED, NUMBER_MAX
from raftreg.tables import epoch_key, hash16, pack, unpack
from tests.state_life import CHAIN_START, Document, Gateway, Life, create, update


def begin(epoch: int, **more: int) -> Document:
    return {"op": "begin_epoch", "epoch": epoch, **more}


def test_no_number_that_the_life_before_can_have_issued_is_issued_again(life: Life) -> None:
    gateway = Gateway(life)
    gateway.open()
    known = gateway.grant(10)
    assert life.ok(begin(2))["next_id"] == known["last"] + 1 + EPOCH_IDS_SKIPPED
    assert gateway.grant(5)["first"] == known["last"] + 1 + EPOCH_IDS_SKIPPED
    assert EPOCH_IDS_SKIPPED >= commands.BLOCK_SIZE_MAX


def test_an_epoch_at_the_end_of_all_numbers_leaves_none(life: Life) -> None:
    assert life.ok(begin(2, id_floor=NUMBER_MAX))["next_id"] == NUMBER_MAX
    assert life.ok(begin(3))["next_id"] == NUMBER_MAX + 1
    assert life.refused(create("a"))["code"] == "ids_exhausted"
    assert life.ok(begin(4))["next_id"] == NUMBER_MAX + 1


# -- what a gateway was acknowledged in the life before -----------------------------------------------------------


def of_epoch(gateway: Gateway, epoch: int, *, lost: int = 0, **more: int) -> Document:
    """The gateway's account when its last handshake was in `epoch`, and `lost` operations followed that are not known
    here."""
    acked = gateway.sequence + lost
    chain = hash16(b"of the life before") if lost else gateway.hash
    return {"epoch": epoch, "acked_sequence": acked, "highest_sequence": acked, "acked_hash": chain, **more}


def test_what_a_gateway_was_acknowledged_in_an_older_epoch_contradicts_nothing(life: Life) -> None:
    """It hears how far the session got, goes on from there, and binds its numbers: known ones, and those skipped."""
    gateway = Gateway(life)
    gateway.open()
    block = gateway.grant(10)
    gateway.send(create("a", number=block["first"]))
    life.ok(begin(2))
    opened = gateway.open(**of_epoch(gateway, 1, lost=5))
    assert not opened["diverged"]
    assert (opened["last_sequence"], opened["last_hash"], opened["epoch"]) == (1, gateway.hash, 2)
    assert gateway.send(create("b", number=block["first"] + 1))["ok"]["number"] == block["first"] + 1
    beyond = block["last"] + 7  # of a block that was granted after the backup
    assert gateway.send(create("c", number=beyond))["ok"]["number"] == beyond
    assert gateway.send(create("d", number=beyond))["error"]["code"] == "number_taken"
    session = queries.get_session(life.view, gateway.session)
    assert session is not None
    assert session["lacked"] == 5


def test_the_same_account_in_the_present_epoch_is_a_divergence(life: Life) -> None:
    gateway = Gateway(life)
    gateway.open()
    block = gateway.grant(10)
    life.ok(begin(2))
    told = gateway.open(**of_epoch(gateway, 1))
    assert gateway.open(**of_epoch(gateway, 2, lost=1, epoch_began=told["epoch_began"]))["diverged"]
    fresh = Gateway(life, session="s2")
    fresh.open()
    assert fresh.send(create("c", number=block["first"]))["error"]["code"] == "block_not_held"


def test_a_gateway_that_forgot_what_the_backup_has_is_fenced_in_a_new_epoch_as_well(life: Life) -> None:
    gateway = Gateway(life)
    gateway.open()
    gateway.send(create("a"))
    life.ok(begin(2))
    assert gateway.open(epoch=1, highest_sequence=0, acked_sequence=0, acked_hash=CHAIN_START)["diverged"]


def test_a_session_that_was_opened_after_the_backup_begins_anew_and_says_what_it_follows(life: Life) -> None:
    before = Gateway(life)
    before.open()
    before.send(create("a"))
    block = before.grant(10)
    life.ok(begin(2))
    after = Gateway(life, session="s2")
    for _ in range(2):  # the first answer may be lost
        opened = after.open(**of_epoch(after, 1, lost=3))
        assert (opened["diverged"], opened["last_sequence"], opened["last_hash"]) == (False, 0, CHAIN_START)
        assert opened["follows"] == {"session": before.session, "last_sequence": 1}
    # What it brings was numbered out of the blocks of the session before: they are its own now.
    assert after.send(create("b", number=block["first"]))["ok"]["number"] == block["first"]
    assert life.refused(before.carry(create("c")))["code"] == "session_fenced"
    life.ok({"op": "seal_blocks", "gateway": "gw1"})
    assert after.send(create("d", number=block["last"]))["error"]["code"] == "block_not_held"


def test_a_session_that_may_have_been_forgotten_is_not_taken_for_a_lost_one(life: Life) -> None:
    for n in range(commands.SESSIONS_PER_GATEWAY_MAX + 1):
        Gateway(life, session=f"s{n}").open()
    life.ok(begin(2))
    forgotten = Gateway(life, session="s0")
    assert forgotten.open(**of_epoch(forgotten, 1, lost=3))["diverged"]
    assert queries.get_session(life.view, forgotten.session) is None


@pytest.mark.parametrize(("epoch", "began"), [(3, 1), (2, 1)])
def test_a_gateway_of_an_epoch_that_this_cluster_never_was_in_is_refused_and_keeps_its_session(
    life: Life, epoch: int, began: int
) -> None:
    """The third epoch; or another second one, begun when the same backup was restored before."""
    gateway = Gateway(life)
    gateway.open()
    life.ok(begin(2))
    before = life.digest()
    refused = life.refused(gateway.opening(**of_epoch(gateway, epoch, lost=1, epoch_began=began)))
    assert (refused["code"], refused["epoch"]) == ("epoch_unknown", 2)
    assert f"--epoch {epoch + 1} or higher" in refused["message"]
    assert gateway.open(**of_epoch(gateway, 1))["diverged"] is False
    assert life.digest() == before


# -- numbers ------------------------------------------------------------------------------------------------------


def test_numbers_that_an_epoch_skipped_are_bound_once_and_by_gateways_alone(life: Life) -> None:
    one, other = Gateway(life), Gateway(life, gateway="gw2", zone="ber", session="s2")
    for gateway in (one, other):
        gateway.open()
    skipped = life.ok(begin(2))["next_id"] - 1
    for actor in ({}, {"gateway": "gw1", "zone": "fra"}):
        assert life.refused(create("x", number=skipped, actor=actor))["code"] == "block_not_held"
    assert one.send(create("a", number=skipped))["ok"]["number"] == skipped
    assert other.send(create("b", number=skipped))["error"]["code"] == "number_taken"
    assert life.ok({"op": "delete_image", "image": {"number": skipped}})
    assert other.send(create("c", number=skipped))["error"]["code"] == "number_taken"
    assert life.ok(begin(3))
    assert other.send(create("d", number=skipped - 1))["ok"]["number"] == skipped - 1
    assert other.send(create("e", number=skipped + 1))["ok"]["number"] == skipped + 1


def test_a_gateway_that_knows_higher_numbers_raises_the_floor_once(life: Life) -> None:
    gateway = Gateway(life)
    gateway.open()
    next_id = life.ok(begin(2))["next_id"]
    account = of_epoch(gateway, 1, highest_number=next_id + 99)
    for _ in range(2):
        gateway.open(**account)
        assert queries.counts(life.view)["next_id"] == next_id + 100
    assert life.ok(create("a"))["number"] == next_id + 100
    assert gateway.send(create("b", number=next_id + 99))["ok"]["number"] == next_id + 99
    blocks, _ = queries.blocks(life.view, limit=9)
    assert [(block["first"], block["last"], block["gateway"]) for block in blocks][-1] == (next_id, next_id + 99, None)


def test_a_report_far_above_all_numbers_is_refused_and_changes_nothing(life: Life) -> None:
    gateway = Gateway(life)
    gateway.open()
    next_id = life.ok(begin(2))["next_id"]
    before = life.digest()
    too_high = next_id + commands.FLOOR_RAISE_MAX
    refused = life.refused(gateway.opening(**of_epoch(gateway, 1, highest_number=too_high)))
    assert refused["code"] == "id_floor_too_high"
    assert f"--id-floor {too_high + 1}" in refused["message"]
    assert life.digest() == before
    assert gateway.open(**of_epoch(gateway, 1, highest_number=too_high - 1))["epoch"] == 2


def test_in_the_present_epoch_no_report_raises_the_floor(life: Life) -> None:
    gateway = Gateway(life)
    for account in ({}, {"epoch": 1}):
        gateway.open(highest_number=1000, **account)
    assert queries.counts(life.view)["next_id"] == 1


# -- images -------------------------------------------------------------------------------------------------------


def test_an_images_first_change_in_an_epoch_notes_the_version_that_it_had_when_the_epoch_began(life: Life) -> None:
    def noted() -> Any:
        image = queries.get_image(life.view, {"number": number})
        assert image is not None
        return image.get("epoch_version"), image["version"]

    number = life.ok(create("a"))["number"]
    life.ok(update(number, set={"name": "b"}))
    assert noted() == (None, 2)
    life.ok(begin(2))
    assert noted() == (None, 2)
    for name in "cd":
        life.ok(update(number, set={"name": name}))
    assert noted() == (2, 4)
    life.ok(begin(3))
    life.ok(update(number, set={"name": "e"}))
    assert noted() == (4, 5)
    number = life.ok(create("of the epoch"))["number"]
    life.ok(update(number, set={"name": "f"}))
    assert noted() == (None, 2)


def test_an_epoch_is_part_of_the_digest_and_of_what_is_validated(life: Life) -> None:
    before, view = life.digest(), life.view
    life.ok(begin(2))
    assert life.digest() != before
    row = unpack(view.get(epoch_key(2)) or b"")
    view.put(epoch_key(2), pack({**row, "next_id": row["next_id"] + 1}))
    assert state_machine.recompute_digest(view) != state_machine.digest(view)
    with pytest.raises(AssertionError, match="epoch 2 skipped are no block"):
        state_machine.validate_state(view)
