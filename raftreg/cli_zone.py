"""`raftreg zone`: the zones that the registry knows."""

from __future__ import annotations

import argparse
from typing import Any

from raftreg.cli_connection import (
    DONE,
    Commands,
    add_connection,
    add_noun,
    ask,
    moment,
    pair,
    print_fields,
    print_json,
    print_rows,
)

_EXAMPLES = """\
  raftreg zone list
  raftreg zone show fra --json
  raftreg zone add fra --zone-endpoint https://images.fra.example.org:9292
"""
_COLUMNS = ("zone", "live", "since", "gateways", "endpoint")


def add(commands: Commands) -> None:
    verbs = add_noun(commands, "zone", "zones, their gateways and whether they are there", _EXAMPLES)
    listing = verbs.add_parser("list", help="all zones; `live`: a gateway of it was heard within the lease")
    add_connection(listing)
    listing.set_defaults(run=_list)
    show = verbs.add_parser("show", help="one zone")
    add_connection(show)
    show.add_argument("zone", metavar="ZONE")
    show.set_defaults(run=_show)
    adding = verbs.add_parser(
        "add",
        help="make a zone known, or change what is said about it",
        description="A gateway registers its zone by itself; this is for what is to be known before. Repeating it is "
        "harmless.",
    )
    add_connection(adding)
    adding.add_argument("zone", metavar="ZONE")
    adding.add_argument("--zone-endpoint", metavar="URL", help="where the zone's Images API is")
    adding.add_argument(
        "--capability", action="append", default=[], type=pair, metavar="NAME=VALUE", help="may be repeated"
    )
    adding.set_defaults(run=_add)


def _list(arguments: argparse.Namespace) -> int:
    zones = ask(arguments, lambda client: client.zones())
    if arguments.json:
        print_json({"zones": zones})
    else:
        print_rows(_COLUMNS, (_readable(zone) for zone in zones.values()))
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    return _print(arguments, ask(arguments, lambda client: client.zone(arguments.zone)))


def _add(arguments: argparse.Namespace) -> int:
    said = {"endpoint": arguments.zone_endpoint, "capabilities": dict(arguments.capability) or None}
    done = ask(arguments, lambda client: client.register_zone(arguments.zone, **said))
    return _print(arguments, done["zone"])


def _print(arguments: argparse.Namespace, zone: dict[str, Any]) -> int:
    if arguments.json:
        print_json(zone)
    else:
        print_fields({**zone, "since": moment(zone["since"])})
    return DONE


def _readable(zone: dict[str, Any]) -> dict[str, Any]:
    return {**zone, "since": moment(zone["since"]), "gateways": ", ".join(sorted(zone["gateways"]))}
