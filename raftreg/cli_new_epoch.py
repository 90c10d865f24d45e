"""What `raftreg recover` and `raftreg restore` share: one peer begins a new epoch, others join it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from raftreg import cli_peer, cluster_init, config, recovery, voter_change
from raftreg.cluster_init import InitError, PlannedPeer
from raftreg.store import Identity
from raftreg.stored_peer import Configured


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=RAFT_HOST:PORT,API_HOST:PORT")
    parser.add_argument("--id-floor", type=int, metavar="N", help="issue image numbers from N on, if that is higher")
    parser.add_argument("--epoch", type=int, metavar="N", help="if a later epoch than the backup's was ever begun")
    parser.add_argument("--yes", action="store_true", help="I know what may be lost")
    parser.add_argument("--offline", action="store_true", help="don't check that no peer answers")


def configured(directory: Path) -> Configured:
    file = config.find(directory)
    return Configured(file, config.load(file))


def check(arguments: argparse.Namespace, first: Configured, peers: list[PlannedPeer]) -> None:
    """Raises InitError for wrong numbers and lists."""
    if arguments.id_floor is not None and arguments.id_floor < 1:
        raise InitError("--id-floor is an image number: 1 or more")
    if peers:
        cluster_init.check_plan(cluster_init.Plan(peers))
        if first.settings.name not in {peer.name for peer in peers}:
            raise InitError(f"--peer must list {first.settings.name} too: it is the one with the data")


def confirm(arguments: argparse.Namespace, cluster_id: str) -> None:
    """--yes, or the cluster's ID typed by a person. Raises InitError."""
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise InitError("nothing was changed: repeat it with --yes if that loss is accepted")
    if input(f"type the cluster's ID ({cluster_id}) to begin a new epoch: ").strip() != cluster_id:
        raise InitError("that is not the cluster's ID; nothing was changed")


def finish(
    arguments: argparse.Namespace,
    first: Configured,
    identity: Identity,
    peers: list[PlannedPeer],
    others: Sequence[Configured] = (),
) -> None:
    """The new epoch's configuration, its other voters as far as they are here, and what is left to do."""
    recovery.stand_alone(first, identity)
    print(f"{identity.peer} begins epoch {identity.epoch} of cluster {identity.cluster_id}")
    if len(peers) > 1:
        _grow(arguments, first, identity, peers, others)
    else:
        print(f"  start it with: raftreg serve {first.file.parent}")
        print("  more voters: raftreg peer replace")
    print("  never start a voter of the old epoch again: the new one refuses it, but it would still answer clients")


def _grow(
    arguments: argparse.Namespace,
    first: Configured,
    identity: Identity,
    peers: list[PlannedPeer],
    others: Sequence[Configured],
) -> None:
    parent = first.file.parent.parent
    directory = parent if voter_change.has_authority(parent) else first.file.parent
    for line in recovery.set_aside_older(directory, identity):
        print(f"  {line}")
    origin = recovery.origin_of(identity)
    change = voter_change.plan(directory, peers, origin)
    with_it = {settings.data_dir for settings in change.local}
    elsewhere = [
        voter_change.plan(one.file.parent, peers, origin) for one in others if one.settings.data_dir not in with_it
    ]
    if not arguments.offline:
        voter_change.refuse_answering(change)
    # The one with the data last: as long as it stands alone, running it again finds what is missing.
    for each in elsewhere:
        voter_change.carry_out(each)
    made = voter_change.carry_out(change)
    stored = [peer for each in (change, *elsewhere) for peer in each.stored]
    empty = [one for each in (change, *elsewhere) for one in each.empty]
    for line in cli_peer.report(dataclasses.replace(change, stored=stored, empty=empty), made):
        print(line)


def now_us() -> int:
    return time.time_ns() // 1000
