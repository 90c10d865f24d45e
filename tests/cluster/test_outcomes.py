"""What callers are told of commands under way when leadership, links or processes go: done, surely not, or unknown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raftreg import errors
from raftreg.tables import View
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import A_HEARTBEAT_LATER, LONG_AFTER, SMALL_SNAPSHOTS, led_by_a, write
from tests.cluster.services import Services, entries, go_on, written


async def test_an_entry_under_way_has_an_unknown_outcome_when_leadership_is_lost_and_one_that_waited_a_definite_one(
    make_cluster: MakeCluster,
) -> None:
    cluster = led_by_a(make_cluster)
    a = Services(cluster, "A", replace(SMALL_SNAPSHOTS, inflight_entries_max=1))
    under_way = await a.write("under way").started()
    cluster.turn("A")
    waiting = await a.write("waiting").started()
    cluster.nodes["A"].receive("B", {"type": "term", "term": cluster.nodes["A"].term + 1})
    cluster.turn("A")
    assert isinstance(await under_way.outcome(), errors.OutcomeUnknown)
    assert waiting.waits, "somebody else may take it"
    cluster.isolate("A")
    await go_on(cluster, SMALL_SNAPSHOTS.leader_wait_s + A_HEARTBEAT_LATER, among="A")
    refused = await waiting.outcome()
    assert isinstance(refused, errors.NoQuorum)
    assert refused.definite


async def test_an_entry_that_is_applied_in_the_turn_in_which_leadership_is_lost_is_answered_with_its_result(
    make_cluster: MakeCluster,
) -> None:
    """pysyncobj alone would say "leader changed" although the command was applied."""
    cluster = led_by_a(make_cluster)
    request = await Services(cluster, "A").write("value").started()
    cluster.turn("A")
    cluster.deliver("A", "B")
    (ack,) = [m for m in cluster.in_flight("B", "A") if m["type"] == "next_node_idx" and m["success"]][-1:]
    cluster.queues[("B", "A")].clear()
    node = cluster.nodes["A"]
    apply = node._apply

    def apply_and_lose(view: View, index: int, payload: bytes | None) -> Any:
        node.core.step_down()
        return apply(view, index, payload)

    node._apply = apply_and_lose
    node.receive("B", ack)
    cluster.turn("A")
    assert not node.is_leader
    assert await request.outcome() == [{"ok": "value"}]


async def test_an_answer_goes_to_the_request_that_proposed_it_and_never_to_one_of_an_earlier_life(
    make_cluster: MakeCluster,
) -> None:
    """A restart counts entries from one again; "second" must not get the result of "first"."""
    cluster = led_by_a(make_cluster)
    first = await Services(cluster, "A").write("first").started()
    cluster.turn("A")
    cluster.deliver("A", "B")
    first.task.cancel()
    cluster.crash("A")
    cluster.start("A")
    cluster.heal("A")
    cluster.clock.now += LONG_AFTER
    cluster.elect("B")
    cluster.settle()
    cluster.clock.now += LONG_AFTER
    cluster.elect("A")
    second = await Services(cluster, "A").write("second").started()
    cluster.settle()
    assert await second.outcome() == [{"ok": "second"}]
    assert written(cluster, "A") == ["first", "second"]


async def test_an_entry_whose_commit_is_learnt_from_a_snapshot_has_an_unknown_outcome(
    make_cluster: MakeCluster,
) -> None:
    """A's entry is committed by B, but A hears of it only as part of a snapshot: nobody knows its result there."""
    cluster = led_by_a(make_cluster)
    request = await Services(cluster, "A").write("mine").started()
    cluster.turn("A")
    cluster.deliver("A", "B")
    cluster.isolate("A")
    cluster.clock.now += LONG_AFTER
    cluster.elect("B", voters="C")
    write(cluster, "B", [f"later{number}" for number in range(20)])
    cluster.pump("BC", rounds=8, step=A_HEARTBEAT_LATER)
    cluster.heal("A")
    cluster.settle()
    cluster.settle()
    assert cluster.nodes["A"].snapshots.installed == 1
    assert isinstance(await request.outcome(), errors.OutcomeUnknown)
    assert entries(cluster, "A") == entries(cluster, "B")
    assert len(entries(cluster, "A")) == 21


async def test_a_deadline_that_passes_is_definite_before_the_proposal_and_unknown_after_it(
    make_cluster: MakeCluster,
) -> None:
    cluster = led_by_a(make_cluster)
    a = Services(cluster, "A", replace(SMALL_SNAPSHOTS, inflight_entries_max=1))
    under_way = await a.write("under way").started()
    cluster.turn("A")
    waiting = await a.write("waiting").started()
    cluster.clock.now += 10.5
    a.proposer.expire()
    assert isinstance(await under_way.outcome(), errors.OutcomeUnknown)
    refused = await waiting.outcome()
    assert isinstance(refused, errors.Overloaded)
    assert refused.definite
    cluster.settle()
    assert a.proposer.pending == 0
    assert written(cluster, "A") == ["under way"]
