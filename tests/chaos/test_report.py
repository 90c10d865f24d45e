"""The report is one page that needs nothing else, says the verdict first, and stays small however long the run was."""

from __future__ import annotations

import io
import random
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console

from chaos import config, report, report_figures
from chaos.checker import check
from chaos.history import FAIL, INFO, OK
from chaos.judge import Evidence, judge
from chaos.models import Register
from chaos.report import Facts, page
from chaos.verdict import Check
from tests.chaos.stories import Story

FACTS = Facts(7, "make chaos TIME=60 SEED=7", "abc1234", "2026-01-01T00:00:00Z", {"proxy": "toxiproxy <2.9>"})
XHTML = "{http://www.w3.org/1999/xhtml}"


def long_story(count: int, clients: int = 12) -> Story:
    chance, story = random.Random(5), Story()
    for number in range(count):
        story.add(
            "create", chance.choices([OK, FAIL, INFO], [90, 5, 5])[0], at=number / 50, took=chance.random() / 5,
            by=f"client-{number % clients}", uuid=f"image-{number}", answered={"number": number + 1},
        )  # fmt: skip
    story.add("fault", by="faults", at=1.0, took=1.5, name="kill", detail="b & c", down=["b"])
    return story


def parsed(text: str) -> ElementTree.Element:
    """The page as a program reads it. Raises where it is not well-formed."""
    return ElementTree.fromstring(text)


def test_the_page_is_well_formed_needs_nothing_from_elsewhere_and_begins_with_the_verdict() -> None:
    story = long_story(500)
    made = page([Check("a", "P1", verified=3)], story.operations, FACTS)
    body = parsed(made).find(f"{XHTML}body")
    assert body is not None
    assert body[0].tag == f"{XHTML}h1"
    assert body[0].text == "No promise was broken."
    assert re.findall(r'(?:href|src|url)[=(]"?([^")> ]+)', made) == []
    assert "@import" not in made
    assert "<script" not in made


def test_the_page_says_what_repeats_the_run_and_escapes_what_it_quotes() -> None:
    made = page([Check("a < b", "P1", verified=1)], long_story(50).operations, FACTS)
    for told in ("make chaos TIME=60 SEED=7", "abc1234", "toxiproxy &lt;2.9&gt;", "a &lt; b", "b &amp; c", "kill"):
        assert told in made


def test_a_violation_is_shown_with_the_operations_around_it() -> None:
    story = Story().write("a", 1, uuid="hot").write("b", 2, uuid="hot").read(1, "a", uuid="hot", by="reader-7")
    checks = judge(story.operations, Evidence(known=["hot"]))
    made = page(checks, story.operations, FACTS)
    assert made.index("Promises were broken.") < made.index("hot: read (operation 3 of reader-7)")
    rows = [row for row in parsed(made).iter(f"{XHTML}tr") if "3 read" in "".join(row.itertext())]
    assert len(rows) == 1
    assert "reader-7" in "".join(rows[0].itertext())


def test_a_check_that_gave_up_is_no_pass() -> None:
    undecided = Check("a", "P2", verified=10, unknown=["given up after 5 configurations"])
    made = page([undecided, Check("b", "P1", verified=1)], long_story(10).operations, FACTS)
    assert "Not decided" in made
    assert "given up after 5" in made


@pytest.mark.parametrize("result", ["pass", "FAIL"])
def test_the_terminal_shows_the_same_verdict(result: str) -> None:
    check_of = Check("data are what was stored", "data", verified=4, breaches=int(result == "FAIL"))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.table([check_of]))
    said = console.export_text()
    assert result in said
    assert "data are what was stored" in said


def test_the_page_stays_small_however_many_operations_clients_and_breaches_there_are() -> None:
    story = long_story(20_000, clients=300)
    bad = Check("everything", "P1")
    for number in range(1, 5000):
        bad.breach(f"operation {number} is wrong", *range(number, number + 200))
    made = page([bad], story.operations, FACTS)
    parsed(made)
    assert len(made) < 2_000_000
    assert "and 4994 more" in made


def test_pauses_and_recovery_of_a_fault_are_those_of_the_history() -> None:
    story = Story()
    for at in (0.0, 1.0, 2.0, 9.0, 10.0):
        story.add("create", at=at, took=0.5, uuid=str(at), gateway="ams-1")
    story.add("create", FAIL, at=5.0, took=0.5, uuid="x", gateway="ams-1")
    story.add("fault", by="faults", at=3.0, took=4.0, name="pause")
    (fault,) = report_figures.faults(story.operations)
    assert fault.pauses == {"ams-1": 7.0}
    assert fault.recovery == 2.5
    assert fault.counts == {OK: 0, FAIL: 1, INFO: 0}


def test_beyond_the_clients_that_fit_the_rest_is_one_row() -> None:
    story = long_story(1000, clients=config.REPORT_CLIENTS_MAX + 5)
    rows = report_figures.by_client(story.operations, report_figures.span(story.operations))
    assert len(rows) == config.REPORT_CLIENTS_MAX + 1
    assert "(others)" in rows


def test_a_history_without_any_request_has_a_report_too() -> None:
    found = check([], Register(), lambda operation: None)
    assert found.checked == 0
    parsed(page(judge([], Evidence()), [], FACTS))
