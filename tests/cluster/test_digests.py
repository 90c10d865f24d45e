"""Digests compared between voters: a deviating minority stops, a deviating leader hands over first, and without a
majority of all voters nobody stops. Who is recovering, or answers for another index or term, plays no part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from raftreg.digests import Digests, StateChecks, majority_digest
from raftreg.raft import RaftNode
from raftreg.records import DamagedRecord
from raftreg.snapshot_file import Row, unchecked_rows
from raftreg.state_scrub import Pass
from raftreg.store import StoreError
from raftreg.tables import View
from tests.cluster import harness
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import A_HEARTBEAT_LATER, SMALL_SNAPSHOTS, TIMING, Cluster, led_by_a, write
from tests.cluster.test_random_faults import DiskSchedule

PERIOD_S = 3.0
LIMITS = replace(SMALL_SNAPSHOTS, digest_every_entries=4, digests_kept_max=8, log_keep_entries=1000)
VALUES = b"value:"


def digest(view: View) -> str:
    """Of the values alone, from a scan: a row that is changed on the side shows at once."""
    hashed = blake2b(digest_size=16)
    for key, value in view.scan(VALUES, VALUES + b"\xff"):
        hashed.update(key + b"=" + value + b";")
    return hashed.hexdigest()


def checks(**changes: Any) -> StateChecks:
    made = StateChecks(version=1, digest=digest, begin_pass=Pass, checked_rows=unchecked_rows)
    return replace(made, **changes)


@pytest.fixture(autouse=True)
def with_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    compared_often(monkeypatch)


def compared_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's voters get the digest above, and compare every few seconds of their clock."""
    genuine = RaftNode.__init__

    def init(self: RaftNode, *arguments: Any, **options: Any) -> None:
        genuine(self, *arguments, **{"checks": checks(), **options})

    monkeypatch.setattr(RaftNode, "__init__", init)
    monkeypatch.setattr(harness, "TIMING", replace(TIMING, digest_period_s=PERIOD_S))


def with_values(make_cluster: MakeCluster, names: str = "ABC", count: int = 6) -> Cluster:
    """A leads; all have applied the same values and none has compared them yet."""
    cluster = led_by_a(make_cluster, names, limits=LIMITS)
    acknowledged = write(cluster, "A", [f"value{number}" for number in range(count)])
    cluster.pump(rounds=count, step=0.01)
    assert len(acknowledged) == count
    assert {cluster.nodes[name].digests.compared_index for name in names} == {0}
    return cluster


def rot(cluster: Cluster, *names: str, value: bytes = b"rotten") -> None:
    """One row of these voters changes without apply knowing of it."""
    for name in names:
        node = cluster.nodes[name]
        key, _ = next(node.store.view().scan(VALUES, VALUES + b"\xff"))
        node.store.view().put(bytes(key), value)
        node.digests._noted.clear()


def a_period(cluster: Cluster, among: str | None = None) -> None:
    """The clock passes one comparison and whatever follows from it."""
    rounds = int(PERIOD_S / A_HEARTBEAT_LATER) + 6
    cluster.pump(among, rounds=rounds, step=A_HEARTBEAT_LATER)


def restart_is_refused(cluster: Cluster, name: str) -> bool:
    try:
        cluster.start(name)
    except StoreError as refusal:
        return "raftreg rejoin" in str(refusal) and f"peer {name}" in str(refusal)
    return False


# -- agreement ----------------------------------------------------------------------------------------------------


def test_all_voters_learn_at_which_index_they_agree_and_nobody_is_alarmed(make_cluster: MakeCluster) -> None:
    cluster = with_values(make_cluster)
    a_period(cluster)
    indexes = {node.digests.compared_index for node in cluster.nodes.values()}
    assert indexes == {8}, "the last multiple of four that all have applied"
    for node in cluster.nodes.values():
        assert (node.digests.mismatches, node.damage.errors(), node.damage.found) == (0, [], None)
        age = node.digests.compared_age_s()
        assert age is not None
        assert age <= PERIOD_S + 1


def test_digests_are_compared_at_rest_too_and_while_entries_pass(make_cluster: MakeCluster) -> None:
    """Nothing but a few entries since the last multiple: what is applied is compared then."""
    cluster = with_values(make_cluster, count=6)
    a_period(cluster)
    a_period(cluster)
    assert {node.digests.compared_index for node in cluster.nodes.values()} == {cluster.nodes["A"].applied}
    for number in range(60):
        cluster.propose("A", f"more{number}", [])
        cluster.pump(rounds=1, step=A_HEARTBEAT_LATER)
    for node in cluster.nodes.values():
        assert node.digests.compared_index >= 40
        assert node.digests.mismatches == 0


def test_a_voter_that_is_behind_answers_when_it_gets_there(make_cluster: MakeCluster) -> None:
    """C is asked for an index that it has not applied yet: it notes it on the way."""
    cluster = with_values(make_cluster)
    for number in range(5):
        cluster.propose("A", f"more{number}", [])
    cluster.turn("A")
    for _ in range(4):
        cluster.deliver("A", "B")
        cluster.deliver("B", "A")
    behind = cluster.nodes["C"].applied
    assert cluster.nodes["A"].applied > behind
    wanted = cluster.nodes["A"].applied - 1
    request = {"type": "digest_wanted", "term": cluster.nodes["C"].term, "index": wanted, "version": 1}
    cluster.nodes["C"].receive("A", request)
    cluster.turn("C")
    assert [m for m in cluster.in_flight("C", "A") if m["type"] == "digest"] == []
    cluster.deliver("A", "C")
    (answer,) = [m for m in cluster.in_flight("C", "A") if m["type"] == "digest"]
    assert answer["index"] == wanted
    assert cluster.nodes["C"].applied > wanted, "the answer is of that index, not of what is applied"


def test_a_voter_keeps_a_bounded_number_of_digests_at_multiples(make_cluster: MakeCluster) -> None:
    cluster = with_values(make_cluster, count=60)
    for node in cluster.nodes.values():
        noted = list(node.digests.noted())
        assert len(noted) == LIMITS.digests_kept_max
        assert all(index % LIMITS.digest_every_entries == 0 for index in noted)
        assert node.digests.note_at == node.applied // 4 * 4 + 4


@pytest.mark.parametrize(("names", "seed"), [("ABC", 1), ("ABC", 2), ("ABC", 3), ("ABCDE", 4)])
def test_no_schedule_of_faults_makes_sound_voters_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, seed: int
) -> None:
    """Crashes, replaced disks, snapshots, elections: what is compared at the same index is equal, each time."""
    monkeypatch.setattr(harness, "TIMING", replace(TIMING, digest_period_s=0.2))
    judge, judged = Digests._judge, Counter[str]()

    def watched(self: Digests, index: int, digests: dict[str, str]) -> None:
        judge(self, index, digests)
        if self.mismatches:
            judged["differed"] += 1
        elif index in self.noted():
            judged["agreed"] += 1

    monkeypatch.setattr(Digests, "_judge", watched)
    schedule = DiskSchedule(tmp_path, names, seed)
    try:
        schedule.run(1500)
    finally:
        schedule.cluster.close()
    assert judged["differed"] == 0
    assert judged["agreed"] > 3


# -- a minority ---------------------------------------------------------------------------------------------------


def test_a_deviating_follower_stops_and_is_refused_at_its_restart_while_the_others_go_on(
    make_cluster: MakeCluster,
) -> None:
    cluster = with_values(make_cluster)
    rot(cluster, "B")
    a_period(cluster)
    a_period(cluster)
    assert "raftreg rejoin" in cluster.dead["B"]
    assert "differ" not in "".join(cluster.nodes["C"].damage.errors())
    assert set(cluster.nodes) == {"A", "C"}
    assert cluster.nodes["A"].is_leader
    assert cluster.nodes["A"].digests.mismatches > 0
    assert restart_is_refused(cluster, "B")
    acknowledged = write(cluster, "A", ["after"])
    cluster.settle()
    assert acknowledged == ["after"]


def test_a_stopped_voter_comes_back_with_a_new_store_and_agrees(make_cluster: MakeCluster) -> None:
    cluster = with_values(make_cluster)
    rot(cluster, "B")
    a_period(cluster)
    a_period(cluster)
    cluster.dead.clear()
    cluster.wipe("B")
    cluster.start("B")
    cluster.heal("B")
    cluster.settle()
    a_period(cluster)
    a_period(cluster)
    assert cluster.nodes["B"].role == "follower"
    assert cluster.values("B") == cluster.values("A")
    assert cluster.nodes["B"].digests.compared_index == cluster.nodes["A"].digests.compared_index > 0
    assert cluster.dead == {}


def test_without_comparing_a_deviating_follower_serves_its_damage_for_ever(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule switched off: the schedule of the tests above shows the fault."""
    monkeypatch.setattr(Digests, "tick", lambda _self: None)
    cluster = with_values(make_cluster)
    rot(cluster, "B")
    for _ in range(4):
        a_period(cluster)
    assert cluster.dead == {}
    assert cluster.values("B") != cluster.values("A")


def test_a_deviating_leader_hands_over_and_stops_then(make_cluster: MakeCluster) -> None:
    """The next leader takes over by request, in the next term and without an election timeout."""
    cluster = with_values(make_cluster)
    rot(cluster, "A")
    term = cluster.nodes["A"].term
    for _ in range(60):
        cluster.pump(rounds=1, step=A_HEARTBEAT_LATER)
        if "A" in cluster.dead:
            break
    assert "a majority of the voters" in cluster.dead["A"]
    cluster.pump(rounds=2)
    (leader,) = [name for name, node in cluster.nodes.items() if node.is_leader]
    assert cluster.nodes[leader].term == term + 1
    assert restart_is_refused(cluster, "A")
    acknowledged = write(cluster, leader, ["after"])
    cluster.settle()
    assert acknowledged == ["after"]
    assert cluster.dead.keys() == {"A"}


def test_a_leader_that_is_about_to_stop_takes_and_confirms_nothing_more(make_cluster: MakeCluster) -> None:
    cluster = with_values(make_cluster)
    cluster.nodes["A"].damage.found_here("a test says so")
    cluster.turn("A")
    assert cluster.nodes["A"].damage.stopping
    acknowledged = write(cluster, "A", ["never"])
    answers = harness.ask(cluster, "A")
    cluster.turn("A")
    assert answers == [None]
    assert cluster.nodes["A"].journal.last_index == cluster.nodes["A"].applied
    assert acknowledged == []


def test_a_leader_that_cannot_hand_over_stops_all_the_same(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = with_values(make_cluster)
    monkeypatch.setattr(RaftNode, "transfer_leadership", lambda _self: False)
    cluster.nodes["A"].damage.found_here("a test says so")
    cluster.turn("A")
    cluster.turn("A", after=TIMING.transfer_max_s / 2)
    assert "A" not in cluster.dead
    cluster.turn("A", after=TIMING.transfer_max_s)
    assert "A" in cluster.dead


def test_two_deviating_voters_of_five_stop(make_cluster: MakeCluster) -> None:
    cluster = with_values(make_cluster, "ABCDE")
    rot(cluster, "B", value=b"rotten in one way")
    rot(cluster, "E", value=b"rotten in another")
    a_period(cluster)
    a_period(cluster)
    assert cluster.dead.keys() == {"B", "E"}
    acknowledged = write(cluster, "A", ["after"])
    cluster.settle()
    assert acknowledged == ["after"]


# -- no majority --------------------------------------------------------------------------------------------------


def test_one_against_one_is_an_alarm_at_both_and_nobody_stops(make_cluster: MakeCluster) -> None:
    """C is away: which of the two is right cannot be known."""
    cluster = with_values(make_cluster)
    cluster.crash("C")
    rot(cluster, "B")
    for _ in range(3):
        a_period(cluster)
    assert cluster.dead == {}
    for name in "AB":
        (alarm,) = cluster.nodes[name].damage.errors()
        assert "no majority" in alarm
        assert "A=" in alarm
        assert "B=" in alarm
        assert cluster.nodes[name].damage.found is None
        assert cluster.nodes[name].digests.mismatches > 0


def test_when_the_third_is_back_it_decides_and_the_alarm_is_over(make_cluster: MakeCluster) -> None:
    cluster = with_values(make_cluster)
    cluster.crash("C")
    rot(cluster, "B")
    for _ in range(2):
        a_period(cluster)
    cluster.start("C")
    cluster.heal("C")
    cluster.settle()
    for _ in range(2):
        a_period(cluster)
    assert cluster.dead.keys() == {"B"}
    assert cluster.nodes["C"].damage.errors() == []
    (reported,) = cluster.nodes["A"].damage.errors()
    assert reported.startswith("peer B: its state at index"), "what the leader tells as long as B is away"


def test_three_different_digests_are_an_alarm_and_nobody_stops(make_cluster: MakeCluster) -> None:
    cluster = with_values(make_cluster)
    rot(cluster, "B", value=b"rotten in one way")
    rot(cluster, "C", value=b"rotten in another")
    for _ in range(3):
        a_period(cluster)
    assert cluster.dead == {}
    for node in cluster.nodes.values():
        assert any("no majority" in error for error in node.damage.errors())


def test_two_of_three_that_agree_with_each_other_only_count_as_the_majority_that_they_are(
    make_cluster: MakeCluster,
) -> None:
    """Digests know no truth: a deviating leader stops even if it alone were right."""
    cluster = with_values(make_cluster)
    rot(cluster, "B", "C")
    a_period(cluster)
    a_period(cluster)
    assert cluster.dead.keys() == {"A"}


@pytest.mark.parametrize("rule", [True, False], ids=["rule-on", "rule-off"])
def test_a_majority_is_one_of_all_voters_not_of_those_heard(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """A and C against B, while D and E count digests in another way: two of five are none. B must not stop for it."""
    if not rule:
        monkeypatch.setattr("raftreg.digests.majority_digest", lambda said, _all: majority_digest(said, len(said)))
    assert majority_digest({"A": "x", "C": "x", "B": "y"}, 5) is None
    assert majority_digest({"A": "x", "C": "x", "B": "y"}, 3) == "x"
    assert majority_digest({"A": "x", "B": "y"}, 2) is None
    assert majority_digest({}, 1) is None
    cluster = with_values(make_cluster, "ABCDE")
    rot(cluster, "B")
    for name in "DE":
        cluster.nodes[name].digests._checks = checks(version=2)
    for _ in range(3):
        a_period(cluster)
    assert list(cluster.dead) == ([] if rule else ["B"]), "digests of another version do not count either"
    assert any("no majority" in error for error in cluster.nodes["A"].damage.errors()) is rule


# -- what does not count ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [True, False], ids=["rule-on", "rule-off"])
def test_a_recovering_voter_makes_no_majority(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """B and the recovering C agree against A, which leads: A is not condemned on C's word."""
    if not rule:
        on_digest = Digests.on_digest
        monkeypatch.setattr(Digests, "on_digest", lambda *arguments, counts: on_digest(*arguments, counts=True))
    cluster = with_values(make_cluster)
    cluster.nodes["C"].begin_recovery("a test says so")
    cluster.nodes["A"].recovery.goals["C"] = (1 << 40, 1)  # it does not catch up within this test
    cluster.settle()
    assert cluster.nodes["C"].role == "recovering"
    rot(cluster, "B", "C")
    for _ in range(3):
        a_period(cluster)
    assert cluster.dead == {}, "nor would it stop: with C recovering there is no quorum without it"
    assert (cluster.nodes["A"].damage.found is None) is rule
    assert any("no majority" in error for error in cluster.nodes["A"].damage.errors()) is rule


def test_a_recovering_voter_that_differs_from_the_majority_is_damaged_too(make_cluster: MakeCluster) -> None:
    cluster = with_values(make_cluster)
    cluster.nodes["C"].begin_recovery("a test says so")
    cluster.nodes["A"].recovery.goals["C"] = (1 << 40, 1)
    cluster.settle()
    rot(cluster, "C")
    for _ in range(3):
        a_period(cluster)
    assert cluster.dead.keys() == {"C"}


def test_answers_and_verdicts_of_another_term_index_or_version_are_ignored(make_cluster: MakeCluster) -> None:
    cluster = with_values(make_cluster)
    a_period(cluster)
    leader, follower = cluster.nodes["A"], cluster.nodes["B"]
    index, term = follower.digests.compared_index, follower.term
    wrong = {"A": "0" * 32, "C": "0" * 32}
    verdict = {"type": "digest_verdict", "term": term, "index": index, "version": 1, "digests": wrong}
    for changed in ({"term": term - 1}, {"term": term + 1}, {"version": 2}, {"index": index + 1000}):
        follower.receive("A", {**verdict, **changed})
    follower.receive("C", verdict)
    follower.receive("A", {**verdict, "digests": {"A": "0" * 32, "stranger": "0" * 32}})
    follower.receive("A", {**verdict, "digests": {"A": 1}})
    for stop in ({"term": term}, {"term": term - 1}):
        follower.receive("C", {"type": "damage_stop", **stop})
    cluster.turn("B")
    assert (follower.damage.found, follower.digests.mismatches) == (None, 0)
    answer = {"type": "digest", "term": term, "index": index, "version": 1, "digest": "0" * 32}
    for changed in ({"term": term - 1}, {"version": 2}, {"index": index - 1}):
        leader.receive("B", {**answer, **changed})
    cluster.turn("A")
    assert leader.digests.mismatches == 0
    follower.receive("A", verdict)
    cluster.turn("B")
    assert follower.damage.found is not None, "the one that all of the above were variants of"


def test_a_snapshot_replaces_what_was_noted_of_the_state_before(make_cluster: MakeCluster) -> None:
    cluster = led_by_a(make_cluster, limits=replace(LIMITS, log_keep_entries=1))
    write(cluster, "A", [f"value{number}" for number in range(8)])
    cluster.pump(rounds=8, step=0.01)
    rot(cluster, "C")
    cluster.nodes["C"].digests.want(cluster.nodes["C"].applied)
    old = cluster.nodes["C"].applied
    assert old in cluster.nodes["C"].digests.noted()
    cluster.isolate("C")
    write(cluster, "A", [f"later{number}" for number in range(30)])
    cluster.pump("AB", rounds=8, step=A_HEARTBEAT_LATER)
    cluster.heal("C")
    cluster.settle()
    assert cluster.nodes["C"].snapshots.installed == 1
    assert old not in cluster.nodes["C"].digests.noted()
    for _ in range(3):
        a_period(cluster)
    assert cluster.dead == {}
    assert cluster.values("C") == cluster.values("A")
    assert cluster.nodes["C"].digests.compared_index > old


def test_a_leader_whose_snapshot_contradicts_its_digest_sends_none_and_stops(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C needs a snapshot and A's rows are rotten: C gets it from the next leader."""

    def refuse(view: View, pieces: Iterator[list[Row]]) -> Iterator[list[Row]]:
        for piece in pieces:
            if any(value == b"rotten" for _, value in piece):
                raise DamagedRecord("its rows are rotten")
            yield piece

    cluster = led_by_a(make_cluster, "ABCDE", limits=replace(LIMITS, log_keep_entries=1))
    for node in cluster.nodes.values():
        node.snapshots.spool._checked_rows = refuse
    cluster.isolate("C")
    write(cluster, "A", [f"value{number}" for number in range(30)])
    cluster.pump("ABDE", rounds=8, step=A_HEARTBEAT_LATER)
    monkeypatch.setattr(Digests, "tick", lambda _self: None)
    rot(cluster, "A")
    cluster.heal("C")
    cluster.pump(rounds=60, step=A_HEARTBEAT_LATER)
    assert "a copy of it for another peer failed" in cluster.dead["A"]
    assert cluster.dead.keys() == {"A"}
    cluster.settle()
    assert b"rotten".decode() not in cluster.values("C")
    assert len(cluster.values("C")) == 30


def test_the_mark_of_a_damaged_store_survives_a_crash_before_the_process_ends(make_cluster: MakeCluster) -> None:
    cluster = with_values(make_cluster)
    cluster.nodes["B"].damage.found_here("a row has rotted")
    cluster.turn("B")
    cluster.deliver("B", "A")
    cluster.deliver("A", "B")
    assert cluster.nodes["B"].damage.stopping
    cluster.crash("B")
    assert cluster.dead == {}
    assert restart_is_refused(cluster, "B")
