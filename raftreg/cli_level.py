"""`raftreg level`: the feature level of the registry, who supports the next one, and its rise."""

from __future__ import annotations

import argparse
from typing import Any

from raftreg import errors
from raftreg.cli_connection import (
    DONE,
    FAILED,
    Commands,
    add_connection,
    add_noun,
    ask,
    count,
    print_json,
    print_rows,
)
from raftreg.cli_progress import bar

_EXAMPLES = """\
  raftreg level show
  raftreg level raise                              after the last peer, observer and gateway was upgraded
"""
_COLUMNS = ("kind", "name", "supports")

Answers = dict[str, Any]


def add(commands: Commands) -> None:
    verbs = add_noun(commands, "level", "the feature level that all members of the cluster speak", _EXAMPLES)
    show = verbs.add_parser(
        "show",
        help="the level in force, and the highest that each voter, observer and live gateway supports",
        description="Exit status 1 when no leader answers: only it hears of gateways.",
    )
    add_connection(show)
    show.set_defaults(run=_show)
    raising = verbs.add_parser(
        "raise",
        help="put the next feature level in force, which all members must support",
        description="Commands and fields of the new level pass from then on. Before it, the release before can be "
        "started again on the same directories; after it, only a backup leads back. What is to be changed in the state "
        "is changed now, in steps; run it again if it was interrupted.",
    )
    add_connection(raising)
    raising.add_argument("--to", type=count, metavar="LEVEL", help="default: the highest that voters support")
    raising.set_defaults(run=_raise)


def _show(arguments: argparse.Namespace) -> int:
    told = of_leader(ask(arguments, lambda client: client.peer_status()))
    if told is None:
        print("no leader answers")
        return FAILED
    if arguments.json:
        print_json({**told, "held_back_by": held_back_by(told)})
        return DONE
    print(f"feature level {told['in_force']} is in force")
    print_rows(_COLUMNS, ({**member, "supports": _supported(member)} for member in told["members"]))
    for line in outlook(told):
        print(line)
    return DONE


def _raise(arguments: argparse.Namespace) -> int:
    with bar("raising the feature level"):
        level = ask(arguments, lambda client: client.raise_level(arguments.to))
    if arguments.json:
        print_json({"level": level})
    else:
        print(f"feature level {level} is in force")
    return DONE


def of_leader(answers: Answers) -> dict[str, Any] | None:
    """What the leader says of levels, out of the status of all peers."""
    for answer in answers.values():
        if not isinstance(answer, errors.RegistryError) and answer["role"] == "leader":
            level: dict[str, Any] = answer["level"]
            return level
    return None


def held_back_by(told: dict[str, Any]) -> list[dict[str, Any]]:
    """The members that do not support the highest level of the voters, or are away; none when that is in force."""
    if told["highest"] <= told["in_force"]:
        return []
    return [member for member in told["members"] if (member["level"] or 0) < told["highest"]]


def outlook(told: dict[str, Any]) -> list[str]:
    """What an operator can do about the level, in at most one line."""
    behind = held_back_by(told)
    if behind:
        names = ", ".join(f"{member['kind']} {member['name']}" for member in behind)
        return [f"feature level {told['highest']} is held back by {names}"]
    if told["highest"] > told["in_force"]:
        return [f"all support feature level {told['highest']}: `raftreg level raise` puts it in force"]
    return []


def _supported(member: dict[str, Any]) -> str:
    if member["level"] is not None:
        return str(member["level"])
    return "not heard yet" if member["kind"] == "gateway" else "away"
