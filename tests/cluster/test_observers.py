"""Observers get the log and snapshots and count in nothing: no vote, no majority, no round of reads, no check of the
quorum, no refusal. Whatever they say or fail to say, the voters do what they would do without them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pysyncobj.node import Node

from raftreg.raft import RaftNode
from raftreg.read_rounds import Freshness
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import (
    A_HEARTBEAT_LATER,
    LONG_AFTER,
    SMALL_SNAPSHOTS,
    TIMING,
    Cluster,
    ask,
    led_by_a,
    stand,
    write,
)
from tests.cluster.test_directed_faults import with_and_without_the_rule

LONG_LOG = replace(SMALL_SNAPSHOTS, log_keep_entries=1000)
# Ten bytes of entries in a heartbeat period, for all observers together.
A_TRICKLE = replace(LONG_LOG, observers_bytes_per_s_max=100)


def observed(make_cluster: MakeCluster, observers: str = "O", **options: Any) -> Cluster:
    return led_by_a(make_cluster, observers=observers, **options)


def run(cluster: Cluster, *, rounds: int = 40) -> None:
    cluster.pump(rounds=rounds, step=A_HEARTBEAT_LATER)


# -- log and snapshots --------------------------------------------------------------------------------------------


def test_an_observer_follows_the_log_and_is_neither_voter_nor_candidate(make_cluster: MakeCluster) -> None:
    cluster = observed(make_cluster, "OP", limits=LONG_LOG)
    acknowledged = write(cluster, "A", ["one", "two"])
    run(cluster)
    assert acknowledged == ["one", "two"]
    for name in "OP":
        assert cluster.values(name) == acknowledged
        assert cluster.nodes[name].role == "observer"
        assert cluster.nodes[name].leader == "A"
        assert cluster.nodes["A"].match_index(name) == cluster.nodes["A"].journal.last_index
    assert list(cluster.nodes["A"].observers) == ["O", "P"]


@pytest.mark.parametrize("wiped", [False, True], ids=["was-away", "wiped"])
def test_an_observer_that_lags_behind_the_log_gets_a_snapshot_while_writes_go_on(
    make_cluster: MakeCluster, wiped: bool
) -> None:
    """It is never recovering: it has no promise to forget."""
    cluster = observed(make_cluster)
    cluster.crash("O")
    acknowledged = write(cluster, "A", [f"early{number}" for number in range(40)])
    for _ in range(3):
        run(cluster)
    if wiped:
        cluster.wipe("O")
    cluster.start("O")
    cluster.heal("O")
    for number in range(30):
        acknowledged += [f"late{number}"]
        cluster.propose("A", f"late{number}", [])
        cluster.pump(rounds=1, step=A_HEARTBEAT_LATER)
        assert cluster.nodes["O"].role == "observer"
    run(cluster)
    assert cluster.nodes["O"].snapshots.installed >= 1
    assert cluster.values("O") == cluster.values("A") == acknowledged


def test_an_observer_resumes_from_its_disk_after_a_crash(make_cluster: MakeCluster) -> None:
    cluster = observed(make_cluster, limits=LONG_LOG)
    acknowledged = write(cluster, "A", ["one", "two"])
    run(cluster)
    cluster.crash("O")
    cluster.start("O")
    assert cluster.values("O") == acknowledged
    assert cluster.nodes["O"].leader is None
    assert cluster.nodes["O"].staleness_s() is None
    cluster.heal("O")
    acknowledged += write(cluster, "A", ["three"])
    run(cluster)
    assert cluster.values("O") == ["one", "two", "three"]
    assert cluster.nodes["O"].snapshots.installed == 0


def test_an_observer_of_a_single_voter_follows_it(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("A", observers="O")
    cluster.settle()
    acknowledged = write(cluster, "A", ["alone"])
    cluster.settle()
    answers = ask(cluster, "O")
    cluster.settle()
    assert acknowledged == cluster.values("O") == ["alone"]
    assert answers == [cluster.nodes["A"].journal.last_index]


def test_an_uncommitted_tail_on_an_observer_gives_way_to_the_next_leader_s_log(make_cluster: MakeCluster) -> None:
    cluster = observed(make_cluster, limits=LONG_LOG)
    lost = write(cluster, "A", ["uncommitted"])
    cluster.turn("A")
    cluster.lose("A", "B")
    cluster.lose("A", "C")
    cluster.deliver("A", "O")
    assert cluster.nodes["O"].journal.last_index == cluster.nodes["A"].journal.last_index
    cluster.crash("A")
    cluster.clock.now += LONG_AFTER
    cluster.elect("B", voters="C")
    kept = write(cluster, "B", ["committed"])
    run(cluster)
    assert (lost, kept) == ([], ["committed"])
    assert cluster.values("O") == cluster.values("C") == ["committed"]


# -- what is not counted ------------------------------------------------------------------------------------------


def test_observers_make_no_majority_for_a_commit(make_cluster: MakeCluster) -> None:
    cluster = observed(make_cluster, "OP")
    for name in "BC":
        cluster.crash(name)
    acknowledged = write(cluster, "A", ["nowhere"])
    run(cluster)
    assert cluster.nodes["A"].match_index("O") == cluster.nodes["A"].journal.last_index
    assert acknowledged == []
    assert cluster.values("O") == cluster.values("A") == []


def test_a_leader_that_reaches_only_observers_steps_down(make_cluster: MakeCluster) -> None:
    cluster = observed(make_cluster, "OP")
    for name in "BC":
        cluster.crash(name)
    cluster.pump(rounds=10, step=TIMING.leader_fallback_s / 5)
    assert not cluster.nodes["A"].is_leader
    assert cluster.nodes["A"].leader is None
    assert {cluster.nodes[name].leader for name in "OP"} == {None}


def test_one_voter_of_three_is_not_elected_by_any_number_of_observers(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ABC", observers="OPQ")
    for name in "BC":
        cluster.crash(name)
    stand(cluster, "A")
    run(cluster, rounds=60)
    assert not cluster.nodes["A"].is_leader
    assert {cluster.nodes[name].term for name in "OPQ"} == {0}


@with_and_without_the_rule
def test_observers_confirm_no_read_of_a_leader_without_a_majority(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """Two observers echo the rounds of a leader whose voters have gone over to another one, and a newer write."""
    if not rule:
        monkeypatch.setattr(RaftNode, "_counts", lambda *_: True)
    cluster = observed(make_cluster, "OP")
    for name in "BC":
        cluster.disconnect("A", name)
    cluster.clock.now += LONG_AFTER
    stand(cluster, "B")
    cluster.pump("BC", rounds=4)
    newer = write(cluster, "B", ["newer"])
    cluster.pump("BC", rounds=6, step=A_HEARTBEAT_LATER)
    assert newer == ["newer"]
    for name in "OP":
        cluster.disconnect("B", name)
        cluster.disconnect("C", name)
    answers = ask(cluster, "A")
    cluster.pump("AOP", rounds=6, step=A_HEARTBEAT_LATER)
    assert cluster.nodes["A"].is_leader
    assert (answers == []) is rule
    staleness = cluster.nodes["A"].staleness_s()
    assert staleness is not None
    assert (staleness > LONG_AFTER) is rule


def votes_for(cluster: Cluster) -> bool:
    stand(cluster, "B")
    cluster.nodes["B"].receive("O", {"type": "response_vote", "term": cluster.nodes["B"].term})
    cluster.turn("B")
    return cluster.nodes["B"].is_leader


def grants_a_pre_vote(cluster: Cluster) -> bool:
    node = cluster.nodes["B"]
    cluster.clock.now += LONG_AFTER
    cluster.turn("B")
    term = node.term
    node.receive("O", {"type": "pre_vote_granted", "term": term + 1})
    cluster.turn("B")
    return node.term > term


def tells_of_a_term(cluster: Cluster) -> bool:
    cluster.nodes["A"].receive("O", {"type": "term", "term": 99})
    cluster.turn("A")
    return not cluster.nodes["A"].is_leader


def asks_for_a_vote(cluster: Cluster) -> bool:
    cluster.nodes["B"].receive("O", {"type": "request_vote", "term": 99, "last_log_index": 99, "last_log_term": 99})
    cluster.turn("B")
    return cluster.nodes["B"].term == 99


def leads(cluster: Cluster) -> bool:
    frame = {"type": "append_entries", "term": 99, "commit_index": 1, "prevLogIdx": 1, "prevLogTerm": 0, "entries": []}
    cluster.nodes["B"].receive("O", frame)
    cluster.turn("B")
    return cluster.nodes["B"].leader == "O"


def is_full(cluster: Cluster) -> bool:
    cluster.nodes["A"].receive("O", {"type": "storage", "refusal": "the disk of O is full"})
    cluster.turn("A")
    return bool(cluster.nodes["A"]._full_peers)


@with_and_without_the_rule
@pytest.mark.parametrize("says", [votes_for, grants_a_pre_vote, tells_of_a_term, asks_for_a_vote, leads, is_full])
def test_a_voter_heeds_nothing_of_an_observer_that_could_be_counted(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, says: Callable[[Cluster], bool], rule: bool
) -> None:
    if not rule:
        monkeypatch.setattr(RaftNode, "_heeds", lambda *_: True)
    cluster = observed(make_cluster)
    assert says(cluster) is not rule


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "request_vote", "term": 99, "last_log_index": 99, "last_log_term": 99},
        {"type": "pre_vote", "term": 99, "last_log_index": 99, "last_log_term": 99},
        {"type": "timeout_now", "term": 99},
        {"type": "term", "term": 99},
        {"type": "caught_up", "term": 99, "index": 1},
        {"type": "positions", "positions": {"B": [99, 99, "x"]}},
        {"type": "storage", "refusal": "full"},
        {"type": "next_node_idx", "next_node_idx": 2, "reset": False, "success": True, "_term": 99},
    ],
    ids=lambda frame: str(frame["type"]),
)
def test_an_observer_takes_no_part_in_what_voters_say_to_each_other(
    make_cluster: MakeCluster, frame: dict[str, Any]
) -> None:
    cluster = observed(make_cluster)
    term = cluster.nodes["O"].term
    cluster.deliver("O", "A")
    cluster.nodes["O"].receive("A", frame)
    cluster.turn("O")
    assert cluster.in_flight("O", "A") == []
    assert (cluster.nodes["O"].term, cluster.nodes["O"].leader) == (term, "A")


def test_nobody_talks_of_elections_and_positions_to_an_observer(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ABC", observers="O")
    heard: set[str] = set()
    for _ in range(60):
        for name in "ABC":
            cluster.turn(name)
            heard |= {str(message["type"]) for message in cluster.in_flight(name, "O")}
        for source, target in sorted(cluster.queues):
            cluster.deliver(source, target)
        cluster.clock.now += A_HEARTBEAT_LATER
    assert any(cluster.nodes[name].is_leader for name in "ABC")
    assert heard == {"append_entries"}


def test_leadership_is_never_handed_to_an_observer(make_cluster: MakeCluster) -> None:
    """The observer has the whole log, the only voters left have not."""
    cluster = observed(make_cluster, limits=LONG_LOG)
    write(cluster, "A", ["new"])
    cluster.turn("A")
    cluster.lose("A", "B")
    cluster.lose("A", "C")
    cluster.deliver("A", "O")
    cluster.deliver("O", "A")
    assert cluster.nodes["A"].match_index("O") == cluster.nodes["A"].journal.last_index
    assert not cluster.nodes["A"].transfer_leadership()
    assert all(message["type"] != "timeout_now" for message in cluster.in_flight("A", "O"))


def test_a_recovering_voter_waits_for_voters_and_for_no_observer(make_cluster: MakeCluster) -> None:
    cluster = observed(make_cluster, "OP")
    cluster.crash("C")
    cluster.wipe("C")
    for name in "OP":
        cluster.crash(name)
    cluster.start("C")
    cluster.heal("C")
    run(cluster)
    assert cluster.nodes["C"].role == "follower"


# -- links that break ---------------------------------------------------------------------------------------------


@with_and_without_the_rule
def test_bytes_of_an_observer_s_old_connection_are_heeded_by_nobody(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """pysyncobj has forgotten an observer whose link broke: its late acknowledgement ends the tick with a KeyError."""
    cluster = observed(make_cluster)
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.deliver("A", "O")
    late = cluster.in_flight("O", "A")
    assert [message["type"] for message in late] == ["next_node_idx"]
    cluster.disconnect("A", "O")
    if not rule:
        monkeypatch.setattr(RaftNode, "_heeds", lambda *_: True)
        monkeypatch.setattr(RaftNode, "_node", lambda node, peer: node._nodes.get(peer) or Node(peer))
    cluster.nodes["A"].receive("O", late[0])
    if rule:
        cluster.turn("A")
        cluster.connect("A", "O")
        write(cluster, "A", ["goes on"])
        run(cluster)
        assert cluster.values("O") == ["goes on"]
    else:
        with pytest.raises(KeyError):
            cluster.turn("A")


def test_what_a_broken_link_had_still_to_say_is_dropped_with_it(make_cluster: MakeCluster) -> None:
    cluster = observed(make_cluster)
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.deliver("A", "O")
    cluster.nodes["A"].receive("O", cluster.in_flight("O", "A")[0])
    cluster.disconnect("A", "O")
    assert "O" not in cluster.nodes["A"].observers
    cluster.turn("A")
    cluster.connect("A", "O")
    run(cluster)
    assert cluster.nodes["A"].match_index("O") == cluster.nodes["A"].journal.last_index


def test_an_observer_that_comes_and_goes_leaves_nothing_behind(make_cluster: MakeCluster) -> None:
    cluster = observed(make_cluster)
    for _ in range(3):
        cluster.disconnect("A", "O")
        run(cluster, rounds=3)
        core = cluster.nodes["A"].core
        for field in ("raftNextIndex", "raftMatchIndex", "lastResponseTime"):
            assert {node.id for node in core.private(field)} == {"B", "C"}
        assert {node.id for node in core.private("connectedNodes")} == {"B", "C"}
        assert set(cluster.nodes["A"].transport.clocks) == {"B", "C"}
        cluster.connect("A", "O")
        run(cluster, rounds=3)
    assert cluster.nodes["A"].match_index("O") == cluster.nodes["A"].journal.last_index


# -- freshness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [("from",), ("to",), ("from", "to")], ids=["hears-nothing", "is-not-heard", "both"])
def test_an_isolated_observer_tells_truly_how_old_its_state_is(make_cluster: MakeCluster, lost: tuple[str]) -> None:
    cluster = observed(make_cluster, limits=LONG_LOG)
    run(cluster)
    before = cluster.nodes["O"].staleness_s()
    assert before is not None
    assert before < 5 * A_HEARTBEAT_LATER
    cut_at = cluster.clock.now
    for name in "ABC":
        cluster.cut |= {(name, "O")} if "from" in lost else set()
        cluster.cut |= {("O", name)} if "to" in lost else set()
    for number in range(20):
        acknowledged = write(cluster, "A", [f"value{number}"])
        run(cluster, rounds=4)
        staleness = cluster.nodes["O"].staleness_s()
        assert acknowledged
        assert staleness is not None
        assert staleness >= cluster.clock.now - cut_at
    assert (cluster.values("O") == []) is ("from" in lost)
    cluster.heal("O")
    run(cluster)
    after = cluster.nodes["O"].staleness_s()
    assert cluster.values("O") == cluster.values("A")
    assert after is not None
    assert after < 5 * A_HEARTBEAT_LATER


@with_and_without_the_rule
def test_an_observer_that_is_always_a_little_behind_is_no_older_than_that(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """Each heartbeat tells of a commit that it has not reached yet. What it reaches was told some seconds ago."""
    if not rule:
        monkeypatch.setattr("raftreg.read_rounds.Freshness.announce", keep_the_newest_alone)
    cluster = observed(make_cluster, limits=A_TRICKLE)
    write(cluster, "A", ["0123456789"] * 40)
    for _ in range(120):
        write(cluster, "A", ["0123456789"])
        cluster.pump(rounds=1, step=A_HEARTBEAT_LATER)
    behind = len(cluster.values("A")) - len(cluster.values("O"))
    staleness = cluster.nodes["O"].staleness_s()
    assert behind > 10
    assert staleness is not None
    assert (staleness < (behind + 10) * A_HEARTBEAT_LATER) is rule


def keep_the_newest_alone(freshness: Freshness, commit_index: int, confirmed_at: float) -> None:
    freshness._announced = deque([(commit_index, confirmed_at)])


def test_an_observer_that_hears_no_leader_for_an_election_knows_none(make_cluster: MakeCluster) -> None:
    """The link is still there, but the leader at its end has nothing to say, since it leads no more."""
    cluster = observed(make_cluster)
    for name in "ABC":
        cluster.cut.add((name, "O"))
    cluster.turn("O", after=TIMING.raft_max_timeout_s / 2)
    assert cluster.nodes["O"].leader == "A"
    cluster.turn("O", after=TIMING.raft_max_timeout_s)
    assert cluster.nodes["O"].leader is None
    assert ask(cluster, "O") == [None]


def test_an_observer_s_reads_go_on_through_a_change_of_leaders(make_cluster: MakeCluster) -> None:
    """What the old leader owes is answered by none; the new one's index covers what it has acknowledged since."""
    cluster = observed(make_cluster, limits=LONG_LOG)
    owed = ask(cluster, "O")
    cluster.crash("A")
    cluster.turn("O")
    assert owed == [None]
    assert ask(cluster, "O") == [None]
    cluster.clock.now += LONG_AFTER
    cluster.elect("B", voters="C")
    cluster.settle()
    acknowledged = write(cluster, "B", ["newer"])
    cluster.turn("B")
    cluster.deliver("B", "C")
    cluster.deliver("C", "B")
    assert acknowledged == ["newer"]
    assert cluster.values("O") == []
    answers = ask(cluster, "O")
    cluster.settle()
    (index,) = answers
    assert index is not None
    assert index >= cluster.nodes["B"].journal.last_index
    assert cluster.nodes["O"].applied >= index
    assert cluster.values("O") == ["newer"]


def test_the_old_leader_answers_no_read_of_an_observer_that_alone_still_hears_it(make_cluster: MakeCluster) -> None:
    cluster = observed(make_cluster)
    for name in "BC":
        cluster.disconnect("A", name)
        cluster.disconnect("O", name)
    cluster.clock.now += LONG_AFTER
    stand(cluster, "B")
    cluster.pump("BC", rounds=4)
    assert write(cluster, "B", ["newer"]) == []
    cluster.pump("BC", rounds=6, step=A_HEARTBEAT_LATER)
    assert cluster.values("C") == ["newer"]
    cluster.pump("AO", rounds=2, step=A_HEARTBEAT_LATER)
    assert cluster.nodes["O"].leader == "A"
    answers = ask(cluster, "O")
    cluster.pump("AO", rounds=10, step=A_HEARTBEAT_LATER)
    assert answers == []
    cluster.pump("AO", rounds=4, step=TIMING.leader_fallback_s)
    assert answers == [None]
    assert cluster.nodes["O"].leader is None
