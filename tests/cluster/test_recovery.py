"""A voter whose disk was wiped, replaced or rolled back neither votes nor counts until it has caught up."""

from __future__ import annotations

import shutil

import pytest

from raftreg.raft import RaftNode
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import A_HEARTBEAT_LATER, LONG_AFTER, Cluster


def acknowledged_by_a_and_b(cluster: Cluster) -> list[str]:
    """Three values that only A and B hold; C was away."""
    acknowledged: list[str] = []
    cluster.elect("A")
    cluster.settle()
    cluster.isolate("C")
    for number in range(3):
        cluster.propose("A", f"value{number}", acknowledged)
    cluster.settle("AB")
    assert len(acknowledged) == 3
    return acknowledged


def try_to_lead(cluster: Cluster, name: str) -> bool:
    core = cluster.nodes[name].core
    core.set_private("transferInProgress", True)
    core.set_private("raftElectionDeadline", 0)
    cluster.pump(rounds=4)
    return cluster.nodes[name].is_leader


@pytest.mark.parametrize("rule", [True, False], ids=["rule-on", "rule-off"])
@pytest.mark.parametrize("told", [True, False], ids=["rejoined", "passed-off-as-intact"])
def test_a_wiped_voter_elects_nobody_who_lacks_what_it_acknowledged(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, told: bool, rule: bool
) -> None:
    """B's disk is replaced while A is down: C must not become leader with B's vote, whatever B says of its disk."""
    if not rule:
        told = False
        monkeypatch.setattr(RaftNode, "greet", lambda *_: True)
    cluster = make_cluster("ABC")
    acknowledged = acknowledged_by_a_and_b(cluster)
    for name in "BA":
        cluster.crash(name)
    cluster.wipe("B", recovering=told)
    cluster.start("B")
    cluster.connect("B", "C")
    assert try_to_lead(cluster, "C") is not rule
    cluster.start("A")
    cluster.connect_all()
    cluster.pump(rounds=60, step=A_HEARTBEAT_LATER)
    assert (acknowledged == cluster.values("C")[: len(acknowledged)]) is rule


def test_a_wiped_voter_catches_up_by_snapshot_and_votes_again(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ABC")
    acknowledged = acknowledged_by_a_and_b(cluster)
    cluster.heal("C")
    for number in range(30):
        cluster.propose("A", f"later{number}", acknowledged)
    cluster.settle()
    cluster.crash("B")
    cluster.wipe("B")
    cluster.start("B")
    assert cluster.nodes["B"].role == "recovering"
    cluster.heal("B")
    cluster.settle()
    cluster.settle()
    assert cluster.nodes["B"].snapshots.installed == 1
    assert cluster.nodes["B"].role == "follower"
    assert cluster.values("B") == acknowledged
    cluster.crash("A")
    cluster.clock.now += LONG_AFTER
    cluster.elect("C", voters="B")


def test_a_recovering_voter_counts_for_no_commit(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ABC")
    acknowledged_by_a_and_b(cluster)
    cluster.crash("B")
    cluster.wipe("B")
    cluster.start("B")
    cluster.connect("A", "B")
    late: list[str] = []
    cluster.propose("A", "late", late)
    cluster.settle("AB")
    assert late == []
    assert cluster.nodes["B"].role == "recovering"


def test_a_rolled_back_disk_is_noticed_by_those_who_remember(make_cluster: MakeCluster) -> None:
    """B comes back with yesterday's disk; C, which never led, knows from the leader what B had acknowledged."""
    cluster = make_cluster("ABC")
    cluster.elect("A")
    cluster.settle()
    acknowledged: list[str] = []
    cluster.propose("A", "before", acknowledged)
    cluster.settle()
    cluster.crash("B")
    shutil.copytree(cluster.directory / "B", cluster.directory / "yesterday")
    cluster.start("B")
    cluster.heal("B")
    for number in range(5):
        cluster.propose("A", f"after{number}", acknowledged)
    cluster.pump(rounds=20, step=A_HEARTBEAT_LATER)
    for name in "AB":
        cluster.crash(name)
    shutil.rmtree(cluster.directory / "B")
    (cluster.directory / "yesterday").rename(cluster.directory / "B")
    cluster.start("B")
    assert cluster.nodes["B"].role != "recovering"
    cluster.connect("B", "C")
    assert cluster.nodes["B"].role == "recovering"
    assert not try_to_lead(cluster, "C")
    cluster.start("A")
    cluster.connect_all()
    cluster.pump(rounds=60, step=A_HEARTBEAT_LATER)
    assert cluster.nodes["B"].role in ("follower", "leader")
    assert cluster.values("B") == acknowledged


def test_a_voter_that_restarts_with_its_own_disk_keeps_its_vote(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ABC")
    cluster.elect("A")
    cluster.settle()
    for name in "ABC":
        cluster.crash(name)
    for name in "ABC":
        cluster.start(name)
    cluster.connect_all()
    assert {node.role for node in cluster.nodes.values()} == {"candidate"}
    cluster.elect("B")
