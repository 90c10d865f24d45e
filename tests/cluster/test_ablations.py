"""Random schedules notice when a rule is missing: each rule below is switched off, and within a bounded number of
seeds a schedule must end in a violation. A random test that passed without the rule would say nothing about the rule.

`seeds_max` leaves room above what was measured. Rules that random schedules find too rarely for a quick test
(acknowledgements of older terms, commit indexes of snapshot chunks, walking resets, answers before the commit) have
directed schedules in `test_directed_faults.py` and `test_rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raftreg import engine
from raftreg.journal import Journal
from raftreg.raft import RaftNode
from raftreg.snapshots import Snapshots
from raftreg.store import Store
from tests.cluster.harness import Cluster
from tests.cluster.test_random_faults import Schedule

SMALL_BATCH_BYTES = 20


class ElectionStorm(Schedule):
    """Leaders die, voters stand and disks fail so often that hardly anything else happens."""

    rates = (0.45, 0.62, 0.66, 0.69, 0.72, 0.0)
    steps = 1000

    def step(self) -> None:
        cluster, draw, up = self.cluster, self.random.random(), sorted(self.cluster.nodes)
        leaders = [name for name in up if cluster.nodes[name].is_leader]
        deliver, lead, elect, kill, fail, restart = self.rates
        if draw < deliver:
            self.deliver_some()
        elif draw < lead and leaders:
            cluster.turn(self.random.choice(leaders), after=self.random.choice((0.0, 0.11)))
        elif draw < elect and up:
            stand(cluster, self.random.choice(up))
        elif draw < kill and leaders:
            cluster.crash(self.random.choice(leaders))
        elif draw < fail and up:
            cluster.fail_next_commit(self.random.choice(up))
        elif draw < restart:
            self.restart_all()
        else:
            super().step()

    def deliver_some(self) -> None:
        waiting = sorted(link for link, queue in self.cluster.queues.items() if queue)
        if waiting:
            self.cluster.deliver(*self.random.choice(waiting), self.random.choice((1, 1, 1, 3)))

    def restart_all(self) -> None:
        for name in self.cluster.names:
            if name not in self.cluster.nodes:
                self.cluster.start(name)
                self.cluster.heal(name)


class BusySchedule(ElectionStorm):
    """The same faults, rare enough that writes go on between them; frames arrive one by one."""

    rates = (0.50, 0.60, 0.608, 0.616, 0.624, 0.65)
    steps = 1500


class LongSchedule(Schedule):
    """The schedule of `test_random_faults.py` as it is."""

    steps = 2000


def stand(cluster: Cluster, name: str) -> None:
    """Ask for votes at once, without a pre-vote, as if all clocks had expired."""
    core = cluster.nodes[name].core
    core.set_private("transferInProgress", True)
    core.set_private("raftElectionDeadline", 0)
    cluster.turn(name)


def violation(schedule: ElectionStorm | LongSchedule) -> str | None:
    """What a schedule ended in; None when it kept every promise."""
    try:
        schedule.run(schedule.steps)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        schedule.cluster.close()
    return None


def hidden_tails_are_gone(patch: pytest.MonkeyPatch) -> None:
    def forget(journal: Journal) -> None:
        journal._forget(journal._stash)
        journal._stash = []

    patch.setattr(Journal, "end_message", forget)


def no_vote_is_stored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "put_hard_state", lambda *_: None)
    patch.setattr(Store, "check_log", lambda *_: None)  # which would refuse to start on a log of a later term


def no_higher_term_is_told(patch: pytest.MonkeyPatch) -> None:
    say = RaftNode._say
    patch.setattr(
        RaftNode, "_say", lambda node, peer, kind, **fields: None if kind == "term" else say(node, peer, kind, **fields)
    )


def a_restart_applies_everything_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine.Core, "resume", lambda *_: None)


def older_snapshots_are_installed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Snapshots, "_is_newer", lambda *_: True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("without_the_rule", "kind", "names", "shows_as", "seeds"),
    [
        (no_vote_is_stored, ElectionStorm, "ABC", "two leaders in term", range(100)),  # about one seed of 30 shows it
        (no_higher_term_is_told, ElectionStorm, "ABC", "did not converge", range(40)),  # about one of 10
        (a_restart_applies_everything_again, ElectionStorm, "ABC", "cannot be applied", range(20)),  # one of 3
        (hidden_tails_are_gone, BusySchedule, "ABC", "", range(60, 110)),  # four of 100, the first at 64
        (older_snapshots_are_installed, LongSchedule, "ABCDE", "", range(24)),  # about one of 15
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_without_a_rule_some_schedule_ends_in_a_violation(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_the_rule: Callable[[pytest.MonkeyPatch], None],
    kind: type[ElectionStorm] | type[LongSchedule],
    names: str,
    shows_as: str,
    seeds: range,
) -> None:
    if kind is not LongSchedule:
        monkeypatch.setattr(engine, "APPEND_BATCH_BYTES", SMALL_BATCH_BYTES)
        monkeypatch.setattr(engine, "ENTRY_BYTES_MAX", 1 << 20)
    without_the_rule(monkeypatch)
    for seed in seeds:
        found = violation(kind(tmp_path / str(seed), names, seed))
        if found is not None and shows_as in found:
            return
    pytest.fail(f"{len(seeds)} schedules found nothing wrong")


@pytest.mark.slow
@pytest.mark.parametrize("names", ["ABC", "ABCDE"])
def test_with_all_rules_no_busy_schedule_ends_in_a_violation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    monkeypatch.setattr(engine, "APPEND_BATCH_BYTES", SMALL_BATCH_BYTES)
    monkeypatch.setattr(engine, "ENTRY_BYTES_MAX", 1 << 20)
    acknowledged = 0
    for seed in range(8):
        schedule = BusySchedule(tmp_path / str(seed), names, seed)
        assert violation(schedule) is None, f"seed {seed}"
        acknowledged += len(schedule.acknowledged)
    assert acknowledged > 30
