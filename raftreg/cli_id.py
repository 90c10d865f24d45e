"""`raftreg id`: numbers that nobody else ever gets."""

from __future__ import annotations

import argparse

from raftreg.cli_connection import DONE, Commands, add_connection, add_key, add_noun, ask, count, print_json

_EXAMPLES = """\
  raftreg id allocate
  raftreg id allocate --count 1000 --json
"""


def add(commands: Commands) -> None:
    verbs = add_noun(commands, "id", "take image numbers out of the global space, for use elsewhere", _EXAMPLES)
    allocate = verbs.add_parser(
        "allocate",
        help="numbers for a use outside of the registry, which never binds them itself",
        description="Prints the first and the last number. They can't be given back.",
    )
    add_connection(allocate)
    allocate.add_argument("--count", type=count, default=1, metavar="N", help="how many, in one piece; default 1")
    add_key(allocate)
    allocate.set_defaults(run=_allocate)


def _allocate(arguments: argparse.Namespace) -> int:
    first, last = ask(arguments, lambda client: client.allocate_ids(arguments.count, key=arguments.key))
    if arguments.json:
        print_json({"first": first, "last": last})
    else:
        print(first if first == last else f"{first} {last}")
    return DONE
