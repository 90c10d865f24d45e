"""`raftreg recover`: a new epoch when the quorum is lost for good."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from raftreg import cli_peer, cluster_init, config, recovery, stored_peer, voter_change
from raftreg.backup import verify
from raftreg.cli_backup import described
from raftreg.cli_connection import DONE, Commands
from raftreg.cluster_init import InitError, PlannedPeer
from raftreg.store import Identity
from raftreg.stored_peer import Configured

_DESCRIPTION = """\
Begin a new epoch from what is left, when no majority of the voters will ever start again. Nothing of the old epoch can
join the new one; gateways and other consumers resync by themselves. It says what may be lost and asks before it acts.

  raftreg recover --from-survivor /srv/registry/a
  raftreg recover --from-backup registry.backup /srv/registry/a      (a has its configuration, and no store)

The result is a single voter. With the complete list of --peer, others are made beside it at once; without, use
`raftreg peer replace` later. Start no voter of the old epoch again; its machine joins with an empty store.
"""


def add(commands: Commands) -> None:
    recover = commands.add_parser(
        "recover",
        help="quorum lost for good: a new epoch from one survivor, or from a backup",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = recover.add_mutually_exclusive_group(required=True)
    source.add_argument("--from-survivor", type=Path, metavar="DIR", help="directory of the voter that has most")
    source.add_argument("--from-backup", type=Path, metavar="FILE", help="made by `raftreg backup create`")
    recover.add_argument("directory", metavar="DIR", type=Path, nargs="?", help="where a backup becomes a store")
    recover.add_argument("--peer", action="append", default=[], metavar="NAME=RAFT_HOST:PORT,API_HOST:PORT")
    recover.add_argument("--id-floor", type=int, metavar="N", help="issue image numbers from N on, if that is higher")
    recover.add_argument("--epoch", type=int, metavar="N", help="if a later epoch than the backup's was ever begun")
    recover.add_argument("--yes", action="store_true", help="I know what may be lost")
    recover.add_argument("--offline", action="store_true", help="don't check that no peer answers")
    recover.set_defaults(run=_recover)


def _recover(arguments: argparse.Namespace) -> int:
    peers = [cluster_init.parse_peer(text) for text in arguments.peer]
    if arguments.from_survivor is not None:
        if arguments.directory is not None or arguments.epoch is not None:
            raise InitError("DIR and --epoch go with --from-backup; a survivor stays where it is")
        configured = _configured(arguments.from_survivor)
    else:
        if arguments.directory is None:
            raise InitError("name the peer's directory that the backup shall become a store in")
        configured = _configured(arguments.directory)
    _check_peers(configured, peers)
    if arguments.id_floor is not None and arguments.id_floor < 1:
        raise InitError("--id-floor is an image number: 1 or more")
    identity = (_from_survivor if arguments.from_survivor else _from_backup)(arguments, configured)
    recovery.stand_alone(configured, identity)
    print(f"{identity.peer} begins epoch {identity.epoch} of cluster {identity.cluster_id}")
    if len(peers) > 1:
        _grow(arguments, configured, identity, peers)
    else:
        print(f"  start it with: raftreg serve {configured.file.parent}")
        print("  never start a voter of the old epoch again; more voters: raftreg peer replace")
    return DONE


def _configured(directory: Path) -> Configured:
    file = config.find(directory)
    return Configured(file, config.load(file))


def _check_peers(configured: Configured, peers: list[PlannedPeer]) -> None:
    if peers:
        cluster_init.check_plan(cluster_init.Plan(peers))
        if configured.settings.name not in {peer.name for peer in peers}:
            raise InitError(f"--peer must list {configured.settings.name} too: it is the one with the data")


def _from_survivor(arguments: argparse.Namespace, configured: Configured) -> Identity:
    found = recovery.survivor(configured)
    if recovery.is_begun(found):
        print(f"{found.identity.peer} is recovered already and was not started since")
        return found.identity
    if not arguments.offline:
        recovery.refuse_answering(configured.settings)
    print(f"epoch {found.identity.epoch} of cluster {found.identity.cluster_id} ends here:")
    for line in recovery.losses(found):
        print(f"  {line}")
    _confirm(arguments, found.identity.cluster_id)
    return recovery.from_survivor(configured, id_floor=arguments.id_floor, now_us=_now_us())


def _from_backup(arguments: argparse.Namespace, configured: Configured) -> Identity:
    file = arguments.from_backup
    if configured.has_store:
        found = stored_peer.read(configured)
        if recovery.is_begun(found) and not stored_peer.in_use(configured.settings.data_dir):
            print(f"{found.identity.peer} is recovered already and was not started since")
            return found.identity
        raise InitError(
            f"{configured.settings.data_dir} has a store. If it is worth less than the backup, move it away"
        )
    label, rows = verify(file)
    epoch = recovery.new_epoch(label, arguments.epoch)
    if not arguments.offline:
        recovery.refuse_answering(configured.settings)
    print(f"{file} is whole: {described(label)}, {rows} rows")
    print("  everything since then is lost, but what gateways still hold")
    print(f"  the new epoch is {epoch}; if that one was ever begun before, name a higher one with --epoch")
    _confirm(arguments, label.cluster_id)
    return recovery.from_backup(configured, file, epoch=arguments.epoch, id_floor=arguments.id_floor, now_us=_now_us())


def _confirm(arguments: argparse.Namespace, cluster_id: str) -> None:
    """--yes, or the cluster's ID typed by a person."""
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise InitError("nothing was changed: repeat it with --yes if that loss is accepted")
    if input(f"type the cluster's ID ({cluster_id}) to begin a new epoch: ").strip() != cluster_id:
        raise InitError("that is not the cluster's ID; nothing was changed")


def _grow(arguments: argparse.Namespace, configured: Configured, identity: Identity, peers: list[PlannedPeer]) -> None:
    """Make the other voters as far as that can be done on this machine, and say what is left."""
    parent = configured.file.parent.parent
    directory = parent if voter_change.has_authority(parent) else configured.file.parent
    for line in recovery.set_aside_older(directory, identity):
        print(f"  {line}")
    change = voter_change.plan(directory, peers, recovery.origin_of(identity))
    if not arguments.offline:
        voter_change.refuse_answering(change)
    for line in cli_peer.report(change, voter_change.carry_out(change)):
        print(line)


def _now_us() -> int:
    return time.time_ns() // 1000
