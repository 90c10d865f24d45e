"""The checker finds an order where there is one, says so where there is none, and never passes what it gave up on."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos import config
from chaos.checker import LINEARIZABLE, UNKNOWN, VIOLATION, Finding, check, check_one
from chaos.history import FAIL, INFO, OK, Operation
from chaos.models import IdAllocation, ImageLife, Model, Register
from ops.soak.checker import history, with_stale_read
from tests.chaos.stories import Story


def verdict(story: Story, model: Model | None = None) -> Finding:
    return check_one("image", [o for o in story.operations if o.possible], model or Register())


def get(story: Story, found: bool = True, **answered: Any) -> Story:
    return story.add("get", answered={"found": found, **answered})


GOOD = {
    "one client after another": Story().write("a", 1).read(1, "a").cas(1, "b", 2).read(2, "b"),
    "a read during a write sees either": Story().write("a", 1).write("b", 2, took=9.0).read(1, "a").read(2, "b"),
    "concurrent writes end in the order of their versions": (
        Story().write("late", 2, at=1, took=5).write("early", 1, at=2, took=5).read(2, "late", at=9)
    ),
    "an unknown write happened": Story().write("a", 1).write("b", outcome=INFO).read(1, "a").read(2, "b"),
    "an unknown write happened long after": (
        Story().write("b", outcome=INFO).write("a", 1).read(1, "a").read(1, "a").read(2, "b")
    ),
    "an unknown write never happened": Story().write("a", 1).write("b", outcome=INFO).cas(1, "c", 2).read(2, "c"),
    "an unknown compare-and-set happened between": Story().write("a", 1).cas(1, "b", outcome=INFO).cas(2, "c", 3),
    "what was refused did not happen": Story().write("a", 1).cas(7, "b", outcome=FAIL).read(1, "a"),
    "two unknown writes, one of which happened": (
        Story().write("x", outcome=INFO).write("y", outcome=INFO).write("a", 2).read(2, "a").read(3, "x")
    ),
}

BAD = {
    "a stale read": Story().write("a", 1).write("b", 2).read(1, "a"),
    "a read of what nobody wrote": Story().write("a", 1).read(1, "ghost"),
    "a lost update": Story().write("a", 1).cas(1, "b", 2).cas(1, "c", 2),
    "two versions skipped": Story().write("a", 1).write("b", 4),
    "reads that go back": Story().write("a", 1).write("b", at=10, took=90).read(2, "b", at=20).read(1, "a", at=30),
    "a refused write is seen": Story().write("a", 1).write("b", outcome=FAIL).read(2, "b"),
    "an unknown write happens twice": (
        Story().write("a", 1).write("b", outcome=INFO).read(2, "b").write("c", 3).read(4, "b")
    ),
    "a vanished write": Story().write("a", 1).read(0, None),
    "a write seen before it was asked for": Story().write("a", 1).read(2, "b").write("b", 2),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_an_order_explains_is_linearizable(name: str) -> None:
    assert verdict(GOOD[name]).verdict == LINEARIZABLE


@pytest.mark.parametrize("name", BAD)
def test_what_no_order_explains_is_a_violation(name: str) -> None:
    assert verdict(BAD[name]).verdict == VIOLATION


def test_a_violation_comes_with_the_smallest_window_and_what_was_possible() -> None:
    story = Story()
    for version in range(1, 40):
        story.write(f"value {version}", version).read(version, f"value {version}")
    story.read(38, "value 38")
    found = verdict(story)
    assert [(o.kind, o.value("version")) for o in found.operations] == [("write", 39), ("read", 39), ("read", 38)]
    assert "only Value(version=39, value='value 39') was possible" in found.sentence()


LIFE_GOOD = {
    "a life": get(
        get(Story().add("create").add("update", set={"name": "b"}), attributes={"name": "b"}).add("delete"), False
    ),
    "absent before its create": get(get(Story(), False).add("create", answered={"number": 7}), number=7),
    "a delete of unknown outcome": get(get(Story().add("create").add("delete", INFO)), False),
    "a create of unknown outcome that is seen later": get(get(Story().add("create", INFO), False), version=1),
    "an attribute that nobody set may be anything": get(Story().add("create"), attributes={"owner": "demo"}),
}
LIFE_BAD = {
    "back from the dead": get(Story().add("create").add("delete")),
    "gone without a delete": get(Story().add("create"), False),
    "created twice": Story().add("create").add("create"),
    "changed after its delete": Story().add("create").add("delete").add("update", set={"name": "b"}),
    "an old attribute": get(Story().add("create").add("update", set={"name": "b"}), attributes={"name": "a"}),
    "another number": get(Story().add("create", answered={"number": 7}), number=8),
    "vanishes and is there again": get(get(Story().add("create").add("delete", INFO), False)),
}


@pytest.mark.parametrize("name", LIFE_GOOD)
def test_a_life_of_an_image_that_can_be_is_linearizable(name: str) -> None:
    found = verdict(LIFE_GOOD[name], ImageLife())
    assert found.verdict == LINEARIZABLE, found.sentence()


@pytest.mark.parametrize("name", LIFE_BAD)
def test_a_life_of_an_image_that_can_not_be_is_a_violation(name: str) -> None:
    assert verdict(LIFE_BAD[name], ImageLife()).verdict == VIOLATION


def allocation(*ranges: tuple[float, float, int, int]) -> Story:
    story = Story()
    for begins, took, first, last in ranges:
        story.add("allocate", at=begins, took=took, answered={"first": first, "last": last})
    return story


def test_allocations_rise_in_real_time_and_never_overlap() -> None:
    assert verdict(allocation((1, 9, 11, 20), (2, 2, 1, 10), (20, 1, 31, 31)), IdAllocation()).verdict == LINEARIZABLE
    assert verdict(allocation((1, 1, 11, 20), (3, 1, 1, 10)), IdAllocation()).verdict == VIOLATION
    assert verdict(allocation((1, 9, 1, 10), (2, 9, 10, 12)), IdAllocation()).verdict == VIOLATION
    unknown = Story().add("allocate", INFO).add("allocate", answered={"first": 1, "last": 3})
    assert verdict(unknown, IdAllocation()).verdict == LINEARIZABLE


def test_what_takes_too_many_orders_is_unknown_and_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story()
    for number in range(9):
        story.write(f"blind {number}", at=float(number), took=100.0)
    story.add("read", at=200.0, answered={"value": "ghost"})
    assert verdict(story).verdict == VIOLATION
    monkeypatch.setattr(config, "CONFIGURATIONS_MAX", 500)
    found = verdict(story)
    assert found.verdict == UNKNOWN
    assert "given up after 500" in found.sentence()


def test_images_are_checked_each_by_itself_and_others_are_left_out() -> None:
    story = Story().add("write", uuid="one", value="a").add("write", uuid="two", value="b").add("list")
    story.add("read", uuid="one", answered={"value": "a"}).add("read", uuid="two", answered={"value": "a"})
    found = check(story.operations, Register(), lambda operation: operation.value("uuid"))
    assert found.checked == 4
    assert [one.key for one in found.having(VIOLATION)] == ["two"]
    assert [one.key for one in found.having(LINEARIZABLE)] == ["one"]


def explained_by_brute_force(operations: list[Operation]) -> bool:
    """Whether any order of any choice of the unknown operations explains all answers, tried one after another."""
    surely = [o for o in operations if o.outcome == OK]
    maybe = [o for o in operations if o.outcome == INFO]
    choices = itertools.chain.from_iterable(itertools.combinations(maybe, n) for n in range(len(maybe) + 1))
    return any(_explains(order) for chosen in choices for order in itertools.permutations([*surely, *chosen]))


def _explains(order: tuple[Operation, ...]) -> bool:
    if any(later.precedes(earlier) for earlier, later in itertools.combinations(order, 2)):
        return False
    model = Register()
    state = model.initial()
    for operation in order:
        after = model.step(state, operation)
        if after is None:
            return False
        state = after
    return True


@st.composite
def few_operations(draw: st.DrawFn) -> list[Operation]:
    """Up to five operations with few values and versions, so that about half of the histories can be explained."""
    story = Story()
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["write", "cas", "read"]))
        outcome = OK if kind == "read" else draw(st.sampled_from([OK, OK, INFO]))
        asked: dict[str, Any] = {} if kind == "read" else {"value": draw(st.sampled_from("ab"))}
        if kind == "cas":
            asked["base"] = draw(st.integers(0, 2))
        answered: dict[str, Any] = {"value": draw(st.sampled_from([None, "a", "b"]))} if kind == "read" else {}
        if outcome == OK and draw(st.booleans()):
            answered["version"] = draw(st.integers(0, 3))
        at, took = draw(st.integers(0, 8)), draw(st.integers(1, 4))
        story.add(kind, outcome, at=float(at), took=float(took), answered=answered, **asked)
    return story.operations


@settings(max_examples=400)
@given(few_operations())
def test_the_checker_agrees_with_trying_every_order(operations: list[Operation]) -> None:
    assert (check_one("image", operations, Register()).verdict == LINEARIZABLE) == explained_by_brute_force(operations)


@pytest.mark.parametrize("seed", range(5))
def test_long_histories_of_a_correct_register_pass_and_one_stale_read_among_them_does_not(seed: int) -> None:
    operations = history(seed, 2000, clients=8)
    assert check_one("image", operations, Register()).verdict == LINEARIZABLE
    assert check_one("image", with_stale_read(operations), Register()).verdict == VIOLATION
