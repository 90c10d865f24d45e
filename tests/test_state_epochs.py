"""A new epoch in the state: which numbers and sessions of the life before it go on."""

from __future__ import annotations

import pytest

from raftreg import commands, state_machine
from raftreg.commands import EPOCH_IDS_SKIPPED, NUMBER_MAX
from raftreg.tables import epoch_key, hash16, pack, unpack
from tests.state_life import Document, Gateway, Life, create


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


def test_a_gateway_that_was_acknowledged_more_than_is_known_is_fenced_with_its_numbers(life: Life) -> None:
    gateway = Gateway(life)
    gateway.open()
    block = gateway.grant(10)
    gateway.send(create("a", number=block["first"]))
    life.ok(begin(2))
    lost = gateway.carry(create("b", number=block["first"] + 1))  # applied in the life before, and acknowledged
    opened = gateway.open(
        acked_sequence=2, highest_sequence=2, acked_hash=hash16(lost["previous_hash"] + lost["payload"])
    )
    assert opened["diverged"]
    assert life.refused(lost)["code"] == "session_fenced"
    fresh = Gateway(life, session="s2")
    fresh.open()
    refused = fresh.send(create("c", number=block["first"] + 2))
    assert refused["error"]["code"] == "block_not_held"


def test_an_epoch_is_part_of_the_digest_and_of_what_is_validated(life: Life) -> None:
    before, view = life.digest(), life.view
    life.ok(begin(2))
    assert life.digest() != before
    row = unpack(view.get(epoch_key(2)) or b"")
    view.put(epoch_key(2), pack({**row, "next_id": row["next_id"] + 1}))
    assert state_machine.recompute_digest(view) != state_machine.digest(view)
    with pytest.raises(AssertionError, match="numbers went back"):
        state_machine.validate_state(view)
