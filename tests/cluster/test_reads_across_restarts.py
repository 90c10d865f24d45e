"""A read index belongs to the process that asked for it: answers to an earlier life of a voter reach nobody."""

from __future__ import annotations

from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import A_HEARTBEAT_LATER


def test_an_answer_to_a_read_of_an_earlier_life_is_not_taken_for_one_to_a_later_read(make_cluster: MakeCluster) -> None:
    """B asks, and its process is replaced before a majority has confirmed the leader. The new process, which numbers
    its reads as the old one did, asks after another value was acknowledged."""
    cluster = make_cluster("ABC")
    cluster.elect("A")
    cluster.settle()
    cluster.settle()
    cluster.nodes["B"].read_index(lambda _index: None)
    cluster.deliver("B", "A")
    cluster.lose("A", "C")
    cluster.crash("B")
    cluster.start("B")
    cluster.heal("B")
    acknowledged: list[str] = []
    cluster.propose("A", "value", acknowledged)
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.deliver("A", "B")
    assert cluster.nodes["B"].leader == "A"
    cluster.deliver("A", "C")
    cluster.deliver("C", "A")
    cluster.turn("A", after=A_HEARTBEAT_LATER)
    cluster.deliver("A", "C")
    cluster.deliver("C", "A")
    assert acknowledged == ["value"]
    answers: list[int | None] = []
    cluster.nodes["B"].read_index(answers.append)
    cluster.deliver("A", "B")
    cluster.settle()
    assert answers == [cluster.nodes["A"].commit_index]
