"""What one entry works with while it is applied: the state's rows, written through with their digest and undo.

All writes of apply go through here. The hot numbers (head), heads of sessions and sums of projects are read once and
written once per entry, however many commands it has; every other row is written where it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftreg.commands import NUMBER_MAX
from raftreg.tables import (
    DIGEST_MODULUS,
    EPOCHS,
    Row,
    RowWatch,
    View,
    change_key,
    new_project,
    pack,
    prefix_end,
    project_key,
    read_head,
    row_hash,
    session_key,
    unpack,
    write_head,
)

Command = dict[str, Any]
Ok = dict[str, Any]

_FIRST_EPOCH: Row = {"epoch": 1, "revision": 0, "time": 0}


class Refused(Exception):
    """A command that the state does not allow. Raised before anything is written; becomes the command's result."""

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details

    def result(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message, **self.details}}


class Context:
    """One entry under application. `time_us` is the state's clock: the leader's, but never running back."""

    __slots__ = (
        "_charged", "_delete", "_epoch", "_projects", "_put", "_sessions", "_touched", "_undo", "get", "head", "view",
    )  # fmt: skip

    def __init__(self, view: View) -> None:
        self.view = view
        self.head = read_head(view)
        self.get: Callable[[bytes], bytes | None] = view.get
        self._put: Callable[[bytes, bytes], None] = view.put
        self._delete: Callable[[bytes], bool] = view.delete
        self._undo: dict[bytes, bytes | None] | None = None
        self._epoch: Row | None = None
        self._sessions: dict[str, Row | None] = {}
        self._touched: set[str] = set()
        self._projects: dict[str, Row] = {}
        self._charged: set[str] = set()

    @property
    def time_us(self) -> int:
        return self.head.time_us

    def advance_time(self, now_us: int) -> None:
        self.head.time_us = max(self.head.time_us, now_us)

    def close(self, index: int) -> None:
        """Write what was kept back; `index` is applied now."""
        for session in sorted(self._touched):
            row = self._sessions[session]
            assert row is not None
            self.put(session_key(session), pack(row))
        for project in sorted(self._charged):
            self._write_project(self._projects[project])
        self.head.applied = index
        self.head.rows_digest %= DIGEST_MODULUS
        write_head(self.view, self.head)

    # -- canonical rows, which the digest covers ------------------------------------------------------------------

    def row(self, key: bytes) -> Any:
        """The decoded row, or None."""
        value = self.get(key)
        return None if value is None else unpack(value)

    def insert(self, key: bytes, value: bytes) -> None:
        """Write a row that is known to be new."""
        if self._undo is not None:
            self._undo.setdefault(key, None)
        self._put(key, value)
        self.head.rows_digest += row_hash(key, value)

    def put(self, key: bytes, value: bytes) -> None:
        """Write a row that may be there."""
        old = self.get(key)
        if old is None:
            self.insert(key, value)
        else:
            self.replace(key, old, value)

    def replace(self, key: bytes, old: bytes, value: bytes) -> None:
        """Write a row of which the caller has just read the `old` value."""
        if self._undo is not None:
            self._undo.setdefault(key, old)
        self._put(key, value)
        self.head.rows_digest += row_hash(key, value) - row_hash(key, old)

    def delete(self, key: bytes) -> bool:
        """Whether the row was there."""
        old = self.get(key)
        if old is None:
            return False
        if self._undo is not None:
            self._undo.setdefault(key, old)
        self._delete(key)
        self.head.rows_digest -= row_hash(key, old)
        return True

    # -- derived rows ---------------------------------------------------------------------------------------------

    def put_derived(self, key: bytes, value: bytes = b"") -> None:
        if self._undo is not None and key not in self._undo:
            self._undo[key] = self.get(key)
        self._put(key, value)

    def delete_derived(self, key: bytes) -> None:
        if self._undo is not None and key not in self._undo:
            self._undo[key] = self.get(key)
        self._delete(key)

    # -- all or nothing -------------------------------------------------------------------------------------------

    def attempt(self, action: Callable[[], Ok]) -> Ok:
        """Run `action`; when it is Refused, everything that it wrote is as before. Not for actions on sessions."""
        counters, rows_digest = self.head.counters(), self.head.rows_digest
        projects, charged = dict(self._projects), set(self._charged)
        self._undo = {}
        try:
            return action()
        except Refused:
            for key, old in self._undo.items():
                if old is None:
                    self._delete(key)
                else:
                    self._put(key, old)
            self._projects, self._charged = projects, charged
            self.head.restore(counters)
            self.head.rows_digest = rows_digest
            raise
        finally:
            self._undo = None

    # -- the epoch ------------------------------------------------------------------------------------------------

    def epoch(self) -> Row:
        """The row of the present epoch: its number, the revision and time of its beginning. The first has no row."""
        if self._epoch is None:
            newest = next(self.view.scan(EPOCHS, prefix_end(EPOCHS), reverse=True), None)
            self._epoch = _FIRST_EPOCH if newest is None else unpack(newest[1])
        return self._epoch

    def enter_epoch(self, row: Row) -> None:
        """`row` has just been written."""
        self._epoch = row

    # -- sessions -------------------------------------------------------------------------------------------------

    def session(self, session: str) -> Row | None:
        """The head of a session; call `touch` after changing it."""
        if session not in self._sessions:
            self._sessions[session] = self.row(session_key(session))
        return self._sessions[session]

    def new_session(self, row: Row) -> Row:
        self._sessions[row["session"]] = row
        self.touch(row)
        return row

    def touch(self, row: Row) -> None:
        self._touched.add(row["session"])

    def forget_session(self, session: str) -> None:
        self._sessions[session] = None
        self._touched.discard(session)
        self.delete(session_key(session))

    # -- projects -------------------------------------------------------------------------------------------------

    def project(self, project: str) -> Row:
        """What a project owns and may own at most; don't change it, `charge` another one."""
        row = self._projects.get(project)
        if row is None:
            row = self._projects[project] = self.row(project_key(project)) or new_project(project)
        return row

    def charge(self, row: Row) -> None:
        self._projects[row["project"]] = row
        self._charged.add(row["project"])

    def _write_project(self, row: Row) -> None:
        """A project that owns nothing and has no quota has no row."""
        key = project_key(row["project"])
        if row == new_project(row["project"]):
            self.head.projects -= self.delete(key)
            return
        old, packed = self.get(key), pack(row)
        if old is None:
            self.head.projects += 1
            self.insert(key, packed)
        else:
            self.replace(key, old, packed)

    # -- counters -------------------------------------------------------------------------------------------------

    def issue(self, count: int) -> int:
        """The first of `count` numbers that were never issued."""
        first = self.head.next_id
        if first + count - 1 > NUMBER_MAX:
            raise Refused("ids_exhausted", f"only {NUMBER_MAX - first + 1} of the {NUMBER_MAX} image numbers are left")
        self.head.next_id = first + count
        return first

    def next_revision(self) -> int:
        self.head.revision += 1
        return self.head.revision

    def record(
        self, kind: str, command: Command, fields: Row, body_name: str | None = None, body: bytes | None = None
    ) -> None:
        """Append the change record of the revision just begun; `body` is msgpack already, under `body_name`."""
        revision = self.head.revision
        change = {"revision": revision, "time": self.time_us, "kind": kind, "op": command["op"], **fields}
        change["actor"] = command.get("actor") or {}
        packed = pack(change)
        if body_name is not None and body is not None:
            # One more pair behind the map's last: a map of up to 15 pairs has its count in the first byte.
            packed = bytes((packed[0] + 1,)) + packed[1:] + pack(body_name) + body
        self.insert(change_key(revision), packed)
        self.head.changes += 1


class WatchedContext(Context):
    """The same while a scrub is under way: its sum of the rows before its position follows every change."""

    __slots__ = ("_watch",)

    def __init__(self, view: View, watch: RowWatch) -> None:
        super().__init__(view)
        self._watch = watch

    def insert(self, key: bytes, value: bytes) -> None:
        before = self.head.rows_digest
        super().insert(key, value)
        self._follow(key, before)

    def replace(self, key: bytes, old: bytes, value: bytes) -> None:
        before = self.head.rows_digest
        super().replace(key, old, value)
        self._follow(key, before)

    def delete(self, key: bytes) -> bool:
        before = self.head.rows_digest
        deleted = super().delete(key)
        self._follow(key, before)
        return deleted

    def _follow(self, key: bytes, rows_digest_before: int) -> None:
        if key < self._watch.position:
            self._watch.total += self.head.rows_digest - rows_digest_before

    def attempt(self, action: Callable[[], Ok]) -> Ok:
        total = self._watch.total
        try:
            return super().attempt(action)
        except Refused:
            self._watch.total = total
            raise


def context(view: View) -> Context:
    """What an entry on this view is applied with."""
    return Context(view) if view.watch is None else WatchedContext(view, view.watch)


def outcome(action: Callable[..., Ok], *arguments: Any) -> dict[str, Any]:
    """The result of a command: {"ok"} or {"error"}."""
    try:
        return {"ok": action(*arguments)}
    except Refused as refused:
        return refused.result()


def gateway_of(command: Command) -> str | None:
    """The gateway that asks, by its certificate."""
    gateway: str | None = (command.get("actor") or {}).get("gateway")
    return gateway
