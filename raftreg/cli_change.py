"""`raftreg change tail`: what happens in the registry, as it happens, for people and for programs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import select
import signal
import stat
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from raftreg import errors, wire
from raftreg.cli_connection import CURSOR_GONE, DONE, Commands, add_connection, add_noun, client, count, moment
from raftreg.client import Client
from raftreg.commands import VISIBILITIES
from raftreg.feed_filter import KINDS, FeedFilter

_EXAMPLES = """\
  raftreg change tail                              what happens from now on
  raftreg change tail --after 1.4711               what happened behind that cursor, and goes on
  raftreg change tail --json | jq -c 'select(.kind == "image") | [.cursor, .op, .uuid, .actor.user]'
  raftreg change tail --json --kind image --tenant 8ac1f0e4 --visibility shared
  raftreg change tail --json --after "$(cat cursor)" | while read -r change; do
      handle "$change" && jq -r .cursor <<< "$change" > cursor; done
"""


def add(commands: Commands) -> None:
    verbs = add_noun(commands, "change", "what happens in the registry, in order, each change once", _EXAMPLES)
    tail = verbs.add_parser(
        "tail",
        help="follow the changefeed until SIGINT, SIGTERM or the reader of a pipe goes away",
        description="One line per change, written at once; with --json one object per line, whose `cursor` is where "
        "to go on behind it. With a filter, an image that leaves it is told as gone, without what it is now. The last "
        "cursor is told on the standard error. While no peer answers it waits. Exit "
        "status 4 when the changes behind the cursor were compacted away: read the images again.",
    )
    add_connection(tail)
    tail.add_argument("--after", metavar="CURSOR", help="EPOCH.REVISION; default: what happens from now on")
    tail.add_argument("--count", type=count, metavar="N", help="end after so many changes")
    tail.add_argument("--kind", action="append", default=[], choices=KINDS, help="of changes; may be repeated")
    tail.add_argument(
        "--tenant",
        action="append",
        default=[],
        metavar="PROJECT",
        help="only images that it owns or sees (public, community, shared with it), and its quota; may be repeated",
    )
    tail.add_argument(
        "--visibility", action="append", default=[], choices=VISIBILITIES, help="of images; may be repeated"
    )
    tail.set_defaults(run=_tail)


def _tail(arguments: argparse.Namespace) -> int:
    if arguments.after is not None:
        wire.parse_cursor(arguments.after)
    return asyncio.run(_follow(arguments))


async def _follow(arguments: argparse.Namespace) -> int:
    output = _Output(sys.stdout.fileno())
    feed = _Tail(arguments.after)
    task = asyncio.current_task()
    assert task is not None
    with output.ended_by(task):
        try:
            async with client(arguments) as registry:
                await feed.run(registry, output, _wanted(arguments), as_json=arguments.json, count=arguments.count)
        except (_Ended, asyncio.CancelledError, BrokenPipeError):
            pass
        except errors.Gone as gone:
            print(f"raftreg: {_resync(gone)}", file=sys.stderr)
            return CURSOR_GONE
    if feed.cursor is not None:
        print(f"raftreg: go on with --after {feed.cursor}", file=sys.stderr)
    return DONE


def _wanted(arguments: argparse.Namespace) -> FeedFilter:
    return FeedFilter(frozenset(arguments.kind), frozenset(arguments.tenant), frozenset(arguments.visibility))


def _resync(gone: errors.Gone) -> str:
    """What to do when changes are missing."""
    cursor = gone.details.get("cursor")
    then = f", then follow with --after {cursor}" if cursor else ""
    return (
        f"{gone.message}. What happened meanwhile cannot be told: note this cursor, read all images again "
        f"(raftreg image list, or GET {wire.PREFIX}/bootstrap){then} [{gone.code}]"
    )


class _Tail:
    """How far the feed was written; `cursor` is None before it is known where to begin."""

    def __init__(self, cursor: str | None) -> None:
        self.cursor = cursor

    async def run(
        self, registry: Client, output: _Output, wanted: FeedFilter, *, as_json: bool, count: int | None
    ) -> None:
        # A cluster that can't be reached is told at once; only later is it waited for.
        status = await registry.status()
        self.cursor = self.cursor or f"{status['epoch']}.{status['revision']}"
        left = count
        async with contextlib.aclosing(registry.changes(self.cursor, wanted=wanted)) as messages:
            async for message in messages:
                if message["type"] == "heartbeat":
                    self.cursor = message["cursor"]  # moves on past what is not wanted
                    continue
                output.write(wire.to_json(message) if as_json else _line(message).encode())
                self.cursor = message["cursor"]
                left = None if left is None else left - 1
                if left == 0:
                    return


class _Ended(BaseException):
    """A signal came while the reader took nothing."""


class _Output:
    """Whole lines to a file descriptor, past all buffers. A reader that takes nothing blocks only this process.

    A signal ends it only between pieces, so that a line is either written and counted or cut off and not counted.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting = self._ended = False

    def write(self, line: bytes) -> None:
        """Write `line` and a line feed. Raises BrokenPipeError, and _Ended when a signal comes while it waits."""
        rest = memoryview(line + b"\n")
        while rest:
            self._wait()
            # So much never blocks in a pipe that takes anything.
            rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]

    def _wait(self) -> None:
        self._waiting = True
        try:
            if self._ended:
                raise _Ended
            select.select([], [self._descriptor], [])
        finally:
            self._waiting = False

    @contextlib.contextmanager
    def ended_by(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """Cancel `task` on SIGINT, on SIGTERM, and when whoever reads the pipe is gone, even if nothing happens."""
        loop = asyncio.get_running_loop()

        def end(_number: int = 0, _frame: FrameType | None = None) -> None:
            self._ended = True
            # The wait ends only by an exception out of the handler: Python would resume it otherwise.
            if self._waiting:
                raise _Ended
            loop.call_soon_threadsafe(task.cancel)

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        watched = stat.S_ISFIFO(os.fstat(self._descriptor).st_mode)
        if watched:
            loop.add_reader(self._descriptor, end)
        try:
            yield
        finally:
            if watched:
                loop.remove_reader(self._descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)


def _line(change: dict[str, Any]) -> str:
    """One change for people."""
    if change["type"] == "gone":
        return f"{change['cursor']} gone from the filter: number {change['number']} uuid {change['uuid']}"
    names = ("number", "uuid", "zone", "gateway", "session", "block")
    subject = [f"{name} {_named(change[name])}" for name in names if change.get(name) is not None]
    changed = [f"({', '.join(change['changed'])})"] if change.get("changed") else []
    actor = change["actor"]
    by = [f"{name} {actor[name]}" for name in ("user", "project", "gateway") if actor.get(name)]
    words = [change["cursor"], moment(change["time"]), change["op"], *subject, *changed]
    # Names are what users chose; a line feed or an escape sequence in one must not reach a terminal.
    text = " ".join([*words, *(["by", *by] if by else [])])
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def _named(value: Any) -> str:
    """A zone or block travels whole; its name is enough here."""
    if isinstance(value, dict):
        return str(value["zone"] if "gateways" in value else f"{value['first']} to {value['last']}")
    return str(value)
