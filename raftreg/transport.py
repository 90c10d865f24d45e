"""What may pass between pysyncobj and the network: the message rules that make its Raft safe.

No socket here: messages leave through an outbox that the loop turn releases after its durable commit, and come in
through `deliver`. Each rule is one small method, so that a test can switch it off and show what breaks:

- acknowledgements carry the sender's term; one of another term is dropped (`accepts_acknowledgement`);
- a message that carries a snapshot chunk announces no commit index (`without_unchecked_commit`);
- "I have a hole" replies jump to a point that surely matches (`matching_reset`);
- a success acknowledgement never rewinds what was already sent (`restored_next_index`);
- what is under way to a peer is bounded (`append_window`): one that is behind gets the log in pieces (`_bounded`);
- every chunk is answered, so that a long transfer does not look like silence (`chunk_keepalive`);
- commands, responses, utility messages and split entries never reach pysyncobj from outside, nor leave it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import NoneType
from typing import Any, Protocol

import msgpack
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from raftreg.append_window import AppendWindow
from raftreg.observers import Observers

Message = dict[str, Any]
LENGTH = struct.Struct(">I")

TERM = "_term"  # on next_node_idx: the sender's current term
ROUND = "_round"  # on append_entries: the leader's read round; echoed on next_node_idx
CONFIRMED_AGE = "_age"  # on append_entries: seconds since a quorum last confirmed this leader, or None
RECOVERING = "_recovering"  # on next_node_idx: the sender has not caught up; it counts for nothing
SNAPSHOT = "_snapshot"  # on next_node_idx: what the sender holds of an unfinished snapshot, see `Held`
CLOCK = "_clock"  # on next_node_idx: the sender's clock; on append_entries: the latest one that the receiver had sent

NUMBER_MAX = 1 << 62  # of terms, indexes and rounds: what a frame can hold, and far above what will ever be reached

_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "append_entries": {"term": int, "commit_index": int},
    "next_node_idx": {"next_node_idx": int, "reset": bool, "success": bool, TERM: int},
    "request_vote": {"term": int, "last_log_index": int, "last_log_term": int},
    "response_vote": {"term": int},
    "timeout_now": {"term": int},
}
# Messages between voters that pysyncobj knows nothing of; `raftreg.raft` handles them.
_OWN_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "pre_vote": {"term": int, "last_log_index": int, "last_log_term": int},
    "pre_vote_granted": {"term": int},
    "term": {"term": int},
    "read_index": {"id": int},
    "read_index_reply": {"id": int, "index": (int, NoneType)},
    "positions": {"positions": dict},
    "caught_up": {"term": int, "index": int},
    "storage": {"refusal": (str, NoneType)},
    "digest_wanted": {"term": int, "index": int, "version": int},
    "digest": {"term": int, "index": int, "version": int, "digest": str},
    "digest_verdict": {"term": int, "index": int, "version": int, "digests": dict},
    "damage": {"term": int, "index": int, "reason": str},
    "damage_stop": {"term": int},
}
_VOTING = frozenset({"request_vote", "response_vote"})


def encode_frame(message: Message) -> bytes:
    """One frame on a link: length (4 bytes, big-endian) and msgpack."""
    body: bytes = msgpack.packb(message)
    return LENGTH.pack(len(body)) + body


def has_fields(message: Message) -> bool:
    """Whether a message has the fields of its type, with their types. False for a type that is not known."""
    kind = message.get("type")
    fields = _FIELDS.get(kind) or _OWN_FIELDS.get(kind) if isinstance(kind, str) else None
    return fields is not None and all(name in message and _fits(message[name], kinds) for name, kinds in fields.items())


def _fits(value: object, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (type(value) is not int or 0 <= value < NUMBER_MAX)


def is_position(value: object) -> bool:
    """(term, index, store ID) as it comes out of a frame."""
    return isinstance(value, list | tuple) and [type(part) for part in value] == [int, int, str]


def is_well_formed(message: Message) -> bool:
    """Whether a decoded frame is one of the five Raft messages, with the fields and types that the core relies on."""
    if message.get("type") not in _FIELDS or "transmission" in message or not has_fields(message):
        return False
    if message["type"] != "append_entries":
        return True
    if "prevLogIdx" in message:
        return _entries_are_well_formed(message)
    return "serialized" in message and _chunk_is_well_formed(message["serialized"])


def _entries_are_well_formed(message: Message) -> bool:
    entries, index = message.get("entries"), message["prevLogIdx"]
    if not isinstance(entries, list) or not _fits(index, int) or not _fits(message.get("prevLogTerm"), int):
        return False
    for entry in entries:
        index += 1
        if not isinstance(entry, list) or len(entry) != 3 or entry[1] != index:
            return False
        if not isinstance(entry[0], bytes) or not entry[0] or not _fits(entry[2], int):
            return False
    return True


def _chunk_is_well_formed(serialized: object) -> bool:
    if serialized is None:
        return True
    if not isinstance(serialized, list) or [type(part) for part in serialized] != [list, bool, bool]:
        return False
    return [type(part) for part in serialized[0]] == [bytes, int, int, bytes]


def snapshot_held(message: Message) -> tuple[bytes, int] | None:
    """What the sender of an acknowledgement holds of an unfinished snapshot."""
    held = message.get(SNAPSHOT)
    if isinstance(held, list) and [type(part) for part in held] == [bytes, int]:
        return held[0], held[1]
    return None


class Transmissions(Protocol):
    """What the transport asks and tells of snapshots under way."""

    def cancelTransmisstion(self, node: Node) -> None: ...

    def heard(self, peer: str, held: tuple[bytes, int] | None, matches: int | None) -> None: ...

    def held(self) -> tuple[bytes, int] | None: ...


class RaftTransport(Transport):  # type: ignore[misc]
    """pysyncobj's transport: an outbox on one side, checked delivery on the other.

    `core` is attached right after construction (each needs the other).
    """

    def __init__(self, snapshots: Transmissions, window: AppendWindow, observers: Observers) -> None:
        super().__init__(None, None, [])
        self._snapshots, self.window, self._observers = snapshots, window, observers
        self._cancel_transmission = snapshots.cancelTransmisstion
        self.outbox: list[tuple[str, Message]] = []
        self.core: Any = None
        self.recovering = False
        self.round = 0
        self.confirmed_age: float | None = None
        self.clock: Callable[[], float] = lambda: 0.0
        self.clocks: dict[str, float] = {}
        self._echo: int | None = None
        self._held: dict[str, int] = {}

    # -- out ------------------------------------------------------------------------------------------------------

    def send(self, node: Node, message: Message) -> bool:
        """Called by pysyncobj. The message leaves when the turn has made durable what it promises."""
        kind = message["type"]
        if kind not in _FIELDS or "transmission" in message or (self.recovering and kind in _VOTING):
            return False
        if kind == "next_node_idx":
            message = self._stamped_acknowledgement(message)
        elif kind == "append_entries":
            if "prevLogIdx" not in message and message["serialized"] is None:
                self._hold(node)
                return False
            message = self.without_unchecked_commit(message)
            message[ROUND] = self.round
            message[CONFIRMED_AGE] = self.confirmed_age
            message[CLOCK] = self.clocks.get(node.id)
            if node.id in self._observers:
                self._observers.ration(node.id, message, receives_snapshot=node.id in self._held)
            else:
                message = self._bounded(node, message)
        self.outbox.append((node.id, message))
        return True

    def _stamped_acknowledgement(self, message: Message) -> Message:
        if message["reset"] and not message["success"]:
            message["next_node_idx"] = self.matching_reset(message["next_node_idx"])
        message[TERM] = self.core.raftCurrentTerm
        message[ROUND] = self._echo
        message[CLOCK] = self.clock()
        if self.recovering:
            message[RECOVERING] = True
        if (held := self._snapshots.held()) is not None:
            message[SNAPSHOT] = held
        return message

    def _hold(self, node: Node) -> None:
        """Nothing more can leave now. pysyncobj would spin for a whole heartbeat period asking for it, so let it
        believe that nothing is due; the next answer of that peer, or its reset after the next heartbeat, resumes."""
        self._held.setdefault(node.id, self.core.next_index(node))
        self.core.set_next_index(node, self.core.last_index() + 1)

    def _bounded(self, node: Node, message: Message) -> Message:
        """An append_entries with as many entries as may be under way to that peer; pysyncobj goes on behind them."""
        if "prevLogIdx" not in message:
            return message
        if node.id not in self._held and message["entries"]:
            entries = message["entries"] = self.window.cut(node.id, message["entries"])
            self.core.set_next_index(node, entries[-1][1] + 1)
            self.window.sent(node.id, entries)
            if self.window.is_full(node.id):
                self._hold(node)
            return message
        return self._held_heartbeat(node, message) if node.id in self._held else message

    def _held_heartbeat(self, node: Node, message: Message) -> Message:
        """While a peer has not answered for what is under way to it, a heartbeat continues that and brings no more."""
        previous = self.core.entry(self._held[node.id] - 1)
        if previous is not None:
            message["prevLogIdx"], message["prevLogTerm"] = previous[1], previous[2]
        message["entries"] = []
        self._hold(node)
        return message

    def matching_reset(self, next_index: int) -> int:
        """Where a leader shall go on after a mismatch: behind what is committed here, which every leader has too.

        Walking back one entry per heartbeat takes minutes, and with two batches in flight it never ends.
        """
        return min(next_index, max(int(self.core.raftCommitIndex), int(self.core.raftLastApplied)) + 1)

    # -- in -------------------------------------------------------------------------------------------------------

    def deliver(self, node: Node, message: Message) -> None:
        """Hand a well-formed message to pysyncobj, once, in order. The caller ends the journal's message afterwards."""
        kind = message["type"]
        if self.recovering and kind in ("response_vote", "timeout_now"):
            return
        if kind == "next_node_idx":
            self._deliver_acknowledgement(node, message)
        elif kind == "append_entries":
            self._deliver_append(node, self.without_unchecked_commit(message))
        else:
            self._onMessageReceived(node, message)

    def _deliver_acknowledgement(self, node: Node, message: Message) -> None:
        if not self.accepts_acknowledgement(message) or self.claims_too_much(message):
            return
        matches = message["next_node_idx"] - 1 if message["success"] else None
        self._snapshots.heard(node.id, snapshot_held(message), matches)
        self.window.answered(node.id, matches or 0)
        if message.get(RECOVERING) and message["success"]:
            message["success"] = False  # a peer that may have forgotten promises counts for no commit
        before, heard = self.core.next_index(node), self.core.heard_from(node)
        self._onMessageReceived(node, message)
        if message.get(RECOVERING):
            self.core.set_heard_from(node, heard)  # nor does it make a quorum
        if message["success"]:
            self._cancel_transmission(node)  # its log fits: a snapshot that a late reset had begun again is not needed
        if message["reset"]:
            self._held.pop(node.id, None)
            self.window.forget(node.id)
            self.core.send_soon()
        elif node.id in self._held:
            self._resume(node, message["next_node_idx"])
        elif message["success"]:
            self.core.set_next_index(node, self.restored_next_index(before, self.core.next_index(node)))

    def _resume(self, node: Node, next_index: int) -> None:
        if self.window.is_full(node.id):
            self.core.set_next_index(node, self.core.last_index() + 1)
            return
        self.core.set_next_index(node, max(self._held.pop(node.id), next_index))
        self.core.send_soon()

    def accepts_acknowledgement(self, message: Message) -> bool:
        """An acknowledgement speaks of the log of its term; counted in another one it would commit what nobody has."""
        return bool(message[TERM] == self.core.raftCurrentTerm)

    def claims_too_much(self, message: Message) -> bool:
        """Whether it acknowledges entries that this leader does not have; nobody can have them from its term."""
        return bool(message["success"] and message["next_node_idx"] > self.core.last_index() + 1)

    def restored_next_index(self, before: int, after: int) -> int:
        """pysyncobj rewinds to the acknowledged index, which would send everything in flight again."""
        return max(before, after)

    def without_unchecked_commit(self, message: Message) -> Message:
        """A snapshot chunk comes without the check of the previous entry, so its commit index proves nothing."""
        if "prevLogIdx" not in message:
            message["commit_index"] = 0
        return message

    def _deliver_append(self, node: Node, message: Message) -> None:
        self._echo = message.get(ROUND)
        try:
            self._onMessageReceived(node, message)
            if "prevLogIdx" not in message and message["term"] == self.core.raftCurrentTerm:
                self.chunk_keepalive(node)
        finally:
            self._echo = None

    def chunk_keepalive(self, node: Node) -> None:
        """Tell the leader that we are there; it learns nothing about the log from this."""
        self.send(node, {"type": "next_node_idx", "next_node_idx": 1, "reset": False, "success": False})

    # -- links ----------------------------------------------------------------------------------------------------

    def link_up(self, node: Node) -> None:
        self._onNodeConnected(node)

    def forget_sent(self) -> None:
        """Another term began: what was under way belongs to the last one."""
        self._held.clear()
        self.window.forget_all()

    def link_down(self, node: Node) -> None:
        """Chunks that were under way are gone; the next transmission to that peer starts anew."""
        self._forget(node)
        self._onNodeDisconnected(node)

    def observer_up(self, node: Node) -> None:
        self._onReadonlyNodeConnected(node)

    def observer_down(self, node: Node) -> None:
        """pysyncobj knows it no more: an acknowledgement of its would end the process with a KeyError from now on."""
        self._forget(node)
        self._onReadonlyNodeDisconnected(node)
        self.core.forget_heard(node)

    def _forget(self, node: Node) -> None:
        self._held.pop(node.id, None)
        self.window.forget(node.id)
        self.clocks.pop(node.id, None)
        self._cancel_transmission(node)
