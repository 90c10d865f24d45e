"""Random schedules of faults on the product's own consensus classes; a failing seed is in the name of the test, which
repeats it. Every other seed replicates in small batches, which arrive one by one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftreg import engine
from raftreg.config import Limits
from tests.cluster.harness import Cluster

SEEDS = 12
STEPS = 2500
SMALL_BATCH_BYTES = 20
SINGLE_FRAMES_PER_STEP = 6
VALUE_PREFIX = b"value:"  # of the harness's list machine
LIMITS = Limits(snapshot_chunk_bytes=64, log_keep_entries=4, log_keep_bytes=1 << 20)
CLOCK_STEPS_S = (0.02, 0.11, 0.11, 0.5, 1.2)


class Schedule:
    """One seed: faults drawn at random, safety checked after every step, convergence at the end."""

    def __init__(self, directory: Path, names: str, seed: int, **options: Any) -> None:
        self.random = random.Random(seed)
        self.cluster = Cluster(directory, names, seed=seed, **{"limits": LIMITS, **options})
        self.leaders: dict[int, str] = {}
        self.acknowledged: list[str] = []
        self.proposed = 0
        self.faults: set[str] = set()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
            self.check()
        self.converge()

    def step(self) -> None:
        cluster, draw, up = self.cluster, self.random.random(), sorted(self.cluster.nodes)
        pair = self.random.sample(cluster.names, 2)
        if draw < 0.30 and up:
            cluster.turn(self.random.choice(up))
        elif draw < 0.72:
            self.deliver()
        elif draw < 0.80:
            cluster.clock.now += self.random.choice(CLOCK_STEPS_S)
        elif draw < 0.92:
            self.propose()
        elif draw < 0.945:
            if self.random.random() < 0.5:
                cluster.disconnect(*pair)
                self.faults.add("disconnect")
            elif set(pair) <= set(up):
                cluster.connect(*pair)
        elif draw < 0.972:
            cluster.connect_all()
        elif draw < 0.977 and up:
            cluster.fail_next_commit(self.random.choice(up))
            self.faults.add("failed commit")
        elif draw < 0.982 and up:
            cluster.crash(self.random.choice(up))
            self.faults.add("crash")
        elif down := [name for name in cluster.names + cluster.observers if name not in up]:
            name = self.random.choice(down)
            cluster.start(name)
            cluster.heal(name)

    def deliver(self) -> None:
        waiting = sorted(link for link, queue in self.cluster.queues.items() if queue)
        if waiting:
            self.cluster.deliver(*self.random.choice(waiting), self.random.choice((1, 1, 2, None)))

    def propose(self) -> None:
        leaders = [name for name, node in sorted(self.cluster.nodes.items()) if node.is_leader]
        if leaders:
            leader = self.random.choice(leaders)
            for _ in range(self.random.choice((1, 1, 5))):
                self.proposed += 1
                self.cluster.propose(leader, f"v{self.proposed}", self.acknowledged)

    def check(self) -> None:
        assert not self.cluster.dead, self.cluster.dead
        for name, node in self.cluster.nodes.items():
            if node.is_leader:
                assert self.leaders.setdefault(node.term, name) == name, f"two leaders in term {node.term}"

    def converge(self) -> None:
        cluster = self.cluster
        for name in list(cluster.nodes):
            cluster.crash(name)  # whatever disk was about to fail is replaced by a good one with the same content
        for name in cluster.names + cluster.observers:
            if name not in cluster.nodes:
                cluster.start(name)
        cluster.connect_all()
        for _ in range(600):
            cluster.pump(rounds=1, step=0.05)
            self.check()
            applied = {node.applied for node in cluster.nodes.values()}
            ends = {node.journal.last_index for node in cluster.nodes.values()}
            if len(applied | ends) == 1 and any(node.is_leader for node in cluster.nodes.values()):
                break
        else:
            raise AssertionError("the cluster did not converge")
        values = [cluster.values(name) for name in cluster.names + cluster.observers]
        assert all(other == values[0] for other in values), "the states differ"
        assert len(set(values[0])) == len(values[0]), "a value was applied twice"
        assert set(self.acknowledged) <= set(values[0]), "an acknowledged value is lost"


class DiskSchedule(Schedule):
    """The same, beside disks that are replaced by empty ones and reads that must see what was acknowledged before."""

    replace_rate, read_rate = 0.004, 0.02

    def __init__(self, directory: Path, names: str, seed: int, *, one_by_one: bool = False, **options: Any) -> None:
        super().__init__(directory, names, seed, **options)
        self.one_by_one = one_by_one
        self.replaced: set[str] = set()
        self.behind: set[str] = set()  # those whose new disk has not caught up yet
        self.recovered = 0
        self.reads: list[tuple[int, int]] = []  # (values acknowledged when it was asked for, index it was given)

    def step(self) -> None:
        draw = self.random.random()
        if draw < self.replace_rate:
            self.replace_disk()
        elif draw < self.replace_rate + self.read_rate:
            self.read()
        else:
            super().step()

    def deliver(self) -> None:
        if not self.one_by_one:
            super().deliver()
            return
        for _ in range(SINGLE_FRAMES_PER_STEP):
            waiting = sorted(link for link, queue in self.cluster.queues.items() if queue)
            if waiting:
                self.cluster.deliver(*self.random.choice(waiting), 1)

    def replace_disk(self) -> None:
        """At most a minority is without its data at any time: more would be lost data, not a fault to survive."""
        name = self.random.choice(self.cluster.names)
        if len(self.behind | {name}) * 2 > len(self.cluster.names):
            return
        if name in self.cluster.nodes:
            self.cluster.crash(name)
        self.cluster.wipe(name)
        self.replaced.add(name)
        self.behind.add(name)
        self.faults.add("replaced disk")

    def read(self) -> None:
        """Ask any voter for a read index; what comes back is checked at the end, when every value has its index."""
        up = sorted(self.cluster.nodes)
        if not up:
            return
        before = len(self.acknowledged)

        def complete(index: int | None) -> None:
            if index is not None:
                self.reads.append((before, index))

        self.cluster.nodes[self.random.choice(up)].read_index(complete)

    def check(self) -> None:
        super().check()
        for name, node in self.cluster.nodes.items():
            if node.recovering:
                assert name in self.replaced, f"{name} recovers although it never lost anything"
                assert not node.is_leader, f"{name} leads while it recovers"
                self.behind.add(name)
            elif name in self.behind:
                self.behind.discard(name)
                self.recovered += 1

    def converge(self) -> None:
        super().converge()
        for _ in range(200):
            if not self.behind:
                break
            self.cluster.pump(rounds=1, step=0.05)
            self.check()
        assert not self.behind, f"{self.behind} did not finish recovery although all voters are back"
        self.check_reads()

    def check_reads(self) -> None:
        index_of = indexes(self.cluster, self.cluster.names[0])
        needed = [0]  # needed[n]: the index that covers the first n acknowledged values
        for value in self.acknowledged:
            needed.append(max(needed[-1], index_of[value]))
        for before, index in self.reads:
            assert needed[before] <= index, f"a read at {index} misses a value acknowledged before at {needed[before]}"


def indexes(cluster: Cluster, name: str) -> dict[str, int]:
    """The log index of every value that a voter has applied."""
    rows = cluster.nodes[name].store.view().scan(VALUE_PREFIX, VALUE_PREFIX + b"\xff")
    return {bytes(value).decode(): int(bytes(key)[len(VALUE_PREFIX) :]) for key, value in rows}


@pytest.fixture
def schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[DiskSchedule]:
    names, seed = request.param
    small = seed % 2 == 1
    if small:
        monkeypatch.setattr(engine, "APPEND_BATCH_BYTES", SMALL_BATCH_BYTES)
        monkeypatch.setattr(engine, "ENTRY_BYTES_MAX", 1 << 20)
    made = DiskSchedule(tmp_path, names, seed, one_by_one=small)
    yield made
    made.cluster.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [("ABC", seed) for seed in range(SEEDS)] + [("ABCDE", seed) for seed in range(SEEDS // 2)],
    indirect=True,
    ids=lambda param: f"{len(param[0])}-peers-seed-{param[1]}",
)
def test_no_schedule_of_faults_loses_or_doubles_a_write(schedule: DiskSchedule) -> None:
    schedule.run(STEPS)
    assert schedule.acknowledged, "a schedule without acknowledged writes proves nothing"
    assert schedule.reads, "nor does one without answered reads"
    assert schedule.recovered, "nor one in which no replaced disk came back"
