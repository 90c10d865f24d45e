"""One life of a replicated state on real LMDB, for tests: entries go in, results come out, every step is validated."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from raftreg import state_machine
from raftreg.tables import View, hash16, pack

Document = dict[str, Any]

START_US = 1_700_000_000_000_000
CHAIN_START = bytes(16)


def uuid_of(alias: str) -> str:
    """The same UUID for the same alias, in every run."""
    return str(uuids.uuid5(uuids.NAMESPACE_OID, alias))


class Life:
    """`do` applies one entry with the given commands; `now_us` is the clock that the entry is stamped with."""

    def __init__(self, view: View, *, validate: bool = True) -> None:
        self.view, self.validate = view, validate
        self.now_us = START_US
        self.index = state_machine.applied_index(view)

    def do(self, *commands: Document) -> list[Document]:
        self.index += 1
        results = state_machine.apply(self.view, self.index, pack([1, self.now_us, list(commands)]))
        if self.validate:
            state_machine.validate_state(self.view)
        return results

    def ok(self, command: Document) -> Document:
        """The value of a command that must succeed."""
        (result,) = self.do(command)
        assert "ok" in result, result
        value: Document = result["ok"]
        return value

    def refused(self, command: Document) -> Document:
        """The error of a command that must be refused."""
        (result,) = self.do(command)
        assert "error" in result, result
        error: Document = result["error"]
        assert error["message"], error
        return error

    def digest(self) -> str:
        return state_machine.digest(self.view)


@contextmanager
def a_state(directory: Path, name: str = "state") -> Iterator[View]:
    """An empty state in one write transaction that is thrown away."""
    env = lmdb.open(str(directory / name), map_size=1 << 28, max_dbs=1, sync=False, subdir=True)
    try:
        db = env.open_db(b"state@1")
        txn = env.begin(write=True)
        try:
            yield View(txn, db)
        finally:
            txn.abort()
    finally:
        env.close()


def create(alias: str, **more: Any) -> Document:
    """A create of an image named like its alias; `attributes` and arguments of the command by keyword."""
    arguments = {name: more.pop(name) for name in _ARGUMENTS if name in more}
    return {"op": "create_image", "uuid": uuid_of(alias), "attributes": {"name": alias} | more, **arguments}


_ARGUMENTS = ("actor", "key", "properties", "tags", "home_zone", "number", "locations")


def update(number: int, **arguments: Any) -> Document:
    return {"op": "update_image", "image": {"number": number}} | arguments


def delete(number: int, **arguments: Any) -> Document:
    return {"op": "delete_image", "image": {"number": number}, **arguments}


def location(key: str, zone: str = "fra") -> Document:
    return {"zone": zone, "store": zone, "key": key, "size": 1, "md5": None, "sha512": None, "status": "active"}


class Gateway:
    """A gateway's side of one session: counts sequences and chains hashes."""

    def __init__(self, life: Life, gateway: str = "gw1", zone: str = "fra", session: str = "s1") -> None:
        self.life, self.gateway, self.zone, self.session = life, gateway, zone, uuid_of(session)
        self.sequence, self.hash, self.token = 0, CHAIN_START, 0

    def open(self, **account: Any) -> Document:
        """Open the session; `account` overrides what the gateway says about itself."""
        opened = self.life.ok(self.opening(**account))
        self.token = opened["token"]
        return opened

    def opening(self, **account: Any) -> Document:
        own = {"highest_sequence": self.sequence, "acked_sequence": self.sequence, "acked_hash": self.hash}
        return {
            "op": "open_session", "gateway": self.gateway, "zone": self.zone, "session": self.session, **own, **account
        }  # fmt: skip

    def grant(self, size: int) -> Document:
        return self.life.ok(self.asking(size))

    def asking(self, size: int, **changes: Any) -> Document:
        return {
            "op": "grant_block", "gateway": self.gateway, "session": self.session, "size": size, "token": self.token
        } | changes  # fmt: skip

    def carry(self, inner: Document) -> Document:
        """The next operation as a command; the gateway counts it as sent."""
        command = self.operation(self.sequence + 1, self.hash, pack(inner))
        self.sequence += 1
        self.hash = hash16(command["previous_hash"] + command["payload"])
        return command

    def operation(self, sequence: int, previous_hash: bytes, payload: bytes) -> Document:
        return {
            "op": "session_operation", "gateway": self.gateway, "session": self.session, "sequence": sequence,
            "previous_hash": previous_hash, "payload": payload,
        }  # fmt: skip

    def send(self, inner: Document) -> Document:
        """The inner result of the next operation."""
        answer: Document = self.life.ok(self.carry(inner))["result"]
        return answer
