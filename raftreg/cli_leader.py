"""`raftreg leader`: give the lead to another voter."""

from __future__ import annotations

import argparse

from raftreg.cli_connection import DONE, Commands, add_connection, add_noun, ask, print_json

_EXAMPLES = """\
  raftreg leader transfer
  raftreg leader transfer --to b
"""


def add(commands: Commands) -> None:
    leader = add_noun(commands, "leader", "move the lead", _EXAMPLES)
    transfer = leader.add_parser(
        "transfer",
        help="let another voter lead, for example before its machine is serviced; no request fails",
        description="Answers when the new leader is known. Refused when nobody can take over; then nothing changes.",
    )
    add_connection(transfer)
    transfer.add_argument("--to", metavar="NAME", help="which voter; default: the one that is furthest")
    transfer.set_defaults(run=_transfer)


def _transfer(arguments: argparse.Namespace) -> int:
    done = ask(arguments, lambda registry: registry.transfer_leadership(arguments.to))
    if arguments.json:
        print_json(done)
    elif done["from"] == done["to"]:
        print(f"{done['to']} leads already")
    else:
        print(f"the lead went from {done['from']} to {done['to']} in {done['took_s'] * 1000:.0f} ms")
    return DONE
