"""The judge of a run must condemn each thing that can be wrong, for what it is, and only that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chaos import judge as judging
from chaos.history import FAIL, INFO, History
from chaos.judge import Evidence, judge
from chaos.verdict import NOTHING, PASS, Check, overall
from tests.chaos.stories import Story

HASH, OTHER_HASH = "a" * 128, "b" * 128
Run = tuple[Story, Evidence]


def change(revision: int, uuid: str, version: int = 1, owner: str = "demo") -> dict[str, Any]:
    return {"revision": revision, "uuid": uuid, "version": version, "owner": owner}


def at_gateway(story: Story, kind: str, *args: Any, zone: str = "ams", **more: Any) -> Story:
    return story.add(kind, *args, zone=zone, gateway=f"{zone}-1", **more)


def good() -> Run:
    """Registry and zone, a fault, a retry, a consumer that goes on: all as it should be."""
    story = Story()
    story.add("create", uuid="reg", key="k1", answered={"number": 1, "version": 1, "committed": "1.1"})
    story.add("create", uuid="reg", key="k1", answered={"number": 1, "version": 1})
    story.add("update", uuid="reg", set={"name": "b"}, answered={"version": 2, "committed": "1.2"})
    story.add("get", uuid="reg", answered={"found": True, "version": 2, "attributes": {"name": "b"}})
    story.add("allocate", answered={"first": 10, "last": 19}).add("allocate", answered={"first": 20, "last": 20})
    at_gateway(story, "create", uuid="img", answered={"number": 5, "revision": "1.2", "staleness_s": 0.1})
    at_gateway(story, "upload", uuid="img", sha512=HASH)
    story.add("fault", by="faults", cut=["ams"], down=[], took=20.0)
    at_gateway(story, "update", uuid="img", set={"name": "c"}, answered={"revision": "1.2", "staleness_s": 9.0})
    at_gateway(story, "get", uuid="img", answered={"found": True, "attributes": {"name": "c"}, "revision": "1.2"})
    at_gateway(story, "download", uuid="img", answered={"sha512": HASH})
    story.add("write", uuid="hot", value="x", answered={"version": 1}).read(1, "x", uuid="hot")
    at_gateway(story, "share", uuid="img", tenant="spy")
    at_gateway(story, "spy", uuid="img", tenant="spy", answered={"found": True})
    story.add(
        "feed", consumer="c", after="1.0", answered={"until": "1.2", "changes": [change(1, "reg"), change(2, "reg", 2)]}
    )
    story.add(
        "feed", consumer="c", after="1.2", answered={"until": "1.4", "changes": [change(3, "img"), change(4, "hot")]}
    )
    return story, evidence()


def evidence(**changed: Any) -> Evidence:
    row = {"uuid": "img", "number": 5, "version": 3, "status": "active", "os_hash_value": HASH, "name": "c"}
    rows = [row, {"uuid": "reg", "number": 1, "version": 2, "name": "b"}, {"uuid": "hot", "number": 7, "version": 1}]
    found = Evidence(
        registry=[dict(one) for one in rows],
        zones={"ams": [dict(row)]},
        known=["hot"],
        changes=[change(1, "reg"), change(2, "reg", 2), change(3, "img"), change(4, "hot")],
        digests={"a": {"9": "d"}, "b": {"9": "d"}},
        processes=["a", "b"],
    )
    found.zones["ams"] = list(found.registry)
    return Evidence(**{**vars(found), **changed})


def failing(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks if check.result != PASS and check.result != NOTHING}


def test_a_good_run_passes_every_check_and_every_check_had_something_to_verify() -> None:
    checks = judge(*(part if isinstance(part, Evidence) else part.operations for part in good()))  # type: ignore[arg-type]
    assert failing(checks) == {}
    assert [check.name for check in checks if check.result == NOTHING] == []
    assert overall(checks) == PASS


def with_story(add: Callable[[Story], object]) -> Callable[[], Run]:
    def made() -> Run:
        story, found = good()
        add(story)
        return story, found

    return made


def with_evidence(**changed: Any) -> Callable[[], Run]:
    return lambda: (good()[0], evidence(**changed))


def changed_feed(**answered: Any) -> Callable[[], Run]:
    return with_story(lambda story: story.add("feed", consumer="d", after="1.0", answered={"until": "1.4", **answered}))


ALL = [change(1, "reg"), change(2, "reg", 2), change(3, "img"), change(4, "hot")]
OWN, BACK, CUT, STALE, FEED, PRIVATE = (
    "own writes are seen at once",
    "reads of a gateway never go back",
    "a zone that is cut off answers",
    "nothing is called fresher than it is",
    "changes come in order, all and once",
    "other tenants see what is shared, and no more",
)

BAD: dict[str, tuple[str, Callable[[], Run]]] = {
    "a stale read of a register": (
        "registers are linearizable",
        with_story(lambda s: s.add("write", uuid="hot", value="y", answered={"version": 2}).read(1, "x", uuid="hot")),
    ),
    "a lost update at the registry": (
        "images at the registry are linearizable",
        with_story(lambda s: s.add("update", uuid="reg", set={"name": "z"}, base=2, answered={"version": 3}).add(
            "update", uuid="reg", set={"name": "y"}, base=2, answered={"version": 3})),
    ),
    "IDs allocated twice": (
        "IDs are allocated in order",
        with_story(lambda s: s.add("allocate", answered={"first": 15, "last": 30})),
    ),
    "a vanished write": ("no acknowledged write is lost", with_evidence(registry=evidence().registry[1:])),
    "a phantom": (
        "nothing is there that nobody asked for",
        with_evidence(registry=[*evidence().registry, {"uuid": "ghost", "number": 70}]),
    ),
    "a number given twice": (
        "image numbers are unique",
        with_evidence(registry=[*evidence().registry[:2], {"uuid": "hot", "number": 5, "version": 1}]),
    ),
    "a retry that applied again": (
        "retries get the first answer",
        with_story(lambda s: s.add("create", uuid="reg", key="k1", answered={"number": 2, "version": 1})),
    ),
    "a write applied twice": (
        "writes apply exactly once",
        with_evidence(changes=[*ALL, change(5, "reg", 3)]),
    ),
    "a write that never applied": ("writes apply exactly once", with_evidence(changes=[ALL[0], *ALL[2:]])),
    "an own create unseen": (
        OWN, with_story(lambda s: at_gateway(s, "get", uuid="img", answered={"found": False})),
    ),
    "an own update unseen": (
        OWN,
        with_story(lambda s: at_gateway(s, "get", uuid="img", answered={"found": True, "attributes": {"name": "a"}})),
    ),
    "an own delete unseen": (
        OWN,
        with_story(lambda s: at_gateway(at_gateway(s, "delete", uuid="img"), "get", uuid="img",
                                        answered={"found": True})),
    ),
    "a gateway that goes back": (BACK, with_story(lambda s: at_gateway(s, "list", answered={"revision": "1.1"}))),
    "an echoed revision ignored": (
        BACK, with_story(lambda s: at_gateway(s, "list", zone="fra", after="1.2", answered={"revision": "1.1"})),
    ),
    "a refusal while cut off": (
        CUT, with_story(lambda s: at_gateway(s, "list", FAIL, at=20.0, answered={"code": 503})),
    ),
    "no answer while cut off": (
        CUT, with_story(lambda s: at_gateway(s, "list", INFO, at=20.0, answered={"gave_up": 30.0})),
    ),
    "a slow answer while cut off": (CUT, with_story(lambda s: at_gateway(s, "list", at=20.0, took=9.0))),
    "a staleness that is a lie": (
        STALE, with_story(lambda s: s.add("list", at=50.0, answered={"revision": "1.1", "staleness_s": 40.0})),
    ),
    "a feed out of order": (FEED, changed_feed(changes=[ALL[1], ALL[0], ALL[2], ALL[3]])),
    "a feed that skips": (FEED, changed_feed(changes=[ALL[0], ALL[2], ALL[3]])),
    "a feed that repeats": (FEED, changed_feed(changes=[ALL[0], ALL[0], *ALL[1:]])),
    "a feed with another content": (FEED, changed_feed(changes=[change(1, "reg", 9), *ALL[1:]])),
    "a feed with what nobody wrote": (FEED, changed_feed(changes=[*ALL[:3], change(4, "hot", 1), change(5, "ghost")])),
    "a feed that does not go on where it was": (
        FEED,
        with_story(lambda s: s.add("feed", consumer="c", after="1.3",
                                   answered={"until": "1.4", "changes": [ALL[3]]})),
    ),
    "a filter that lets others' images through": (
        FEED,
        with_story(lambda s: s.add("feed", consumer="e", after="1.0", wanted="other",
                                   answered={"until": "1.4", "changes": [ALL[0]]})),
    ),
    "digests that differ": (
        "all copies of the state are equal", with_evidence(digests={"a": {"9": "d"}, "b": {"9": "e"}}),
    ),
    "a peer without a digest": ("all copies of the state are equal", with_evidence(digests={"a": {"9": "d"}})),
    "a tenant that sees what is not shared": (
        PRIVATE, with_story(lambda s: at_gateway(s, "spy", uuid="img", tenant="third", answered={"found": True})),
    ),
    "a tenant that sees what is not shared any more": (
        PRIVATE,
        with_story(lambda s: at_gateway(at_gateway(s, "unshare", uuid="img", tenant="spy"), "spy", uuid="img",
                                        tenant="spy", answered={"found": True})),
    ),
    "a tenant that does not see what is shared": (
        PRIVATE, with_story(lambda s: at_gateway(s, "spy", uuid="img", tenant="spy", answered={"found": False})),
    ),
    "other data downloaded": (
        "data are what was stored",
        with_story(lambda s: at_gateway(s, "download", uuid="img", answered={"sha512": OTHER_HASH})),
    ),
    "a zone that lacks an image": (
        "zones list what was acknowledged", with_evidence(zones={"ams": evidence().registry[1:]}),
    ),
    "a deleted image that is there": (
        "what was deleted or told stays so", with_story(lambda s: at_gateway(s, "delete", uuid="img", zone="fra")),
    ),
    "a process that did not come back": (
        "everything came back after healing", with_evidence(troubles=["b is not ready after 60 s"]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_each_known_bad_run_is_condemned_for_what_is_bad(what: str) -> None:
    name, made = BAD[what]
    story, found = made()
    checks = judge(story.operations, found)
    assert name in failing(checks), failing(checks)
    told = failing(checks)[name]
    assert told.shown or told.unknown


@pytest.mark.parametrize("change_of", [FAIL, INFO])
def test_what_a_gateway_parked_is_neither_lost_nor_a_phantom(change_of: str) -> None:
    story, found = good()
    at_gateway(story, "create", uuid="taken", at=60.0, answered={"number": 8})
    at_gateway(story, "update", change_of, uuid="taken", at=62.0, set={"name": "x"})
    found.zones["ams"] = [*found.zones["ams"], {"uuid": "taken", "number": 8}]
    assert "no acknowledged write is lost" in failing(judge(story.operations, found))
    found.parked = ["taken"]
    assert failing(judge(story.operations, found)) == {}


def test_an_own_write_that_was_parked_may_be_unseen_but_its_image_may_not() -> None:
    story, found = good()
    at_gateway(story, "get", uuid="img", answered={"found": True, "attributes": {"name": "older"}})
    found.parked = ["img"]
    assert failing(judge(story.operations, found)) == {}
    at_gateway(story, "get", uuid="img", answered={"found": False})
    assert OWN in failing(judge(story.operations, found))


def test_a_request_to_a_gateway_that_was_killed_while_it_was_cut_off_proves_nothing() -> None:
    story, found = good()
    story.add("fault", by="faults", at=19.0, took=3.0, down=["ams-1"])
    at_gateway(story, "list", INFO, at=20.0, answered={"gave_up": 25.0})
    assert failing(judge(story.operations, found)) == {}


def test_a_claim_of_a_state_older_than_the_write_is_true() -> None:
    story, found = good()
    story.add("list", at=50.0, answered={"revision": "1.1", "staleness_s": 47.0})
    assert failing(judge(story.operations, found)) == {}


def test_nothing_to_check_is_not_a_pass() -> None:
    checks = judge([], Evidence())
    assert {check.result for check in checks if check.name.startswith("registers")} == {NOTHING}
    assert overall([check for check in checks if check.name.startswith("registers")]) == NOTHING


def test_a_run_is_judged_again_from_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = History(tmp_path / judging.HISTORY_FILE)
    log.ok(log.invoke("client", "create", uuid="one"), number=1, version=1)
    log.close()
    Evidence(registry=[{"uuid": "one", "number": 1, "version": 1}]).save(tmp_path)
    assert judging.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "verdict: pass"
    Evidence().save(tmp_path)
    assert judging.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "verdict: FAIL"
    assert "image one was acknowledged" in said
    (tmp_path / judging.EVIDENCE_FILE).write_text("{")
    assert judging.main([str(tmp_path)]) == 2
