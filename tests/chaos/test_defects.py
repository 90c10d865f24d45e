"""Defects put into the product: each must be found by a run of the suite, by the check that is for it.

FOUND_WITHIN_S of load and faults are enough for that; the run around them starts a cluster, heals it and reads it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chaos.cluster import ClusterUnderTest, Shape
from chaos.faults.fault import Aim, Fault
from chaos.faults.kill import Kill
from chaos.faults.partition import LeaderAlone, Partition
from chaos.faults.rolled_back_zone import RolledBackZone
from chaos.scenarios import Plan, run
from chaos.verdict import FAIL, PASS, overall
from chaos.workloads.known import workloads
from tests.chaos.defects import DEFECTS

FOUND_WITHIN_S = 20.0


class Defective(ClusterUnderTest):
    """A cluster whose peers, observers and gateways all have one defect."""

    def __init__(self, base: Path, shape: Shape, *, defect: str, **options: Any) -> None:
        super().__init__(base, shape, **options)
        self._defect = defect

    def prepare(self) -> None:
        super().prepare()
        for name in (*self.voters_and_observers, *self.gateways):
            python, flag, *rest = self.processes[name].command
            assert flag == "-m"
            self.processes[name].command = [python, "-m", "tests.chaos.defects", self._defect, *rest]


class KillGateway(Kill):
    """Chance decides which one."""

    name = "kill-gateway"

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        self._victim = chance.choice(cluster.gateways)
        return Aim(self._victim, down=(self._victim,))


class FeedSourceAlone(Partition):
    """A peer whose feed is followed can't reach the other peers: a zone's writes are acknowledged by others, and what
    the feed brings it does not move. A follower where there is one, since a leader alone costs an election."""

    name = "feed-source-alone"

    def _choose(self, cluster: ClusterUnderTest, chance: random.Random) -> tuple[Aim, Sequence[str]]:
        told = {peer: cluster.ask_peer(peer, "/registry/v1/status") or {} for peer in cluster.peers}
        followed = [peer for peer, status in told.items() if status.get("feed_consumers")]
        leader = cluster.wait_leader()
        one = chance.choice([peer for peer in followed if peer != leader] or followed or cluster.peers)
        return Aim(f"{one} from the other peers"), cluster.wiring.links_of_peer(one)


@dataclass(frozen=True)
class Hunt:
    """What finds a defect: workloads under faults, and the checks of which at least one must fail."""

    workloads: tuple[str, ...]
    faults: tuple[type[Fault], ...]
    checks: tuple[str, ...]


HUNTS = {
    "reads-without-read-index": Hunt(("register",), (LeaderAlone,), ("registers are linearizable",)),
    "keys-forgotten": Hunt(("ids",), (), ("retries get the first answer",)),
    "feed-skips": Hunt(("set", "feed"), (), ("changes come in order, all and once",)),
    "overlay-dropped-at-ack": Hunt(("life",), (FeedSourceAlone,), ("own writes are seen at once",)),
    # What a gateway takes back may be missing at the registry, in its zone or to its client, as it happens.
    "queue-not-synced": Hunt(
        ("set", "life"),
        (KillGateway,),
        ("no acknowledged write is lost", "zones list what was acknowledged", "own writes are seen at once"),
    ),
    "blocks-not-fenced": Hunt(("set",), (RolledBackZone,), ("image numbers are unique",)),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("defect", HUNTS)
def test_each_seeded_defect_is_found_by_a_check_that_is_for_it(defect: str, tmp_path: Path) -> None:
    hunt = HUNTS[defect]
    plan = Plan(tmp_path / "run", 1, FOUND_WITHIN_S, hunt.faults, workloads(hunt.workloads), Shape(observers=0))
    ran = asyncio.run(run(plan, made_by=partial(Defective, defect=defect)))
    broken = {check.name: [breach.sentence for breach in check.shown] for check in ran.checks if check.breaches}
    assert overall(ran.checks) == FAIL
    assert broken.keys() & set(hunt.checks), broken


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_zone_that_was_rolled_back_breaks_nothing_while_blocks_are_fenced(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "run", 1, FOUND_WITHIN_S, [RolledBackZone], workloads(("set", "life", "data")))
    ran = asyncio.run(run(plan))
    assert {one.name for one in ran.faults} == {RolledBackZone.name}
    assert overall(ran.checks) == PASS, [breach.sentence for check in ran.checks for breach in check.shown]


def test_every_defect_is_hunted() -> None:
    assert HUNTS.keys() == DEFECTS.keys()
