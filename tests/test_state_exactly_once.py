"""What makes a retry harmless: sessions of gateways, and idempotency keys. The state is validated after every entry."""

from __future__ import annotations

from typing import Any

import pytest

from raftreg import commands, queries, state_machine, tables
from raftreg.tables import pack
from tests.state_life import (
    CHAIN_START,
    Document,
    Gateway,
    Life,
    create,
    delete,
    location,
    update,
    uuid_of,
)

# -- sessions -----------------------------------------------------------------------------------------------------


def test_operations_are_applied_in_order_and_chained(life: Life, gateway: Gateway) -> None:
    assert gateway.send(create("a"))["ok"]["number"] == 1
    assert gateway.send(update(1, set={"name": "b"}))["ok"]["version"] == 2
    assert gateway.send({"op": "delete_image", "image": {"number": 1}})["ok"]["version"] == 3
    session = queries.get_session(life.view, gateway.session)
    assert session is not None
    assert (session["last_sequence"], session["last_hash"]) == (3, gateway.hash)


def test_an_operation_sent_again_gets_its_first_result_and_happens_once(life: Life, gateway: Gateway) -> None:
    command = gateway.carry(create("a"))
    first = life.ok(command)
    before = life.digest()
    assert life.ok(command) == {**first, "replayed": True}
    assert life.digest() == before


def test_a_refused_operation_uses_up_its_sequence_and_keeps_its_refusal(life: Life, gateway: Gateway) -> None:
    life.do(create("a"))
    command = gateway.carry(create("a"))
    assert life.ok(command)["result"]["error"]["code"] == "uuid_taken"
    life.do(delete(1))
    assert life.ok(command)["result"]["error"]["code"] == "uuid_taken"
    assert gateway.send(create("b"))["ok"]["number"] == 2


def test_a_gap_is_refused_with_where_to_go_on_and_changes_nothing(life: Life, gateway: Gateway) -> None:
    gateway.send(create("a"))
    before = life.digest()
    refusal = life.refused(gateway.operation(3, gateway.hash, pack(create("b"))))
    assert (refusal["code"], refusal["last_sequence"]) == ("sequence_gap", 1)
    assert life.digest() == before


@pytest.mark.parametrize("which", ["another payload", "another past", "the next on another past"])
def test_an_operation_that_contradicts_what_was_applied_fences_the_session(
    life: Life, gateway: Gateway, which: str
) -> None:
    past = gateway.hash
    gateway.send(create("a"))
    gateway.grant(5)
    payload = pack(create("a"))
    command = {
        "another payload": gateway.operation(1, past, pack(create("b"))),
        "another past": gateway.operation(1, b"x" * 16, payload),
        "the next on another past": gateway.operation(2, b"x" * 16, payload),
    }[which]
    assert life.refused(command)["code"] == "session_diverged"
    assert life.refused(gateway.operation(2, gateway.hash, payload))["code"] == "session_fenced"
    assert life.refused(gateway.asking(1))["code"] == "session_fenced"
    assert life.ok(gateway.opening())["diverged"] is True
    assert life.refused(create("c", number=2, actor={"gateway": "gw1"}))["code"] == "block_not_held"


def test_the_window_replays_its_last_result_and_what_is_older_diverges(life: Life, gateway: Gateway) -> None:
    life.validate = False
    sent = [gateway.carry(create(f"i{n}")) for n in range(commands.SESSION_WINDOW + 1)]
    life.do(*sent)
    state_machine.validate_state(life.view)
    assert life.ok(sent[1])["result"]["ok"]["number"] == 2
    assert life.refused(sent[0])["code"] == "session_diverged"
    state_machine.validate_state(life.view)


def test_an_image_is_named_by_the_sequence_of_its_create_inside_the_session(life: Life, gateway: Gateway) -> None:
    gateway.send(create("a"))
    gateway.send({"op": "update_image", "image": {"sequence": 1}, "set": {"name": "b"}})
    image = queries.get_image(life.view, {"number": 1})
    assert image is not None
    assert image["name"] == "b"
    for sequence in (2, 4, 99):
        answer = gateway.send({"op": "delete_image", "image": {"sequence": sequence}})
        assert answer["error"]["code"] == "image_not_found"


@pytest.mark.parametrize(
    "payload",
    [b"\xc1", b"\x81", pack(5), pack({"op": "nonsense"}), pack({"op": "allocate_ids", "count": 1}), pack({b"op": 1})],
)
def test_a_payload_that_is_no_operation_is_refused_and_the_session_goes_on(
    life: Life, gateway: Gateway, payload: bytes
) -> None:
    command = gateway.operation(1, gateway.hash, payload)
    assert life.ok(command)["result"]["error"]["code"] == "invalid"
    gateway.sequence, gateway.hash = 1, tables.hash16(CHAIN_START + payload)
    assert gateway.send(create("a"))["ok"]["number"] == 1


def test_an_operation_acts_for_its_own_zone_and_gateway_only_and_for_no_administrator(
    life: Life, gateway: Gateway
) -> None:
    for actor in ({"zone": "ber"}, {"gateway": "gw2"}):
        assert gateway.send(create("a", actor=actor))["error"]["code"] == "invalid"
    gateway.send(create("a", actor={"user": "u", "admin": True}))
    (change,) = queries.changes_since(life.view, queries.revision(life.view) - 1, 9, 1 << 20)
    assert change["actor"] == {"user": "u", "zone": "fra", "gateway": "gw1"}


def test_a_new_session_fences_the_older_one_of_its_gateway(life: Life, gateway: Gateway) -> None:
    gateway.grant(5)
    newer = Gateway(life, session="s2")
    assert newer.open()["token"] == gateway.token + 1
    assert life.refused(gateway.carry(create("a")))["code"] == "session_fenced"
    assert life.refused(gateway.asking(1))["code"] == "session_fenced"
    assert life.refused(gateway.opening())["code"] == "session_fenced"
    assert newer.send(create("a", number=1))["error"]["code"] == "block_not_held"
    assert newer.send(create("a"))["ok"]["number"] == 6


def test_sessions_of_different_gateways_do_not_fence_each_other(life: Life, gateway: Gateway) -> None:
    Gateway(life, "gw2", "fra", "s2").open()
    assert gateway.send(create("a"))["ok"]["number"] == 1


def test_a_session_of_another_gateway_cannot_be_opened_or_used(life: Life, gateway: Gateway) -> None:
    thief = Gateway(life, "gw2", "fra", "s1")
    assert life.refused(thief.opening())["code"] == "session_unknown"
    assert life.refused(thief.carry(create("a")))["code"] == "session_unknown"


ACCOUNTS: list[tuple[str, dict[str, Any], bool]] = [
    ("the same", {}, False),
    ("acks that it did not get yet", {"acked": 2}, False),
    ("no ack at all", {"acked": 0}, False),
    ("more sent than applied", {"highest_sequence": 9}, False),
    ("fewer sent than applied", {"highest_sequence": 2}, True),
    ("acks of what was not applied", {"highest_sequence": 9, "acked_sequence": 9}, True),
    ("another hash at the end", {"acked_hash": b"x" * 16}, True),
    ("another hash in the window", {"acked_sequence": 2, "acked_hash": b"x" * 16}, True),
    ("another hash at the start", {"acked_sequence": 0, "acked_hash": b"x" * 16}, True),
]


@pytest.mark.parametrize(("account", "diverged"), [row[1:] for row in ACCOUNTS], ids=[row[0] for row in ACCOUNTS])
def test_a_session_opened_again_goes_on_unless_the_accounts_contradict(
    life: Life, gateway: Gateway, account: dict[str, Any], diverged: bool
) -> None:
    hashes = [gateway.hash]
    for alias in "abc":
        gateway.send(create(alias))
        hashes.append(gateway.hash)
    if "acked" in account:
        acked = account["acked"]
        account = {"acked_sequence": acked, "acked_hash": hashes[acked]}
    opened = life.ok(gateway.opening(**account))
    assert (opened["last_sequence"], opened["last_hash"]) == (3, gateway.hash)
    assert opened["token"] == gateway.token
    assert opened["diverged"] is diverged
    (result,) = life.do(gateway.carry(create("d")))
    assert ("error" in result) is diverged


def test_a_session_with_a_past_that_is_not_known_here_has_diverged(life: Life, gateway: Gateway) -> None:
    stranger = Gateway(life, session="s9")
    before = life.digest()
    opened = life.ok(stranger.opening(highest_sequence=7, acked_sequence=7, acked_hash=b"x" * 16))
    assert (opened["diverged"], opened["last_sequence"]) == (True, 0)
    assert life.digest() == before
    assert gateway.send(create("a"))["ok"]["number"] == 1


def test_remembered_sessions_are_bounded(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftreg.state_sessions.SESSIONS_PER_GATEWAY_MAX", 2)
    for n in range(4):
        Gateway(life, session=f"s{n}").open()
    remembered, _ = queries.list_sessions(life.view, None, 10)
    assert [row["session"] for row in remembered] == sorted([uuid_of("s2"), uuid_of("s3")])


@pytest.mark.parametrize(("behind", "diverged"), [(0, False), (1, True)])
def test_a_gateway_whose_whole_window_is_unanswered_has_not_diverged(life: Life, behind: int, diverged: bool) -> None:
    """The result of what it has acknowledged has just left the window; one operation more could not be in flight."""
    gateway = Gateway(life)
    gateway.open()
    gateway.send(create("first"))
    acknowledged = {"acked_sequence": gateway.sequence, "acked_hash": gateway.hash}
    for n in range(commands.SESSION_WINDOW + behind):
        gateway.send(create(f"i{n}"))
    assert gateway.open(**acknowledged)["diverged"] is diverged


# -- idempotency keys ---------------------------------------------------------------------------------------------


def test_a_key_makes_a_repetition_get_the_first_result(life: Life) -> None:
    first = life.ok(create("a", key="k", actor={"user": "u"}))
    again = life.ok(create("a", key="k", actor={"user": "u", "request_id": "r2"}))
    assert again == {**first, "replayed": True}
    assert queries.counts(life.view)["images"] == 1


def test_a_key_keeps_no_copy_of_the_image_and_tells_when_it_was_deleted_since(life: Life) -> None:
    """Else the memory of retries would cost as much as the images, and outlive them."""
    command = create("a", properties={"filler": "x" * 10_000}, key="k")
    first = life.ok(command)
    stored = [value for key, value in life.view.scan(b"K", b"L")]
    assert len(stored) == 1
    assert len(stored[0]) < 500
    life.ok({"op": "delete_image", "actor": {}, "image": {"number": first["number"]}})
    assert life.ok(command) == {**first, "image": None, "replayed": True}


def test_an_image_was_created_when_its_zone_says_but_never_in_the_future(life: Life) -> None:
    now = life.ok(create("a"))["image"]["created_at"]
    assert life.ok({**create("b"), "created_at": now - 5})["image"]["created_at"] == now - 5
    future = life.ok({**create("c"), "created_at": now + 10**12})["image"]
    assert now <= future["created_at"] == future["updated_at"] < now + 10**12


def test_a_key_remembers_refusals_as_well(life: Life) -> None:
    assert life.refused(update(1, set={"name": "b"}, key="k"))["code"] == "image_not_found"
    life.do(create("a"))
    refusal = life.refused(update(1, set={"name": "b"}, key="k"))
    assert (refusal["code"], refusal["replayed"]) == ("image_not_found", True)


def test_a_key_with_other_arguments_is_refused(life: Life) -> None:
    life.ok(create("a", key="k"))
    assert life.refused(create("b", key="k"))["code"] == "idempotency_mismatch"
    assert life.refused({"op": "allocate_ids", "count": 1, "key": "k"})["code"] == "idempotency_mismatch"


def test_the_order_of_arguments_makes_no_difference_to_a_key(life: Life) -> None:
    first = create("a", key="k", properties={"x": "1", "y": "2"})
    again = {**first, "properties": {"y": "2", "x": "1"}}
    assert life.ok(dict(reversed(again.items())))["number"] == life.ok(first)["number"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (create("a"), create("a") | {"uuid": uuid_of("b")}),
        (update(1, image={"uuid": uuid_of("a")}), update(1, image={"uuid": uuid_of("b")})),
        (update(1, set={"properties.key": "1"}), update(1, set={"properties.key": "2"})),
        (update(1, add_locations=[location("k1")]), update(1, add_locations=[location("k2")])),
        (create("a", properties={"uuid": "1"}), create("a", properties={"uuid": "2"})),
    ],
)
def test_no_argument_is_left_out_of_what_a_key_stands_for(life: Life, first: Document, second: Document) -> None:
    life.do({**first, "key": "k"})
    assert life.refused({**second, "key": "k"})["code"] == "idempotency_mismatch"


def test_uuids_that_the_api_mints_anew_for_a_repeated_batch_make_no_difference_to_its_key(life: Life) -> None:
    first = {"op": "atomic", "operations": [create("a", name="x")], "key": "k"}
    again = {"op": "atomic", "operations": [create("b", name="x")], "key": "k"}
    other = {"op": "atomic", "operations": [create("a", name="y")], "key": "k"}
    assert life.ok(first)["results"] == life.ok(again)["results"]
    assert life.refused(other)["code"] == "idempotency_mismatch"


def test_a_key_is_scoped_by_user_project_and_gateway(life: Life) -> None:
    for actor in ({}, {"user": "u"}, {"user": "u", "project": "p"}, {"gateway": "gw1"}):
        life.ok({"op": "allocate_ids", "count": 1, "key": "k", "actor": actor})
    assert queries.counts(life.view)["next_id"] == 5


def test_a_key_is_forgotten_after_its_retention_and_expired_rows_go(life: Life) -> None:
    allocate = {"op": "allocate_ids", "count": 1}
    for n in range(5):
        life.do({**allocate, "key": f"k{n}"})
    life.now_us += commands.IDEMPOTENCY_RETENTION_US - 1
    assert life.ok({**allocate, "key": "k4"})["first"] == 5
    life.now_us += 1
    assert life.ok({**allocate, "key": "k4"})["first"] == 6
    life.do({**allocate, "key": "new"}, {**allocate, "key": "newer"})
    assert queries.counts(life.view)["keys"] == 3


def test_remembered_keys_are_bounded(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftreg.state_keys.IDEMPOTENCY_ROWS_MAX", 1)
    life.ok(create("a", key="k1"))
    assert life.refused(create("b", key="k2"))["code"] == "too_many_keys"
    life.ok(create("b"))
