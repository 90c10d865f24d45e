"""What a leader sends to observers is bounded, so that none of them, however slow, hurts the voters."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b

import pytest

from raftreg.observers import Observers
from tests.cluster.conftest import MakeCluster
from tests.cluster.harness import A_HEARTBEAT_LATER, SMALL_SNAPSHOTS, write
from tests.cluster.test_directed_faults import with_and_without_the_rule
from tests.cluster.test_observers import A_TRICKLE, LONG_LOG, observed, run


@with_and_without_the_rule
def test_an_observer_that_takes_nothing_makes_its_leader_keep_little_more_than_the_bound(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    if not rule:
        monkeypatch.setattr(Observers, "ration", lambda *_, **__: None)
    bound = 2000
    cluster = observed(make_cluster, limits=replace(LONG_LOG, snapshot_send_buffer_max_bytes=bound))
    values = [f"{number:03}" + "x" * 500 for number in range(60)]
    for value in values:
        write(cluster, "A", [value])
        cluster.pump("ABC", rounds=1, step=A_HEARTBEAT_LATER)
    entries = [entry for message in cluster.in_flight("A", "O") for entry in message["entries"]]
    assert (sum(len(entry[0]) for entry in entries) <= bound + 1000) is rule
    run(cluster, rounds=100)
    assert cluster.values("O") == values == cluster.values("B")
    assert cluster.nodes["O"].snapshots.installed == 0


@with_and_without_the_rule
def test_observers_together_get_no_more_than_their_rate_and_each_gets_its_share(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    if not rule:
        monkeypatch.setattr(Observers, "ration", lambda *_, **__: None)
    cluster = observed(make_cluster, "OP", limits=A_TRICKLE)
    write(cluster, "A", ["0123456789"] * 40)
    sent = {"O": 0, "P": 0}
    seconds = 30 * A_HEARTBEAT_LATER
    for _ in range(30):
        cluster.pump("ABC", rounds=1, step=A_HEARTBEAT_LATER)
        for name in sent:
            frames = cluster.deliver("A", name)
            sent[name] += sum(len(entry[0]) for message in frames for entry in message["entries"])
            cluster.deliver(name, "A")
    # Each may overdraw by the one entry that used its share up.
    assert (sum(sent.values()) <= A_TRICKLE.observers_bytes_per_s_max * seconds + 40) is rule
    assert min(sent.values()) > 50
    run(cluster, rounds=200)
    assert cluster.values("O") == cluster.values("P") == cluster.values("B")


def incompressible(number: int) -> str:
    return blake2b(bytes((number,)), digest_size=40).hexdigest()


@with_and_without_the_rule
def test_a_rationed_snapshot_arrives_once_although_writes_go_on(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, rule: bool
) -> None:
    """Entries that are written meanwhile must not have the observer paused: pysyncobj would break the snapshot off."""
    if not rule:
        ration = Observers.ration
        monkeypatch.setattr(Observers, "ration", lambda *given, **_: ration(*given, receives_snapshot=False))
    cluster = observed(
        make_cluster, limits=replace(SMALL_SNAPSHOTS, log_keep_entries=60, observers_bytes_per_s_max=900)
    )
    cluster.crash("O")
    write(cluster, "A", [f"{number:03}" + incompressible(number) for number in range(150)])
    for _ in range(5):
        run(cluster)
    assert cluster.nodes["A"].journal.first_index > 2
    cluster.start("O")
    cluster.heal("O")
    headers = 0
    for number in range(200):
        if number % 10 == 0:
            write(cluster, "A", [f"late{number}", f"later{number}"])
        cluster.turn("A")
        sent = [message["serialized"][0] for message in cluster.in_flight("A", "O") if "serialized" in message]
        headers += sum(chunk[1] == 0 for chunk in sent)
        cluster.pump(rounds=1, step=A_HEARTBEAT_LATER)
    assert (headers == 1) is rule
    assert (cluster.nodes["O"].snapshots.installed == 1) is rule
