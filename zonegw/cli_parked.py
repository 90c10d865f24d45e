"""`zonegw parked`: what the registry refused, and what becomes of it."""

import argparse
import json
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb
from rich.console import Console
from rich.table import Table

from zonegw.cli_control import ask, config_argument, configured, json_argument
from zonegw.errors import ConfigError
from zonegw.store import u64, unpack

Row = dict[str, Any]

ROWS_DEFAULT = 1000
_RETRY = (
    "Put a parked write back into the queue, and all that was to follow it, in order. It is as if its client asked for "
    "it now: its values win over what others have set since. A delete by others wins all the same, and so do a "
    "deactivation and a narrower visibility that come later. A create whose very image the registry has is not "
    "repeated. After a lost session the numbers of images that the registry does not have are given up; the registry "
    "issues new ones (`zonegw id status` lists them)."
)
_DISCARD = (
    "Drop a parked write for good, and all that was to follow it. A parked create's image is gone with it; bytes that "
    "then belong to nobody are removed. Where that would remove image data it has to be confirmed with --yes."
)
_EXAMPLES = """examples:
  zonegw parked list --config zonegw.toml
  zonegw parked show 4711
  zonegw parked retry --all                 what was parked when the session was lost
  zonegw parked retry 4711 --new-uuid       another image has the UUID: this one gets a new one
  zonegw parked discard 4711 --yes
"""


def add_parser(commands: Any) -> None:
    group = commands.add_parser(
        "parked", help="writes that the registry refused", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = group.add_subparsers(required=True, metavar="VERB")
    listing = _verb(verbs, "list", "show them, oldest first; also while the gateway does not run", _list)
    page_arguments(listing)
    _position(_verb(verbs, "show", "show one with those that were to follow it", _show))
    retry = _verb(verbs, "retry", "put a write and what was to follow it back into the queue", _retry, _RETRY)
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument("position", type=int, nargs="?", help="as `zonegw parked list` tells it")
    which.add_argument("--all", action="store_true", help="all that was parked for --reason, in the background")
    retry.add_argument("--reason", default="session_lost", metavar="CODE", help="with --all; default: session_lost")
    retry.add_argument("--new-uuid", action="store_true", help="the image gets a new UUID, everywhere")
    discard = _verb(verbs, "discard", "drop a write and what was to follow it", _discard, _DISCARD)
    _position(discard)
    discard.add_argument("--yes", action="store_true", help="also where image data are gone with it")


def _verb(verbs: Any, name: str, text: str, run: Any, description: str | None = None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=description or text)
    config_argument(parser)
    json_argument(parser)
    parser.set_defaults(run=run)
    return parser


def _position(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("position", type=int, help="as `zonegw parked list` tells it")


def page_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--after", type=int, default=0, metavar="POSITION", help="those behind this position")
    parser.add_argument("--limit", type=int, default=ROWS_DEFAULT, help=f"at most so many; default {ROWS_DEFAULT}")


def _list(arguments: argparse.Namespace) -> int:
    rows = parked_rows(configured(arguments).data_dir / "store", arguments.after, arguments.limit)
    if arguments.json:
        print(json.dumps(rows, indent=2, default=_printable))
    else:
        Console().print(parked_table(rows))
        if len(rows) == arguments.limit:
            print(f"more: --after {rows[-1]['write']['position']}")
    return 0


def parked_rows(directory: Path, after: int, limit: int) -> list[Row]:
    """Parked writes of a store, read beside a running gateway or without one."""
    try:
        environment = lmdb.open(str(directory), readonly=True, max_dbs=64)
    except lmdb.Error as error:
        raise ConfigError(f"there is no gateway's store in {directory}: {error}") from error
    with environment:
        table = environment.open_db(b"parked", create=False)
        with environment.begin(db=table) as txn, txn.cursor() as cursor:
            if not cursor.set_range(u64(after + 1)):
                return []
            return [unpack(value) for value in islice(cursor.iternext(keys=False), limit)]


def parked_table(rows: list[Row]) -> Table:
    """Parked writes for people."""
    table = Table("position", "image", "operation", "parked at", "behind", "reason", title="parked writes")
    for row in rows:
        write, reason = row["write"], row["reason"]
        at = datetime.fromtimestamp(row["parked_us"] / 1e6, UTC).isoformat(timespec="seconds")
        behind = "" if row["behind"] is None else str(row["behind"])
        said = f"{reason['code']}: {reason['message']}"
        table.add_row(str(write["position"]), write["uuid"], write["command"]["op"], at, behind, said)
    return table


def _show(arguments: argparse.Namespace) -> int:
    row = ask(arguments, "GET", f"/parked/{arguments.position}")
    if arguments.json:
        print(json.dumps(row, indent=2))
        return 0
    console = Console()
    console.print(parked_table([row, *row["chain"]]))
    console.print_json(data=row["write"]["command"])
    registered = row["registered"]
    said = "does not have" if registered is None else f"has, as number {registered['number']},"
    console.print(f"The registry {said} an image of this UUID, as far as this zone knows.")
    return 0


def _retry(arguments: argparse.Namespace) -> int:
    if arguments.all:
        if arguments.new_uuid:
            raise ConfigError("--new-uuid goes with one position, not with --all")
        job = ask(arguments, "POST", "/parked/retry", reason=arguments.reason)
        return _said(arguments, job, "retrying, in the background: `zonegw queue stats` tells how far it is")
    done = ask(arguments, "POST", f"/parked/{arguments.position}/retry", new_uuid=arguments.new_uuid)
    return _said(arguments, done, f"retried: {done['retried']} writes about image {done['uuid']}")


def _discard(arguments: argparse.Namespace) -> int:
    done = ask(arguments, "POST", f"/parked/{arguments.position}/discard", yes=arguments.yes)
    return _said(arguments, done, f"discarded: {done['discarded']} writes about image {done['uuid']}")


def _said(arguments: argparse.Namespace, document: Row, text: str) -> int:
    print(json.dumps(document, indent=2) if arguments.json else text)
    return 0


def _printable(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
