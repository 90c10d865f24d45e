"""Snapshots that break off: their rows are deleted again, named databases don't run out, the log is trimmed on, and
what goes wrong while one is installed ends the process.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest

from raftreg import snapshots
from raftreg.snapshots import Snapshots
from raftreg.store import Store, StoreError
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import A_HEARTBEAT_LATER, SMALL_SNAPSHOTS, Cluster
from tests.cluster.test_directed_faults import diverged_then_behind_a_snapshot, with_and_without_the_rule

SLOW_DELETION = replace(SMALL_SNAPSHOTS, reclaim_rows_max=1)
FLAPS = 30


def behind_a_snapshot(cluster: Cluster, values: int) -> None:
    """C was away while A and B wrote and trimmed their logs."""
    cluster.elect("A")
    cluster.settle()
    cluster.isolate("C")
    for number in range(values):
        cluster.propose("A", f"value{number}", [])
    cluster.pump("AB", rounds=8, step=A_HEARTBEAT_LATER)
    assert cluster.log("A")[0][0] > 10


def one_round(cluster: Cluster, leader: str, *, to: str, frames: int | None = None) -> None:
    """The leader and everybody else exchange what waits; of its frames to one voter only some."""
    cluster.turn(leader, after=A_HEARTBEAT_LATER)
    for peer in cluster.names:
        if peer not in (leader, to):
            cluster.deliver(leader, peer)
            cluster.deliver(peer, leader)
    cluster.deliver(leader, to, frames)
    cluster.deliver(to, leader)


def begin_a_snapshot(cluster: Cluster, leader: str, follower: str) -> None:
    """Some rows of a snapshot that it has nothing of arrive at the follower, no more."""
    held = cluster.nodes[follower].snapshots.held()
    for _ in range(20):
        one_round(cluster, leader, to=follower, frames=3)
        node = cluster.nodes.get(follower)
        if node is None or node.snapshots.held() not in (None, held):
            return


@with_and_without_the_rule
def test_links_that_flap_during_a_snapshot_use_up_no_databases(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """Every attempt leaves rows behind, faster than they are deleted; a new attempt has to wait for that. The leader's
    copy is gone each time, so that there is no rest to be sent."""
    if not rule:
        monkeypatch.setattr(snapshots, "_ABANDONED_MAX", 1000)
    cluster = make_cluster("ABC", limits=SLOW_DELETION)
    behind_a_snapshot(cluster, values=40)
    most = 0
    for _ in range(FLAPS):
        cluster.heal("C")
        begin_a_snapshot(cluster, "A", "C")
        if "C" in cluster.dead:
            break
        most = max(most, cluster.nodes["C"].store.abandoned_generations)
        cluster.isolate("C")
        cluster.nodes["A"].snapshots.spool.drop()
    if not rule:
        assert "installing a snapshot failed" in cluster.dead["C"]
        return
    assert most == snapshots._ABANDONED_MAX + 1
    cluster.heal("C")
    for _ in range(600):
        one_round(cluster, "A", to="C")
        if cluster.nodes["C"].snapshots.installed and cluster.nodes["C"].store.abandoned_generations == 0:
            break
    assert cluster.nodes["C"].snapshots.installed == 1
    assert cluster.nodes["C"].store.abandoned_generations == 0
    assert cluster.values("C") == cluster.values("A")


@with_and_without_the_rule
def test_half_a_snapshot_is_deleted_when_its_sender_is_lost(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """The rest can never come: whoever leads next begins with a snapshot of its own."""
    if not rule:
        monkeypatch.setattr(Snapshots, "_forget_unfinished", lambda _self: None)
    cluster = make_cluster("ABC")
    behind_a_snapshot(cluster, values=40)
    cluster.heal("C")
    begin_a_snapshot(cluster, "A", "C")
    node = cluster.nodes["C"]
    assert node.snapshots.receiving
    used = node.store.used_bytes()
    cluster.isolate("C")
    cluster.pump("C", rounds=40, step=A_HEARTBEAT_LATER)
    assert (not node.snapshots.receiving) is rule
    assert (node.store.abandoned_generations == 0) is rule
    assert (node.store.used_bytes() < used) is rule
    cluster.heal("C")
    cluster.settle()
    cluster.settle()
    assert cluster.values("C") == cluster.values("A")


class SlowLink:
    """A link between the leader A and C on which every frame takes a few rounds, as on a long way."""

    rounds = 3

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._ways = {way: deque[list[bytes]]() for way in (("A", "C"), ("C", "A"))}

    def round(self) -> None:
        self.cluster.turn("A", after=A_HEARTBEAT_LATER / 2)
        self.cluster.deliver("A", "B")
        self.cluster.deliver("B", "A")
        for way in self._ways:
            self._take_in(way)
        for way in self._ways:
            self._hand_out(way)

    def _take_in(self, way: tuple[str, str]) -> None:
        queue = self.cluster.queues[way]
        self._ways[way].append(list(queue))
        queue.clear()

    def _hand_out(self, way: tuple[str, str]) -> None:
        if len(self._ways[way]) <= self.rounds:
            return
        queue = self.cluster.queues[way]
        newer = list(queue)
        queue.clear()
        queue.extend(self._ways[way].popleft())
        self.cluster.deliver(*way)
        queue.extend(newer)


@with_and_without_the_rule
def test_a_late_reset_does_not_bring_a_snapshot_again_nor_hold_back_trimming(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """Resets that were on their way when C got its last chunk would make the leader send the last chunks again."""
    if not rule:
        monkeypatch.setattr(Snapshots, "_is_under_way", lambda *_: False)
    cluster = make_cluster("ABC")
    behind_a_snapshot(cluster, values=200)
    cluster.heal("C")
    leader = cluster.nodes["A"]
    link = SlowLink(cluster)
    for _ in range(200):
        link.round()
    assert cluster.nodes["C"].snapshots.installed >= 1
    assert leader.match_index("C") == leader.journal.last_index
    assert (leader.snapshots.sent == 1) is rule
    for number in range(100):
        cluster.propose("A", f"later{number}", [])
        link.round()
    for _ in range(20):
        link.round()
    assert cluster.values("C") == cluster.values("A")
    assert leader.snapshots._senders == {}
    assert leader.snapshots._served == {}
    assert len(cluster.log("A")) < 10


@with_and_without_the_rule
def test_an_error_of_the_journal_during_an_installation_ends_the_process(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """pysyncobj swallows what goes wrong while it rebases the log: A would go on with a log that its disk lacks."""
    cluster = make_cluster("ABC")
    diverged_then_behind_a_snapshot(cluster, tail=100)
    follower = cluster.nodes["A"]
    put_log = Store.put_log

    def disk_fails(store: Store, index: int, term: int, command: bytes) -> None:
        if store is follower.store and store.generation > 1:
            raise StoreError("does not extend the log on disk")
        put_log(store, index, term, command)

    monkeypatch.setattr(Store, "put_log", disk_fails)
    if not rule:
        follower._applied_index = lambda _view: follower.applied
    cluster.isolate("C")
    cluster.connect("A", "B")
    acknowledged: list[str] = []
    for round_ in range(20):
        if round_ == 10:
            for number in range(3):
                cluster.propose("B", f"new{number}", acknowledged)
        cluster.turn("B", after=A_HEARTBEAT_LATER)
        cluster.deliver("B", "A")
        cluster.deliver("A", "B")
    assert acknowledged == []
    assert ("log and state disagree after a snapshot" in cluster.dead.get("A", "")) is rule
    if rule:
        cluster.start("A")
    node = cluster.nodes["A"]
    assert (node.store.load_log() == node.journal[:]) is rule
    assert (node.store.generation == 1) is rule
