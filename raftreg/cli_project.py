"""`raftreg project`: what projects own, and how much they may own at most."""

from __future__ import annotations

import argparse
from typing import Any

from raftreg.cli_connection import (
    DONE,
    Commands,
    WrongUsage,
    add_connection,
    add_noun,
    ask,
    count,
    print_fields,
    print_json,
    print_rows,
)
from raftreg.client import Client

_EXAMPLES = """\
  raftreg project list --limit 20
  raftreg project show demo --json
  raftreg project set demo --images 500 --bytes 2000000000000
  raftreg project set demo --bytes none            no bound any more
"""
_COLUMNS = ("project", "images", "images_max", "bytes", "bytes_max")
_NO_BOUND = "none"
_BOUNDS = ("images", "bytes")


def add(commands: Commands) -> None:
    verbs = add_noun(commands, "project", "what projects own, and quotas", _EXAMPLES)
    listing = verbs.add_parser("list", help="projects that own images or have a quota")
    add_connection(listing)
    listing.add_argument("--after", metavar="PROJECT", help="the last one of the page before")
    listing.add_argument("--limit", type=count, default=50, metavar="N", help="at most so many; default 50")
    listing.set_defaults(run=_list)
    show = verbs.add_parser("show", help="one project; all zero of one that owns nothing")
    add_connection(show)
    show.add_argument("project", metavar="PROJECT")
    show.set_defaults(run=_show)
    setting = verbs.add_parser(
        "set",
        help="bound what a project may own",
        description="What is not named stays as it is. Nothing is taken away from a project that owns more: it only "
        "cannot own still more.",
    )
    add_connection(setting)
    setting.add_argument("project", metavar="PROJECT")
    setting.add_argument("--images", type=_bound, metavar="N", help=f"how many images at most, or {_NO_BOUND}")
    setting.add_argument("--bytes", type=_bound, metavar="N", help=f"bytes of all copies of their data, or {_NO_BOUND}")
    setting.set_defaults(run=_set)


def _bound(text: str) -> int | str:
    if text == _NO_BOUND:
        return text
    if not (text.isascii() and text.isdecimal() and int(text[:17]) < 2**53):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of 0 or more, or {_NO_BOUND}")
    return int(text)


def _list(arguments: argparse.Namespace) -> int:
    page = ask(arguments, lambda client: client.projects(after=arguments.after, limit=arguments.limit))
    if arguments.json:
        print_json(page)
        return DONE
    print_rows(_COLUMNS, page["projects"])
    if page["next"] is not None:
        print(f"more: --after {page['next']}")
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    return _print(arguments, ask(arguments, lambda client: client.project(arguments.project)))


def _set(arguments: argparse.Namespace) -> int:
    said = {name: value for name in _BOUNDS if (value := getattr(arguments, name)) is not None}
    if not said:
        raise WrongUsage("name what is to be bounded: --images or --bytes")
    return _print(arguments, ask(arguments, lambda client: _bounded(client, arguments.project, said)))


async def _bounded(client: Client, project: str, said: dict[str, int | str]) -> dict[str, Any]:
    """The API sets both bounds at once, so the one that is not named is read first."""
    before = await client.project(project)
    bounds = {f"{name}_max": said.get(name, before[f"{name}_max"]) for name in _BOUNDS}
    quota: dict[str, Any] = {name: None if value == _NO_BOUND else value for name, value in bounds.items()}
    owned: dict[str, Any] = (await client.set_quota(project, **quota))["project"]
    return owned


def _print(arguments: argparse.Namespace, project: dict[str, Any]) -> int:
    if arguments.json:
        print_json(project)
    else:
        print_fields({name: "no bound" if value is None else value for name, value in project.items()})
    return DONE
