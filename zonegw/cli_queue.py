"""`zonegw queue`: the write-ahead queue."""

import argparse
import json
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from zonegw.cli_control import ask, config_argument, json_argument
from zonegw.cli_parked import page_arguments

_EXAMPLES = """examples:
  zonegw queue stats --config zonegw.toml
  zonegw queue list --limit 20
  zonegw queue show 4711
"""


def add_parser(commands: Any) -> None:
    group = commands.add_parser(
        "queue", help="writes that are on their way to the registry", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = group.add_subparsers(required=True, metavar="VERB")
    page_arguments(_verb(verbs, "list", "show them, oldest first", _list))
    _verb(verbs, "show", "show one, as it was acknowledged", _show).add_argument("position", type=int)
    _verb(verbs, "stats", "how many there are, how old, and how far the session is", _stats)


def _verb(verbs: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    config_argument(parser)
    json_argument(parser)
    parser.set_defaults(run=run)
    return parser


def _list(arguments: argparse.Namespace) -> int:
    page = ask(arguments, "GET", f"/queue?after={arguments.after}&limit={arguments.limit}")
    if arguments.json:
        print(json.dumps(page, indent=2))
        return 0
    table = Table("position", "image", "operation", "acknowledged at", "sequence", title="pending writes")
    for write in page["pending"]:
        at = datetime.fromtimestamp(write["enqueued_us"] / 1e6, UTC).isoformat(timespec="seconds")
        sequence = "" if write["sequence"] is None else str(write["sequence"])
        table.add_row(str(write["position"]), write["uuid"], write["command"]["op"], at, sequence)
    Console().print(table)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    print(json.dumps(ask(arguments, "GET", f"/queue/{arguments.position}"), indent=2))
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    document = ask(arguments, "GET", "/queue/stats")
    if arguments.json:
        print(json.dumps(document, indent=2))
        return 0
    table = Table(title="write-ahead queue", show_header=False)
    for name, value in document.items():
        table.add_row(name.replace("_", " "), "none" if value is None else str(value))
    Console().print(table)
    return 0
