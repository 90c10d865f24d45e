"""One LMDB environment per peer: identity, hard state, log and the replicated state, in one durable transaction.

A write transaction is always open and every read of the owner process goes through it. `commit()` makes everything
written since the last commit durable (LMDB syncs data pages, then the meta page) and opens the next one.

Named databases: `meta` (fixed keys below), `log` (index -> term + entry), `state@G` (the whole replicated state of
generation G; a table is a key prefix). A snapshot is installed into generation G+1 and becomes visible by one small
change of `meta`; what a generation left behind is deleted in bounded steps.

Rows of `meta` and `log` carry checksums (`raftreg.records`). All of them are verified when a store is opened, and what
they say must fit together: a peer never serves from a disk that contradicts itself.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import lmdb
import msgpack

from raftreg.records import DamagedRecord, LogEntry, log_entry, log_key, log_record, seal, unseal
from raftreg.tables import DamagedHead, RowWatch, UnknownLevel, View, read_head

__all__ = ["Identity", "LogEntry", "StateReader", "Store", "StoreError", "initialise", "store_path"]

FORMAT = 1
_NAMED_DATABASES_MAX = 16
_READERS_MAX = 126

_IDENTITY = b"identity"
_HARD_STATE = b"hard_state"
_COMMIT_INDEX = b"commit_index"
_GENERATION = b"generation"
_GARBAGE = b"garbage"
_RECOVERING = b"recovering"
_RECOVERED = b"recovered"
_POSITIONS = b"positions"
_DAMAGE = b"damage"
_VOTERS_MET = b"voters_met"


class StoreError(Exception):
    """The data directory cannot be used as it is; the message says what to do."""


class NeverStarted(StoreError):
    """The store was initialised, and its peer has not run yet: there is no log and no state."""


def damaged(peer: str | None, path: Path, what: str) -> StoreError:
    """The error for a disk whose content contradicts itself."""
    return StoreError(
        f"the store of peer {peer or 'unknown'} in {path} is damaged: {what}. What is on this disk cannot be trusted: "
        "check the disk, move this directory away and run `raftreg rejoin`."
    )


@dataclass(frozen=True)
class Identity:
    """Who this store belongs to. Written by `initialise`, compared at every start; `raftreg peer replace` and
    `raftreg recover` write another one while the peer is stopped (`previous_peers`: see `raftreg.voter_set`).

    `peers` are the voters; an observer is none of them.
    """

    format: int
    cluster_id: str
    epoch: int
    peer: str
    peers: tuple[str, ...]
    store_id: str
    membership_generation: int = 1
    observer: bool = False
    previous_peers: tuple[str, ...] = ()


def initialise(
    data_dir: Path,
    *,
    cluster_id: str,
    peer: str,
    peers: Iterable[str],
    epoch: int = 1,
    recovering: bool = False,
    membership_generation: int = 1,
    observer: bool = False,
    previous_peers: Iterable[str] = (),
) -> Identity:
    """Create an empty store. With `recovering` the peer neither votes nor stands until it has caught up.

    Raises StoreError when the directory already holds a store.
    """
    path = store_path(data_dir)
    if (path / "data.mdb").exists():
        raise StoreError(
            f"{path} already holds a registry store; a cluster is initialised once. To replace the disk of a peer, "
            "move this directory away and run `raftreg rejoin`."
        )
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    identity = Identity(
        FORMAT,
        cluster_id,
        epoch,
        peer,
        tuple(sorted(peers)),
        secrets.token_hex(8),
        membership_generation,
        observer,
        tuple(sorted(previous_peers)),
    )
    if observer and peer in identity.peers:
        raise StoreError(f"{peer!r} is one of the cluster's voters; an observer needs a name of its own")
    if not observer and peer not in identity.peers:
        raise StoreError(f"peer {peer!r} is not one of the cluster's peers {', '.join(identity.peers)}")
    with lmdb.open(str(path), max_dbs=_NAMED_DATABASES_MAX, map_size=1 << 24) as env:
        meta = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            rows = {_IDENTITY: asdict(identity), **({_RECOVERING: True} if recovering else {})}
            for key, value in rows.items():
                txn.put(key, seal(key, msgpack.packb(value)), db=meta)
    for directory in (path, path.parent, path.parent.parent):
        sync_directory(directory)
    return identity


def store_path(data_dir: Path) -> Path:
    """Where the LMDB environment of a data directory lies."""
    return Path(data_dir) / "store"


def read_identity(data_dir: Path) -> Identity:
    """Whose store this is, also while its process runs. Raises StoreError when there is none."""
    path = store_path(data_dir)
    if not (path / "data.mdb").exists():
        raise StoreError(f"{path} holds no registry store")
    with lmdb.open(str(path), max_dbs=_NAMED_DATABASES_MAX, readonly=True, create=False) as env:
        meta = env.open_db(b"meta", create=False)
        with env.begin() as txn:
            row = txn.get(_IDENTITY, db=meta)
    if row is None:
        raise StoreError(f"{path} is an LMDB environment but not a registry store")
    return _identity_from_row(unseal(_IDENTITY, bytes(row)), path)


def _identity_from_row(row: bytes, path: Path) -> Identity:
    fields = msgpack.unpackb(row)
    if fields["format"] > FORMAT:
        raise StoreError(
            f"{path} was written by a newer release (format {fields['format']}, this release reads up to {FORMAT}); "
            "start that release, or a newer one, on it."
        )
    # A later release may say more in the same format, and this one may be started on its store again.
    known = {field.name: fields[field.name] for field in dataclasses.fields(Identity) if field.name in fields}
    lists = {name: tuple(fields.get(name, ())) for name in ("peers", "previous_peers")}
    return Identity(**{**known, **lists})


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StateReader:
    """Log and state of one committed moment. It pins pages of the file until it is closed."""

    def __init__(self, txn: lmdb.Transaction, log: Any, state: Any, closed: Callable[[], None]) -> None:
        self._txn, self._log, self._state, self._closed = txn, log, state, closed

    def view(self) -> View:
        return View(self._txn, self._state)

    def log_entry(self, index: int) -> LogEntry:
        """Raises StoreError when it is missing, DamagedRecord when it is not what was written."""
        stored = self._txn.get(log_key(index), db=self._log)
        if stored is None:
            raise StoreError(f"log entry {index} is not on disk although the state has applied it")
        return log_entry(log_key(index), stored)

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Every row of the state in key order. LMDB's own iterator: there are millions of rows."""
        return cast("Iterator[tuple[bytes, bytes]]", self._txn.cursor(db=self._state).iternext())

    def close(self) -> None:
        self._txn.abort()
        self._closed()


@contextmanager
def committed_state(data_dir: Path) -> Iterator[StateReader]:
    """What the peer of a data directory has committed last, for another process. It pins pages until the block ends."""
    path = str(store_path(data_dir))
    with lmdb.open(path, readonly=True, create=False, max_dbs=_NAMED_DATABASES_MAX) as env, env.begin() as txn:
        meta, log = (env.open_db(name, txn=txn, create=False) for name in (b"meta", b"log"))
        row = txn.get(_GENERATION, db=meta)
        generation = 1 if row is None else int(msgpack.unpackb(unseal(_GENERATION, bytes(row))))
        state = env.open_db(b"state@%d" % generation, txn=txn, create=False)
        yield StateReader(txn, log, state, lambda: None)


class Store:
    """The open environment of one peer and its one writer. It knows rows, not Raft.

    `sync=False` is for simulations alone: nothing reaches the disk by itself then. With `read_only` it is the store of
    a stopped peer, or at one committed moment that of a running one, whose pages it pins until `close`; one that is
    marked as damaged is opened too, for whoever wants to see why.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        map_size_bytes: int,
        peer: str | None = None,
        peers: Iterable[str] | None = None,
        cluster_id: str | None = None,
        sync: bool = True,
        read_only: bool = False,
    ) -> None:
        self._read_only = read_only
        self.path = store_path(data_dir)
        self.data_dir = Path(data_dir)
        if not (self.path / "data.mdb").exists():
            raise StoreError(
                f"{self.path} holds no registry store. Run `raftreg init` once for a new cluster, "
                "or `raftreg rejoin` on a peer whose disk was replaced."
            )
        self.row_watch: RowWatch | None = None
        self._installing: tuple[int, Any] | None = None
        self._read_generations: list[int] = []
        self.want_commit = False
        try:
            self._open_environment(map_size_bytes, sync)
            try:
                self._open(peer, peers, cluster_id)
            except BaseException:
                self.close()
                raise
        except (DamagedRecord, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError) as error:
            raise damaged(peer, self.path, str(error)) from error

    def _open_environment(self, map_size_bytes: int, sync: bool) -> None:
        self.env = lmdb.open(
            str(self.path),
            map_size=map_size_bytes,
            max_dbs=_NAMED_DATABASES_MAX,
            max_readers=_READERS_MAX,
            readahead=False,
            meminit=False,
            sync=sync,
            readonly=self._read_only,
        )
        self.txn: lmdb.Transaction = self.env.begin(write=not self._read_only)

    def _open(self, peer: str | None, peers: Iterable[str] | None, cluster_id: str | None) -> None:
        self._meta = self._open_db(b"meta")
        self._log = self._open_db(b"log")
        self.identity = self._check_identity(peer, peers, cluster_id)
        self._check_meta()
        self.generation = int(self._get_packed(_GENERATION, 1))
        self._state = self._open_db(b"state@%d" % self.generation)
        self._garbage_generations: list[int] = self._get_packed(_GARBAGE, [])
        self._page_size = int(self.txn.stat(self._meta)["psize"])
        self._check_generation()
        self._check_level()

    def _check_level(self) -> None:
        try:
            read_head(self.view())
        except UnknownLevel as unknown:
            raise StoreError(f"{self.path} is of another release: {unknown}") from None
        except DamagedHead:
            pass  # for `check_log` to say, or whoever reads the state

    def _open_db(self, name: bytes) -> Any:
        # Always with the open transaction: without one, py-lmdb would wait for the writer lock that we hold.
        try:
            return self.env.open_db(name, txn=self.txn, create=not self._read_only)
        except lmdb.NotFoundError:
            raise NeverStarted(f"{self.path} is of a peer that was never started; nothing is in it yet.") from None

    def _check_identity(self, peer: str | None, peers: Iterable[str] | None, cluster_id: str | None) -> Identity:
        row = self.txn.get(_IDENTITY, db=self._meta)
        if row is None:
            raise StoreError(f"{self.path} is an LMDB environment but not a registry store; point data_dir elsewhere.")
        identity = _identity_from_row(unseal(_IDENTITY, bytes(row)), self.path)
        if peer is not None and peer != identity.peer:
            raise StoreError(
                f"{self.path} belongs to peer {identity.peer!r}, but the configuration says {peer!r}; "
                "correct `name` or `data_dir`. Two peers never share or swap a directory."
            )
        if cluster_id is not None and cluster_id != identity.cluster_id:
            raise StoreError(f"{self.path} belongs to cluster {identity.cluster_id}, not to {cluster_id}.")
        if peers is not None and tuple(sorted(peers)) != identity.peers:
            raise StoreError(
                f"{self.path} belongs to a cluster of {', '.join(identity.peers)}, but the configuration lists "
                f"{', '.join(sorted(peers))}; the set of voters changes only by `raftreg peer replace`. If that was "
                "interrupted, run it again with the same peers."
            )
        return identity

    def _check_meta(self) -> None:
        """Every row of `meta`, also those that nobody asks for at start. Raises DamagedRecord, StoreError."""
        for key, value in self.txn.cursor(db=self._meta):
            unseal(bytes(key), bytes(value))
        reason = self.damage()
        if reason is not None and not self._read_only:
            raise damaged(self.identity.peer, self.path, f"this peer stopped for good because {reason}")

    def check_log(self, entries: list[LogEntry], applied: Callable[[View], int]) -> None:
        """What log, hard state, commit index and state say of each other. Raises StoreError when it cannot be.

        An empty log is one that Raft has not started yet.
        """
        try:
            index = applied(self.view())
        except Exception as error:
            raise self.damaged(f"the head of the state cannot be read: {error}") from error
        first, last, last_term = (entries[0][1], entries[-1][1], entries[-1][2]) if entries else (1, 1, 0)
        term, commit = self.hard_state()[0], self.commit_index()
        sentences = (
            (first - 1 <= index <= last, f"the state has applied {index}, but the log holds {first} to {last}"),
            (commit <= last, f"the commit index is {commit}, but the log ends at {last}"),
            (last_term <= term, f"the log ends in term {last_term}, but the latest term known is {term}"),
        )
        for holds, sentence in sentences:
            if not holds:
                raise self.damaged(sentence)

    def damaged(self, what: str) -> StoreError:
        """The error for something on this disk that cannot be what was written."""
        return damaged(self.identity.peer, self.path, what)

    # -- the transaction ------------------------------------------------------------------------------------------

    def view(self) -> View:
        """The current generation as the owner sees it: everything applied, synced or not."""
        return View(self.txn, self._state, self.row_watch)

    def commit(self) -> None:
        """Make everything written so far durable. Any exception means: stop the process, do not go on."""
        self.txn.commit()
        self.txn = self.env.begin(write=True)
        self.want_commit = False

    def close(self) -> None:
        """Drop what is not committed and close the environment."""
        self.txn.abort()
        self.env.close()

    # -- hard state -----------------------------------------------------------------------------------------------

    def _get_packed(self, key: bytes, default: Any) -> Any:
        row = self.txn.get(key, db=self._meta)
        return default if row is None else msgpack.unpackb(unseal(key, bytes(row)))

    def _put_packed(self, key: bytes, value: Any) -> None:
        self.txn.put(key, seal(key, msgpack.packb(value)), db=self._meta)

    def hard_state(self) -> tuple[int, str | None]:
        """(current term, name voted for in it)."""
        term, vote = self._get_packed(_HARD_STATE, (0, None))
        return int(term), cast("str | None", vote)

    def put_hard_state(self, term: int, vote: str | None) -> None:
        self._put_packed(_HARD_STATE, (term, vote))

    def commit_index(self) -> int:
        return int(self._get_packed(_COMMIT_INDEX, 1))

    def put_commit_index(self, index: int) -> None:
        self._put_packed(_COMMIT_INDEX, index)

    def recovering(self) -> bool:
        return self.txn.get(_RECOVERING, db=self._meta) is not None

    def put_recovering(self, recovering: bool) -> None:
        if recovering:
            self._put_packed(_RECOVERING, True)
        else:
            self.txn.delete(_RECOVERING, db=self._meta)
        self.want_commit = True

    def put_identity(self, identity: Identity) -> None:
        """Another voter set or epoch, for a stopped peer; effective with the commit."""
        self._put_packed(_IDENTITY, asdict(identity))
        self.identity = identity

    def voters_met(self) -> tuple[int, int, int] | None:
        """(term, log term, log index) below which this voter elects nobody, once it has met a majority of the voter
        set before; None until then. It is of the present epoch and generation, or none."""
        row = self._get_packed(_VOTERS_MET, None)
        if row is None or tuple(row[0]) != (self.identity.epoch, self.identity.membership_generation):
            return None
        return int(row[1]), int(row[2]), int(row[3])

    def put_voters_met(self, term: int, log_term: int, log_index: int) -> None:
        of = (self.identity.epoch, self.identity.membership_generation)
        self._put_packed(_VOTERS_MET, (of, term, log_term, log_index))
        self.want_commit = True

    def recovered(self) -> tuple[int, int] | None:
        """(term, index) with which this voter last left recovery."""
        row = self._get_packed(_RECOVERED, None)
        return None if row is None else (int(row[0]), int(row[1]))

    def put_recovered(self, term: int, index: int) -> None:
        self._put_packed(_RECOVERED, (term, index))

    def positions(self) -> dict[str, tuple[int, int, str]]:
        """What each other peer is known to hold durably: name -> (term, index, store ID); see `raftreg.positions`."""
        return {name: (term, index, store) for name, (term, index, store) in self._get_packed(_POSITIONS, {}).items()}

    def put_positions(self, positions: dict[str, tuple[int, int, str]]) -> None:
        self._put_packed(_POSITIONS, positions)

    def damage(self) -> str | None:
        """Why this store must never be served again; None while nothing is known to be wrong with it."""
        return cast("str | None", self._get_packed(_DAMAGE, None))

    def put_damage(self, reason: str) -> None:
        """Durable with the next commit: from then on opening this store is refused."""
        self._put_packed(_DAMAGE, reason)
        self.want_commit = True

    # -- log ------------------------------------------------------------------------------------------------------

    def load_log(self) -> list[LogEntry]:
        """All entries in order. Raises StoreError on damage: such a log must never be served."""
        entries: list[LogEntry] = []
        previous, term = -1, 0
        try:
            for key, value in self.txn.cursor(db=self._log):
                entry = log_entry(bytes(key), value)
                if entries and entry[1] != previous + 1:
                    raise self.damaged(f"the log jumps from index {previous} to {entry[1]}")
                if entry[2] < term:
                    raise self.damaged(f"the log goes back from term {term} to {entry[2]} at index {entry[1]}")
                _, previous, term = entry
                entries.append(entry)
        except (DamagedRecord, lmdb.CorruptedError, lmdb.PageNotFoundError) as error:
            raise self.damaged(str(error)) from error
        return entries

    def last_log_entry(self) -> LogEntry | None:
        """The newest entry on disk; None before the first start."""
        with self.txn.cursor(db=self._log) as cursor:
            if not cursor.last():
                return None
            key, value = cursor.item()
            return log_entry(bytes(key), value)

    def log_after(self, index: int) -> Iterator[LogEntry]:
        """The entries behind `index`, in order."""
        with self.txn.cursor(db=self._log) as cursor:
            found = cursor.set_range(log_key(index + 1))
            while found:
                key, value = cursor.item()
                yield log_entry(bytes(key), value)
                found = cursor.next()

    def put_log(self, index: int, term: int, command: bytes) -> None:
        if not self.txn.put(log_key(index), log_record(index, term, command), db=self._log, append=True):
            raise StoreError(f"{self.path}: log entry {index} does not extend the log on disk")

    def delete_log(self, first: int, last: int) -> None:
        """Delete the entries first..last, both included; missing ones are fine."""
        for index in range(first, last + 1):
            self.txn.delete(log_key(index), db=self._log)

    # -- snapshots: generations of the state ----------------------------------------------------------------------

    def begin_install(self) -> None:
        """Open generation G+1 for a snapshot; a half-installed one is emptied first in bounded steps by reclaim."""
        self.abandon_install()
        number = max([self.generation, *self._garbage_generations]) + 1
        # Listed as garbage until the flip: a crash in between leaves nothing that a restart would not collect.
        self._put_garbage([*self._garbage_generations, number])
        self._installing = (number, self._open_db(b"state@%d" % number))

    def install_rows(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Append rows in key order to the generation under installation. The caller decides when to commit them."""
        assert self._installing is not None
        with self.txn.cursor(db=self._installing[1]) as cursor:
            if cursor.putmulti(rows, append=True) != (len(rows), len(rows)):
                raise StoreError("snapshot rows out of order")

    def installing_view(self) -> View:
        assert self._installing is not None
        return View(self.txn, self._installing[1])

    def abandon_install(self) -> None:
        """Forget a half-installed generation; `reclaim` deletes it."""
        self._installing = None

    def flip_generation(self) -> None:
        """Make the installed generation the current one. Durable with the next commit, together with the log base."""
        assert self._installing is not None
        number, database = self._installing
        self._installing = None
        garbage = [g for g in self._garbage_generations if g != number] + [self.generation]
        self._put_garbage(garbage)
        self.generation, self._state = number, database
        self.row_watch = None  # it has watched the rows of the generation before
        self._put_packed(_GENERATION, number)
        self.want_commit = True

    @property
    def abandoned_generations(self) -> int:
        """How many generations wait for their deletion, the one under installation included."""
        return len(self._garbage_generations)

    def _put_garbage(self, generations: list[int]) -> None:
        self._garbage_generations = generations
        self._put_packed(_GARBAGE, generations)

    def _check_generation(self) -> None:
        if self.generation in self._garbage_generations:
            raise StoreError(f"{self.path}: the current generation {self.generation} is marked for deletion")

    def reclaim(self, rows_max: int, whole_rows_max: int = 0) -> int:
        """Delete up to `rows_max` rows of an abandoned generation, or all of it when no more than `whole_rows_max`
        are left; returns how many went. 0 means nothing is left.

        Freeing whole trees takes a hundredth of the time that rows take, but cannot be interrupted.
        """
        if not self._garbage_generations:
            return 0
        # A generation that a snapshot is still being copied from must not lose its handle.
        busy = {*self._read_generations, *([self._installing[0]] if self._installing else [])}
        waiting = [g for g in self._garbage_generations if g not in busy]
        if not waiting:
            return 0
        name = b"state@%d" % waiting[0]
        database = self._open_db(name)
        deleted = left = int(self.txn.stat(database)["entries"])
        if left > whole_rows_max:
            deleted = self._delete_first(database, rows_max)
        if deleted == left:
            self.txn.drop(database, delete=True)
            self._put_garbage([g for g in self._garbage_generations if g != waiting[0]])
        self.want_commit = True
        return max(deleted, 1)

    def _delete_first(self, database: Any, rows_max: int) -> int:
        deleted = 0
        with self.txn.cursor(db=database) as cursor:
            more = cursor.first()
            while more and deleted < rows_max:
                more = cursor.delete()
                deleted += 1
        return deleted

    # -- figures --------------------------------------------------------------------------------------------------

    def used_bytes(self) -> int:
        """Bytes of live pages of log and states, abandoned ones included; counts against `db_soft_limit_bytes`."""
        pages = 0
        leftovers = [self._open_db(b"state@%d" % generation) for generation in self._garbage_generations]
        for database in (self._log, self._state, *leftovers):
            stat = self.txn.stat(database)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return int(pages) * self._page_size

    def state_rows(self) -> int:
        """How many rows the current generation of the state has."""
        return int(self.txn.stat(self._state)["entries"])

    def file_bytes(self) -> int:
        return (self.path / "data.mdb").stat().st_size

    def free_disk_bytes(self) -> int:
        return shutil.disk_usage(self.path).free

    def check_readers(self) -> int:
        """Free the slots of dead readers; returns how many."""
        return int(self.env.reader_check())

    def begin_read(self) -> StateReader:
        """A read transaction of the last commit, usable in any thread; call right after `commit`, close it soon."""
        if self._read_only:
            return StateReader(self.txn, self._log, self._state, lambda: None)
        generation = self.generation
        self._read_generations.append(generation)
        return StateReader(self.env.begin(), self._log, self._state, lambda: self._read_generations.remove(generation))
