"""`raftreg block`: the ID blocks of gateways.

There is no `grant`: a block is of use only to the gateway that asked for it. One that an administrator asked for would
be numbers that nobody uses, and would push older blocks of that gateway out.
"""

from __future__ import annotations

import argparse
from typing import Any

from raftreg.cli_connection import DONE, Commands, add_connection, add_key, add_noun, ask, count, print_json, print_rows
from raftreg.client import Client

_EXAMPLES = """\
  raftreg block list --gateway fra-1
  raftreg block seal --gateway fra-1               its machine was stolen, or runs twice
"""
_COLUMNS = ("first", "last", "gateway", "zone", "session", "sealed")


def add(commands: Commands) -> None:
    verbs = add_noun(commands, "block", "ranges of image numbers that were granted to gateways", _EXAMPLES)
    listing = verbs.add_parser("list", help="blocks by number, sealed ones included")
    add_connection(listing)
    listing.add_argument("--gateway", metavar="NAME", help="of this gateway only")
    listing.add_argument("--after", type=int, metavar="NUMBER", help="those that begin behind this number")
    listing.add_argument("--limit", type=count, default=50, metavar="N", help="at most so many; default 50")
    listing.set_defaults(run=_list)
    seal = verbs.add_parser(
        "seal",
        help="accept no number of a gateway's blocks any more",
        description="For a gateway that was lost, stolen or cloned. Numbers not used yet are lost for good; a gateway "
        "that goes on asks for a new block. What it has acknowledged with sealed numbers is parked when it drains.",
    )
    add_connection(seal)
    seal.add_argument("--gateway", required=True, metavar="NAME")
    seal.add_argument("--session", metavar="UUID", help="default: the gateway's session in force")
    add_key(seal)
    seal.set_defaults(run=_seal)


def _list(arguments: argparse.Namespace) -> int:
    page = ask(arguments, lambda client: _page(client, arguments))
    if arguments.json:
        print_json(page)
        return DONE
    print_rows(_COLUMNS, page["blocks"])
    if page["next"] is not None:
        print(f"more: --after {page['next']}")
    return DONE


async def _page(client: Client, arguments: argparse.Namespace) -> dict[str, Any]:
    """As many blocks as were asked for: a page of the registry may be short where other gateways' are left out."""
    blocks: list[Any] = []
    after = arguments.after
    while True:
        page = await client.list_blocks(gateway=arguments.gateway, after=after, limit=arguments.limit - len(blocks))
        blocks += page["blocks"]
        after = page["next"]
        if after is None or len(blocks) >= arguments.limit:
            return {"blocks": blocks, "next": after}


def _seal(arguments: argparse.Namespace) -> int:
    done = ask(arguments, lambda client: client.seal_blocks(arguments.gateway, arguments.session, key=arguments.key))
    if arguments.json:
        print_json(done)
    else:
        print(f"{done['sealed']} blocks of gateway {arguments.gateway} are sealed")
    return DONE
