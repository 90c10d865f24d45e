"""`raftreg digest`: where each peer is, and the digest of its state there."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raftreg import errors
from raftreg.cli_connection import DONE, FAILED, Commands, add_connection, ask, explained, print_json

_EXAMPLES = """\
  raftreg digest
  raftreg digest --json | jq -r '.[] | [.name, .applied, .digest] | @tsv'
"""
_COLUMNS = ("peer", "role", "term", "applied", "digest")


def add(commands: Commands) -> None:
    digest = commands.add_parser(
        "digest",
        help="applied index and digest of every peer",
        description="Digests are comparable at equal index only; `raftreg verify` waits for one that all peers know. "
        "Exit status 1 when a peer does not answer.",
        **explained(_EXAMPLES),
    )
    add_connection(digest)
    digest.set_defaults(run=_digest)


def _digest(arguments: argparse.Namespace) -> int:
    answers = ask(arguments, lambda client: client.each("GET", "digest"))
    away = [answer for answer in answers.values() if isinstance(answer, errors.RegistryError)]
    if arguments.json:
        print_json({url: _document(answer) for url, answer in answers.items()})
    else:
        _show(answers)
        for error in away:
            print(error.message)
    return FAILED if away else DONE


def _document(answer: dict[str, Any] | errors.RegistryError) -> dict[str, Any]:
    if isinstance(answer, errors.RegistryError):
        return answer.to_wire()
    told = {name: answer[name] for name in ("name", "role", "term", "applied", "version")}
    return {**told, "digest": answer["digests"].get(str(answer["applied"]))}


def _show(answers: dict[str, dict[str, Any] | errors.RegistryError]) -> None:
    table = Table()
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for url, answer in answers.items():
        if isinstance(answer, errors.RegistryError):
            table.add_row(escape(url), "[red]away[/]", "", "", "")
        else:
            told = _document(answer)
            table.add_row(told["name"], told["role"], str(told["term"]), str(told["applied"]), told["digest"] or "")
    Console().print(table)
