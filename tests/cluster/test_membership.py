"""A changed voter set: half-way states elect nobody beside the old set, lose nothing and reuse no term.

Each rule of `raftreg.voter_set` is run on and off; without it the schedule ends in the fault that it prevents.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftreg.config import Limits
from raftreg.raft import RaftNode
from raftreg.recovery import begin_epoch_entry, begin_life
from raftreg.store import Store, StoreError, initialise
from raftreg.voter_change import change_store
from raftreg.voter_set import Standing, VoterSet
from tests.cluster.harness import (
    A_HEARTBEAT_LATER,
    LONG_AFTER,
    SMALL_SNAPSHOTS,
    TIMING,
    Cluster,
    _Port,
    applied_index,
    apply_value,
    stand,
    write,
)

MAP_BYTES = 1 << 26
LONG_LOG = Limits(snapshot_chunk_bytes=64)


class ChangingCluster(Cluster):
    """Voters of several generations in one network: as `peer_links`, it connects those of the same voter set only."""

    def __init__(self, directory: Path, names: str, starting: str = "", limits: Limits = SMALL_SNAPSHOTS) -> None:
        super().__init__(directory, starting or names, limits=limits)
        self.names = names

    def start(self, name: str) -> RaftNode:
        self.nodes[name] = RaftNode(
            Store(self.directory / name, map_size_bytes=MAP_BYTES, peer=name),
            apply=apply_value,
            applied_index=applied_index,
            network=_Port(self, name),
            limits=self.limits,
            timing=TIMING,
            fatal=lambda reason: self.dead.__setitem__(name, reason),
            threaded_snapshots=False,
        )
        return self.nodes[name]

    def connect(self, a: str, b: str) -> None:
        one, two = (self.nodes[name].store.identity for name in (a, b))
        if (one.peers, one.membership_generation, one.epoch) == (two.peers, two.membership_generation, two.epoch):
            super().connect(a, b)

    def stop_all(self) -> None:
        for name in list(self.nodes):
            self.crash(name)

    def change(self, names: Iterable[str], to: Iterable[str]) -> None:
        """What `raftreg peer replace` does to the stores of these stopped voters."""
        for name in names:
            store = Store(self.directory / name, map_size_bytes=MAP_BYTES)
            change_store(store, to)
            store.close()

    def add(self, name: str, to: str, previous: str, *, recovering: bool, generation: int = 2, epoch: int = 1) -> None:
        """The empty store of a new voter."""
        initialise(
            self.directory / name,
            cluster_id="test",
            peer=name,
            peers=to,
            recovering=recovering,
            epoch=epoch,
            membership_generation=generation,
            previous_peers=previous,
        )

    def start_all(self, names: str) -> None:
        for name in names:
            self.start(name)
        for a in names:
            for b in names:
                if a < b:
                    self.connect(a, b)

    def leaders(self) -> set[str]:
        return {name for name, node in self.nodes.items() if node.is_leader}


MakeChanging = Callable[..., ChangingCluster]


@pytest.fixture
def make_changing(tmp_path: Path) -> Iterator[MakeChanging]:
    made: list[ChangingCluster] = []

    def make(names: str, **options: Any) -> ChangingCluster:
        made.append(ChangingCluster(tmp_path / str(len(made)), names, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


with_and_without_the_rule = pytest.mark.parametrize("rule", [True, False], ids=["rule-on", "rule-off"])


def without_meeting_anybody(patch: pytest.MonkeyPatch) -> None:
    """Every voter elects from the start, by the rule of Raft alone."""
    patch.setattr(VoterSet, "_settle_if_met", VoterSet.settle_on_own_log)


def with_the_meeting_only(patch: pytest.MonkeyPatch) -> None:
    """A majority of the set before must be met; what it holds is not looked at."""
    settle = VoterSet._settle
    patch.setattr(VoterSet, "_settle", lambda voters, _floor: settle(voters, Standing(0, 0, 0)))


def without_the_term(patch: pytest.MonkeyPatch) -> None:
    settle = VoterSet._settle
    patch.setattr(VoterSet, "_settle", lambda voters, floor: settle(voters, floor._replace(term=0)))


def written(cluster: Cluster, leader: str, values: list[str], among: str) -> list[str]:
    acknowledged = write(cluster, leader, values)
    cluster.pump(among, rounds=40, step=A_HEARTBEAT_LATER)
    return acknowledged


def campaign(cluster: ChangingCluster, name: str, among: str) -> None:
    """Let `name` alone stand some times, by way of the pre-vote, as far as the rule lets it."""
    cluster.clock.now += LONG_AFTER
    for _ in range(4):
        for other in cluster.nodes.values():
            other.core.election_deadline = cluster.clock.now + 3
        if not cluster.nodes[name].is_leader:
            cluster.nodes[name].core.election_deadline = 0
        cluster.pump(among, rounds=4)


@with_and_without_the_rule
def test_a_shrinking_that_was_done_on_two_of_five_machines_has_no_second_leader(
    make_changing: MakeChanging, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """A and B start in the set of three, C, D and E still in that of five: each would have its own majority."""
    if not rule:
        without_meeting_anybody(monkeypatch)
    cluster = make_changing("ABCDE")
    cluster.elect("A")
    cluster.settle()
    cluster.stop_all()
    cluster.change("AB", to="ABC")
    cluster.start_all("ABCDE")
    campaign(cluster, "A", "AB")
    campaign(cluster, "C", "CDE")
    old, new = write(cluster, "C", ["old"]), write(cluster, "A", ["new"])
    cluster.pump(rounds=20, step=A_HEARTBEAT_LATER)
    assert cluster.leaders() == ({"C"} if rule else {"A", "C"})
    assert (old, new) == (["old"], [] if rule else ["new"])
    assert (cluster.nodes["A"].voters.waits_for() is not None) is rule


@with_and_without_the_rule
def test_of_a_shrunk_set_nobody_leads_without_what_the_removed_ones_committed_with_the_third(
    make_changing: MakeChanging, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """C, D and E have a write that A and B lack. A, B and C stay; all three meet, then C is cut off."""
    if not rule:
        with_the_meeting_only(monkeypatch)
    cluster = make_changing("ABCDE")
    cluster.elect("C")
    cluster.settle()
    for name in "AB":
        cluster.isolate(name)
    assert written(cluster, "C", ["kept"], "CDE") == ["kept"]
    cluster.stop_all()
    cluster.change("ABC", to="ABC")
    cluster.start_all("ABC")
    assert all(cluster.nodes[name].voters.settled for name in "ABC")
    cluster.isolate("C")
    campaign(cluster, "A", "AB")
    assert cluster.leaders() == (set() if rule else {"A"})
    if not rule:
        assert written(cluster, "A", ["instead"], "AB") == ["instead"]
        assert cluster.values("B") == ["instead"]  # "kept" was acknowledged
        return
    cluster.heal("C")
    campaign(cluster, "C", "ABC")
    cluster.pump(rounds=40, step=A_HEARTBEAT_LATER)
    assert [cluster.values(name) for name in "ABC"] == [["kept"]] * 3


@with_and_without_the_rule
def test_a_term_of_the_set_before_is_never_led_in_again(
    make_changing: MakeChanging, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """E led in the last term with the votes of C, D and itself; its entry reached D alone. A leads in the new set."""
    if not rule:
        without_the_term(monkeypatch)
    cluster = make_changing("ABCDEFGH", starting="ABCDE", limits=LONG_LOG)
    cluster.elect("A")
    cluster.settle()
    for name in "AB":
        cluster.isolate(name)
    cluster.clock.now += LONG_AFTER
    stand(cluster, "E")
    for voter in "CD":
        cluster.deliver("E", voter)
        cluster.deliver(voter, "E")
    cluster.isolate("C")  # what E writes reaches D alone
    stale = cluster.nodes["E"].term
    assert cluster.leaders() == {"A", "E"}
    assert cluster.nodes["A"].term == stale - 1
    written(cluster, "E", ["uncommitted"], "DE")
    cluster.stop_all()
    cluster.change("ABCD", to="ABCDFGH")
    for name in "FGH":
        cluster.add(name, "ABCDFGH", "ABCDE", recovering=False)
    cluster.start_all("ABCFGH")
    cluster.isolate("C")  # all have met it; now nobody is told of its term
    campaign(cluster, "A", "ABFGH")
    assert cluster.leaders() == {"A"}
    assert written(cluster, "A", ["one", "two"], "ABFGH") == ["one", "two"]
    assert (cluster.nodes["A"].term > stale) is rule
    cluster.start("D")
    cluster.heal("D")
    cluster.pump("ABDFGH", rounds=60, step=A_HEARTBEAT_LATER)
    assert (cluster.values("D") == cluster.values("A")) is rule


def test_two_empty_voters_join_three_and_count_once_they_have_caught_up(make_changing: MakeChanging) -> None:
    cluster = make_changing("ABCDE", starting="ABC")
    cluster.elect("A")
    cluster.settle()
    assert written(cluster, "A", ["before"], "ABC") == ["before"]
    cluster.stop_all()
    cluster.change("ABC", to="ABCDE")
    for name in "DE":
        cluster.add(name, "ABCDE", "ABC", recovering=True)
    cluster.start_all("BCDE")
    for name in "BCDE":
        campaign(cluster, name, "BCDE")
    assert cluster.leaders() == set()  # two of five, and two who may have forgotten what they never knew
    cluster.start("A")
    cluster.heal("A")
    campaign(cluster, "A", "ABCDE")
    assert cluster.leaders() == {"A"}
    acknowledged = written(cluster, "A", [f"after{number}" for number in range(20)], "ABCDE")
    assert len(acknowledged) == 20
    cluster.pump(rounds=60, step=A_HEARTBEAT_LATER)
    assert {cluster.nodes[name].role for name in "DE"} == {"follower"}
    for name in "AB":
        cluster.crash(name)
    campaign(cluster, "D", "CDE")
    assert cluster.leaders() == {"D"}
    assert cluster.values("D") == ["before", *acknowledged]


def test_a_single_voter_becomes_three_and_only_a_log_with_everything_leads(make_changing: MakeChanging) -> None:
    """The two others are no majority without the new ones, so these vote at once: for nobody but who has it all."""
    cluster = make_changing("ABC", starting="A")
    cluster.turn("A")
    cluster.pump()
    assert written(cluster, "A", ["alone"], "A") == ["alone"]
    cluster.stop_all()
    cluster.change("A", to="ABC")
    for name in "BC":
        cluster.add(name, "ABC", "A", recovering=False)
    cluster.start_all("BC")
    campaign(cluster, "B", "BC")
    assert cluster.leaders() == set()
    cluster.start("A")
    cluster.heal("A")
    cluster.crash("A")
    campaign(cluster, "B", "BC")  # they have met A now, and know what they lack
    assert cluster.leaders() == set()
    cluster.start("A")
    cluster.connect("A", "B")
    campaign(cluster, "A", "AB")
    assert written(cluster, "A", ["together"], "AB") == ["together"]
    cluster.pump("AB", rounds=40, step=A_HEARTBEAT_LATER)
    cluster.crash("A")
    cluster.connect("B", "C")
    campaign(cluster, "B", "BC")
    assert cluster.leaders() == {"B"}
    cluster.pump("BC", rounds=40, step=A_HEARTBEAT_LATER)
    assert cluster.values("C") == ["alone", "together"]


def test_a_voter_that_met_nobody_of_the_set_before_elects_once_it_follows_a_leader_of_the_new_one(
    make_changing: MakeChanging,
) -> None:
    cluster = make_changing("ABC", starting="A")
    cluster.turn("A")
    cluster.pump()
    cluster.stop_all()
    cluster.change("A", to="ABC")
    for name in "BC":
        cluster.add(name, "ABC", "A", recovering=False)
    cluster.start_all("ABC")
    cluster.crash("C")
    campaign(cluster, "A", "AB")
    cluster.pump("AB", rounds=40, step=A_HEARTBEAT_LATER)
    cluster.crash("A")
    forget_voters_met(cluster, "C")
    cluster.start("C")
    cluster.connect("B", "C")
    assert not cluster.nodes["C"].voters.settled
    campaign(cluster, "B", "BC")
    assert cluster.leaders() == set()
    cluster.start("A")
    cluster.connect("A", "B")
    campaign(cluster, "B", "AB")
    assert cluster.leaders() == {"B"}
    cluster.pump(rounds=40, step=A_HEARTBEAT_LATER)
    assert cluster.nodes["C"].voters.settled


def forget_voters_met(cluster: ChangingCluster, name: str) -> None:
    """As if the voter had never met anybody."""
    store = Store(cluster.directory / name, map_size_bytes=MAP_BYTES)
    store.txn.delete(b"voters_met", db=store._meta)
    store.commit()
    store.close()


def test_whom_a_voter_has_met_survives_its_restart(make_changing: MakeChanging) -> None:
    cluster = make_changing("ABCDE")
    cluster.elect("A")
    cluster.settle()
    cluster.stop_all()
    cluster.change("ABCDE", to="ABC")
    cluster.start_all("ABC")
    cluster.pump(rounds=1)
    cluster.stop_all()
    cluster.start_all("AB")
    campaign(cluster, "A", "AB")
    assert cluster.leaders() == {"A"}


def test_a_change_of_the_set_is_all_or_nothing_in_a_store(tmp_path: Path) -> None:
    initialise(tmp_path, cluster_id="test", peer="A", peers="ABC")
    store = Store(tmp_path, map_size_bytes=MAP_BYTES)
    store.put_positions({"B": (3, 7, "b"), "C": (3, 9, "c")})
    store.commit()
    store.commit = lambda: None  # type: ignore[method-assign]
    change_store(store, "ABD")
    store.close()
    store = Store(tmp_path, map_size_bytes=MAP_BYTES, peers="ABC")
    assert store.identity.membership_generation == 1
    change_store(store, "ABD")
    store.close()
    with pytest.raises(StoreError, match="run it again"):
        Store(tmp_path, map_size_bytes=MAP_BYTES, peers="ABC")
    store = Store(tmp_path, map_size_bytes=MAP_BYTES, peers="ABD")
    assert (store.identity.membership_generation, store.identity.previous_peers) == (2, ("A", "B", "C"))
    assert store.positions() == {"B": (3, 7, "b")}
    store.close()


def test_a_survivor_with_new_voters_leads_with_all_of_its_log_and_begins_the_epoch_before_all_else(
    make_changing: MakeChanging,
) -> None:
    """C is what is left of A, B and C; it holds an entry of which it does not know whether it was committed."""
    cluster = make_changing("ABC")
    cluster.elect("C")
    cluster.settle()
    assert written(cluster, "C", ["kept"], "ABC") == ["kept"]
    cluster.propose("C", "perhaps", [])
    cluster.turn("C")
    cluster.stop_all()
    for name in "AB":
        shutil.rmtree(cluster.directory / name)
    store = Store(cluster.directory / "C", map_size_bytes=MAP_BYTES)
    begin_life(store, 2, id_floor=None, now_us=1)
    change_store(store, "ABC")
    store.close()
    for name in "AB":
        cluster.add(name, "ABC", "C", recovering=False, epoch=2, generation=3)
    cluster.start_all("ABC")
    campaign(cluster, "A", "ABC")
    campaign(cluster, "C", "ABC")
    assert cluster.leaders() == {"C"}
    assert written(cluster, "C", ["after"], "ABC") == ["after"]
    cluster.pump(rounds=40, step=A_HEARTBEAT_LATER)
    epoch = begin_epoch_entry(2, None, 1)[1:]
    for name in "ABC":
        assert [*raw_values(cluster, name)] == [b"kept", b"perhaps", epoch, b"after"]
    cluster.crash("C")
    campaign(cluster, "B", "AB")
    assert cluster.leaders() == {"B"}


def raw_values(cluster: Cluster, name: str) -> Iterator[bytes]:
    for _, value in cluster.nodes[name].store.view().scan(b"value:", b"value:\xff"):
        yield bytes(value)
