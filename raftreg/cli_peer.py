"""`raftreg peer list|replace`: who the voters are, and another set of them."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from raftreg import cluster_init, errors, stored_peer, voter_change
from raftreg.cli_connection import (
    CONFIG_VARIABLE,
    DONE,
    FAILED,
    Commands,
    add_connection,
    add_noun,
    ask,
    config_path,
    print_json,
)
from raftreg.cluster_init import InitError
from raftreg.config import ConfigError
from raftreg.stored_peer import StoredPeer
from raftreg.voter_change import Change, Origin

_REPLACE = """\
Change who the voters are, or their addresses. All peers are stopped first. The command runs once for every peer's
directory, with the same complete list of the new voters, and says what to run on which other machine; running it
again finishes what was interrupted.
"""
_EXAMPLES = """\
  raftreg peer list
  raftreg peer list --offline --config /srv/registry
  raftreg peer replace /srv/registry --peer a=10.0.0.1:9590,10.0.0.1:9591 --peer b=10.0.0.2:9590,10.0.0.2:9591 \\
      --peer c=10.0.0.3:9590,10.0.0.3:9591
"""


def add(commands: Commands) -> None:
    peer = add_noun(commands, "peer", "who the voters are; change them", _EXAMPLES)
    listing = peer.add_parser("list", help="the voters: address, role, connection, how far, generation of the set")
    add_connection(listing)
    listing.add_argument("--offline", action="store_true", help="read the directories at --config, ask nobody")
    listing.set_defaults(run=_list)
    change = peer.add_parser(
        "replace",
        help="another set of voters, or other addresses; all peers are stopped",
        description=_REPLACE,
    )
    change.add_argument("directory", metavar="DIR", type=Path, nargs="?", help="of a cluster (with ca.key) or a peer")
    change.add_argument("--config", type=Path, metavar="PATH", help=f"instead of DIR; default ${CONFIG_VARIABLE}")
    change.add_argument("--peer", action="append", default=[], metavar="NAME=RAFT_HOST:PORT,API_HOST:PORT")
    change.add_argument("--after", metavar="SET", help="the set to start from, as the first machine printed it")
    change.add_argument("--offline", action="store_true", help="don't check that nobody answers at these addresses")
    change.set_defaults(run=_replace)


# -- list ---------------------------------------------------------------------------------------------------------

_COLUMNS = ("name", "raft", "api", "role", "connected", "match", "generation")


def _list(arguments: argparse.Namespace) -> int:
    rows = _stored_rows(arguments) if arguments.offline else _running_rows(arguments)
    if arguments.json:
        print_json({"peers": rows})
    else:
        table = Table()
        for column in _COLUMNS:
            table.add_column(column)
        for row in rows:
            table.add_row(*("-" if row[column] is None else str(row[column]) for column in _COLUMNS))
        Console().print(table)
        for row in rows:
            if row["note"]:
                print(f"{row['name']}: {row['note']}")
    return DONE if any(row["role"] for row in rows) else FAILED


def _running_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per voter that anybody names; `connected` and `match` are the leader's word, else of any who answers."""
    answers = ask(arguments, lambda client: client.peer_status())
    statuses = {answer["name"]: answer for answer in answers.values() if not isinstance(answer, errors.RegistryError)}
    api = {answer["name"]: url for url, answer in answers.items() if not isinstance(answer, errors.RegistryError)}
    silent = [url for url, answer in answers.items() if isinstance(answer, errors.RegistryError)]
    witness = next((s for s in statuses.values() if s["role"] == "leader"), next(iter(statuses.values()), None))
    named = sorted({name for status in statuses.values() for name in (*status["voters"]["names"], status["name"])})
    if not named:
        return [_row(None, api=url, note="no answer") for url in silent]
    raft = _raft_addresses(arguments)
    return [_running_row(name, statuses.get(name), witness, raft.get(name), api.get(name)) for name in named]


def _raft_addresses(arguments: argparse.Namespace) -> dict[str, str]:
    """Where the voters listen for each other; the API does not tell, a configuration at hand does."""
    try:
        configured = stored_peer.below(config_path(arguments))
    except ConfigError:
        return {}
    return dict(configured[0].settings.raft_peers) if configured else {}


def _running_row(
    name: str, status: dict[str, Any] | None, witness: dict[str, Any] | None, raft: str | None, api: str | None
) -> dict[str, Any]:
    told = witness["peers"].get(name, {}) if witness else {}
    own = witness is not None and witness["name"] == name
    if status is None:
        return _row(name, raft=raft, connected=told.get("connected"), match=told.get("match"), note="no answer")
    return _row(
        name,
        raft=raft,
        api=api,
        role=status["role"],
        connected=True if own else told.get("connected"),
        match=status["last_index"] if own else told.get("match"),
        generation=status["voters"]["generation"],
        note="; ".join(status["errors"]) or None,
    )


def _row(name: str | None, **values: Any) -> dict[str, Any]:
    return {**dict.fromkeys((*_COLUMNS, "note")), "name": name, **values}


def _stored_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for one in stored_peer.below(config_path(arguments)):
        name, settings = one.settings.name, one.settings
        addresses = {"raft": settings.raft_peers[name], "api": settings.api_peers.get(name)}
        if one.has_store:
            rows.append(_stored_row(stored_peer.read(one), addresses))
        else:
            rows.append(_row(name, **addresses, note=f"{settings.data_dir} has no store"))
    return rows


def _stored_row(peer: StoredPeer, addresses: dict[str, Any]) -> dict[str, Any]:
    identity = peer.identity
    notes = [f"epoch {identity.epoch}, voters {', '.join(identity.peers)}"]
    if not peer.settled:
        notes.append(f"elects nobody before it has met a majority of {', '.join(identity.previous_peers)}")
    if identity.peers != peer.settings.cluster_peers:
        notes.append("its configuration names other voters: run `raftreg peer replace` again")
    return _row(
        identity.peer,
        **addresses,
        role="recovering" if peer.recovering else "stored",
        match=peer.last[1],
        generation=identity.membership_generation,
        note="; ".join(notes),
    )


# -- replace ------------------------------------------------------------------------------------------------------


def _replace(arguments: argparse.Namespace) -> int:
    if not arguments.peer:
        raise InitError("name every voter of the new set with --peer NAME=RAFT_HOST:PORT,API_HOST:PORT")
    peers = [cluster_init.parse_peer(text) for text in arguments.peer]
    origin = Origin.parse(arguments.after) if arguments.after else None
    change = voter_change.plan(config_path(arguments), peers, origin)
    if not arguments.offline:
        voter_change.refuse_answering(change)
    made = voter_change.carry_out(change)
    for line in report(change, made):
        print(line)
    return DONE


def report(change: Change, made: list[str]) -> list[str]:
    """What was done, and what is still to do where."""
    if change.origin is None:
        lines = [f"the voters stay {', '.join(change.names)}; their addresses are written in {change.directory}"]
    else:
        generation = change.origin.generation + 1
        lines = [f"voter set of generation {generation}: {', '.join(change.names)} (was {', '.join(change.before)})"]
    here = {settings.name for settings in change.local} | set(made)
    lines += [f"  {name} is done" for name in change.names if name in here]
    lines += [f"  {name} is new: move {change.directory / name} to its machine" for name in made]
    lines += [f"  {name} is no voter any more: never start it again" for name in change.removed]
    rest = [name for name in change.names if name not in here]
    lines += [
        f"  on the machine of {name}: {_command(change, f'DIR-OF-{name}')}" for name in rest if name in change.kept
    ]
    new = [name for name in rest if name not in change.kept]
    if new:
        lines.append(f"  where ca.key is, to make {', '.join(new)}: {_command(change, 'CLUSTER-DIR')}")
    lines.append("  when all are done, start them with: raftreg serve DIR")
    return lines


def _command(change: Change, directory: str) -> str:
    words = ["raftreg", "peer", "replace", directory]
    for peer in change.peers:
        words += ["--peer", f"{peer.name}={peer.raft},{peer.api}"]
    if change.origin is not None:
        words += ["--after", str(change.origin)]
    return shlex.join(words)
