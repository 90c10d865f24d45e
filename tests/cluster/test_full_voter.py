"""A leader refuses growth while a connected voter is full, and no longer than that."""

from __future__ import annotations

import pytest

from raftreg.raft import RaftNode
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import LONG_AFTER, Cluster
from tests.cluster.test_directed_faults import with_and_without_the_rule


def full_follower(make_cluster: MakeCluster) -> Cluster:
    """A leads, B has told it that its disk is full."""
    cluster = make_cluster("ABC")
    cluster.elect("A")
    cluster.settle()
    cluster.nodes["B"].tell_storage("disk full")
    cluster.settle()
    assert cluster.nodes["A"].storage_refusal() == "disk full"
    return cluster


@with_and_without_the_rule
def test_a_full_voter_that_restarts_with_room_is_no_longer_a_reason_to_refuse(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """Its new process was never full, so it has nothing to take back."""
    if not rule:
        link_down = RaftNode.link_down

        def remember(node: RaftNode, peer: str) -> None:
            full = dict(node._full_peers)
            link_down(node, peer)
            node._full_peers.update(full)

        monkeypatch.setattr(RaftNode, "link_down", remember)
    cluster = full_follower(make_cluster)
    cluster.crash("B")
    assert cluster.nodes["A"].storage_refusal() is None
    cluster.start("B")
    cluster.heal("B")
    cluster.settle()
    cluster.nodes["B"].tell_storage(None)
    cluster.settle()
    assert (cluster.nodes["A"].storage_refusal() is None) is rule


@with_and_without_the_rule
def test_a_leader_does_not_remember_a_refusal_of_its_earlier_leadership(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """B told C, who led in between, that it has room again."""
    cluster = full_follower(make_cluster)
    if not rule:
        on_state_changed = RaftNode.on_state_changed

        def remember(node: RaftNode, old: int, new: int) -> None:
            full = dict(node._full_peers)
            on_state_changed(node, old, new)
            node._full_peers.update(full)

        for node in cluster.nodes.values():
            node.core._SyncObj__conf.onStateChanged = remember.__get__(node)
    cluster.clock.now += LONG_AFTER
    cluster.elect("C")
    cluster.settle()
    cluster.nodes["B"].tell_storage(None)
    cluster.settle()
    cluster.clock.now += LONG_AFTER
    cluster.elect("A")
    cluster.settle()
    assert (cluster.nodes["A"].storage_refusal() is None) is rule


def test_a_voter_that_stays_full_tells_every_new_leader(make_cluster: MakeCluster) -> None:
    cluster = full_follower(make_cluster)
    cluster.clock.now += LONG_AFTER
    cluster.elect("C")
    cluster.nodes["B"].tell_storage("still full")
    cluster.settle()
    assert cluster.nodes["C"].storage_refusal() == "still full"
    cluster.nodes["B"].tell_storage(None)
    cluster.settle()
    assert cluster.nodes["C"].storage_refusal() is None
