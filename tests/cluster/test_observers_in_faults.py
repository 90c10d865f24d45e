"""The random schedules of faults, with observers beside the voters: cut off, crashed, wiped, slow, asked for reads.

Nothing that the voters promise may depend on them, and what an observer says of the age of its state must be true.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raftreg import engine
from tests.cluster.test_random_faults import LIMITS, SMALL_BATCH_BYTES, STEPS, DiskSchedule

SEEDS = 8
# So little that observers are behind for much of a schedule.
A_TRICKLE = replace(LIMITS, observers_bytes_per_s_max=5000)


class ObservedSchedule(DiskSchedule):
    """Beside the faults of the voters, those of observers; the age that anyone gives its state is checked."""

    fault_rate, look_rate = 0.02, 0.03

    def __init__(self, directory: Path, names: str, seed: int, *, one_by_one: bool = False) -> None:
        super().__init__(
            directory, names, seed, one_by_one=one_by_one, observers="OP", limits=A_TRICKLE if one_by_one else LIMITS
        )
        self.acknowledged_at: list[float] = []
        self.looks = 0

    def step(self) -> None:
        draw = self.random.random()
        if draw < self.fault_rate:
            self.trouble(self.random.choice(self.cluster.observers))
        elif draw < self.fault_rate + self.look_rate:
            self.look()
        else:
            super().step()

    def trouble(self, name: str) -> None:
        cluster, voter = self.cluster, self.random.choice(self.cluster.names)
        draw = self.random.random()
        if draw < 0.4:
            cluster.disconnect(name, voter)
        elif draw < 0.5:
            cluster.lose(*self.random.sample((name, voter), 2))
        elif draw < 0.6:
            cluster.isolate(name)
        elif draw < 0.7 and name in cluster.nodes:
            cluster.crash(name)
            if self.random.random() < 0.5:
                cluster.wipe(name)
        elif name not in cluster.nodes:
            cluster.start(name)
            cluster.heal(name)
        elif voter in cluster.nodes:
            cluster.connect(name, voter)

    def look(self) -> None:
        """A state that is so many seconds old has everything that was acknowledged before."""
        up = sorted(self.cluster.nodes)
        name = self.random.choice(up) if up else None
        staleness = self.cluster.nodes[name].staleness_s() if name is not None else None
        if name is None or staleness is None:
            return
        before = self.cluster.clock.now - staleness
        due = [value for value, at in zip(self.acknowledged, self.acknowledged_at, strict=True) if at < before]
        missing = set(due) - set(self.cluster.values(name))
        assert not missing, f"{name} says {staleness} s, but lacks {sorted(missing)[:3]} of before"
        self.looks += name in self.cluster.observers

    def check(self) -> None:
        super().check()
        late = len(self.acknowledged) - len(self.acknowledged_at)
        self.acknowledged_at += [self.cluster.clock.now] * late
        for name in self.cluster.observers:
            node = self.cluster.nodes.get(name)
            assert node is None or (node.role == "observer" and node.leader in (None, *self.cluster.names))


@pytest.fixture
def schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[ObservedSchedule]:
    names, seed = request.param
    small = seed % 2 == 1
    if small:
        monkeypatch.setattr(engine, "APPEND_BATCH_BYTES", SMALL_BATCH_BYTES)
        monkeypatch.setattr(engine, "ENTRY_BYTES_MAX", 1 << 20)
    made = ObservedSchedule(tmp_path, names, seed, one_by_one=small)
    yield made
    made.cluster.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [("ABC", seed) for seed in range(SEEDS)] + [("ABCDE", seed) for seed in range(SEEDS // 2)],
    indirect=True,
    ids=lambda param: f"{len(param[0])}-voters-seed-{param[1]}",
)
def test_no_schedule_with_observers_loses_a_write_or_tells_a_state_younger_than_it_is(
    schedule: ObservedSchedule,
) -> None:
    schedule.run(STEPS)
    assert schedule.acknowledged, "a schedule without acknowledged writes proves nothing"
    assert schedule.looks, "nor does one in which no observer was ever fresh"
