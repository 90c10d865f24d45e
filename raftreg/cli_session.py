"""`raftreg session`: how far each gateway has drained its writes."""

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
    print_fields,
    print_json,
    print_rows,
)

_EXAMPLES = """\
  raftreg session list --gateway fra-1
  raftreg session show 5e551017-0000-4000-8000-000000000001 --json
"""
_COLUMNS = ("session", "gateway", "zone", "token", "last_sequence", "blocks", "opened_at", "fenced")


def add(commands: Commands) -> None:
    verbs = add_noun(commands, "session", "the sessions in which gateways drain their writes", _EXAMPLES)
    listing = verbs.add_parser("list", help="all that are remembered, by gateway and age; `fenced` says why one ended")
    add_connection(listing)
    listing.add_argument("--gateway", metavar="NAME", help="of this gateway only")
    listing.add_argument("--live", action="store_true", help="leave out those that are fenced")
    listing.set_defaults(run=_list)
    show = verbs.add_parser("show", help="one session: its last operation, token, live blocks, what a restore took")
    add_connection(show)
    show.add_argument("session", metavar="UUID")
    show.set_defaults(run=_show)


def _list(arguments: argparse.Namespace) -> int:
    found = ask(arguments, lambda client: client.sessions())
    sessions = [
        session
        for session in sorted(found.values(), key=lambda session: (session["gateway"], session["opened_at"]))
        if arguments.gateway in (None, session["gateway"]) and not (arguments.live and session["fenced"])
    ]
    if arguments.json:
        print_json({"sessions": sessions})
    else:
        print_rows(_COLUMNS, ({**_readable(session), "blocks": len(session["blocks"])} for session in sessions))
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    session = ask(arguments, lambda client: client.session(arguments.session))
    if arguments.json:
        print_json(session)
    else:
        print_fields(_readable(session))
    return DONE


def _readable(session: dict[str, Any]) -> dict[str, Any]:
    return {**session, "opened_at": moment(session["opened_at"])}
