"""The judge must condemn what is bad, and only that: each history here has one thing wrong, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chaos import config, history, validate
from chaos.history import FAIL, INFO, OK, Operation
from chaos.validate import Verdict, judge

GOOD_HASH, OTHER_HASH = "a" * 128, "b" * 128


class Story:
    """A history in the making: each operation takes one second, one after another unless told otherwise."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def add(
        self,
        kind: str,
        outcome: str = OK,
        *,
        at: float | None = None,
        answered: dict[str, Any] | None = None,
        **asked: Any,
    ) -> Story:
        number = len(self.operations) + 1
        invoked = float(2 * number) if at is None else at
        completed = invoked + 1 if outcome != INFO else float("inf")
        self.operations.append(Operation(number, "client", kind, invoked, asked, outcome, completed, answered or {}))
        return self

    def create(self, uuid: str, number: int | None, outcome: str = OK, **more: Any) -> Story:
        return self.add("create", outcome, uuid=uuid, gateway="ams-1", answered={"number": number}, **more)

    def update(
        self, uuid: str, version: int | None, outcome: str = OK, *, at: float | None = None, **sets: Any
    ) -> Story:
        return self.add("update", outcome, at=at, uuid=uuid, set=sets, answered={"version": version})


def image(uuid: str, number: int, **changed: Any) -> dict[str, Any]:
    return {"uuid": uuid, "number": number, "version": 1, "status": "active", "os_hash_value": GOOD_HASH} | changed


def good_story() -> Story:
    """Two backups with data, one read back, one create of unknown outcome, one refused and one deleted."""
    story = Story().create("one", 1).add("upload", uuid="one", sha512=GOOD_HASH, size=4)
    story.create("two", 2).add("upload", uuid="two", sha512=GOOD_HASH, size=4)
    story.add("download", uuid="one", answered={"sha512": GOOD_HASH})
    story.create("maybe", None, INFO).create("never", None, FAIL)
    return story.create("gone", 3).add("delete", uuid="gone")


GOOD_ROWS = [image("one", 1), image("two", 2)]


def test_a_good_history_is_found_good_and_counted() -> None:
    verdict = judge(good_story().operations, GOOD_ROWS, {"ams": GOOD_ROWS})
    assert verdict.ok, verdict.problems
    assert (verdict.acknowledged, verdict.in_registry, verdict.unknown) == (3, 2, 1)
    assert verdict.checksums_verified == 3


@pytest.mark.parametrize("present", [[], [image("maybe", 9)]])
def test_an_operation_of_unknown_outcome_may_have_happened_or_not(present: list[dict[str, Any]]) -> None:
    assert judge(good_story().operations, [*GOOD_ROWS, *present]).ok


def test_an_image_being_deleted_with_unknown_outcome_may_be_there_or_not() -> None:
    operations = Story().create("one", 1).add("delete", INFO, uuid="one").operations
    assert judge(operations, []).ok
    assert judge(operations, [image("one", 1)]).ok


def test_concurrent_updates_may_end_in_either_order() -> None:
    story = Story().create("one", 1, at=0.0)
    story.update("one", 3, at=10.0, name="left").update("one", 2, at=10.5, name="right")
    for name in ("left", "right"):
        assert judge(story.operations, [image("one", 1, version=3, name=name)]).ok


def test_images_known_before_are_no_phantoms() -> None:
    assert judge([], [image("base", 1)], known=["base"]).ok
    assert judge([], [image("base", 1)]).phantoms == 1


def lost_write() -> Verdict:
    return judge(good_story().operations, GOOD_ROWS[:1])


def lost_data() -> Verdict:
    return judge(good_story().operations, [image("one", 1, status="queued"), image("two", 2)])


def lost_update() -> Verdict:
    story = Story().create("one", 1).update("one", 2, name="old").update("one", 3, name="new")
    return judge(story.operations, [image("one", 1, version=3, name="old")])


def lost_version() -> Verdict:
    return judge(Story().create("one", 1).update("one", 2, name="a").operations, [image("one", 1, name="a")])


def duplicate_number_in_the_registry() -> Verdict:
    return judge(good_story().operations, [*GOOD_ROWS, image("maybe", 2)])


def duplicate_number_of_an_image_since_deleted() -> Verdict:
    story = Story().create("one", 1).add("delete", uuid="one").create("two", 1)
    return judge(story.operations, [image("two", 1)])


def overlapping_ranges() -> Verdict:
    story = (
        Story().add("allocate", answered={"first": 10, "last": 20}).add("allocate", answered={"first": 20, "last": 30})
    )
    return judge(story.operations, [])


def image_inside_an_allocated_range() -> Verdict:
    story = Story().add("allocate", answered={"first": 10, "last": 20}).create("one", 15)
    return judge(story.operations, [image("one", 15)])


def duplicate_uuid_in_the_registry() -> Verdict:
    return judge(good_story().operations, [*GOOD_ROWS, image("two", 2)])


def uuid_acknowledged_twice() -> Verdict:
    return judge(Story().create("one", 1).create("one", 1, at=2.5).operations, [image("one", 1)])


def phantom_nobody_asked_for() -> Verdict:
    return judge(good_story().operations, [*GOOD_ROWS, image("ghost", 9)])


def phantom_of_a_refused_create() -> Verdict:
    return judge(good_story().operations, [*GOOD_ROWS, image("never", 9)])


def wrong_data_downloaded() -> Verdict:
    story = good_story().add("download", uuid="two", answered={"sha512": OTHER_HASH})
    return judge(story.operations, GOOD_ROWS)


def wrong_hash_in_the_registry() -> Verdict:
    return judge(good_story().operations, [image("one", 1, os_hash_value=OTHER_HASH), image("two", 2)])


def versions_out_of_order() -> Verdict:
    story = Story().create("one", 1).update("one", 5, name="a").update("one", 4, name="b")
    return judge(story.operations, [image("one", 1, version=5, name="b")])


def numbers_of_a_gateway_out_of_order() -> Verdict:
    return judge(Story().create("one", 7).create("two", 6).operations, [image("one", 7), image("two", 6)])


def deleted_image_still_there() -> Verdict:
    return judge(good_story().operations, [*GOOD_ROWS, image("gone", 3)])


def number_changed_after_the_answer() -> Verdict:
    return judge(good_story().operations, [image("one", 8), image("two", 2)])


def zone_lacks_an_image() -> Verdict:
    return judge(good_story().operations, GOOD_ROWS, {"ams": GOOD_ROWS, "fra": GOOD_ROWS[1:]})


def zone_lists_an_image_twice() -> Verdict:
    return judge(good_story().operations, GOOD_ROWS, {"fra": [*GOOD_ROWS, GOOD_ROWS[0]]})


def zone_shows_another_number() -> Verdict:
    listing = [{"id": "one", "os_glance_v1_id": 5}, {"id": "two", "os_glance_v1_id": 2}]
    return judge(good_story().operations, GOOD_ROWS, {"fra": listing})


def zone_lists_a_phantom() -> Verdict:
    return judge(good_story().operations, GOOD_ROWS, {"fra": [*GOOD_ROWS, image("ghost", 9)]})


@pytest.mark.parametrize(
    ("bad", "count"),
    [
        (lost_write, "lost"),
        (lost_data, "lost"),
        (lost_update, "lost"),
        (lost_version, "lost"),
        (duplicate_number_in_the_registry, "duplicate_numbers"),
        (duplicate_number_of_an_image_since_deleted, "duplicate_numbers"),
        (overlapping_ranges, "duplicate_numbers"),
        (image_inside_an_allocated_range, "duplicate_numbers"),
        (duplicate_uuid_in_the_registry, "duplicate_uuids"),
        (uuid_acknowledged_twice, "duplicate_uuids"),
        (phantom_nobody_asked_for, "phantoms"),
        (phantom_of_a_refused_create, "phantoms"),
        (wrong_data_downloaded, "checksums_wrong"),
        (wrong_hash_in_the_registry, "checksums_wrong"),
        (versions_out_of_order, "out_of_order"),
        (numbers_of_a_gateway_out_of_order, "out_of_order"),
        (deleted_image_still_there, "other"),
        (number_changed_after_the_answer, "other"),
        (zone_lacks_an_image, "missing_in_zones"),
        (zone_lists_an_image_twice, "duplicate_uuids"),
        (zone_shows_another_number, "other"),
        (zone_lists_a_phantom, "phantoms"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_bad_history_is_condemned_for_what_is_bad_and_a_sentence_says_so(bad: Any, count: str) -> None:
    verdict = bad()
    assert not verdict.ok
    assert getattr(verdict, count) >= 1
    assert verdict.problems


def test_of_a_catastrophe_all_is_counted_and_a_screenful_is_shown() -> None:
    story = Story()
    for number in range(1, 101):
        story.create(f"image-{number}", number)
    verdict = judge(story.operations, [])
    assert verdict.lost == 100
    assert len(verdict.problems) == config.PROBLEMS_SHOWN_MAX
    assert "and 80 more" in validate.report(verdict)


def test_the_command_line_judges_files_and_its_exit_status_is_the_verdict(tmp_path: Path) -> None:
    log = history.History(tmp_path / "history.jsonl")
    log.ok(log.invoke("client", "create", uuid="one", gateway="ams-1"), number=1)
    log.close()
    (tmp_path / "full.json").write_text(json.dumps([image("one", 1)]))
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "broken.json").write_text("{}")
    run = [str(tmp_path / "history.jsonl"), "--registry"]
    full, empty = str(tmp_path / "full.json"), str(tmp_path / "empty.json")
    assert validate.main([*run, full, "--zone", f"ams={full}"]) == 0
    assert validate.main([*run, empty]) == 1
    assert validate.main([*run, full, "--zone", f"ams={empty}"]) == 1
    assert validate.main([*run, str(tmp_path / "broken.json")]) == 2
