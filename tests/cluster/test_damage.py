"""A damaged voter stops only while the others can spare it: the last good quorum is never taken away."""

from __future__ import annotations

import pytest

from raftreg.damage import Damage
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import A_HEARTBEAT_LATER, write
from tests.cluster.test_digests import a_period, compared_often, rot, with_values


@pytest.fixture(autouse=True)
def with_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    compared_often(monkeypatch)


def test_a_deviating_voter_goes_on_while_the_majority_that_outvoted_it_is_not_complete(
    make_cluster: MakeCluster,
) -> None:
    """C goes away right after its answer: B alone keeps A able to commit, so B must not stop before C is back."""
    cluster = with_values(make_cluster)
    rot(cluster, "B")
    for _ in range(60):
        cluster.turn("A", after=A_HEARTBEAT_LATER)
        if any(m["type"] == "digest_wanted" for m in cluster.in_flight("A", "B")):
            break
        cluster.pump(rounds=1)
    cluster.deliver("A", "C")
    cluster.deliver("A", "B")
    cluster.deliver("C", "A")
    cluster.crash("C")
    for _ in range(2):
        a_period(cluster)
    assert cluster.dead == {}
    assert cluster.nodes["B"].damage.found is not None
    assert "when the others can spare it" in cluster.nodes["B"].damage.errors()[0]
    assert any("peer B" in error for error in cluster.nodes["A"].damage.errors())
    acknowledged = write(cluster, "A", ["with the damaged one"])
    cluster.settle()
    assert acknowledged == ["with the damaged one"]
    cluster.start("C")
    cluster.heal("C")
    cluster.settle()
    assert cluster.dead.keys() == {"B"}


@pytest.mark.parametrize("rule", [True, False], ids=["rule-on", "rule-off"])
def test_two_voters_that_find_damage_at_the_same_time_do_not_both_stop(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """Their scrubs have found rotten rows: the second one to ask stays, or nobody could commit any more."""
    if not rule:
        monkeypatch.setattr(Damage, "may_stop", lambda *_: True)
    cluster = with_values(make_cluster)
    for name in "BC":
        cluster.nodes[name].damage.found_here("a row has rotted")
    cluster.pump(rounds=20, step=A_HEARTBEAT_LATER)
    assert len(cluster.dead) == (1 if rule else 2)
    acknowledged = write(cluster, "A", ["after"])
    cluster.pump(rounds=10, step=0.01)
    assert acknowledged == (["after"] if rule else [])


def test_a_damaged_leader_goes_on_while_the_others_have_no_majority(make_cluster: MakeCluster) -> None:
    cluster = with_values(make_cluster)
    cluster.crash("C")
    cluster.nodes["A"].damage.found_here("a row has rotted")
    cluster.pump("AB", rounds=30, step=A_HEARTBEAT_LATER)
    assert cluster.dead == {}
    assert cluster.nodes["A"].is_leader
    cluster.start("C")
    cluster.heal("C")
    cluster.pump(rounds=30, step=A_HEARTBEAT_LATER)
    assert cluster.dead.keys() == {"A"}


def test_a_voter_that_lags_behind_is_no_replacement_for_one_that_is_damaged(make_cluster: MakeCluster) -> None:
    """C is connected, but misses what A and B have committed."""
    cluster = with_values(make_cluster)
    acknowledged = write(cluster, "A", ["only at A and B"])
    for _ in range(4):
        cluster.turn("A")
        cluster.deliver("A", "B")
        cluster.deliver("B", "A")
    assert acknowledged == ["only at A and B"]
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.deliver("A", "B")
    node = cluster.nodes["A"].damage
    assert cluster.nodes["B"].applied == cluster.nodes["A"].applied
    assert not node.may_stop("B", cluster.nodes["B"].applied)
    cluster.settle()
    assert node.may_stop("B", cluster.nodes["B"].applied)
    assert node.may_stop("an observer", 1 << 40), "which nobody counts on"


def test_a_single_voter_is_alarmed_and_goes_on(make_cluster: MakeCluster) -> None:
    cluster = with_values(make_cluster, "A")
    cluster.nodes["A"].damage.found_here("a row has rotted")
    for _ in range(3):
        a_period(cluster)
    assert cluster.dead == {}
    assert len(cluster.nodes["A"].damage.errors()) == 1
