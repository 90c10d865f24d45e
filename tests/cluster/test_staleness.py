"""How old a voter calls its state: never younger than it is, whoever leads and however long a frame was under way."""

from __future__ import annotations

import pytest

from raftreg.config import Limits
from raftreg.raft import RaftNode
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import A_HEARTBEAT_LATER, LONG_AFTER, Cluster
from tests.cluster.test_directed_faults import with_and_without_the_rule

LONG_LOG = Limits(snapshot_chunk_bytes=64, log_keep_entries=1000)
AN_HOUR_S = 3600.0


def stand(cluster: Cluster, name: str) -> None:
    """Let `name` ask for votes in its next turn, whatever it heard of a leader."""
    core = cluster.nodes[name].core
    core.set_private("transferInProgress", True)
    core.set_private("raftElectionDeadline", 0)
    cluster.turn(name)


def elect_with(cluster: Cluster, name: str, voter: str) -> None:
    """`name` becomes the leader with the vote of one other; nothing of its term has left it afterwards."""
    stand(cluster, name)
    cluster.deliver(name, voter)
    cluster.deliver(voter, name)
    assert cluster.nodes[name].is_leader


def exchange(cluster: Cluster, a: str, b: str) -> None:
    cluster.deliver(a, b)
    cluster.deliver(b, a)


def acknowledge_through(cluster: Cluster, leader: str, follower: str, other: str) -> float:
    """A value that `leader` and `follower` hold and the leader alone knows to be committed; when that was."""
    acknowledged: list[str] = []
    cluster.propose(leader, "x", acknowledged)
    cluster.turn(leader)
    cluster.lose(leader, other)
    exchange(cluster, leader, follower)
    assert acknowledged == ["x"]
    return cluster.clock.now


def date_by_the_arrival(cluster: Cluster) -> None:
    """Switch off that a follower dates what its leader says by its own earlier clock."""
    for node in cluster.nodes.values():
        node.transport.clock = lambda: cluster.clock.now + 10 * AN_HOUR_S  # never the lesser one of the two


def is_honest(cluster: Cluster, name: str, acknowledged_at: float) -> bool:
    """Whether a voter that lacks the value says that its state is older than the acknowledgement."""
    staleness = cluster.nodes[name].staleness_s()
    return "x" in cluster.values(name) or staleness is None or staleness >= cluster.clock.now - acknowledged_at


@with_and_without_the_rule
def test_a_new_leader_is_not_fresh_before_it_has_applied_an_entry_of_its_own(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """B holds a committed value in its log, but not in its state, when a majority first confirms it as the leader."""
    if not rule:
        monkeypatch.setattr(RaftNode, "_leads_for_sure", lambda node: node.is_leader)
    cluster = make_cluster("ABC", limits=LONG_LOG)
    cluster.elect("A")
    cluster.settle()
    acknowledged_at = acknowledge_through(cluster, "A", "B", "C")
    cluster.crash("A")
    cluster.clock.now += LONG_AFTER
    elect_with(cluster, "B", "C")
    cluster.lose("B", "C")  # its first entry is late, heartbeats are not
    seen = []
    for _ in range(12):
        cluster.turn("B", after=A_HEARTBEAT_LATER)
        exchange(cluster, "B", "C")
        seen.append(is_honest(cluster, "B", acknowledged_at) and is_honest(cluster, "C", acknowledged_at))
    assert all(seen) is rule
    assert cluster.values("B") == ["x"]
    staleness = cluster.nodes["B"].staleness_s()
    assert staleness is not None
    assert staleness < 1.0


@with_and_without_the_rule
def test_a_leader_tells_nothing_of_what_confirmed_it_in_an_earlier_term(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """A led, followed C, and leads again an hour later. When it was last confirmed then says nothing about now. (What
    B's clock was then would tell B so too; that rule is off in the second run as well.)"""
    if not rule:
        monkeypatch.setattr(RaftNode, "on_state_changed", lambda *_: None)
    cluster = make_cluster("ABC", limits=LONG_LOG)
    if not rule:
        date_by_the_arrival(cluster)
    cluster.elect("A")
    cluster.settle()
    cluster.settle()
    cluster.clock.now += LONG_AFTER
    cluster.elect("C")
    cluster.settle()
    acknowledged_at = acknowledge_through(cluster, "C", "A", "B")
    cluster.crash("C")
    cluster.clock.now += AN_HOUR_S
    elect_with(cluster, "A", "B")
    honest = True
    for _ in range(12):
        cluster.deliver("A", "B", 1)
        honest = honest and all(is_honest(cluster, name, acknowledged_at) for name in "AB")
        cluster.deliver("B", "A")
        honest = honest and all(is_honest(cluster, name, acknowledged_at) for name in "AB")
        cluster.turn("A", after=A_HEARTBEAT_LATER)
    assert honest is rule
    assert cluster.values("B") == ["x"]


@with_and_without_the_rule
def test_a_frame_that_waited_long_on_its_way_makes_nothing_fresh(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """A heartbeat waits in the socket of B while B is stopped. When it goes on it reads that the leader was confirmed
    an instant ago, which was true some twenty seconds and some writes ago."""
    cluster = make_cluster("ABC")
    if not rule:
        date_by_the_arrival(cluster)
    cluster.elect("A")
    cluster.settle()
    cluster.settle()
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    waiting = list(cluster.queues[("A", "B")])
    assert waiting
    stopped_at = cluster.clock.now
    acknowledged: list[str] = []
    for number in range(3):
        cluster.propose("A", f"value{number}", acknowledged)
    cluster.pump("AC", rounds=20, step=1.0)
    assert len(acknowledged) == 3
    cluster.queues[("A", "B")].clear()
    cluster.queues[("A", "B")].extend(waiting)
    cluster.deliver("A", "B")
    staleness = cluster.nodes["B"].staleness_s()
    assert cluster.values("B") == []
    assert staleness is not None
    assert (staleness >= cluster.clock.now - stopped_at) is rule
    if rule:
        cluster.settle()
        staleness = cluster.nodes["B"].staleness_s()
        assert staleness is not None
        assert staleness < 1.0


def test_a_follower_that_hears_its_leader_is_fresh_within_a_few_heartbeats(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ABC")
    cluster.elect("A")
    cluster.pump(rounds=40, step=A_HEARTBEAT_LATER)
    for node in cluster.nodes.values():
        staleness = node.staleness_s()
        assert staleness is not None
        assert staleness < 5 * A_HEARTBEAT_LATER
    cluster.isolate("C")
    cluster.pump(rounds=40, step=A_HEARTBEAT_LATER)
    staleness = cluster.nodes["C"].staleness_s()
    assert staleness is not None
    assert staleness >= 40 * A_HEARTBEAT_LATER
