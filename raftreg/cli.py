"""The `raftreg` command."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from raftreg import cli_level, cluster_init, config, errors
from raftreg import rejoin as rejoining
from raftreg.cli_connection import (
    CURSOR_GONE,
    DONE,
    FAILED,
    OUTCOME_UNKNOWN,
    WRONG_USAGE,
    Commands,
    WrongUsage,
    add_connection,
    add_peer_config,
    ask,
    config_path,
    explained,
    moment,
    print_json,
)
from raftreg.cluster_init import InitError, Plan, PlannedPeer
from raftreg.config import ConfigError
from raftreg.store import StoreError
from raftreg.stored_peer import Configured

_EXAMPLES = """\
  raftreg init /srv/registry                       a single peer on this machine
  raftreg serve /srv/registry
  raftreg init /srv/registry --peer a=10.0.0.1:9590,10.0.0.1:9591 --peer b=10.0.0.2:9590,10.0.0.2:9591 \\
      --peer c=10.0.0.3:9590,10.0.0.3:9591 --gateway ams-1=ams
                                                   then copy /srv/registry/a to 10.0.0.1, and so on
  raftreg observer add /srv/registry ams=192.0.2.7:9591
                                                   then copy /srv/registry/ams there, and start it with
  raftreg serve --observer /srv/registry/ams
  raftreg status --config /srv/registry
  export RAFTREG_CONFIG=/srv/registry              instead of --config with every command
  raftreg image list --limit 20
  raftreg change tail --json
"""
_INIT_EXAMPLES = """\
  raftreg init /srv/registry
  raftreg init /srv/registry --peer a=10.0.0.1:9590,10.0.0.1:9591 --peer b=10.0.0.2:9590,10.0.0.2:9591 \\
      --peer c=10.0.0.3:9590,10.0.0.3:9591 --observer ams=192.0.2.7:9591 --gateway ams-1=ams --client backup
"""
_SERVE_EXAMPLES = """\
  raftreg serve /srv/registry/a
  raftreg serve --observer /srv/registry/ams
"""
_REJOIN_EXAMPLES = """\
  raftreg rejoin /srv/registry/a                   the disk is new and empty
  raftreg rejoin --replace /srv/registry/a         what is on the disk is damaged or too old
"""
# Each in a module of its own, which only its command and the help of all need: a peer has them all to wait for
# otherwise when it starts.
_ELSEWHERE = (
    "peer", "backup", "restore", "recover", "leader", "observer", "verify", "digest", "image", "id", "block", "project",
    "zone", "session", "change", "compact", "level",
)  # fmt: skip
_HERE = ("init", "serve", "rejoin", "status", "version")
_ROLE_STYLES = {
    "leader": "bold green",
    "follower": "green",
    "observer": "cyan",
    "candidate": "yellow",
    "recovering": "yellow",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser(argv[0] if argv else None).parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (ConfigError, InitError, StoreError) as error:
        return _fail(str(error))
    except WrongUsage as error:
        return _fail(str(error), WRONG_USAGE)
    except errors.RegistryError as error:
        return _refused(error)
    except OSError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return FAILED


def _fail(sentence: str, status: int = FAILED) -> int:
    print(f"raftreg: {sentence}", file=sys.stderr)
    return status


def _refused(error: errors.RegistryError) -> int:
    sentence = f"{error.message} [{error.code}]"
    if error.definite:
        return _fail(sentence, CURSOR_GONE if isinstance(error, errors.Gone) else FAILED)
    key = error.details.get("key")
    return _fail(f"{sentence}; repeat it with --key {key}" if key else sentence, OUTCOME_UNKNOWN)


def _parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """For the command that was chosen, if there is such a one; else for all."""
    parser = argparse.ArgumentParser(
        prog="raftreg",
        description="One global image registry for OpenStack clouds.",
        **explained(_EXAMPLES),
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_init(commands)
    _add_serve(commands)
    _add_rejoin(commands)
    status = commands.add_parser(
        "status",
        help="show every peer: role, term, indexes, last backup, errors",
        **explained("  raftreg status\n  raftreg status --config /srv/registry --json\n"),
    )
    add_connection(status)
    status.set_defaults(run=_status)
    for name in () if chosen in _HERE else (chosen,) if chosen in _ELSEWHERE else _ELSEWHERE:
        importlib.import_module(f"raftreg.cli_{name}").add(commands)
    version = commands.add_parser("version", help="print the version", **explained("  raftreg version\n"))
    version.set_defaults(run=_version)
    return parser


def _add_init(commands: Commands) -> None:
    init = commands.add_parser(
        "init",
        help="make a new cluster: authority, certificates, configurations, empty stores",
        description="Make a new cluster below DIR, once. Without --peer: a single peer on loopback.",
        **explained(_INIT_EXAMPLES),
    )
    init.add_argument("directory", metavar="DIR", type=Path)
    init.add_argument("--peer", action="append", default=[], metavar="NAME=RAFT_HOST:PORT,API_HOST:PORT")
    init.add_argument("--observer", action="append", default=[], metavar="NAME=API_HOST:PORT")
    init.add_argument("--gateway", action="append", default=[], metavar="NAME=ZONE", help="make its certificate")
    init.add_argument("--client", action="append", default=[], metavar="NAME", help="make its certificate")
    init.add_argument("--offline", action="store_true", help="don't check that nobody answers at these addresses")
    init.set_defaults(run=_init)


def _add_serve(commands: Commands) -> None:
    serve = commands.add_parser("serve", help="run one peer until SIGTERM", **explained(_SERVE_EXAMPLES))
    add_peer_config(serve)
    serve.add_argument("--observer", action="store_true", help="it is the directory of an observer")
    serve.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    serve.set_defaults(run=_serve)


def _add_rejoin(commands: Commands) -> None:
    rejoin = commands.add_parser(
        "rejoin",
        help="make an empty store for a peer whose disk was replaced; it catches up before it votes",
        description="Needs the other peers. Refused while the old store is there, unless --replace moves it aside.",
        **explained(_REJOIN_EXAMPLES),
    )
    add_peer_config(rejoin)
    rejoin.add_argument("--replace", action="store_true", help="move the old store aside first")
    rejoin.set_defaults(run=_rejoin)


# -- commands -----------------------------------------------------------------------------------------------------


def _init(arguments: argparse.Namespace) -> int:
    peers = [cluster_init.parse_peer(text) for text in arguments.peer]
    peers = peers or [PlannedPeer(cluster_init.DEFAULT_PEER, cluster_init.DEFAULT_RAFT, cluster_init.DEFAULT_API)]
    gateways = [cluster_init.parse_gateway(text) for text in arguments.gateway]
    observers = [cluster_init.parse_observer(text) for text in arguments.observer]
    plan = Plan(peers, dict(gateways), arguments.client, observers)
    if len(plan.gateways) != len(gateways):
        raise InitError("a gateway is listed twice; its name is unique in all zones")
    cluster_id = cluster_init.initialise(arguments.directory, plan, offline=arguments.offline)
    print(f"cluster {cluster_id} of {', '.join(peer.name for peer in peers)} is in {arguments.directory}")
    for peer in peers:
        print(f"  start {peer.name} with: raftreg serve {arguments.directory / peer.name}")
    for observer in observers:
        print(f"  start {observer.name} with: raftreg serve --observer {arguments.directory / observer.name}")
    print(f"  keep {arguments.directory / 'ca.key'} away from the peers: whoever has it can join the cluster")
    return DONE


def _serve(arguments: argparse.Namespace) -> int:
    settings = config.load(config_path(arguments))
    if settings.observer != arguments.observer:
        raise ConfigError(_wrong_serve(settings))
    logging.basicConfig(
        level=arguments.log_level.upper(), format=f"%(asctime)s {settings.name} %(levelname)s %(name)s: %(message)s"
    )
    # Only here: the other commands need neither the event loop nor the consensus.
    from raftreg import main as process

    return process.run(settings)


def _wrong_serve(settings: config.PeerConfig) -> str:
    if settings.observer:
        return f"{settings.name} is an observer, which must be meant: raftreg serve --observer {settings.data_dir}"
    return f"{settings.name} is a voter, without which the cluster may stop: raftreg serve {settings.data_dir}"


def _rejoin(arguments: argparse.Namespace) -> int:
    file = config.find(config_path(arguments))
    settings = config.load(file)
    cluster_id, aside = rejoining.rejoin(Configured(file, settings), replace=arguments.replace)
    if aside is not None:
        print(f"the old store is {aside} now; delete it when {settings.name} has caught up")
    serve = f"raftreg serve{' --observer' if settings.observer else ''} {settings.data_dir}"
    print(f"{settings.name} has an empty store of cluster {cluster_id}; start it with: {serve}")
    return DONE


def _version(_arguments: argparse.Namespace) -> int:
    print(f"raftreg {importlib.metadata.version('raftreg')}")
    return DONE


def _status(arguments: argparse.Namespace) -> int:
    answers = ask(arguments, lambda client: client.peer_status())
    if arguments.json:
        print_json({url: answer.to_wire() if _failed(answer) else answer for url, answer in answers.items()})
    else:
        Console().print(_status_table(answers))
        for line in filter(None, [_numbers(answers), *_troubles(answers)]):
            print(line)
    return DONE if any(not _failed(answer) and answer["leader"] for answer in answers.values()) else FAILED


def _failed(answer: object) -> bool:
    return isinstance(answer, errors.RegistryError)


_STATUS_COLUMNS = (
    "name", "role", "term", "index", "applied", "revision", "db size", "stale", "last backup", "supports", "errors",
)  # fmt: skip


def _status_table(answers: dict[str, Any]) -> Table:
    table = Table(title=_title(answers))
    for heading in _STATUS_COLUMNS:
        table.add_column(heading, overflow="fold")
    for url, answer in answers.items():
        if _failed(answer):
            table.add_row(url, "[red]away[/]", *[""] * (len(_STATUS_COLUMNS) - 2))
        else:
            table.add_row(*_status_row(answer))
    for row in _observer_rows(answers):
        table.add_row(*row)
    return table


def _observer_rows(answers: dict[str, Any]) -> list[list[str]]:
    """What the leader knows of observers which were not asked themselves: how far the log of each agrees."""
    answering = [answer for answer in answers.values() if not _failed(answer)]
    asked = {answer["name"] for answer in answering}
    seen = {name: at for answer in answering if answer["role"] == "leader" for name, at in answer["observers"].items()}
    style, rest = _ROLE_STYLES["observer"], [""] * (len(_STATUS_COLUMNS) - 4)
    return [
        [name, f"[{style}]observer[/]", "", str(at["match"]), *rest] for name, at in seen.items() if name not in asked
    ]


def _numbers(answers: dict[str, Any]) -> str | None:
    """How long the image numbers last, by the account of one peer: the leader, if it answers."""
    answering = [answer for answer in answers.values() if not _failed(answer)]
    if not answering:
        return None
    ids = min(answering, key=lambda answer: answer["role"] != "leader")["ids"]
    days, lasts = ids["days"]["int32"], "rate not known yet"
    if days is not None:
        lasts = f"{days:,.0f} days at {ids['per_day']:,.0f} a day"
    elif ids["per_day"] is not None:
        lasts = "for ever at this rate"
    return f"next number {ids['next']}; {ids['remaining']['int32']:,} left up to 2^31-1: {lasts}"


def _troubles(answers: dict[str, Any]) -> list[str]:
    """One line for everything that is wrong."""
    lines = []
    for answer in answers.values():
        if _failed(answer):
            lines.append(answer.message)
        else:
            lines += [f"{answer['name']}: {error}" for error in answer.get("errors", [])]
    level = cli_level.of_leader(answers)
    return lines if level is None else [*lines, *cli_level.outlook(level)]


def _last_backup(backup: dict[str, Any] | None) -> str:
    """When a peer made the last one by its schedule; empty without a schedule."""
    if backup is None:
        return ""
    return "none yet" if backup["last"] is None else moment(backup["last"]["created_us"])


def _supports(status: dict[str, Any]) -> int | None:
    """The highest feature level that a peer says it supports."""
    own = (member["level"] for member in status["level"]["members"] if member["name"] == status["name"])
    return next(own, None)


def _title(answers: dict[str, Any]) -> str:
    for answer in answers.values():
        if not _failed(answer):
            leader, level = answer["leader"] or "unknown", answer["level"]["in_force"]
            return f"cluster {answer['cluster_id']}, epoch {answer['epoch']}, leader {leader}, feature level {level}"
    return "no peer answers"


def _status_row(status: dict[str, Any]) -> list[str]:
    staleness = status.get("staleness_s")
    style = _ROLE_STYLES.get(status["role"], "white")
    return [
        str(status["name"]),
        f"[{style}]{status['role']}[/]",
        str(status["term"]),
        str(status["last_index"]),
        str(status["applied"]),
        str(status["revision"]),
        f"{status['db']['used_bytes'] / config.MIB:.1f} MiB",
        "unknown" if staleness is None else f"{staleness:.2f} s",
        _last_backup(status["backup"]),
        str(_supports(status)),
        str(len(status.get("errors", []))),
    ]


if __name__ == "__main__":
    sys.exit(main())
