"""A peer's directory as tools see it: its configuration, its store, and whether a process has it open right now."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lmdb

from raftreg import config
from raftreg.config import PeerConfig
from raftreg.store import Identity, NeverStarted, Store, StoreError, store_path


@dataclass(frozen=True)
class Configured:
    """A peer's configuration and the file that it was read from."""

    file: Path
    settings: PeerConfig

    @property
    def has_store(self) -> bool:
        return (store_path(self.settings.data_dir) / "data.mdb").exists()


@dataclass(frozen=True)
class StoredPeer:
    """What the store of one peer says. `settled`: see `raftreg.voter_set`; `last` is (term, index) of its log's end."""

    configured: Configured
    identity: Identity
    term: int
    last: tuple[int, int]
    commit_index: int
    recovering: bool
    settled: bool
    positions: dict[str, tuple[int, int, str]]

    @property
    def settings(self) -> PeerConfig:
        return self.configured.settings


def in_use(data_dir: Path) -> bool:
    """Whether another process has the store open, by the lock that LMDB holds as long.

    Not for a process that has itself opened that store: it would lose its own lock.
    """
    lock = store_path(data_dir) / "lock.mdb"
    if not lock.exists():
        return False
    with lock.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0, os.SEEK_SET)
        except OSError:
            return True
    return False


@contextlib.contextmanager
def opened(settings: PeerConfig) -> Iterator[Store]:
    """The store of a peer for reading, beside the process that serves it if there is one.

    Raises StoreError, also when it belongs to another peer than the configuration says.
    """
    with opened_at(settings.data_dir, settings.name, settings.limits.map_size_bytes) as store:
        yield store


@contextlib.contextmanager
def opened_at(data_dir: Path, name: str, map_size_bytes: int) -> Iterator[Store]:
    """The same for whoever has no configuration at hand."""
    try:
        store = Store(data_dir, map_size_bytes=map_size_bytes, peer=name, read_only=True)
    except NeverStarted:
        # Never started: log and state are not even made. Nothing of what the owner makes now is committed.
        store = Store(data_dir, map_size_bytes=map_size_bytes, peer=name)
    try:
        yield store
    finally:
        store.close()


def read(configured: Configured) -> StoredPeer:
    """What the store of a peer says, whether it runs or not. Raises StoreError."""
    with opened(configured.settings) as store:
        return facts(configured, store)


def identity_of(settings: PeerConfig) -> Identity | None:
    """Whom the store belongs to; None when it is too damaged to say."""
    try:
        with opened(settings) as store:
            return store.identity
    except (StoreError, lmdb.Error):
        return None


def facts(configured: Configured, store: Store) -> StoredPeer:
    """The same of a store that is open."""
    last = store.last_log_entry()
    return StoredPeer(
        configured=configured,
        identity=store.identity,
        term=store.hard_state()[0],
        last=(last[2], last[1]) if last is not None else (0, 0),
        commit_index=store.commit_index(),
        recovering=store.recovering(),
        settled=not store.identity.previous_peers or store.voters_met() is not None,
        positions=store.positions(),
    )


def below(directory: Path) -> list[Configured]:
    """The peers of a cluster's directory, or the one peer whose directory (or file) this is. Raises ConfigError."""
    if directory.is_file() or (directory / config.FILE_NAME).is_file():
        files = [config.find(directory)]
    else:
        files = sorted(directory.glob(f"*/{config.FILE_NAME}"))
    return [Configured(file, config.load(file)) for file in files]
