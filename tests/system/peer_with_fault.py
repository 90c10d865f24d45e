"""A registry peer with one fault built in: `python -m tests.system.peer_with_fault CONFIG FAULT`.

FAULT is `handler-error` (the handler of `allocate_ids` raises for a count of 13) or `undecodable-entry` (the proposer
writes entries of a version that no release knows for a count of 13).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from raftreg import main, proposer, state_machine
from raftreg.config import load

UNLUCKY = 13


def break_handler() -> None:
    table: dict[str, Any] = state_machine._OPS
    allocate = table["allocate_ids"]

    def handler(ctx: Any, command: dict[str, Any]) -> Any:
        if command["count"] == UNLUCKY:
            raise ZeroDivisionError("a bug in a command handler")
        return allocate(ctx, command)

    table["allocate_ids"] = handler


def break_entries() -> None:
    genuine = proposer.Proposer._payload

    def payload(self: proposer.Proposer, batch: Any) -> bytes:
        entry = genuine(self, batch)
        unlucky = b"\xa5count\x0d"
        return b"\x93\xcc\xff" + entry[2:] if unlucky in entry else entry

    proposer.Proposer._payload = payload  # type: ignore[method-assign]


if __name__ == "__main__":
    {"handler-error": break_handler, "undecodable-entry": break_entries}[sys.argv[2]]()
    raise SystemExit(main.run(load(Path(sys.argv[1]))))
