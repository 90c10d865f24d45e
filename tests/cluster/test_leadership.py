"""Giving the lead away, and waiting for whoever leads next: what is asked meanwhile is neither lost nor in doubt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raftreg import errors
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import A_HEARTBEAT_LATER, LONG_AFTER, SMALL_SNAPSHOTS, TIMING, Cluster, led_by_a
from tests.cluster.services import Request, Services, go_on, settle_tasks, written

WAIT_S = SMALL_SNAPSHOTS.leader_wait_s
AN_ELECTION_S = 3 * TIMING.raft_max_timeout_s


# -- a transfer ---------------------------------------------------------------------------------------------------


async def test_a_transfer_lets_what_is_under_way_commit_and_sends_what_waits_to_the_successor(
    make_cluster: MakeCluster,
) -> None:
    cluster = led_by_a(make_cluster)
    a, b = Services(cluster, "A"), Services(cluster, "B")
    under_way = await a.write("under way").started()
    cluster.turn("A")
    transfer = await a.transfer("B").started()
    held = await a.write("held").started()
    await go_on(cluster, 1)
    told = await transfer.outcome()
    assert (told["from"], told["to"]) == ("A", "B")
    assert 0 < told["took_s"] < 1
    assert await under_way.outcome() == [{"ok": "under way"}]
    sent_on = await held.outcome()
    assert isinstance(sent_on, errors.NotLeader)
    assert (sent_on.leader, sent_on.definite) == ("B", True)
    after = await b.write("after").started()
    await go_on(cluster, 1)
    assert await after.outcome() == [{"ok": "after"}]
    assert written(cluster, "A") == written(cluster, "C") == ["under way", "after"]


@pytest.mark.parametrize("rule", [True, False])
async def test_without_holding_new_commands_a_transfer_leaves_some_of_them_in_doubt(
    make_cluster: MakeCluster, rule: bool
) -> None:
    """A command comes when the successor was already asked to stand, and is in the log of the one that is deposed."""
    cluster = led_by_a(make_cluster)
    a = Services(cluster, "A")
    await a.transfer("B").started()
    cluster.turn("A")
    if not rule:
        a.leadership.holding = False
    write = await a.write("late").started()
    (asked,) = [m for m in cluster.in_flight("A", "B") if m["type"] == "timeout_now"]
    cluster.queues[("A", "B")].clear()
    cluster.turn("A")
    cluster.queues[("A", "B")].clear()
    cluster.nodes["B"].receive("A", asked)
    cluster.turn("B")
    await go_on(cluster, 1)
    assert isinstance(await write.outcome(), errors.NotLeader if rule else errors.OutcomeUnknown)


async def test_the_lead_goes_to_the_voter_that_is_furthest_and_to_no_one_that_recovers(
    make_cluster: MakeCluster,
) -> None:
    cluster = led_by_a(make_cluster)
    a = Services(cluster, "A")
    cluster.isolate("C")
    write = await a.write("only on A and B").started()
    await go_on(cluster, 1, among="AB")
    assert await write.outcome() == [{"ok": "only on A and B"}]
    cluster.heal("C")
    transfer = await a.transfer().started()
    await go_on(cluster, 1)
    assert (await transfer.outcome())["to"] == "B"
    # C catches up; B, which leads now, counts it as one that may have forgotten promises.
    cluster.nodes["B"].recovery.peers.add("C")
    b = Services(cluster, "B")
    refused = await b.transfer("C").outcome()
    assert isinstance(refused, errors.TransferFailed)
    assert "C recovers" in refused.message
    transfer = await b.transfer().started()
    await go_on(cluster, 1)
    assert (await transfer.outcome())["to"] == "A"


async def test_a_voter_that_is_behind_is_asked_only_when_it_has_the_whole_log(make_cluster: MakeCluster) -> None:
    cluster = led_by_a(make_cluster)
    a = Services(cluster, "A")
    cluster.isolate("C")
    for number in range(5):
        write = await a.write(f"without C {number}").started()
        await go_on(cluster, 0.2, among="AB")
        assert await write.outcome() == [{"ok": f"without C {number}"}]
    cluster.heal("C")
    transfer = await a.transfer("C").started()
    cluster.turn("A")
    assert not any(message["type"] == "timeout_now" for message in cluster.in_flight("A", "C"))
    await go_on(cluster, 1)
    assert (await transfer.outcome())["to"] == "C"
    assert written(cluster, "C") == written(cluster, "B")


async def test_a_transfer_that_nobody_takes_ends_in_time_and_the_commands_that_waited_are_done(
    make_cluster: MakeCluster,
) -> None:
    """What A sends to B is lost and nobody notices; only commands that wait for the transfer could suffer from it."""
    cluster = led_by_a(make_cluster)
    a = Services(cluster, "A")
    cluster.cut.add(("A", "B"))
    began = cluster.clock.now
    transfer = await a.transfer("B").started()
    held = await a.write("held").started()
    await go_on(cluster, TIMING.transfer_max_s - 0.2, among="AC")
    assert (transfer.waits, held.waits) == (True, True)
    await go_on(cluster, 0.6, among="AC")
    refused = await transfer.outcome()
    assert isinstance(refused, errors.TransferFailed)
    assert "B did not take over" in refused.message
    assert await held.outcome() == [{"ok": "held"}]
    assert cluster.nodes["A"].is_leader
    assert cluster.clock.now - began < TIMING.transfer_max_s + 0.5


async def test_a_transfer_to_somebody_who_cannot_lead_is_refused_with_the_reason(make_cluster: MakeCluster) -> None:
    cluster = led_by_a(make_cluster)
    a, b = Services(cluster, "A"), Services(cluster, "B")
    stranger = await a.transfer("Z").outcome()
    assert isinstance(stranger, errors.BadRequest)
    assert "the voters are A, B, C" in stranger.message
    cluster.isolate("C")
    away = await a.transfer("C").outcome()
    assert isinstance(away, errors.TransferFailed)
    assert "C is away" in away.message
    elsewhere = await b.transfer("A").outcome()
    assert isinstance(elsewhere, errors.NotLeader)
    assert elsewhere.leader == "A"
    assert (await a.transfer("A").outcome())["to"] == "A", "it leads already"
    assert cluster.nodes["A"].is_leader


async def test_a_leader_that_stops_waits_for_a_transfer_that_is_under_way(make_cluster: MakeCluster) -> None:
    cluster = led_by_a(make_cluster)
    a = Services(cluster, "A")
    transfer = await a.transfer("B").started()
    second = await a.transfer("C").outcome()
    assert isinstance(second, errors.TransferFailed)
    leaving = await Request(a.leadership.leave()).started()
    assert leaving.waits
    await go_on(cluster, 1)
    assert (await transfer.outcome())["to"] == "B"
    assert await leaving.outcome() is None
    assert cluster.nodes["B"].is_leader


# -- while nobody leads -------------------------------------------------------------------------------------------


def leaderless(make_cluster: MakeCluster) -> Cluster:
    """B and C have lost their leader, A, and have noticed it; nobody has stood yet."""
    cluster = led_by_a(make_cluster)
    cluster.crash("A")
    cluster.clock.now += TIMING.raft_max_timeout_s + A_HEARTBEAT_LATER
    for node in cluster.nodes.values():
        node.core.election_deadline = cluster.clock.now + LONG_AFTER
    assert [node.leader for node in cluster.nodes.values()] == [None, None]
    return cluster


async def test_a_write_that_finds_no_leader_is_done_by_the_one_that_is_elected_next(make_cluster: MakeCluster) -> None:
    cluster = leaderless(make_cluster)
    b, c = Services(cluster, "B"), Services(cluster, "C")
    here, there = await b.write("here").started(), await c.write("there").started()
    await go_on(cluster, WAIT_S / 2)
    assert (here.waits, there.waits) == (True, True)
    cluster.elect("B", voters="C")
    await go_on(cluster, A_HEARTBEAT_LATER * 2)
    assert await here.outcome() == [{"ok": "here"}]
    sent_on = await there.outcome()
    assert isinstance(sent_on, errors.NotLeader)
    assert sent_on.leader == "B"


async def test_a_read_that_finds_no_leader_is_confirmed_by_the_one_that_is_elected_next(
    make_cluster: MakeCluster,
) -> None:
    cluster = leaderless(make_cluster)
    b, c = Services(cluster, "B"), Services(cluster, "C")
    here, there = await b.read().started(), await c.read().started()
    await go_on(cluster, WAIT_S / 2)
    assert (here.waits, there.waits) == (True, True)
    cluster.elect("B", voters="C")
    await go_on(cluster, A_HEARTBEAT_LATER * 2)
    assert [await here.outcome(), await there.outcome()] == [None, None]


async def test_without_a_quorum_writes_and_reads_are_refused_after_the_wait_and_told_who_is_away(
    make_cluster: MakeCluster,
) -> None:
    cluster = leaderless(make_cluster)
    cluster.isolate("C")
    c = Services(cluster, "C")
    write, read = await c.write("never").started(), await c.read().started()
    await go_on(cluster, WAIT_S - 0.1, among="C")
    assert (write.waits, read.waits) == (True, True)
    await go_on(cluster, 0.2, among="C")
    for request in (write, read):
        refused = await request.outcome()
        assert isinstance(refused, errors.NoQuorum)
        assert refused.definite
        assert refused.details["not_connected"] == ["A", "B"]
        assert "C knows no leader: not connected with A, B" in refused.message
    assert c.proposer.pending == 0


async def test_a_follower_that_is_behind_gives_a_read_up_when_there_is_nobody_to_catch_up_with(
    make_cluster: MakeCluster,
) -> None:
    cluster = led_by_a(make_cluster)
    c = Services(cluster, "C")
    read = await c.read().started()
    # The leader confirms an index of which C never gets the entries.
    number = c.node._forwarded._counter
    c.node.receive("A", {"type": "read_index_reply", "id": number, "index": c.node.applied + 10})
    cluster.turn("C")
    cluster.isolate("C")
    await go_on(cluster, TIMING.raft_max_timeout_s + WAIT_S - 0.2, among="C")
    assert read.waits
    await go_on(cluster, 0.4, among="C")
    refused = await read.outcome()
    assert isinstance(refused, errors.NoQuorum)
    assert "C knows no leader" in refused.message


async def test_a_read_that_a_deposed_leader_abandons_is_confirmed_by_its_successor(make_cluster: MakeCluster) -> None:
    cluster = led_by_a(make_cluster)
    a, c = Services(cluster, "A"), Services(cluster, "C")
    here, there = await a.read().started(), await c.read().started()
    cluster.deliver("C", "A")
    # Both wait in A for a round that nobody will confirm.
    for peer in "BC":
        cluster.queues[("A", peer)].clear()
    cluster.elect("B")
    await go_on(cluster, A_HEARTBEAT_LATER * 2)
    assert [await here.outcome(), await there.outcome()] == [None, None]


async def test_what_waits_for_a_leader_is_bounded_by_the_queue(make_cluster: MakeCluster) -> None:
    cluster = leaderless(make_cluster)
    c = Services(cluster, "C", replace(SMALL_SNAPSHOTS, propose_queue_max=3))
    waiting = [await c.write(f"{number}").started() for number in range(3)]
    assert isinstance(await c.write("one too many").outcome(), errors.Overloaded)
    cluster.elect("C", voters="B")
    await go_on(cluster, A_HEARTBEAT_LATER * 2)
    assert [await request.outcome() for request in waiting] == [[{"ok": "0"}], [{"ok": "1"}], [{"ok": "2"}]]


async def test_a_leader_that_is_silent_for_an_election_timeout_is_no_longer_named(make_cluster: MakeCluster) -> None:
    """pysyncobj forgets it only when a voter stands, which pre-vote keeps a voter without a quorum from."""
    cluster = led_by_a(make_cluster)
    cluster.isolate("C")
    c = cluster.nodes["C"]
    assert c.leader == "A"
    await go_on(cluster, AN_ELECTION_S, among="C")
    assert c.leader is None
    assert c.role == "candidate"
    cluster.heal("C")
    await go_on(cluster, A_HEARTBEAT_LATER * 2)
    assert c.leader == "A"
    await settle_tasks()
