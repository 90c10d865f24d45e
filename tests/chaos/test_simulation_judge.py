"""The simulator's judge is fed with what must not happen: each breach is named, and the same without it passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.simulation.judge import Judge, Operation, Violation
from raftreg import state_machine
from raftreg.tables import pack
from tests.state_life import START_US, Life, a_state, create, uuid_of


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    with a_state(tmp_path) as view:
        yield Life(view)


def acknowledged(judge: Judge, kind: str, revision: int, result: dict[str, Any], **details: Any) -> Operation:
    operation = judge.ask("client", kind, 0.0, **details)
    judge.answer(operation, revision, 0.0, result)
    return operation


def created(judge: Judge, life: Life, alias: str) -> dict[str, Any]:
    ok = life.ok(create(alias))
    acknowledged(judge, "create", ok["revision"], ok, uuid=uuid_of(alias), name=alias)
    return ok


def read(judge: Judge, revision: int, *, asked_s: float = 10.0, level: str = "linearizable", **more: Any) -> None:
    operation = judge.ask("client", "read", asked_s, **more.pop("details", {}))
    judge.answer_read(operation, revision, more.pop("at_s", asked_s), level, more.pop("age_s", None), {})


# -- peers --------------------------------------------------------------------------------------------------------


def test_two_leaders_in_one_term_are_named() -> None:
    judge = Judge()
    judge.leads("A", 3)
    judge.leads("A", 3)
    judge.leads("B", 4)
    with pytest.raises(Violation, match="two leaders in term 3: A and B"):
        judge.leads("B", 3)


def test_another_entry_at_an_index_is_found(life: Life) -> None:
    judge = Judge()
    judge.applied("A", 1, b"one", life.view)
    judge.applied("B", 1, b"one", life.view)
    with pytest.raises(Violation, match="another entry at index 1"):
        judge.applied("C", 1, b"other", life.view)


def test_another_state_after_the_same_entry_is_found(life: Life) -> None:
    judge = Judge()
    judge.applied("A", 1, b"one", life.view)
    life.do(create("image"))
    with pytest.raises(Violation, match="another state at index 1"):
        judge.applied("B", 1, b"one", life.view)


def test_states_that_differ_at_the_end_are_found(life: Life, tmp_path: Path) -> None:
    judge = Judge()
    life.do(create("image"))
    with a_state(tmp_path, "other") as other:
        with pytest.raises(Violation, match="differ at the end"):
            judge.agree({"A": life.view, "B": other})
        state_machine.apply(other, 1, pack([1, START_US, [create("image")]]))
        judge.agree({"A": life.view, "B": other})


def test_rows_that_contradict_their_digest_are_found(life: Life) -> None:
    judge = Judge()
    life.do(create("image"))
    (key, value) = next(iter(life.view.scan(b"I", b"J")))
    life.view.put(key, bytes(value).replace(b"queued", b"active"))
    with pytest.raises(Violation, match="contradict its digest"):
        judge.agree({"A": life.view})


# -- reads --------------------------------------------------------------------------------------------------------


def test_a_linearizable_read_older_than_an_answer_before_it_is_stale() -> None:
    judge = Judge()
    acknowledged(judge, "create", 5, {})
    read(judge, 5)
    with pytest.raises(Violation, match="read revision 4 after 5"):
        read(judge, 4)


def test_a_linearizable_read_never_goes_behind_another_one() -> None:
    judge = Judge()
    read(judge, 7)
    with pytest.raises(Violation, match="read revision 6 after 7"):
        read(judge, 6)


def test_a_read_that_was_asked_before_the_write_was_answered_may_miss_it() -> None:
    judge = Judge()
    operation = judge.ask("client", "read", 0.0)
    acknowledged(judge, "create", 5, {})
    judge.answer_read(operation, 4, 0.0, "linearizable", None, {})


def test_a_write_is_not_ordered_before_what_was_answered_before_it() -> None:
    judge = Judge()
    acknowledged(judge, "update", 5, {})
    with pytest.raises(Violation, match="got revision 4 after 5"):
        acknowledged(judge, "update", 4, {})


def test_a_create_takes_a_revision_of_its_own() -> None:
    judge = Judge()
    acknowledged(judge, "update", 5, {})
    with pytest.raises(Violation, match="got revision 5 after 5"):
        acknowledged(judge, "create", 5, {})


def test_a_state_that_is_called_fresher_than_it_is_is_found() -> None:
    """Acknowledged at 0 s; at 10 s a state without it says that it is 3 s old."""
    judge = Judge()
    acknowledged(judge, "create", 5, {})
    read(judge, 4, level="stale", age_s=11.0)
    read(judge, 5, level="stale", age_s=3.0)
    with pytest.raises(Violation, match=r"said to be 3\.00 s old"):
        read(judge, 4, level="stale", age_s=3.0)


def test_a_bounded_read_beyond_its_bound_is_found() -> None:
    judge = Judge()
    acknowledged(judge, "create", 5, {})
    with pytest.raises(Violation, match=r"to be at most 1\.00 s old"):
        read(judge, 4, level="bounded", details={"max_staleness_s": 1.0})


# -- the end ------------------------------------------------------------------------------------------------------


def test_what_was_acknowledged_and_is_there_is_accepted(life: Life) -> None:
    judge = Judge()
    first, second = created(judge, life, "one"), created(judge, life, "two")
    assert judge.nothing_lost(life.view) == {first["number"]: uuid_of("one"), second["number"]: uuid_of("two")}


def test_a_lost_write_is_found(life: Life) -> None:
    judge = Judge()
    created(judge, life, "one")
    acknowledged(judge, "create", 9, {"number": 9, "version": 1}, uuid=uuid_of("two"), name="two")
    with pytest.raises(Violation, match="lost: the create"):
        judge.nothing_lost(life.view)


def test_an_image_under_another_number_is_found(life: Life) -> None:
    judge = Judge()
    ok = life.ok(create("one"))
    acknowledged(judge, "create", 1, {**ok, "number": ok["number"] + 1}, uuid=uuid_of("one"), name="one")
    with pytest.raises(Violation, match="was acknowledged as 2, and is 1"):
        judge.nothing_lost(life.view)


def test_a_lost_update_is_found(life: Life) -> None:
    judge = Judge()
    ok = created(judge, life, "one")
    acknowledged(judge, "update", 7, {**ok, "version": 2}, uuid=uuid_of("one"), name="new")
    with pytest.raises(Violation, match="was acknowledged in version 2, is in 1"):
        judge.nothing_lost(life.view)


def test_an_update_with_another_value_in_its_version_is_found(life: Life) -> None:
    judge = Judge()
    created(judge, life, "one")
    ok = life.ok({"op": "update_image", "image": {"uuid": uuid_of("one")}, "set": {"name": "new"}})
    acknowledged(judge, "update", ok["revision"], ok, uuid=uuid_of("one"), name="newer")
    with pytest.raises(Violation, match="acknowledged as 'newer'"):
        judge.nothing_lost(life.view)


def test_a_deletion_that_is_forgotten_is_found(life: Life) -> None:
    judge = Judge()
    ok = created(judge, life, "one")
    acknowledged(judge, "delete", 7, ok, uuid=uuid_of("one"))
    with pytest.raises(Violation, match="deletion was acknowledged"):
        judge.nothing_lost(life.view)


def test_a_number_that_was_issued_twice_is_found(life: Life) -> None:
    judge = Judge()
    ok = created(judge, life, "one")
    acknowledged(judge, "allocate", 7, {"first": ok["number"], "last": ok["number"]}, count=1)
    with pytest.raises(Violation, match=r"belongs to|issued twice"):
        judge.nothing_lost(life.view)


def test_numbers_that_do_not_rise_with_the_commits_are_found(life: Life) -> None:
    judge = Judge()
    first, second = life.ok(create("one")), life.ok(create("two"))
    acknowledged(judge, "create", 1, second, uuid=uuid_of("two"), name="two")
    acknowledged(judge, "create", 2, first, uuid=uuid_of("one"), name="one")
    with pytest.raises(Violation, match="do not rise"):
        judge.nothing_lost(life.view)
