"""`raftreg observer`: make the directory of an observer, on the machine that has the cluster's authority."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from raftreg import certificates, cluster_init, config, store
from raftreg.cli_connection import DONE, Commands, add_noun
from raftreg.cluster_init import ClusterIdentity, InitError, PlannedObserver
from raftreg.config import PeerConfig

_EXAMPLES = """\
  raftreg observer add /srv/registry ams=192.0.2.7:9591
                                                   then copy /srv/registry/ams there, and start it with
                                                   raftreg serve --observer /srv/registry/ams
"""


def add(commands: Commands) -> None:
    verbs = add_noun(commands, "observer", "add registry processes near a zone which do not vote", _EXAMPLES)
    adding = verbs.add_parser(
        "add",
        help="make configuration, certificate and empty store of an observer",
        description="Makes DIR/NAME. Needs the directory that `raftreg init` made, with ca.key, and in it a voter's "
        "directory; where none is left, list the voters with --peer, and let one run. No voter has to be told of it.",
    )
    adding.add_argument("directory", metavar="DIR", type=Path)
    adding.add_argument("observer", metavar="NAME=API_HOST:PORT")
    adding.add_argument("--peer", action="append", default=[], metavar="NAME=RAFT_HOST:PORT,API_HOST:PORT")
    adding.add_argument("--offline", action="store_true", help="don't check that nobody answers at its address")
    adding.set_defaults(run=_add)


def _add(arguments: argparse.Namespace) -> int:
    directory: Path = arguments.directory
    planned = cluster_init.parse_observer(arguments.observer)
    voters = [cluster_init.parse_peer(text) for text in arguments.peer]
    raft_peers, api_peers = {v.name: v.raft for v in voters}, {v.name: f"https://{v.api}" for v in voters}
    known = _voter_beside(directory)
    if not voters and known is not None:
        raft_peers, api_peers = known.raft_peers, known.api_peers
    _check(directory, planned, raft_peers)
    if not arguments.offline:
        cluster_init.refuse_answering([planned.api])
    identity = _identity(directory, known, api_peers)
    _make(directory, planned, raft_peers, api_peers, identity)
    print(f"observer {planned.name} of cluster {identity.cluster_id} is in {directory / planned.name}")
    print(f"  copy it to its machine and start it with: raftreg serve --observer {directory / planned.name}")
    return DONE


def _voter_beside(directory: Path) -> PeerConfig | None:
    """The configuration of a voter in the cluster's directory, if one is still there."""
    files = sorted(directory.glob(f"*/{config.FILE_NAME}"))
    return next((settings for settings in map(config.load, files) if not settings.observer), None)


def _check(directory: Path, planned: PlannedObserver, raft_peers: dict[str, str]) -> None:
    if not (directory / "ca.key").is_file():
        raise InitError(f"{directory} has no ca.key; name the directory that `raftreg init` made, with the authority")
    if (directory / planned.name).exists():
        raise InitError(f"{directory / planned.name} is there already; take another name, or move it away")
    if not raft_peers:
        raise InitError(f"{directory} holds no voter's directory any more; list the voters with --peer")
    if planned.name in raft_peers:
        raise InitError(f"{planned.name} is a voter; an observer needs a name of its own")


def _identity(directory: Path, known: PeerConfig | None, api_peers: dict[str, str]) -> ClusterIdentity:
    """From a voter's store in the directory; else from a running voter."""
    if known is not None and (store.store_path(known.data_dir) / "data.mdb").exists():
        found = store.read_identity(known.data_dir)
        return ClusterIdentity(found.cluster_id, found.epoch, found.membership_generation, found.previous_peers)
    files = cluster_init.operator_files(directory)
    if files is None:
        raise InitError(f"{directory} has neither a voter's store nor the operator's certificate to ask a running one")
    return cluster_init.asked_identity(list(api_peers.values()), certificates.api_client_context(files))


def _make(
    directory: Path,
    planned: PlannedObserver,
    raft_peers: dict[str, str],
    api_peers: dict[str, str],
    identity: ClusterIdentity,
) -> None:
    """In a hidden directory first, so that a failure leaves nothing that looks like an observer."""
    try:
        authority = certificates.load_authority(directory)
    except (OSError, ValueError) as error:
        raise InitError(str(error)) from None
    workshop = directory / f".observer-{planned.name}"
    shutil.rmtree(workshop, ignore_errors=True)
    try:
        cluster_init.make_observer(workshop, planned, raft_peers, api_peers, authority, identity)
        workshop.rename(directory / planned.name)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
