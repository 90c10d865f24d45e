"""A history is what the judge trusts: it must survive its writer and refuse to contradict itself."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from chaos import history
from chaos.history import BadHistory, History


def test_what_was_written_is_read_back_in_order_of_invocation(tmp_path: Path) -> None:
    log = History(tmp_path / "history.jsonl")
    first = log.invoke("ams-1", "create", uuid="one")
    second = log.invoke("ams-2", "create", uuid="two")
    third = log.invoke("ams-3", "create", uuid="three")
    log.ok(second, number=7)
    log.fail(first, code="conflict")
    log.close()
    one, two, three = history.read(log.path)
    assert (one.number, two.number, three.number) == (first, second, third)
    assert (one.outcome, two.outcome, three.outcome) == ("fail", "ok", "info")
    assert two.value("number") == 7
    assert two.value("uuid") == "two"
    assert not one.precedes(two)
    assert three.possible
    assert not three.acknowledged


def test_an_operation_of_unknown_outcome_precedes_nothing(tmp_path: Path) -> None:
    log = History(tmp_path / "history.jsonl")
    log.info(log.invoke("ams-1", "create", uuid="one"))
    log.ok(log.invoke("ams-1", "create", uuid="two"))
    one, two = history.read(log.path)
    assert not one.precedes(two)


def test_a_line_cut_short_by_the_death_of_the_writer_is_passed_over(tmp_path: Path) -> None:
    log = History(tmp_path / "history.jsonl")
    log.ok(log.invoke("ams-1", "create", uuid="one"))
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-10])
    (operation,) = history.read(log.path)
    assert operation.outcome == "info"


def test_many_threads_may_write_one_history(tmp_path: Path) -> None:
    log = History(tmp_path / "history.jsonl")

    def client(name: str) -> None:
        for _ in range(50):
            log.ok(log.invoke(name, "create"))

    threads = [threading.Thread(target=client, args=(f"client-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    operations = history.read(log.path)
    assert len(operations) == 400
    assert all(operation.acknowledged for operation in operations)


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b'["a list"]\n',
        b'{"type": "ok", "operation": 1, "time": 1, "values": {}}\n',
        b'{"type": "maybe", "operation": 1, "time": 1, "values": {}}\n',
        b'{"type": "invoke", "operation": 1, "kind": "create", "time": 1, "values": {}}\n',
    ],
)
def test_a_history_that_makes_no_sense_is_refused_with_its_line(line: bytes) -> None:
    good = b'{"type": "invoke", "operation": 9, "process": "a", "kind": "create", "time": 1, "values": {}}\n'
    with pytest.raises(BadHistory, match="line 2"):
        history.parse([good, line])


def test_an_operation_completes_once(tmp_path: Path) -> None:
    log = History(tmp_path / "history.jsonl")
    operation = log.invoke("ams-1", "create")
    log.ok(operation)
    with pytest.raises(BadHistory):
        log.fail(operation)
