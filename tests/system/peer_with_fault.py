"""A registry peer with one fault built in: `python -m tests.system.peer_with_fault CONFIG FAULT`.

FAULT happens for a count of 13 in `allocate_ids`: `handler-error` (its handler raises), `undecodable-entry` (the
proposer writes an entry of a version that no release knows) or `hanging-turn` (the turn does not end, as on a disk that
no longer answers; the watchdog's limit is one second then).
"""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
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


def hang_turn() -> None:
    table: dict[str, Any] = state_machine._OPS
    allocate = table["allocate_ids"]

    def handler(ctx: Any, command: dict[str, Any]) -> Any:
        if command["count"] == UNLUCKY:
            threading.Event().wait()
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
    faults = {"handler-error": break_handler, "undecodable-entry": break_entries, "hanging-turn": hang_turn}
    faults[sys.argv[2]]()
    config = load(Path(sys.argv[1]))
    raise SystemExit(main.run(replace(config, timing=replace(config.timing, turn_max_s=1.0))))
