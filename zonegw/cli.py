"""Command line of a gateway: zonegw serve | status | token | parked | queue | id | version."""

import argparse
import asyncio
import importlib.metadata
import json
import logging
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from zonegw import auth, cli_cache, cli_data, cli_id, cli_parked, cli_queue, config
from zonegw.cli_control import config_argument, configured
from zonegw.errors import ConfigError
from zonegw.main import serve

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
STATUS_TIMEOUT_S = 5

EXAMPLES = """examples:
  zonegw serve --config zonegw.toml
  zonegw status --endpoint http://127.0.0.1:9292
  zonegw token create --config zonegw.toml --user alice --project demo --role member
  zonegw parked list --config zonegw.toml --json
  zonegw queue stats --config zonegw.toml
  zonegw id status --config zonegw.toml
"""


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    top = argparse.ArgumentParser(
        prog="zonegw", description="Zone gateway: the Images API of one zone, with or without the registry.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("serve", help="run the gateway")
    config_argument(run)
    run.set_defaults(run=_serve)
    status = commands.add_parser("status", help="show the state of a running gateway")
    config_argument(status)
    status.add_argument("--endpoint", help="URL of the gateway, instead of --config")
    status.add_argument("--json", action="store_true", help="print the document")
    status.set_defaults(run=_status)
    _token_parser(commands)
    for noun in (cli_parked, cli_queue, cli_id, cli_cache, cli_data):
        noun.add_parser(commands)
    commands.add_parser("version", help="print the version").set_defaults(run=_version)
    return top


def _token_parser(commands: Any) -> None:
    token = commands.add_parser("token", help="tokens of the token file").add_subparsers(required=True, metavar="VERB")
    create = token.add_parser("create", help="make a token and print it; only its digest is kept")
    config_argument(create)
    create.add_argument("--file", type=Path, help="token file, instead of the configuration's")
    create.add_argument("--user", required=True)
    create.add_argument("--project", required=True)
    create.add_argument("--role", action="append", dest="roles", help="may be repeated; default: member")
    create.set_defaults(run=_create_token)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code is 0, 1 for a failure, 2 for a wrong command line or configuration."""
    chosen = parser().parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except ConfigError as error:
        print(f"zonegw: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (OSError, RuntimeError) as error:
        print(f"zonegw: {error}", file=sys.stderr)
        return EXIT_FAILED


def _serve(arguments: argparse.Namespace) -> int:
    chosen = configured(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(chosen))
    return EXIT_OK


def _own_url(chosen: config.Config) -> str:
    host, port = chosen.listen
    return f"http://{host}:{port}"


def _status(arguments: argparse.Namespace) -> int:
    endpoint = arguments.endpoint or _own_url(configured(arguments))
    try:
        with urllib.request.urlopen(f"{endpoint.rstrip('/')}/zonegw/v1/status", timeout=STATUS_TIMEOUT_S) as answer:
            document = json.load(answer)
    except (urllib.error.URLError, ValueError, TimeoutError) as error:
        print(f"zonegw: no status from {endpoint}: {error}", file=sys.stderr)
        return EXIT_FAILED
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        Console().print(status_table(document))
    return EXIT_OK


def status_table(document: dict[str, Any]) -> Table:
    """The status for people."""
    table = Table(title=f"gateway {document['gateway']} of zone {document['zone']}", show_header=False)
    block = document["block"]
    rows = {
        "state": document["state"],
        "staleness": _seconds(document["staleness_s"]),
        "pending writes": f"{document['queue_depth']} (oldest {_seconds(document['queue_oldest_s'])})",
        "parked writes": str(document["parked"]),
        "runway": f"{_seconds(document['runway_s'])} ({document['ids_on_hand']} image numbers"
        + (", which is few)" if document["ids_low"] else ")"),
        "block": f"{block['first']} to {block['last']}, next {block['next']}" if block else "none",
        "feed position": document["feed_position"],
        "catalogue": f"{document['catalogue_images']} images",
        "sessions lost": str(len(document["sessions_lost"])),
        "re-offered writes": str(sum(reoffer["writes"] for reoffer in document["reoffers"])),
        **{f"error: {name}": text for name, text in document["errors"].items()},
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.1f} s" if value < 120 else f"{value / 3600:.1f} h"


def _create_token(arguments: argparse.Namespace) -> int:
    path = arguments.file or configured(arguments).auth.tokens_file
    if path is None:
        raise ConfigError("the configuration has no auth.tokens_file; name one with --file")
    roles = arguments.roles or ["member"]
    print(auth.create_token(path, user=arguments.user, project=arguments.project, roles=roles))
    return EXIT_OK


def _version(arguments: argparse.Namespace) -> int:
    print(importlib.metadata.version("raftreg"))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
