"""`raftreg restore`: a cluster from a backup, in a new epoch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from raftreg import cli_new_epoch, cluster_init, recovery, stored_peer
from raftreg.backup import verify
from raftreg.backup_file import Label
from raftreg.cli_backup import described
from raftreg.cli_connection import DONE, Commands, explained
from raftreg.cli_progress import bar
from raftreg.cluster_init import InitError, PlannedPeer
from raftreg.commands import EPOCH_IDS_SKIPPED
from raftreg.store import Identity
from raftreg.stored_peer import Configured

_DESCRIPTION = """\
Begin a new epoch of a cluster with the state of a backup, where the stores of its voters are lost or worth less. Each
DIR is a peer's directory with its configuration and certificates, and without a store. The state goes into the first;
the other ones get empty stores and catch up from it. Voters on other machines are named with --peer (the complete list,
the DIRs included), and what to run there is printed; where ca.key lies beside the first DIR, they are made there.

What the registry acknowledged after the backup was made is lost, and said before anything is done; gateways offer again
what they brought. Image numbers go on far above all that can have been issued meanwhile (or from --id-floor on, if that
is higher). No peer of an older epoch can join; gateways and other consumers of the feed resync by themselves. If it is
interrupted, run it again.
"""

_EXAMPLES = """\
  raftreg backup verify /backup/registry.backup
  raftreg restore /backup/registry.backup /srv/registry/a                     a single voter
  raftreg restore /backup/registry.backup /srv/registry/a /srv/registry/b /srv/registry/c
  raftreg restore /backup/registry.backup /srv/registry/a --peer a=10.0.0.1:9590,10.0.0.1:9591 \\
      --peer b=10.0.0.2:9590,10.0.0.2:9591 --peer c=10.0.0.3:9590,10.0.0.3:9591
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "restore",
        help="start a cluster from a backup, in a new epoch",
        description=_DESCRIPTION,
        **explained(_EXAMPLES),
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="made by `raftreg backup create`, or by a schedule")
    parser.add_argument("directories", metavar="DIR", type=Path, nargs="+", help="of a peer; it has no store")
    cli_new_epoch.add_options(parser)
    parser.set_defaults(run=lambda arguments: restore(arguments, arguments.file, arguments.directories))


def restore(arguments: argparse.Namespace, file: Path, directories: Sequence[Path]) -> int:
    """What both `restore` and `recover --from-backup` do. Raises InitError, BackupError, StoreError, ConfigError."""
    first, *others = (cli_new_epoch.configured(directory) for directory in directories)
    _check_directories(first, others)
    peers = [cluster_init.parse_peer(text) for text in arguments.peer]
    if not peers and others:
        peers = [_planned(one) for one in (first, *others)]
    cli_new_epoch.check(arguments, first, peers)
    for one in others:
        if one.settings.name not in {peer.name for peer in peers}:
            raise InitError(f"--peer must list {one.settings.name} too, whose directory is {one.file.parent}")
    identity = _first(arguments, first, others, file)
    cli_new_epoch.finish(arguments, first, identity, peers, others)
    return DONE


def _check_directories(first: Configured, others: Sequence[Configured]) -> None:
    seen: dict[str, Path] = {}
    for one in (first, *others):
        name, directory = one.settings.name, one.file.parent
        if one.settings.observer:
            raise InitError(
                f"{directory} is an observer's: restore the voters, then give it their addresses and run "
                "`raftreg rejoin --replace` there"
            )
        if name in seen:
            raise InitError(f"{seen[name]} and {directory} are both of peer {name}; name one of them")
        seen[name] = directory
        if one.settings.tls.ca.read_bytes() != first.settings.tls.ca.read_bytes():
            raise InitError(f"{directory} has certificates of another cluster than {first.file.parent}")


def _planned(one: Configured) -> PlannedPeer:
    """A voter at the addresses that its own configuration tells others."""
    settings = one.settings
    api = settings.api_peers.get(settings.name, settings.api_listen).split("://")[-1].rstrip("/")
    return PlannedPeer(settings.name, settings.raft_peers[settings.name], api)


def _first(arguments: argparse.Namespace, first: Configured, others: Sequence[Configured], file: Path) -> Identity:
    """Make the state of the backup the store of the first peer, unless that was done already."""
    if first.has_store:
        found = stored_peer.read(first)
        if recovery.is_begun(found) and not stored_peer.in_use(first.settings.data_dir):
            print(f"{found.identity.peer} is recovered already and was not started since")
            return found.identity
    for one in (first, *others):
        if one.has_store:
            raise InitError(
                f"{one.settings.data_dir} has a store. If it is worth less than the backup, move it away; nothing was "
                "changed"
            )
    with bar(f"reading {file}") as progress:
        label, rows = verify(file, progress)
    epoch = recovery.new_epoch(label, arguments.epoch)
    if not arguments.offline:
        recovery.refuse_answering(first.settings)
    print(f"{file} is whole: {described(label)}, {rows} rows")
    for line in losses(label, epoch, arguments.id_floor):
        print(f"  {line}")
    cli_new_epoch.confirm(arguments, label.cluster_id)
    with bar(f"restoring to {first.settings.data_dir}") as progress:
        return recovery.from_backup(
            first,
            file,
            epoch=arguments.epoch,
            id_floor=arguments.id_floor,
            now_us=cli_new_epoch.now_us(),
            progress=progress,
        )


def losses(label: Label, epoch: int, id_floor: int | None) -> list[str]:
    """What a restore means, in sentences."""
    number = max(label.next_id + EPOCH_IDS_SKIPPED, id_floor or 0)
    return [
        "what the registry acknowledged after that moment is lost: images created since are gone from it, changes and "
        "deletions since are undone, until the gateway that brought them is back; what others wrote does not come back",
        "a gateway offers again what it drained since, as far back as it retains that (limits.queue_retain_h), with "
        "the same numbers and UUIDs; what meets another change by then is parked for a person (zonegw parked list). "
        "Image data stays in its zone",
        f"image numbers below {number} are not issued again; if more than {EPOCH_IDS_SKIPPED} were issued since, name "
        "a higher --id-floor",
        f"the new epoch is {epoch}; if that one was ever begun before, name a higher one with --epoch: gateways that "
        "were in it wait for that",
    ]
