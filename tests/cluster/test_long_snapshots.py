"""Snapshots that take long: links that flap, writes that go on, logs that grow, disks that spoil or lack room. The peer
that lags gets in all the same, and what is kept or under way for it has a bound.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from raftreg import snapshot_spool, transport
from raftreg.append_window import AppendWindow
from raftreg.config import Limits
from raftreg.snapshots import Snapshots
from raftreg.store import Store
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import A_HEARTBEAT_LATER, SMALL_SNAPSHOTS, Cluster
from tests.cluster.test_directed_faults import with_and_without_the_rule
from tests.cluster.test_interrupted_snapshots import behind_a_snapshot, one_round

FLAPS = 25
ROUNDS_BETWEEN_FLAPS = 8


@with_and_without_the_rule
def test_a_snapshot_arrives_over_a_link_that_never_holds_long_enough_for_the_whole(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """C says what it holds, and is sent the rest; beginning anew each time, it would never see the end."""
    if not rule:
        monkeypatch.setattr(transport, "snapshot_held", lambda _message: None)
    cluster = make_cluster("ABC")
    behind_a_snapshot(cluster, values=200)
    follower = cluster.nodes["C"]
    for _ in range(FLAPS):
        cluster.heal("C")
        for _ in range(ROUNDS_BETWEEN_FLAPS):
            one_round(cluster, "A", to="C", frames=6)
        if follower.snapshots.installed:
            break
        cluster.isolate("C")
    assert (follower.snapshots.installed == 1) is rule
    if rule:
        cluster.settle()
        assert cluster.values("C") == cluster.values("A")


def test_a_rest_that_was_promised_is_not_taken_from_another_snapshot(make_cluster: MakeCluster) -> None:
    """The leader's copy is another one when C is back: C takes that from its beginning."""
    cluster = make_cluster("ABC")
    behind_a_snapshot(cluster, values=60)
    cluster.heal("C")
    for _ in range(4):
        one_round(cluster, "A", to="C", frames=3)
    held = cluster.nodes["C"].snapshots.held()
    assert held is not None
    cluster.isolate("C")
    cluster.nodes["A"].snapshots.spool.drop()
    cluster.propose("A", "later", [])
    cluster.pump("AB", rounds=4, step=A_HEARTBEAT_LATER)
    cluster.heal("C")
    cluster.settle()
    cluster.settle()
    assert cluster.nodes["C"].snapshots.installed == 1
    assert cluster.values("C") == cluster.values("A")


def write_while_c_receives(cluster: Cluster, *, rounds: int, each: int) -> None:
    for round_ in range(rounds):
        for number in range(each):
            cluster.propose("A", f"during{round_}-{number}", [])
        cluster.pump(rounds=1, step=A_HEARTBEAT_LATER / 4)


@with_and_without_the_rule
def test_writes_at_full_speed_do_not_keep_a_peer_out(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """While C takes a snapshot, the log is kept from there on; else C would need the next one when it has this one."""
    if not rule:
        monkeypatch.setattr(Snapshots, "_needed_from", lambda _self: None)
    cluster = make_cluster("ABC")
    behind_a_snapshot(cluster, values=200)
    cluster.heal("C")
    write_while_c_receives(cluster, rounds=120, each=4)
    caught_up = cluster.nodes["C"].applied >= cluster.nodes["A"].applied - 40
    assert (caught_up and cluster.nodes["C"].snapshots.installed == 1) is rule
    if rule:
        cluster.settle()
        assert cluster.values("C") == cluster.values("A")
        cluster.propose("A", "last", [])
        cluster.settle()
        assert len(cluster.log("A")) < 10, "what was kept for C is trimmed when C has it"


def test_a_log_that_grows_out_of_bounds_is_trimmed_and_the_peer_begins_again(make_cluster: MakeCluster) -> None:
    limits = replace(SMALL_SNAPSHOTS, log_keep_bytes=500, log_serving_bytes_max=2_000, snapshot_resume_s=1000.0)
    cluster = make_cluster("ABC", limits=limits)
    behind_a_snapshot(cluster, values=200)
    cluster.heal("C")
    leader = cluster.nodes["A"]
    longest = 0
    for round_ in range(60):
        for number in range(4):
            cluster.propose("A", f"during{round_}-{number}", [])
        one_round(cluster, "A", to="C", frames=1)
        longest = max(longest, leader.journal.bytes)
        if leader.snapshots.trouble is not None:
            break
    assert "log_serving_bytes_max" in (leader.snapshots.trouble or "")
    assert longest < 3_000
    cluster.settle()
    cluster.settle()
    assert cluster.values("C") == cluster.values("A")
    assert leader.snapshots.trouble is None


# -- the log in pieces --------------------------------------------------------------------------------------------

WINDOW = 4_000
ENTRY = "x" * 500


@with_and_without_the_rule
def test_a_peer_that_is_behind_gets_the_log_in_pieces(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """All at once would break its link, or keep it in one turn until its process ends; writes go on meanwhile."""
    if not rule:
        monkeypatch.setattr(AppendWindow, "is_full", lambda *_: False)
        monkeypatch.setattr(AppendWindow, "cut", lambda _self, _peer, entries: entries)
    limits = Limits(append_window_bytes=WINDOW)
    cluster = make_cluster("ABC", limits=limits)
    cluster.elect("A")
    cluster.settle()
    cluster.isolate("C")
    for number in range(100):
        cluster.propose("A", f"{number}{ENTRY}", [])
    cluster.pump("AB", rounds=6, step=A_HEARTBEAT_LATER)
    cluster.heal("C")
    most = resets = 0
    for round_ in range(80):
        cluster.propose("A", f"during{round_}", [])
        cluster.turn("A", after=A_HEARTBEAT_LATER / 4)
        cluster.deliver("A", "B")
        cluster.deliver("B", "A")
        entries = [entry for m in cluster.in_flight("A", "C") for entry in m.get("entries", [])]
        most = max(most, sum(len(entry[0]) for entry in entries))
        cluster.deliver("A", "C")
        resets += sum(m.get("reset", False) for m in cluster.in_flight("C", "A"))
        cluster.deliver("C", "A")
    assert (most <= WINDOW + 2 * len(ENTRY)) is rule
    assert resets <= 3
    cluster.settle()
    assert cluster.values("C") == cluster.values("A")


def test_what_was_under_way_in_an_earlier_term_does_not_hold_a_peer_back(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ABC", limits=Limits(append_window_bytes=WINDOW))
    cluster.elect("A")
    cluster.settle()
    for number in range(30):
        cluster.propose("A", f"{number}{ENTRY}", [])
    cluster.turn("A")
    assert cluster.nodes["A"].transport.window.is_full("C")
    cluster.lose("A", "C")
    cluster.pump("AB", rounds=4, step=A_HEARTBEAT_LATER)
    cluster.clock.now += 5
    cluster.elect("B", voters="ABC")
    cluster.settle()
    cluster.clock.now += 5
    cluster.elect("A")
    acknowledged: list[str] = []
    cluster.propose("A", "again", acknowledged)
    cluster.settle()
    assert acknowledged == ["again"]
    assert cluster.values("C") == cluster.values("A")


# -- disks --------------------------------------------------------------------------------------------------------


@with_and_without_the_rule
def test_a_spool_that_the_disk_spoilt_is_copied_again(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    if not rule:
        monkeypatch.setattr(snapshot_spool, "check", lambda _chunk: None)
    cluster = make_cluster("ABC", limits=replace(SMALL_SNAPSHOTS, snapshot_retry_s=1.0))
    behind_a_snapshot(cluster, values=40)
    cluster.prepare_snapshot("A")
    (path,) = (cluster.directory / "A" / "spool").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    cluster.heal("C")
    for _ in range(80):
        one_round(cluster, "A", to="C")
    assert (cluster.nodes["C"].snapshots.installed == 1) is rule
    assert (cluster.values("C") == cluster.values("A")) is rule


def test_no_copy_is_begun_on_a_disk_without_room_for_it(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said in the status, and tried again after a while."""
    cluster = make_cluster("ABC", limits=replace(SMALL_SNAPSHOTS, snapshot_retry_s=2.0))
    behind_a_snapshot(cluster, values=40)
    leader = cluster.nodes["A"]
    free_disk_bytes = Store.free_disk_bytes
    monkeypatch.setattr(Store, "free_disk_bytes", lambda _self: 1000)
    cluster.heal("C")
    for _ in range(10):
        one_round(cluster, "A", to="C")
    assert "disk lacks" in (leader.snapshots.trouble or "")
    assert list((cluster.directory / "A" / "spool").iterdir()) == []
    monkeypatch.setattr(Store, "free_disk_bytes", free_disk_bytes)
    for _ in range(40):
        one_round(cluster, "A", to="C")
    assert cluster.values("C") == cluster.values("A")
    assert leader.snapshots.trouble is None


def test_rows_of_many_chunks_are_committed_together(make_cluster: MakeCluster) -> None:
    """A sync for each chunk would make an installation many times as long."""
    cluster = make_cluster("ABC", limits=replace(SMALL_SNAPSHOTS, snapshot_commit_bytes=1 << 20))
    behind_a_snapshot(cluster, values=100)
    cluster.heal("C")
    follower = cluster.nodes["C"]
    commits: list[float] = []
    chunks = 0
    while not follower.snapshots.installed:
        cluster.turn("A", after=A_HEARTBEAT_LATER)
        cluster.deliver("C", "A")
        for message in cluster.in_flight("A", "C"):
            chunks += message.get("serialized") is not None
        cluster.deliver("A", "C")
        cluster.deliver("A", "B")
        cluster.deliver("B", "A")
        if chunks > 4 and not commits:
            follower.on_commit = commits.append
        assert chunks < 1000
    assert chunks > 20
    assert len(commits) < 4
    cluster.settle()
    assert cluster.values("C") == cluster.values("A")


def test_a_spool_goes_when_nobody_was_served_from_it_for_a_while(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ABC")
    behind_a_snapshot(cluster, values=40)
    cluster.prepare_snapshot("A")
    spools = cluster.directory / "A" / "spool"
    assert len(list(spools.iterdir())) == 1
    cluster.heal("C")
    cluster.settle()
    assert cluster.nodes["C"].snapshots.installed == 1
    cluster.pump(rounds=40, step=A_HEARTBEAT_LATER)
    assert list(spools.iterdir()) == []
