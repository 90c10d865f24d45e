"""What a voter acknowledged or voted with a disk that is gone binds nobody, and counts for nothing: not with a leader
that still remembers it, not beside a vote that is under way. And no intact voter is ever taken for a forgetful one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raftreg.config import Limits
from raftreg.engine import Core
from raftreg.positions import Hello, Positions, has_forgotten
from raftreg.store import Store, initialise
from raftreg.voter_recovery import VoterRecovery
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import A_HEARTBEAT_LATER, LONG_AFTER, Cluster
from tests.cluster.test_directed_faults import lost, with_and_without_the_rule

LONG_LOG = Limits(snapshot_chunk_bytes=64, log_keep_entries=1000)


def stand(cluster: Cluster, name: str) -> None:
    """Let `name` ask for votes in its next turn, whatever it heard of a leader."""
    core = cluster.nodes[name].core
    core.set_private("transferInProgress", True)
    core.set_private("raftElectionDeadline", 0)
    cluster.turn(name)


def lose_entries(cluster: Cluster, source: str, target: str, *, above: int) -> None:
    """Of the frames in flight, those whose entries begin above an index are lost."""
    queue = cluster.queues[(source, target)]
    flying = list(zip(cluster.in_flight(source, target), list(queue), strict=True))
    queue.clear()
    queue.extend(frame for message, frame in flying if not message.get("entries") or message["entries"][0][1] <= above)


def replace_disk(cluster: Cluster, name: str) -> None:
    """The process dies with its disk and starts on an empty one, as after `raftreg rejoin`."""
    cluster.crash(name)
    cluster.wipe(name)
    cluster.start(name)


@with_and_without_the_rule
def test_what_a_replaced_disk_had_acknowledged_commits_nothing(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool, small_batches: None
) -> None:
    """B acknowledged four entries that nobody else but the leader has. Its disk is replaced; it recovers up to what is
    committed, without them. When C gets them, two of five hold them, and the leader must not count a third."""
    if not rule:
        monkeypatch.setattr(Core, "forget_match", lambda *_: None)
    cluster = make_cluster("ABCDE", limits=LONG_LOG)
    cluster.elect("A")
    cluster.settle()
    cluster.cut |= {("A", peer) for peer in "CDE"}
    acknowledged: list[str] = []
    for number in range(4):
        cluster.propose("A", f"value{number}", acknowledged)
    for _ in range(3):
        cluster.turn("A", after=A_HEARTBEAT_LATER)
        cluster.deliver("A", "B")
        cluster.deliver("B", "A")
    leader = cluster.nodes["A"]
    assert leader.match_index("B") == leader.journal.last_index == leader.commit_index + 4
    replace_disk(cluster, "B")
    cluster.heal("B")
    cluster.cut -= {("A", peer) for peer in "CDE"}
    recover_without_the_tail(cluster, leader.commit_index)
    for peer in "BDE":
        cluster.disconnect("A", peer)
    cluster.pump("AC", rounds=6, step=A_HEARTBEAT_LATER)
    assert cluster.log("C") == cluster.log("A")
    for name in "AC":
        cluster.crash(name)
    cluster.connect_all()
    cluster.clock.now += LONG_AFTER
    cluster.elect("B", voters="DE")
    cluster.settle()
    assert (lost(acknowledged, cluster.values("B")) == []) is rule
    assert (acknowledged == []) is rule


def recover_without_the_tail(cluster: Cluster, committed: int) -> None:
    """A's heartbeats reach everybody, its entries above `committed` nobody, until B votes again."""
    for _ in range(60):
        cluster.turn("A", after=A_HEARTBEAT_LATER)
        for peer in "BCDE":
            lose_entries(cluster, "A", peer, above=committed)
            cluster.deliver("A", peer)
            cluster.deliver(peer, "A")
        if not cluster.nodes["B"].recovering:
            break
    assert cluster.nodes["B"].role == "follower"
    assert committed <= cluster.log("B")[-1][0] < cluster.log("A")[-1][0]


def a_vote_under_way(cluster: Cluster) -> list[bytes]:
    """D stands in term 2 with B's vote; its request to C is still on its way when B's disk is replaced. The frames."""
    cluster.elect("A")
    cluster.settle()
    stand(cluster, "D")
    cluster.deliver("D", "B")
    cluster.deliver("B", "D")
    held = list(cluster.queues[("D", "C")])
    assert [message["type"] for message in cluster.in_flight("D", "C")] == ["request_vote"]
    for peer in "ACE":
        cluster.cut |= {("D", peer), (peer, "D")}
        cluster.lose("D", peer)
    replace_disk(cluster, "B")
    for peer in "ACE":
        cluster.connect("B", peer)
    return held


@with_and_without_the_rule
def test_no_vote_under_way_elects_a_second_leader_beside_a_voter_that_forgot_it(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """Without D's word B must not vote again: it would elect E in the very term in which it elects D."""
    if not rule:
        monkeypatch.setattr(VoterRecovery, "tell_goals", goals_by_a_majority)
    cluster = make_cluster("ABCDE", limits=LONG_LOG)
    held = a_vote_under_way(cluster)
    for _ in range(60):
        cluster.pump("ABCE", rounds=1, step=A_HEARTBEAT_LATER)
        if not cluster.nodes["B"].recovering:
            break
    assert cluster.nodes["B"].recovering is rule
    cluster.queues.clear()
    stand(cluster, "E")
    for peer in "AB":
        cluster.deliver("E", peer)
        cluster.deliver(peer, "E")
    cluster.queues[("D", "C")].extend(held)
    cluster.cut.discard(("C", "D"))
    cluster.deliver("D", "C")
    cluster.deliver("C", "D")
    leaders = [name for name, node in cluster.nodes.items() if node.is_leader and node.term == 2]
    assert (len(leaders) < 2) is rule


def goals_by_a_majority(recovery: VoterRecovery, _echoed: object) -> None:
    """What a leader that does not wait for every voter would do."""
    for peer, (_number, index) in recovery.goals.items():
        recovery._say(peer, "caught_up", term=recovery._node.term, index=index)
    recovery.goals.clear()


def test_a_recovering_voter_votes_again_when_the_candidate_that_was_out_is_back(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ABCDE", limits=LONG_LOG)
    a_vote_under_way(cluster)
    cluster.pump("ABCE", rounds=60, step=A_HEARTBEAT_LATER)
    assert cluster.nodes["B"].role == "recovering"
    cluster.connect_all()
    cluster.pump(rounds=60, step=A_HEARTBEAT_LATER)
    assert {node.role for node in cluster.nodes.values()} == {"leader", "follower"}


@with_and_without_the_rule
def test_a_former_leader_whose_disk_is_rolled_back_is_noticed(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """Nobody acknowledges to a leader what it holds itself, so it tells the others. C remembers; A comes back with the
    disk of some minutes ago, and C must not be elected with its vote while B, who has the rest, is away."""
    if not rule:
        monkeypatch.setattr(Positions, "merge", lambda *_: None)
    cluster = make_cluster("ABC")
    cluster.elect("A")
    cluster.settle()
    acknowledged: list[str] = []
    cluster.propose("A", "before", acknowledged)
    cluster.pump(rounds=20, step=A_HEARTBEAT_LATER)
    (cluster.directory / "copy" / "store").mkdir(parents=True)
    shutil.copy(cluster.directory / "A" / "store" / "data.mdb", cluster.directory / "copy" / "store")
    for number in range(5):
        cluster.propose("A", f"after{number}", acknowledged)
    cluster.pump(rounds=30, step=A_HEARTBEAT_LATER)
    cluster.isolate("C")
    cluster.propose("A", "last", acknowledged)
    cluster.pump("AB", rounds=10, step=A_HEARTBEAT_LATER)
    assert acknowledged[-1] == "last"
    for name in "AB":
        cluster.crash(name)
    shutil.rmtree(cluster.directory / "A")
    (cluster.directory / "copy").rename(cluster.directory / "A")
    cluster.start("A")
    cluster.connect("A", "C")
    stand(cluster, "C")
    cluster.pump(rounds=3)
    assert cluster.nodes["A"].recovering is rule
    assert cluster.nodes["C"].is_leader is not rule


def test_a_voter_whose_tail_is_replaced_batch_by_batch_is_not_taken_for_rolled_back(
    make_cluster: MakeCluster, small_batches: None
) -> None:
    """B led in term 2 and wrote what nobody acknowledged; C leads in term 3 and replaces it a batch at a time. The link
    flaps in between, when B's log is shorter and of an older term than C has seen it."""
    cluster = make_cluster("ABC", limits=LONG_LOG)
    cluster.elect("C")
    cluster.settle()
    cluster.isolate("B")
    write(cluster, "C", 8)
    cluster.isolate("C")
    cluster.connect("A", "B")
    cluster.clock.now += LONG_AFTER
    stand(cluster, "B")
    cluster.deliver("B", "A")
    cluster.deliver("A", "B")
    assert cluster.nodes["B"].is_leader
    write(cluster, "B", 9)
    cluster.isolate("B")
    cluster.crash("C")
    cluster.start("C")
    cluster.connect("B", "C")  # C sees B's tail of term 2
    cluster.isolate("B")
    cluster.connect("A", "C")
    cluster.clock.now += LONG_AFTER
    for _ in range(3):
        if not cluster.nodes["C"].is_leader:
            stand(cluster, "C")
            cluster.pump("AC", rounds=3)
    assert cluster.nodes["C"].is_leader
    cluster.crash("A")
    cluster.connect("B", "C")
    seen = cluster.log("B")[-1]
    until(lambda: cluster.log("B")[-1][1] == 1, lambda: replicate_one_frame(cluster, "C", "B"))
    assert cluster.log("B")[-1] < seen
    cluster.disconnect("B", "C")
    cluster.connect("B", "C")
    assert not cluster.nodes["B"].recovering
    acknowledged: list[str] = []
    cluster.propose("C", "after", acknowledged)
    cluster.pump("BC", rounds=60, step=A_HEARTBEAT_LATER)
    assert acknowledged == ["after"]


def write(cluster: Cluster, name: str, count: int) -> None:
    """Entries that reach nobody yet."""
    for number in range(count):
        cluster.propose(name, f"{name}{number}", [])
    cluster.turn(name)


def replicate_one_frame(cluster: Cluster, leader: str, follower: str) -> None:
    cluster.turn(leader, after=A_HEARTBEAT_LATER)
    cluster.deliver(leader, follower, 1)
    cluster.deliver(follower, leader)


def until(condition: Callable[[], bool], step: Callable[[], None]) -> None:
    """At most a hundred steps."""
    for _ in range(100):
        if condition():
            return
        step()
    raise AssertionError("it did not come to that")


# -- what is remembered of one voter ------------------------------------------------------------------------------


@pytest.fixture
def positions(tmp_path: Path) -> Positions:
    """C's memory of B: acknowledged index 40 to the leader of term 7 with the store `old`."""
    initialise(tmp_path, cluster_id="test", peer="C", peers="ABC")
    store = Store(tmp_path, map_size_bytes=1 << 24)
    made = Positions(store, ("A", "B"))
    assert made.greet("B", Hello("old", term=6, last_index=12))
    made.acknowledged("B", 7, 40)
    return made


@pytest.mark.parametrize(
    "hello",
    [
        Hello("old", term=7, last_index=40),
        Hello("old", term=8, last_index=3),  # the leader of term 8 is cutting its tail
        Hello("other", term=7, last_index=1, recovering=True),
        Hello("new", term=7, last_index=40, recovered=(7, 40)),
        Hello("new", term=9, last_index=55, recovered=(8, 41)),
    ],
    ids=["as-remembered", "older-tail-in-a-newer-term", "recovering", "recovered-up-to-there", "recovered-beyond"],
)
def test_a_voter_that_kept_its_promises_or_made_up_for_them_is_accepted(positions: Positions, hello: Hello) -> None:
    assert positions.greet("B", hello)


@pytest.mark.parametrize(
    "hello",
    [
        Hello("old", term=7, last_index=39),
        Hello("old", term=6, last_index=90),
        Hello("new", term=7, last_index=90),
        Hello("new", term=9, last_index=90, recovered=(6, 99)),
        Hello("new", term=6, last_index=90, recovered=(7, 40)),
    ],
    ids=["shorter", "older-term", "another-disk", "recovered-before-that", "recovered-and-rolled-back"],
)
def test_a_voter_that_has_forgotten_something_must_recover(positions: Positions, hello: Hello) -> None:
    assert not positions.greet("B", hello)
    assert has_forgotten(positions.shared()["B"], hello)
    assert positions.greet("B", Hello(hello.store_id, hello.term, hello.last_index, recovering=True))


def test_a_hello_that_was_overtaken_by_news_of_the_voter_is_no_sign_of_forgetting(positions: Positions) -> None:
    """B says hello, acknowledges more to the leader A, and A's word of that reaches C before the hello does."""
    overtaken = Hello("old", term=7, last_index=40)
    positions.merge({"B": (7, 41, "old")})
    assert not positions.greet("B", overtaken)
    now_on_disk = Hello("old", term=7, last_index=41)
    assert not has_forgotten(positions.shared()["B"], now_on_disk)
    assert positions.greet("B", now_on_disk)


def test_what_is_remembered_survives_a_restart(positions: Positions) -> None:
    store = positions._store
    positions.flush()
    store.commit()
    assert not Positions(store, ("A", "B")).greet("B", Hello("old", term=7, last_index=39))


def test_a_recovered_voter_is_accepted_by_one_that_was_away_meanwhile(make_cluster: MakeCluster) -> None:
    """B's new disk recovers while its link to C is down (C still follows A): C has never seen that store."""
    cluster = make_cluster("ABC")
    cluster.elect("A")
    cluster.settle()
    cluster.propose("A", "value", [])
    cluster.settle()
    replace_disk(cluster, "B")
    cluster.connect("A", "B")
    cluster.pump(rounds=60, step=A_HEARTBEAT_LATER)
    assert cluster.nodes["B"].role == "follower"
    cluster.connect("B", "C")
    assert not cluster.nodes["B"].recovering
    cluster.crash("A")
    cluster.clock.now += LONG_AFTER
    cluster.elect("C", voters="B")


def test_a_voter_that_was_told_to_recover_and_dies_at_once_still_must(make_cluster: MakeCluster) -> None:
    """B's empty disk is passed off as intact; C notices, and forgets what B had promised once B says it recovers."""
    cluster = make_cluster("ABC")
    cluster.elect("A")
    cluster.settle()
    cluster.crash("B")
    cluster.wipe("B", recovering=False)
    cluster.start("B")
    cluster.connect("B", "C")
    assert cluster.nodes["B"].recovering
    cluster.turn("C")
    cluster.crash("B")
    cluster.start("B")
    cluster.connect("B", "C")
    assert cluster.nodes["B"].recovering
