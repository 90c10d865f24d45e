"""`raftreg compact`: forget old changes at once, where the automatic limits are too generous for a disk."""

from __future__ import annotations

import argparse
import re

from raftreg.cli_connection import DONE, Commands, add_connection, ask, count, explained, print_json
from raftreg.cli_progress import bar

_EXAMPLES = """\
  raftreg compact --age 7d
  raftreg compact --floor 1200000
"""
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGE = re.compile(r"(\d{1,9})([smhd]?)", re.ASCII)


def add(commands: Commands) -> None:
    compact = commands.add_parser(
        "compact",
        help="forget old changes of the changefeed",
        description="The registry does this by itself, by number and age. Images stay as they are; whoever follows the "
        "changefeed and is further behind must read all images again.",
        **explained(_EXAMPLES),
    )
    add_connection(compact)
    which = compact.add_mutually_exclusive_group(required=True)
    which.add_argument("--floor", type=count, metavar="REVISION", help="the lowest revision to keep")
    which.add_argument("--age", type=_age_s, metavar="AGE", help="keep what is younger: seconds, or 90m, 12h, 7d")
    compact.set_defaults(run=_compact)


def _age_s(text: str) -> int:
    match = _AGE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; use seconds, or a number with s, m, h or d behind it")
    return int(match[1]) * _UNITS_S[match[2]]


def _compact(arguments: argparse.Namespace) -> int:
    with bar("forgetting changes") as progress:
        floor = ask(
            arguments, lambda client: client.compact(floor=arguments.floor, age_s=arguments.age, progress=progress)
        )
    if arguments.json:
        print_json({"floor": floor})
    else:
        print(f"the changefeed begins at revision {floor}")
    return DONE
