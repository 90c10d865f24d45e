"""The Raft log as pysyncobj sees it, kept in the peer's LMDB environment; truncation is tentative.

pysyncobj deletes the tail of the log whenever an `append_entries` overlaps it, also when the overlapping entries are
the ones it already has, and deletes the whole log when it installs a snapshot. Both would forget entries that this
peer has acknowledged. So `deleteEntriesFrom` and `clear` only move the tail out of sight while the message handler
runs: an entry that is added again with the same index and term comes back, one with another term is a real conflict
and drops the rest, and `end_message` restores what nobody contradicted. While the handler runs, `journal[-1]` is
therefore exactly the end of what that message has verified, which is what its acknowledgement may claim.

Nothing may be committed to disk or sent between a truncation and `end_message`.
"""

from __future__ import annotations

from raftreg.store import LogEntry, Store


class Journal:
    """List-like log (`[-1]`, `[i]`, `[a:b]`) of (command bytes, index, term), plus term, vote and commit index.

    `dirty` is true when something was changed that must be durable before any message of this turn may leave.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._log: list[LogEntry] = store.load_log()
        self._stash: list[LogEntry] = []
        self._term, self._vote = store.hard_state()
        self._commit_index = self._commit_index_written = store.commit_index()
        self.bytes = sum(len(entry[0]) for entry in self._log)
        self.dirty = False

    # -- entries --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._log)

    def __getitem__(self, item):  # type: ignore[no-untyped-def]
        return self._log[item]

    @property
    def first_index(self) -> int:
        return self._log[0][1]

    @property
    def last_index(self) -> int:
        return self._log[-1][1]

    @property
    def last_term(self) -> int:
        return self._log[-1][2]

    def entry(self, index: int) -> LogEntry | None:
        """The entry at a log index, or None when the log does not hold it."""
        offset = index - self._log[0][1]
        return self._log[offset] if 0 <= offset < len(self._log) else None

    def add(self, command: bytes, idx: int, term: int) -> None:
        if self._stash and self._take_back(idx, term):
            return
        if self._log and idx != self._log[-1][1] + 1:
            raise RuntimeError(f"log index {idx} does not follow {self._log[-1][1]}")
        command = bytes(command)
        self._log.append((command, idx, term))
        self.bytes += len(command)
        self._store.put_log(idx, term, command)
        self.dirty = True

    def _take_back(self, idx: int, term: int) -> bool:
        """Bring a hidden entry back if it is the one added; otherwise the hidden tail is contradicted and deleted."""
        offset = idx - self._stash[0][1]
        if offset < 0:
            raise RuntimeError(f"log index {idx} lies before the hidden tail at {self._stash[0][1]}")
        if offset < len(self._stash) and self._stash[offset][2] == term:
            entry = self._stash[offset]
            self._forget(self._stash[:offset])
            self._stash = self._stash[offset + 1 :]
            self._log.append(entry)
            self.bytes += len(entry[0])
            return True
        self._forget(self._stash)
        self._stash = []
        return False

    def _forget(self, entries: list[LogEntry]) -> None:
        if entries:
            self._store.delete_log(entries[0][1], entries[-1][1])
            self.dirty = True

    def _hide(self, position: int) -> None:
        if self._stash:
            raise RuntimeError("a second truncation within one message")
        hidden = self._log[position:]
        self.bytes -= sum(len(entry[0]) for entry in hidden)
        self._stash = hidden
        del self._log[position:]

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        """Hide the entries from list position `entryFrom` on until `end_message`."""
        self._hide(entryFrom)

    def clear(self) -> None:
        """Hide all entries until `end_message` (a snapshot is being installed)."""
        self._hide(0)

    def end_message(self) -> None:
        """The handler has returned: what no entry of the message contradicted is part of the log again."""
        if not self._stash:
            return
        if self._log and self._stash[0][1] != self._log[-1][1] + 1:
            raise RuntimeError(f"hidden tail at {self._stash[0][1]} does not follow {self._log[-1][1]}")
        self._log.extend(self._stash)
        self.bytes += sum(len(entry[0]) for entry in self._stash)
        self._stash = []

    def deleteEntriesTo(self, entryTo: int) -> None:
        """Trim the `entryTo` oldest entries; durable together with the applied state that covers them."""
        trimmed = self._log[:entryTo]
        self.bytes -= sum(len(entry[0]) for entry in trimmed)
        self._forget(trimmed)
        del self._log[:entryTo]

    # -- hard state -----------------------------------------------------------------------------------------------

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:
        return self._commit_index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        if (term, votedForNodeId) != (self._term, self._vote):
            self._term, self._vote = term, votedForNodeId
            self._store.put_hard_state(term, votedForNodeId)
            self.dirty = True

    def getCurrentTerm(self) -> int:
        return self._term

    def getVotedForNodeId(self) -> str | None:
        return self._vote

    def flush(self) -> None:
        """Write what may lag (the commit index); call right before the store commits, which clears `dirty`."""
        if self._commit_index != self._commit_index_written:
            self._store.put_commit_index(self._commit_index)
            self._commit_index_written = self._commit_index
        self.dirty = False

    def onOneSecondTimer(self) -> None:
        """Part of pysyncobj's journal interface; nothing to do here."""

    def _destroy(self) -> None:
        """Part of pysyncobj's journal interface; the store is closed by its owner."""
