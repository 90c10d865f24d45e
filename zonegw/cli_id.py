"""`zonegw id`: the image numbers on hand."""

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from zonegw.cli_control import ask, config_argument, json_argument


def add_parser(commands: Any) -> None:
    group = commands.add_parser("id", help="image numbers on hand, which the registry grants in blocks")
    verbs = group.add_subparsers(required=True, metavar="VERB")
    text = "show the blocks, how long they last, and the images that lost their number"
    status = verbs.add_parser("status", help=text, description=text)
    config_argument(status)
    json_argument(status)
    status.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    document = ask(arguments, "GET", "/ids")
    if arguments.json:
        print(json.dumps(document, indent=2))
        return 0
    console = Console()
    console.print(_summary(document))
    console.print(_blocks(document["blocks"]))
    if document["renumbered_images"]:
        console.print(_renumbered(document))
    return 0


def _summary(document: dict[str, Any]) -> Table:
    runway = document["runway_s"]
    table = Table(title="image numbers", show_header=False)
    table.add_row("on hand", f"{document['numbers']}{' (few)' if document['low'] else ''}, wanted {document['target']}")
    table.add_row("rate", f"{document['rate_per_s'] * 3600:.1f} per hour")
    table.add_row("they last for", "unknown" if runway is None else f"{runway / 3600:.1f} h")
    table.add_row("highest known", str(document["highest"]))
    return table


def _blocks(blocks: list[dict[str, Any]]) -> Table:
    table = Table("first", "last", "next", "state", title="blocks")
    for block in blocks:
        state = f"sealed: {block['sealed']}" if block["sealed"] else "live"
        table.add_row(str(block["first"]), str(block["last"]), str(block["next"]), state)
    return table


def _renumbered(document: dict[str, Any]) -> Table:
    shown, count = document["renumbered"], document["renumbered_images"]
    table = Table("was", "is", "image", title=f"renumbered images: the last {len(shown)} of {count}")
    for row in shown:
        number = "none until it is drained" if row["number"] is None else str(row["number"])
        table.add_row(str(row["was"]), number, row["uuid"])
    return table
