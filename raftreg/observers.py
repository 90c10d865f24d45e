"""A voter's observers: who of them is linked, what is heeded of what they say, and how much a leader sends them.

An observer receives log and snapshots and counts in nothing: no majority, no round of reads, no check of the quorum,
no position, no refusal of storage. pysyncobj keeps it apart from the voters once it is connected as a read-only node;
what an observer says beyond its two messages is dropped before anything is looked at. It is linked or it is not: a
voter remembers nothing of one whose link broke.

No observer may hurt the voters. What a leader sends to all of them together is bounded by `observers_bytes_per_s_max`,
in equal shares, and nothing but empty heartbeats goes into a link in which much waits already. One that is too slow
falls behind, and says so; it never makes a voter keep more than one frame above the bound for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from raftreg.config import Limits, Timing
from raftreg.engine import now

FROM_OBSERVERS = frozenset({"next_node_idx", "read_index", "digest", "damage"})
"""What a voter heeds of an observer: how far its log is, a question, and what its state looks like."""
_FULL = 1 << 62


@dataclass
class _Observer:
    node: Any
    allowance: float
    counted_at: float


class Observers:
    """The observers that are linked to one voter. `buffered` is what waits in the link to one of them, in bytes.

    `core` is attached right after its construction.
    """

    def __init__(self, limits: Limits, timing: Timing, buffered: Callable[[str], int]) -> None:
        self._limits, self._buffered = limits, buffered
        # What one heartbeat period may carry; a turn that sends more would keep the voters waiting.
        self._burst_bytes = limits.observers_bytes_per_s_max * timing.heartbeat_s
        self._linked: dict[str, _Observer] = {}
        self._paused: list[Any] = []
        self.core: Any = None

    def __contains__(self, name: object) -> bool:
        return name in self._linked

    def __iter__(self) -> Iterator[str]:
        return iter(self._linked)

    def __len__(self) -> int:
        return len(self._linked)

    def add(self, name: str, node: Any) -> Any:
        """Its link is up; returns `node`."""
        self._linked[name] = _Observer(node, self._burst_bytes, now())
        return node

    def remove(self, name: str) -> Any:
        """Its link is down; returns its node."""
        return self._linked.pop(name).node

    def node(self, name: str) -> Any:
        return self._linked[name].node

    # -- what a leader sends --------------------------------------------------------------------------------------

    def waiting(self, name: str) -> int:
        """Bytes that wait in a link, to anyone; more than any limit while an observer has used up its share."""
        if name in self._linked and self._allowance(self._linked[name]) <= 0:
            return _FULL
        return self._buffered(name)

    def _allowance(self, observer: _Observer) -> float:
        at = now()
        share = len(self._linked)
        earned = (at - observer.counted_at) * self._limits.observers_bytes_per_s_max / share
        observer.allowance = min(observer.allowance + earned, self._burst_bytes / share)
        observer.counted_at = at
        return observer.allowance

    def ration(self, name: str, message: dict[str, Any], *, receives_snapshot: bool) -> None:
        """Charge what append_entries carry to an observer's share, and leave out the entries that exceed it.

        The message keeps its place in the log, so it still fits; the rest goes with a later one. Entries beside a
        snapshot would find no place in the observer's log, so none of them goes.
        """
        observer = self._linked[name]
        if "prevLogIdx" not in message:
            observer.allowance -= sum(len(part) for part in message["serialized"][0] if isinstance(part, bytes))
            return
        if receives_snapshot:
            message["entries"] = []
            return
        entries = message["entries"]
        room = self._room(name)
        kept = 0
        while kept < len(entries) and room > 0:
            room -= len(entries[kept][0])
            observer.allowance -= len(entries[kept][0])
            kept += 1
        if kept < len(entries):
            message["entries"] = entries[:kept]
            self.core.set_next_index(observer.node, message["prevLogIdx"] + 1 + kept)
            self._pause(observer.node)

    def _room(self, name: str) -> float:
        """Above 0: entries may go, up to the one that uses it up, so that one of any size gets through."""
        room = self._limits.snapshot_send_buffer_max_bytes - self._buffered(name)
        return min(room, self._allowance(self._linked[name]))

    def _pause(self, node: Any) -> None:
        """pysyncobj would ask again and again for a whole heartbeat period; to it, the observer is away until then."""
        self.core.set_connected(node, False)
        self._paused.append(node)

    def end_tick(self) -> None:
        """pysyncobj's tick is over: those that were paused get the rest with the next heartbeat."""
        paused, self._paused = self._paused, []
        for node in paused:
            if node.id in self._linked:
                self.core.set_connected(node, True)
