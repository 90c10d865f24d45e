"""Rules of the consensus core, one directed schedule each: reads of a deposed leader, votes, repair of divergent logs,
transfer, snapshots beside writes and restarts, one-way links, bounds of the log.
"""

from __future__ import annotations

from typing import Any

import pytest

from raftreg.config import Limits
from raftreg.tables import View
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import (
    A_HEARTBEAT_LATER,
    LONG_AFTER,
    TIMING,
    Cluster,
    ask,
    led_by_a,
    stand,
    write,
)

LONG_LOG = Limits(snapshot_chunk_bytes=64, log_keep_entries=10_000)


# -- reads --------------------------------------------------------------------------------------------------------


def test_a_leader_that_was_paused_answers_no_linearizable_read_from_its_old_state(make_cluster: MakeCluster) -> None:
    """A stands still while B is elected and writes; old echoes wait in its sockets when it goes on."""
    cluster = led_by_a(make_cluster)
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    for peer in "BC":
        cluster.deliver("A", peer)
    old_echoes = {link: list(cluster.queues.pop(link)) for link in (("B", "A"), ("C", "A"))}
    assert all(old_echoes.values())
    cluster.clock.now += LONG_AFTER
    stand(cluster, "B")
    cluster.pump("BC", rounds=4)
    acknowledged = write(cluster, "B", ["newer"])
    cluster.pump("BC", rounds=6, step=A_HEARTBEAT_LATER)
    assert acknowledged == ["newer"]
    for link in old_echoes:
        cluster.queues[link].clear()
        cluster.queues[link].extend(old_echoes[link])
    assert cluster.nodes["A"].is_leader
    answers = ask(cluster, "A")
    for peer in "BC":
        cluster.deliver(peer, "A")
    assert answers == []
    cluster.settle()
    cluster.settle()
    assert answers == [None]
    assert cluster.values("A") == ["newer"]


def test_a_leader_without_a_majority_confirms_no_read_and_gives_them_up_when_it_steps_down(
    make_cluster: MakeCluster,
) -> None:
    cluster = led_by_a(make_cluster)
    for peer in "BC":
        cluster.cut |= {("A", peer), (peer, "A")}
    answers = ask(cluster, "A")
    cluster.pump("A", rounds=20, step=A_HEARTBEAT_LATER)
    assert answers == []
    cluster.pump("A", rounds=2, step=TIMING.leader_fallback_s)
    assert answers == [None]
    assert not cluster.nodes["A"].is_leader


@pytest.mark.parametrize("asked_at", ["A", "B"])
def test_a_read_index_covers_every_write_acknowledged_before_it_was_asked_for(
    make_cluster: MakeCluster, asked_at: str
) -> None:
    """At the leader, and at a follower which has not heard of the commit yet."""
    cluster = led_by_a(make_cluster)
    acknowledged = write(cluster, "A", ["one", "two"])
    cluster.turn("A")
    cluster.deliver("A", "C")
    cluster.deliver("C", "A")
    assert acknowledged == ["one", "two"]
    assert cluster.values("B") == []
    answers = ask(cluster, asked_at)
    cluster.settle()
    (index,) = answers
    assert index is not None
    assert index >= cluster.nodes["A"].journal.last_index
    assert cluster.nodes[asked_at].applied >= index


def test_a_new_leader_confirms_reads_only_with_what_its_predecessors_committed(make_cluster: MakeCluster) -> None:
    """B leads before it knows that "value" is committed: the index of a read reaches its own first entry."""
    cluster = led_by_a(make_cluster)
    acknowledged = write(cluster, "A", ["value"])
    cluster.turn("A")
    cluster.lose("A", "C")
    cluster.deliver("A", "B")
    cluster.deliver("B", "A")
    assert acknowledged == ["value"]
    cluster.crash("A")
    cluster.clock.now += LONG_AFTER
    stand(cluster, "B")
    cluster.deliver("B", "C")
    cluster.deliver("C", "B")
    assert cluster.nodes["B"].is_leader
    assert cluster.values("B") == []
    answers = ask(cluster, "B")
    cluster.settle()
    (index,) = answers
    assert index is not None
    assert index > 3
    assert cluster.values("B") == ["value"]


def test_a_follower_s_read_is_answered_by_none_when_the_link_to_the_leader_breaks(make_cluster: MakeCluster) -> None:
    cluster = led_by_a(make_cluster)
    answers = ask(cluster, "B")
    cluster.disconnect("A", "B")
    cluster.turn("B")
    assert answers == [None]


def test_a_leader_gives_up_the_reads_of_followers_when_it_is_deposed(make_cluster: MakeCluster) -> None:
    cluster = led_by_a(make_cluster)
    answers = ask(cluster, "B")
    cluster.deliver("B", "A")
    cluster.nodes["A"].receive("C", {"type": "term", "term": cluster.nodes["A"].term + 1})
    cluster.turn("A")
    cluster.deliver("A", "B")
    assert answers == [None]


# -- order within a turn ------------------------------------------------------------------------------------------


def test_votes_and_acknowledgements_leave_after_the_commit_and_only_append_entries_before_it(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a turn has sent by the time the disk writes: nothing that promises durability."""
    cluster = make_cluster("ABC")
    left_early: list[str] = []

    def watched(name: str) -> None:
        node = cluster.nodes[name]
        turn, commit = node.turn, node.store.commit
        waiting_before: dict[str, int] = {}

        def turn_watched() -> bool:
            waiting_before.update({peer: len(cluster.in_flight(name, peer)) for peer in node.others})
            return turn()

        def commit_watched() -> None:
            for peer in node.others:
                left_early.extend(m["type"] for m in cluster.in_flight(name, peer)[waiting_before[peer] :])
            commit()

        monkeypatch.setattr(node, "turn", turn_watched)
        monkeypatch.setattr(node.store, "commit", commit_watched)

    for name in "ABC":
        watched(name)
    stand(cluster, "A")
    for peer in "BC":
        cluster.deliver("A", peer)
        cluster.deliver(peer, "A")
    assert cluster.nodes["A"].is_leader
    acknowledged = write(cluster, "A", ["value"])
    for _ in range(3):
        cluster.turn("A")
        for peer in "BC":
            cluster.deliver("A", peer)
            cluster.deliver(peer, "A")
    assert acknowledged == ["value"]
    assert set(left_early) == {"append_entries"}


# -- elections ----------------------------------------------------------------------------------------------------


def test_a_voter_answers_a_repeated_request_for_its_vote_once(make_cluster: MakeCluster) -> None:
    """pysyncobj counts every vote that it receives, so nobody may send two in one term, not even after a restart."""
    cluster = make_cluster("ABCDE")
    stand(cluster, "A")
    (request,) = [m for m in cluster.in_flight("A", "B") if m["type"] == "request_vote"]
    cluster.deliver("A", "B")
    cluster.nodes["B"].receive("A", request)
    cluster.turn("B")
    votes = [m for m in cluster.in_flight("B", "A") if m["type"] == "response_vote"]
    assert len(votes) == 1
    cluster.crash("B")
    cluster.start("B")
    cluster.heal("B")
    cluster.nodes["B"].receive("A", request)
    cluster.nodes["B"].receive("C", request)
    cluster.turn("B")
    assert [m for peer in "AC" for m in cluster.in_flight("B", peer) if m["type"] == "response_vote"] == []


def test_a_voter_denies_a_pre_vote_while_it_hears_a_leader_and_grants_it_when_that_one_is_silent(
    make_cluster: MakeCluster,
) -> None:
    cluster = led_by_a(make_cluster)
    request = {"type": "pre_vote", "term": 2, "last_log_index": 99, "last_log_term": 1}

    def granted() -> bool:
        cluster.queues[("C", "B")].clear()
        cluster.nodes["C"].receive("B", request)
        cluster.turn("C")
        return any(m["type"] == "pre_vote_granted" for m in cluster.in_flight("C", "B"))

    assert not granted()
    cluster.clock.now += TIMING.raft_min_timeout_s
    assert granted()
    request["last_log_index"] = 1
    assert not granted()


def test_a_leader_that_can_send_but_hears_nobody_is_replaced(make_cluster: MakeCluster) -> None:
    """One-way partition: its heartbeats arrive, so nobody would ever stand if it did not step down by itself."""
    cluster = led_by_a(make_cluster)
    cluster.cut |= {("B", "A"), ("C", "A")}
    cluster.pump(rounds=30, step=TIMING.leader_fallback_s / 20)
    cluster.pump(rounds=80, step=A_HEARTBEAT_LATER)
    assert not cluster.nodes["A"].is_leader
    (leader,) = [name for name, node in cluster.nodes.items() if node.is_leader]
    acknowledged = write(cluster, leader, ["after"])
    cluster.settle()
    assert acknowledged == ["after"]


def test_a_leader_that_hears_all_but_reaches_nobody_is_replaced_and_follows_when_it_is_back(
    make_cluster: MakeCluster,
) -> None:
    cluster = led_by_a(make_cluster)
    cluster.cut |= {("A", "B"), ("A", "C")}
    late = write(cluster, "A", ["never acknowledged"])
    cluster.pump(rounds=80, step=A_HEARTBEAT_LATER)
    (leader,) = [name for name, node in cluster.nodes.items() if node.is_leader]
    assert leader != "A"
    assert late == []
    cluster.cut.clear()
    cluster.pump(rounds=40, step=A_HEARTBEAT_LATER)
    acknowledged = write(cluster, leader, ["after"])
    cluster.settle()
    assert acknowledged == ["after"]
    assert cluster.values("A") == ["after"]


def test_leadership_is_handed_to_a_voter_that_has_the_whole_log_within_a_few_round_trips(
    make_cluster: MakeCluster,
) -> None:
    cluster = led_by_a(make_cluster)
    acknowledged = write(cluster, "A", ["before"])
    cluster.turn("A")
    assert not cluster.nodes["A"].transfer_leadership(), "nobody has the last entry yet"
    cluster.settle()
    term, started = cluster.nodes["A"].term, cluster.clock.now
    assert cluster.nodes["A"].transfer_leadership()
    cluster.pump(rounds=4)
    (leader,) = [name for name, node in cluster.nodes.items() if node.is_leader]
    assert leader != "A"
    assert cluster.nodes[leader].term == term + 1
    assert cluster.clock.now == started, "no election timeout was waited for"
    cluster.settle()
    assert cluster.values("A") == cluster.values(leader) == acknowledged == ["before"]


# -- repair -------------------------------------------------------------------------------------------------------


def divergent(make_cluster: MakeCluster, tail: int) -> Cluster:
    """A holds a long tail that nobody else has; B leads on with C and has kept its whole log."""
    cluster = led_by_a(make_cluster, limits=LONG_LOG)
    cluster.isolate("A")
    write(cluster, "A", [f"a{number}" for number in range(tail)])
    cluster.turn("A")
    cluster.clock.now += LONG_AFTER
    cluster.elect("B", voters="C")
    write(cluster, "B", [f"b{number}" for number in range(tail)])
    cluster.pump("BC", rounds=6, step=A_HEARTBEAT_LATER)
    assert len(cluster.values("B")) == tail
    return cluster


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("heartbeats_in_flight", [1, 3])
def test_a_long_divergent_tail_is_repaired_within_seconds_however_many_resets_are_in_flight(
    make_cluster: MakeCluster, heartbeats_in_flight: int
) -> None:
    """Walking back one entry per heartbeat would take half a minute here, and with several in flight never end."""
    cluster = divergent(make_cluster, tail=300)
    cluster.heal("A")
    leader = cluster.nodes["B"].core
    for node in leader.otherNodes:  # as if everything had been sent on a link that broke
        leader.set_next_index(node, leader.last_index() + 1)
    started = cluster.clock.now
    while cluster.log("A") != cluster.log("B"):
        for _ in range(heartbeats_in_flight):
            cluster.turn("B", after=A_HEARTBEAT_LATER)
        cluster.deliver("B", "A")
        cluster.deliver("A", "B")
        cluster.deliver("B", "C")
        cluster.deliver("C", "B")
        assert cluster.clock.now - started < 5.0
    cluster.settle()
    assert cluster.values("A") == cluster.values("B")


# -- snapshots ----------------------------------------------------------------------------------------------------


def behind_a_snapshot(make_cluster: MakeCluster, *, values: int = 30) -> Cluster:
    """C was away while A and B wrote and trimmed their logs."""
    cluster = led_by_a(make_cluster)
    cluster.isolate("C")
    write(cluster, "A", [f"value{number}" for number in range(values)])
    cluster.pump("AB", rounds=8, step=A_HEARTBEAT_LATER)
    assert cluster.log("A")[0][0] > 10
    return cluster


def half_a_snapshot_to_c(cluster: Cluster) -> None:
    cluster.heal("C")
    while not cluster.nodes["C"].snapshots.receiving:
        cluster.turn("A", after=A_HEARTBEAT_LATER)
        cluster.deliver("A", "C", 1)
        cluster.deliver("C", "A")
        cluster.deliver("A", "B")
        cluster.deliver("B", "A")
    for _ in range(3):
        cluster.turn("A")
        cluster.deliver("A", "C", 1)
        cluster.deliver("C", "A")
    assert cluster.nodes["C"].snapshots.installed == 0
    assert sum(1 for _ in cluster.nodes["C"].store.installing_view().scan(b"", b"\xff")) > 0


def test_a_voter_gets_a_snapshot_while_writes_go_on_and_misses_none_of_them(make_cluster: MakeCluster) -> None:
    cluster = behind_a_snapshot(make_cluster)
    cluster.heal("C")
    acknowledged: list[str] = []
    for round_ in range(30):
        cluster.propose("A", f"meanwhile{round_}", acknowledged)
        cluster.pump(rounds=1, step=A_HEARTBEAT_LATER)
    cluster.settle()
    assert cluster.nodes["C"].snapshots.installed >= 1
    assert len(acknowledged) == 30
    assert cluster.values("C") == cluster.values("A")
    assert cluster.values("A")[30:] == acknowledged


def test_a_restart_in_the_middle_of_an_installation_shows_the_old_state_and_reclaims_the_half_installed_one(
    make_cluster: MakeCluster,
) -> None:
    cluster = behind_a_snapshot(make_cluster)
    half_a_snapshot_to_c(cluster)
    cluster.crash("C")
    node = cluster.start("C")
    assert cluster.values("C") == []
    assert (node.applied, node.store.generation) == (2, 1)
    abandoned = list(node.store._garbage_generations)
    assert abandoned
    for _ in range(3):
        cluster.turn("C", after=A_HEARTBEAT_LATER)
    assert node.store._garbage_generations == []
    assert node.store.reclaim(1) == 0
    cluster.heal("C")
    cluster.settle()
    cluster.settle()
    assert cluster.values("C") == cluster.values("A")
    assert node.store._garbage_generations == []


def test_a_state_is_the_old_or_the_new_one_after_a_crash_at_any_chunk_of_an_installation(
    make_cluster: MakeCluster,
) -> None:
    """C dies before the commit of each chunk in turn; what it shows afterwards is one committed moment."""
    cluster = behind_a_snapshot(make_cluster)
    complete = cluster.values("A")
    crashes = 0
    for attempt in range(60):
        cluster.heal("C")
        left = attempt
        while "C" in cluster.nodes and left >= 0 and cluster.nodes["C"].snapshots.installed == 0:
            cluster.turn("A", after=A_HEARTBEAT_LATER)
            cluster.deliver("C", "A")
            cluster.deliver("A", "B")
            cluster.deliver("B", "A")
            while left >= 0 and cluster.queues[("A", "C")] and "C" in cluster.nodes:
                left -= 1
                if left < 0:
                    cluster.fail_next_commit("C")
                cluster.deliver("A", "C", 1)
        if "C" not in cluster.nodes:
            crashes += 1
            cluster.start("C")
        elif cluster.nodes["C"].snapshots.installed:
            break
        else:
            cluster.crash("C")
            cluster.start("C")
        node = cluster.nodes["C"]
        assert cluster.values("C") in ([], complete)
        assert node.applied <= node.journal.last_index
    assert crashes > 5
    cluster.settle()
    assert cluster.values("C") == complete


# -- bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "entries_max"),
    [
        (Limits(log_keep_entries=10, log_keep_bytes=1 << 20), 2 * 10 + 5),
        (Limits(log_keep_entries=10_000, log_keep_bytes=200), 2 * 200 // 10 + 5),
    ],
    ids=["by number", "by bytes"],
)
def test_the_log_is_trimmed_to_its_bounds_on_every_voter_and_survives_a_restart(
    make_cluster: MakeCluster, limits: Limits, entries_max: int
) -> None:
    cluster = led_by_a(make_cluster, limits=limits)
    longest = 0
    for number in range(120):
        cluster.propose("A", f"value{number:04}", [])
        cluster.pump(rounds=1)
        longest = max(longest, *(len(cluster.log(name)) for name in "ABC"))
    cluster.settle()
    assert longest <= entries_max + 1
    for name in "ABC":
        cluster.crash(name)
        node = cluster.start(name)
        assert len(cluster.log(name)) <= entries_max
        assert node.journal.bytes == sum(len(entry[0]) for entry in node.journal[:])
        assert node.journal.first_index < node.applied
        assert cluster.values(name) == [f"value{number:04}" for number in range(120)]


def test_an_entry_that_cannot_be_applied_ends_the_process_before_anything_is_released(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn in which apply fails acknowledges nothing, and the entry is not skipped after the restart."""
    cluster = led_by_a(make_cluster)
    acknowledged = write(cluster, "A", ["poison"])
    cluster.turn("A")
    for peer in "BC":
        cluster.deliver("A", peer)
        cluster.deliver(peer, "A")
        if acknowledged:
            break
    assert acknowledged == ["poison"]

    def fails(view: View, index: int, payload: bytes | None) -> Any:
        raise RuntimeError("a bug in apply")

    monkeypatch.setattr(cluster.nodes["B"], "_apply", fails)
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.deliver("A", "B")
    assert "cannot be applied" in cluster.dead["B"]
    assert cluster.in_flight("B", "A") == []
    cluster.start("B")
    assert cluster.values("B") == []
    cluster.heal("B")
    cluster.settle()
    assert cluster.values("B") == ["poison"]
