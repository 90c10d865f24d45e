"""The schedules under which pysyncobj alone loses or falsely acknowledges writes, against our journal, transport rules
and snapshots. Each runs twice: with the rule, where nothing is lost, and with exactly that rule switched off, where the
fault must show. A schedule that no longer shows the fault would prove nothing.
"""

from __future__ import annotations

import pytest

from raftreg.journal import Journal
from raftreg.raft import RaftNode
from raftreg.snapshots import Snapshots
from raftreg.transport import RaftTransport
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import A_HEARTBEAT_LATER, LONG_AFTER, WHOLE_SNAPSHOTS, Cluster

with_and_without_the_rule = pytest.mark.parametrize("rule", [True, False], ids=["rule-on", "rule-off"])


def forget_the_hidden_tail(journal: Journal) -> None:
    """What pysyncobj's own journal does: a truncated tail is gone."""
    journal._forget(journal._stash)
    journal._stash = []


def lost(acknowledged: list[str], survivors: list[str]) -> list[str]:
    return [value for value in acknowledged if value not in survivors]


@with_and_without_the_rule
@pytest.mark.usefixtures("small_batches")
def test_a_resend_that_is_cut_off_half_way_takes_back_nothing_acknowledged(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """Two heartbeats in flight make two resets, so the same entries are sent twice; the leader dies in the second."""
    if not rule:
        monkeypatch.setattr(Journal, "end_message", forget_the_hidden_tail)
    cluster = make_cluster("ABC")
    cluster.elect("A")
    cluster.settle()
    cluster.isolate("C")
    acknowledged: list[str] = []
    for number in range(4):
        cluster.propose("A", f"value{number}", acknowledged)
    cluster.turn("A")
    cluster.lose("A", "B")
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.deliver("A", "B")
    resets = cluster.in_flight("B", "A")
    assert [message["reset"] for message in resets] == [True, True]
    cluster.deliver("B", "A", 1)
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.deliver("A", "B")
    cluster.deliver("B", "A", 1)
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.deliver("B", "A")
    assert acknowledged == [f"value{number}" for number in range(4)]
    first_half = cluster.deliver("A", "B", 1)
    assert 0 < len(first_half[0]["entries"]) < 4
    cluster.crash("A")
    cluster.heal("C")
    cluster.clock.now += LONG_AFTER
    cluster.elect("B", voters="C")
    cluster.settle()
    assert (lost(acknowledged, cluster.values("B")) == []) is rule


@with_and_without_the_rule
def test_an_acknowledgement_of_an_older_term_commits_nothing(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """B's acknowledgements of term 1 reach A when it leads again in term 3, with other entries at those indexes."""
    if not rule:
        monkeypatch.setattr(RaftTransport, "accepts_acknowledgement", lambda _self, _message: True)
    cluster = make_cluster("ABCDE")
    cluster.elect("A")
    cluster.settle()
    for number in range(4):
        cluster.propose("A", f"old{number}", [])
    cluster.turn("A")
    for peer in "CDE":
        cluster.lose("A", peer)
    cluster.deliver("A", "B")
    delayed = list(cluster.queues.pop(("B", "A")))
    assert delayed
    cluster.clock.now += LONG_AFTER
    cluster.elect("C", voters="DE")
    cluster.pump("CA", rounds=4, step=A_HEARTBEAT_LATER)
    cluster.clock.now += LONG_AFTER
    for peer in "BE":
        cluster.cut.add(("A", peer))
    cluster.queues.clear()
    cluster.elect("A", voters="CD")
    cluster.queues[("B", "A")].extend(delayed)
    cluster.cut.add(("A", "D"))
    acknowledged: list[str] = []
    for number in range(3):
        cluster.propose("A", f"new{number}", acknowledged)
    cluster.turn("A")
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.deliver("A", "C")
    cluster.deliver("C", "A")
    cluster.deliver("B", "A")
    cluster.turn("A")
    cluster.crash("A")
    cluster.crash("C")
    cluster.queues.clear()
    cluster.cut.clear()
    cluster.connect_all()
    cluster.clock.now += LONG_AFTER
    cluster.elect("D")
    cluster.settle()
    assert (lost(acknowledged, cluster.values("D")) == []) is rule


def test_a_kill_at_any_moment_of_log_compaction_forgets_no_acknowledged_entry(make_cluster: MakeCluster) -> None:
    """State, trimmed log and applied index are one transaction: before its commit neither exists, after it both do."""
    cluster = make_cluster("A")
    cluster.settle()
    acknowledged: list[str] = []
    for round_ in range(12):
        for number in range(5):
            cluster.propose("A", f"value{round_}.{number}", acknowledged)
        for _turn in range(round_ % 4 + 1):
            cluster.turn("A")
        assert cluster.log("A")[0][0] <= cluster.nodes["A"].applied - 1
        cluster.crash("A")
        cluster.start("A")
        cluster.settle()
        assert lost(acknowledged, cluster.values("A")) == []
        assert len(cluster.log("A")) <= 10
    assert len(acknowledged) >= 20


def diverged_then_behind_a_snapshot(cluster: Cluster, tail: int) -> list[str]:
    """A holds an uncommitted tail whose clients wait; B led on with C, and trimmed the log that A would need."""
    cluster.elect("A")
    cluster.settle()
    cluster.isolate("A")
    waiting: list[str] = []
    for number in range(tail):
        cluster.propose("A", f"uncommitted{number}", waiting)
    cluster.turn("A")
    cluster.clock.now += 3
    cluster.elect("B", voters="C")
    for number in range(40):
        cluster.propose("B", f"B{number}", [])
    cluster.pump("BC", rounds=6, step=A_HEARTBEAT_LATER)
    assert cluster.log("B")[0][0] > 10
    assert cluster.log("A")[-1][0] == 2 + tail
    return waiting


@with_and_without_the_rule
def test_a_snapshot_that_cannot_be_installed_is_never_acknowledged(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """pysyncobj swallows the error and acknowledges A's divergent tail as if it were B's log; we end the process."""
    cluster = make_cluster("ABC")
    diverged_then_behind_a_snapshot(cluster, tail=100)

    def disk_fails(_store: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(type(cluster.nodes["A"].store), "flip_generation", disk_fails)
    if not rule:
        monkeypatch.setattr(Snapshots, "_guarded", lambda _self, step: step())
        monkeypatch.setattr(RaftTransport, "claims_too_much", lambda *_: False)  # a second rule against the same
    cluster.isolate("C")
    cluster.connect("A", "B")
    acknowledged: list[str] = []
    for round_ in range(20):
        if round_ == 10:
            for number in range(3):
                cluster.propose("B", f"new{number}", acknowledged)
        cluster.turn("B", after=A_HEARTBEAT_LATER)
        if "A" not in cluster.dead:
            cluster.deliver("B", "A")
        cluster.deliver("A", "B")
    if rule:
        assert "installing a snapshot failed" in cluster.dead["A"]
        assert acknowledged == []
    else:
        assert acknowledged != [], "an entry with a single copy was acknowledged"


def test_a_snapshot_with_a_hole_is_refused_and_sent_again(make_cluster: MakeCluster) -> None:
    """One chunk is lost in a flap that neither side noticed."""
    cluster = make_cluster("ABC")
    diverged_then_behind_a_snapshot(cluster, tail=3)
    cluster.heal("A")
    lost_chunks = 0
    for _round in range(40):
        cluster.turn("B", after=A_HEARTBEAT_LATER)
        cluster.deliver("A", "B")
        chunks = [i for i, m in enumerate(cluster.in_flight("B", "A")) if m.get("serialized")]
        if len(chunks) > 2 and not lost_chunks:
            del cluster.queues[("B", "A")][chunks[1]]
            lost_chunks += 1
        cluster.deliver("B", "A")
        cluster.deliver("B", "C")
        cluster.deliver("C", "B")
        assert cluster.nodes["A"].snapshots.installed == 0 or lost_chunks
    assert lost_chunks == 1
    assert cluster.nodes["A"].snapshots.installed == 1
    assert cluster.values("A") == cluster.values("B") == cluster.values("C")


def test_a_long_snapshot_does_not_make_the_leader_step_down(make_cluster: MakeCluster) -> None:
    """Chunks are answered one by one; without that the leader hears nothing until the last."""
    cluster = make_cluster("ABC")
    diverged_then_behind_a_snapshot(cluster, tail=3)
    cluster.heal("A")
    chunks = answers = 0
    while cluster.nodes["A"].snapshots.installed == 0:
        cluster.turn("B", after=A_HEARTBEAT_LATER)
        cluster.deliver("A", "B")
        while cluster.queues[("B", "A")]:
            chunk = cluster.deliver("B", "A", 1)[0].get("serialized") is not None
            chunks += chunk
            answers += chunk and any(m["type"] == "next_node_idx" for m in cluster.in_flight("A", "B"))
            cluster.deliver("A", "B")
        assert chunks < 1000
    assert answers == chunks > 3


@with_and_without_the_rule
def test_a_snapshot_chunk_commits_nothing_of_a_divergent_tail(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """A led, was cut off with clients waiting, and comes back as a follower that needs a snapshot."""
    if not rule:
        monkeypatch.setattr(RaftTransport, "without_unchecked_commit", lambda _self, message: message)
    cluster = make_cluster("ABC")
    waiting = diverged_then_behind_a_snapshot(cluster, tail=3)
    cluster.heal("A")
    for _round in range(12):
        for source, target in (("A", "B"), ("C", "B"), ("B", "C")):
            cluster.deliver(source, target)
        cluster.turn("B", after=A_HEARTBEAT_LATER)
        cluster.deliver("B", "A", 1)
        if waiting:
            break
    assert (waiting == []) is rule
    if rule:
        cluster.settle()
        cluster.settle()
        assert cluster.values("A") == cluster.values("B")


@with_and_without_the_rule
def test_a_second_copy_of_a_snapshot_forgets_no_entry_behind_it(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """Two resets in flight make the same snapshot leave twice; in between B has acknowledged newer entries."""
    if not rule:
        monkeypatch.setattr(Journal, "end_message", forget_the_hidden_tail)
        monkeypatch.setattr(Snapshots, "_is_newer", lambda *_: True)
    cluster = make_cluster("ABC", limits=WHOLE_SNAPSHOTS)
    cluster.elect("A")
    cluster.settle()
    cluster.isolate("C")
    cluster.isolate("B")
    cluster.connect("A", "C")
    for number in range(30):
        cluster.propose("A", f"x{number}", [])
    cluster.pump("AC", rounds=6, step=A_HEARTBEAT_LATER)
    cluster.isolate("C")
    cluster.connect("A", "B")
    cluster.prepare_snapshot("A")
    leader = cluster.nodes["A"].core
    for node in leader.otherNodes:  # the entries of a link that broke: sent, as far as the leader knows
        leader.set_next_index(node, leader.last_index() + 1)
    for _ in range(2):
        cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.deliver("A", "B")
    assert len(cluster.in_flight("B", "A")) == 2
    cluster.deliver("B", "A", 1)
    cluster.deliver("A", "B")
    assert cluster.nodes["B"].snapshots.installed == 1
    acknowledged: list[str] = []
    for number in range(3):
        cluster.propose("A", f"new{number}", acknowledged)
    cluster.turn("A")
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.deliver("A", "B")
    end_of_log = cluster.log("B")[-1]
    cluster.deliver("B", "A", 1)
    for _round in range(6):
        cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.deliver("B", "A")
    while cluster.in_flight("A", "B")[0].get("serialized"):
        cluster.deliver("A", "B", 1)
    assert acknowledged == ["new0", "new1", "new2"]
    assert (cluster.log("B")[-1] == end_of_log) is rule
    cluster.crash("A")
    cluster.heal("C")
    cluster.clock.now += LONG_AFTER
    cluster.elect("B", voters="BC")
    cluster.settle()
    assert (lost(acknowledged, cluster.values("B")) == []) is rule


def test_the_engine_is_the_one_that_was_audited(make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another source of pysyncobj is refused at start, with the version to install."""
    monkeypatch.setattr("raftreg.engine._ENGINE_SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match=r"pysyncobj==0\.3\.17"):
        make_cluster("A")


def test_voters_elect_a_leader_by_themselves_and_another_one_when_it_dies(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ABC")
    leaders = []
    for _ in range(2):
        cluster.pump(rounds=60, step=A_HEARTBEAT_LATER)
        (leader,) = [name for name, node in cluster.nodes.items() if node.is_leader]
        leaders.append(leader)
        cluster.crash(leader)
    assert leaders[0] != leaders[1]


def test_a_voter_that_was_cut_off_deposes_nobody_when_it_is_back(make_cluster: MakeCluster) -> None:
    """Pre-vote: while cut off in silence it stands in no election, so its term does not rise."""
    cluster = make_cluster("ABC")
    cluster.elect("A")
    cluster.settle()
    term = cluster.nodes["A"].term
    for peer in "AB":
        cluster.cut |= {("C", peer), (peer, "C")}
    cluster.pump(rounds=60, step=A_HEARTBEAT_LATER)
    cluster.cut.clear()
    cluster.pump(rounds=20, step=A_HEARTBEAT_LATER)
    assert cluster.nodes["A"].is_leader
    assert {node.term for node in cluster.nodes.values()} == {term}


def test_one_leader_per_term_and_nothing_applied_twice_after_many_elections(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ABC")
    acknowledged: list[str] = []
    leaders: dict[int, str] = {}
    for round_, name in enumerate("ABCABC"):
        cluster.clock.now += LONG_AFTER
        cluster.elect(name)
        node: RaftNode = cluster.nodes[name]
        assert leaders.setdefault(node.term, name) == name
        cluster.propose(name, f"round{round_}", acknowledged)
        cluster.settle()
    values = cluster.values("A")
    assert values == [f"round{round_}" for round_ in range(6)] == acknowledged
    assert cluster.values("B") == cluster.values("C") == values
