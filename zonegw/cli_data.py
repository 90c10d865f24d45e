"""`zonegw data`: the own data store, of which the metadata say most but not all."""

import argparse
import json
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from zonegw.cli_control import ask, config_argument, json_argument

EXAMPLES = """examples:
  zonegw data orphan list --older-than 48
  zonegw data orphan delete 0123456789abcdef0123456789abcdef
  zonegw data orphan delete --all --older-than 720
  zonegw data deleted list                                        with [deletion] delay_h
  zonegw data undelete 0b1c2d3e-0000-4000-8000-00000000000a
"""


def add_parser(commands: Any) -> None:
    noun = commands.add_parser(
        "data", help="the zone's own image data", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = noun.add_subparsers(required=True, metavar="VERB")
    _orphan_parser(verbs)
    _deleted_parser(verbs)
    undelete = verbs.add_parser("undelete", help="make a new image from a deleted one whose bytes are kept")
    undelete.add_argument("image", metavar="IMAGE", help="UUID of the deleted image")
    _common(undelete, _undelete)


def _common(command: argparse.ArgumentParser, run: Any) -> None:
    config_argument(command)
    json_argument(command)
    command.set_defaults(run=run)


def _orphan_parser(verbs: Any) -> None:
    orphan = verbs.add_parser("orphan", help="bytes that nothing owns").add_subparsers(required=True, metavar="VERB")
    listing = orphan.add_parser("list", help="show them, with the image that they were of where that is known")
    listing.add_argument("--older-than", type=float, metavar="HOURS")
    _common(listing, _list_orphans)
    delete = orphan.add_parser("delete", help="delete some, or all that are older")
    delete.add_argument("keys", nargs="*", metavar="KEY")
    delete.add_argument("--all", action="store_true", help="all that are older; needs --older-than")
    delete.add_argument("--older-than", type=float, metavar="HOURS")
    _common(delete, _delete_orphans)


def _deleted_parser(verbs: Any) -> None:
    deleted = verbs.add_parser("deleted", help="deleted images whose bytes are kept for a while")
    kept = deleted.add_subparsers(required=True, metavar="VERB")
    _common(kept.add_parser("list", help="show them"), _list_deleted)
    purge = kept.add_parser("purge", help="delete the bytes now")
    purge.add_argument("image", metavar="IMAGE", help="UUID")
    _common(purge, _purge)


def _list_orphans(arguments: argparse.Namespace) -> int:
    hours = arguments.older_than
    document = ask(arguments, "GET", "/data/orphans" + ("" if hours is None else f"?older_than_h={hours}"))
    return _print(arguments, document, _orphan_table(document["orphans"], more=document["more"]))


def _orphan_table(orphans: list[dict[str, Any]], *, more: bool = False) -> Table:
    title = f"{len(orphans)}{' of more' if more else ''} orphans, {decimal(sum(row['bytes'] for row in orphans))}"
    table = Table("store", "key", "size", "age", "of image", "name", title=title)
    for row in orphans:
        age = f"{row['age_s'] / 3600:.0f} h"
        table.add_row(row["store"], row["key"], decimal(row["bytes"]), age, row["image"] or "", row["name"] or "")
    return table


def _delete_orphans(arguments: argparse.Namespace) -> int:
    if bool(arguments.keys) == arguments.all or (arguments.all and arguments.older_than is None):
        raise RuntimeError("name keys, or --all with --older-than HOURS")
    wanted: dict[str, Any] = {"all": True} if arguments.all else {"keys": arguments.keys}
    if arguments.older_than is not None:
        wanted["older_than_h"] = arguments.older_than
    document = ask(arguments, "POST", "/data/orphans/delete", **wanted)
    deleted = document["deleted"]
    return _print(arguments, document, f"{len(deleted)} deleted: {decimal(sum(row['bytes'] for row in deleted))}")


def _list_deleted(arguments: argparse.Namespace) -> int:
    document = ask(arguments, "GET", "/data/deleted")
    table = Table("image", "name", "owner", "size", "deleted at", "kept for", title="deleted images with bytes")
    for row in document["images"]:
        at = datetime.fromtimestamp(row["deleted_us"] / 1e6, UTC).isoformat(timespec="seconds")
        left = f"{row['left_s'] / 3600:.1f} h"
        table.add_row(row["image"], row["name"] or "", row["owner"] or "", decimal(row["size"] or 0), at, left)
    return _print(arguments, document, table)


def _undelete(arguments: argparse.Namespace) -> int:
    document = ask(arguments, "POST", f"/data/deleted/{arguments.image}/undelete")
    return _print(arguments, document, f"image {document['image']} has the bytes of {document['undeleted_from']}")


def _purge(arguments: argparse.Namespace) -> int:
    document = ask(arguments, "POST", f"/data/deleted/{arguments.image}/purge")
    return _print(arguments, document, f"the bytes of image {document['image']} go now")


def _print(arguments: argparse.Namespace, document: Any, shown: Table | str) -> int:
    if arguments.json:
        print(json.dumps(document, indent=2))
    elif isinstance(shown, str):
        print(shown)
    else:
        Console().print(shown)
    return 0
