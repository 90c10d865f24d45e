"""`zonegw cache`: bytes of other zones' images that are kept here."""

import argparse
import json
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from zonegw.cli_control import ask, config_argument, json_argument

EXAMPLES = """examples:
  zonegw cache list
  zonegw cache pin 0b1c2d3e-0000-4000-8000-00000000000a      keep it here, whatever else comes
  zonegw cache prefetch 0b1c2d3e-0000-4000-8000-00000000000a
"""
VERBS = {
    "pin": "fetch an image's bytes, and keep them until it is unpinned or deleted",
    "unpin": "let the bytes make room for others again",
    "evict": "remove the bytes now",
    "prefetch": "fetch the bytes in the background",
}


def add_parser(commands: Any) -> None:
    noun = commands.add_parser(
        "cache", help="bytes of other zones' images", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = noun.add_subparsers(required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="what is cached, pinned and on its way")
    for verb, text in VERBS.items():
        command = verbs.add_parser(verb, help=text)
        command.add_argument("image", metavar="IMAGE", help="UUID")
        _common(command)
        command.set_defaults(run=_act, verb=verb)
    _common(listing)
    listing.set_defaults(run=_list)


def _common(command: argparse.ArgumentParser) -> None:
    config_argument(command)
    json_argument(command)


def _list(arguments: argparse.Namespace) -> int:
    document = ask(arguments, "GET", "/cache")
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        Console().print(_table(document))
    return 0


def _table(document: dict[str, Any]) -> Table:
    title = f"{decimal(document['used_bytes'])} cached, {decimal(document['pinned_bytes'])} pinned"
    table = Table("image", "name", "size", "state", "pinned by", "last used", title=title)
    for row in document["images"]:
        used = row["last_used_us"]
        at = "" if used is None else datetime.fromtimestamp(used / 1e6, UTC).isoformat(timespec="seconds")
        name = "(gone)" if row["gone"] else row["name"] or ""
        size = "" if row["bytes"] is None else decimal(row["bytes"])
        table.add_row(row["image"] or "?", name, size, row["state"], row["pinned"] or "", at)
    return table


def _act(arguments: argparse.Namespace) -> int:
    document = ask(arguments, "POST", f"/cache/{arguments.image}/{arguments.verb}")
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        print(_said(arguments.verb, document))
    return 0


def _said(verb: str, document: dict[str, Any]) -> str:
    image = document["image"]
    if verb in ("pin", "prefetch"):
        coming = "its bytes are here" if document["state"] == "cached" else "its bytes are on their way"
        return f"image {image}{' is pinned' if verb == 'pin' else ''}: {coming}"
    return f"image {image} is {'not pinned any more' if verb == 'unpin' else 'not cached any more'}"
