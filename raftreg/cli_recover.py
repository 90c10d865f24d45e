"""`raftreg recover`: a new epoch when the quorum is lost for good."""

from __future__ import annotations

import argparse
from pathlib import Path

from raftreg import cli_new_epoch, cli_restore, cluster_init, recovery
from raftreg.cli_connection import DONE, Commands, explained
from raftreg.cluster_init import InitError
from raftreg.store import Identity
from raftreg.stored_peer import Configured

_DESCRIPTION = """\
Begin a new epoch from what is left, when no majority of the voters will ever start again. Nothing of the old epoch can
join the new one; gateways and other consumers resync by themselves. It says what may be lost and asks before it acts.

--from-backup is the same as `raftreg restore`, which see.

The result is a single voter. With the complete list of --peer, others are made beside it at once; without, use
`raftreg peer replace` later. Start no voter of the old epoch again; its machine joins with an empty store.
"""
_EXAMPLES = """\
  raftreg recover --from-survivor /srv/registry/a
  raftreg recover --from-backup registry.backup /srv/registry/a
"""


def add(commands: Commands) -> None:
    recover = commands.add_parser(
        "recover",
        help="quorum lost for good: a new epoch from one survivor, or from a backup",
        description=_DESCRIPTION,
        **explained(_EXAMPLES),
    )
    source = recover.add_mutually_exclusive_group(required=True)
    source.add_argument("--from-survivor", type=Path, metavar="DIR", help="directory of the voter that has most")
    source.add_argument("--from-backup", type=Path, metavar="FILE", help="made by `raftreg backup create`")
    recover.add_argument("directory", metavar="DIR", type=Path, nargs="?", help="where a backup becomes a store")
    cli_new_epoch.add_options(recover)
    recover.set_defaults(run=_recover)


def _recover(arguments: argparse.Namespace) -> int:
    if arguments.from_backup is not None:
        if arguments.directory is None:
            raise InitError("name the peer's directory that the backup shall become a store in")
        return cli_restore.restore(arguments, arguments.from_backup, [arguments.directory])
    if arguments.directory is not None or arguments.epoch is not None:
        raise InitError("DIR and --epoch go with --from-backup; a survivor stays where it is")
    peers = [cluster_init.parse_peer(text) for text in arguments.peer]
    survivor = cli_new_epoch.configured(arguments.from_survivor)
    cli_new_epoch.check(arguments, survivor, peers)
    cli_new_epoch.finish(arguments, survivor, _from_survivor(arguments, survivor), peers)
    return DONE


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
    cli_new_epoch.confirm(arguments, found.identity.cluster_id)
    return recovery.from_survivor(configured, id_floor=arguments.id_floor, now_us=cli_new_epoch.now_us())
