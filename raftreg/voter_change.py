"""`raftreg peer replace`: another set of voters, or other addresses, while all peers are stopped.

It runs once for every directory, on whichever machine that lies, with the same full list. Identity (peers, generation,
the set before) changes in one transaction of the store, then the configuration by a rename; running it again finishes
what was interrupted, and `raftreg.voter_set` has the rule that makes every half-way state safe.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raftreg import certificates, cluster_init, config, store, stored_peer
from raftreg.cluster_init import InitError, Plan, PlannedPeer
from raftreg.config import PeerConfig
from raftreg.store import Identity, Store
from raftreg.stored_peer import Configured, StoredPeer


@dataclass(frozen=True)
class Origin:
    """The voter set that a change starts from; as text, it goes with the command to the other machines."""

    cluster_id: str
    epoch: int
    generation: int
    peers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.cluster_id}/{self.epoch}/{self.generation}/{','.join(self.peers)}"

    @classmethod
    def parse(cls, text: str) -> Origin:
        """What `str` gave. Raises InitError."""
        parts = text.split("/")
        if len(parts) == 4 and all(part.isascii() and part.isdecimal() for part in parts[1:3]) and parts[3]:
            return cls(parts[0], int(parts[1]), int(parts[2]), tuple(sorted(parts[3].split(","))))
        raise InitError(f"--after {text!r}: write it as the first `raftreg peer replace` printed it")


@dataclass(frozen=True)
class Change:
    """From `origin` (None: the set stays, only addresses change) to `peers`, as far as `directory` is concerned."""

    directory: Path
    origin: Origin | None
    peers: Sequence[PlannedPeer]
    stored: Sequence[StoredPeer]
    empty: Sequence[Configured]
    told: bool

    @property
    def local(self) -> list[PeerConfig]:
        """Configurations of the peers whose directories are here."""
        return [*(peer.settings for peer in self.stored), *(one.settings for one in self.empty)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(peer.name for peer in self.peers))

    @property
    def before(self) -> tuple[str, ...]:
        return self.names if self.origin is None else self.origin.peers

    @property
    def added(self) -> list[PlannedPeer]:
        return [peer for peer in self.peers if peer.name not in self.before]

    @property
    def removed(self) -> list[str]:
        return [name for name in self.before if name not in self.names]

    @property
    def kept(self) -> list[str]:
        return [name for name in self.before if name in self.names]

    @property
    def added_recover(self) -> bool:
        """Whether the new ones count for nothing until they have caught up. Where the others are no majority of the new
        set, nobody could be elected so; then they vote at once, under the rule of `raftreg.voter_set`."""
        return 2 * len(self.kept) > len(self.names)

    def is_due(self, peer: StoredPeer) -> bool:
        """Whether this store is still of the set before."""
        return self.origin is not None and _origin_of(peer.identity) == self.origin and peer.identity.peer in self.names


def plan(directory: Path, peers: Sequence[PlannedPeer], origin: Origin | None) -> Change:
    """Read what is in `directory` and compare it with the wanted set. Raises InitError, StoreError, ConfigError."""
    cluster_init.check_plan(Plan(peers))
    found = stored_peer.below(directory)
    for one in found:
        if stored_peer.in_use(one.settings.data_dir):
            raise InitError(f"{one.settings.name} is running on {one.settings.data_dir}; stop all peers first")
    names = tuple(sorted(peer.name for peer in peers))
    stored = _present([stored_peer.read(one) for one in found if one.has_store], names)
    empty = [one for one in found if not one.has_store and one.settings.name in names]
    start = origin or _common_origin(stored, names)
    change = Change(directory, start, peers, stored, empty, told=origin is not None)
    _check(change)
    return change


def _origin_of(identity: Identity) -> Origin:
    return Origin(identity.cluster_id, identity.epoch, identity.membership_generation, identity.peers)


def _origin_before(identity: Identity) -> Origin:
    """What a changed store has been changed from."""
    generation = identity.membership_generation - 1
    return Origin(identity.cluster_id, identity.epoch, generation, identity.previous_peers)


def _present(stored: list[StoredPeer], names: tuple[str, ...]) -> list[StoredPeer]:
    """Without the directories that earlier changes left behind."""
    if not stored:
        return []
    newest = max((peer.identity for peer in stored), key=lambda one: (one.epoch, one.membership_generation))
    return [peer for peer in stored if peer.identity.peer in (*newest.peers, *names)]


def _common_origin(stored: Sequence[StoredPeer], names: tuple[str, ...]) -> Origin | None:
    """What all stores of the directory come from. Raises InitError when they disagree."""
    origins: dict[Origin | None, str] = {}
    for peer in stored:
        identity = peer.identity
        if identity.peers != names:
            origins[_origin_of(identity)] = identity.peer
        else:
            origins[_origin_before(identity) if identity.previous_peers else None] = identity.peer
    if len(origins) > 1:
        said = "; ".join(f"{name}: {origin or 'this set, from the start'}" for origin, name in origins.items())
        raise InitError(
            f"these directories are not of one voter set ({said}). Move away those that are no peer's present "
            "directory, or name the set to start from with --after"
        )
    return next(iter(origins), None)


def _check(change: Change) -> None:
    """Raises InitError for a change that would not be safe, or could not be finished."""
    if not change.told and not change.stored:
        raise InitError(
            f"{change.directory} has no peer with a store; run the command on a machine with one first, it prints "
            "what to run here"
        )
    if 2 * len(change.kept) <= len(change.before):
        raise InitError(
            f"of the present voters {', '.join(change.before)} only {', '.join(change.kept) or 'none'} would stay, no "
            "majority: what is committed could be lost. Change in several steps, or, if the others are lost for good, "
            "use `raftreg recover`"
        )
    for peer in change.stored:
        _check_stored(change, peer)
    for one in change.empty:
        if one.settings.name in change.kept:
            raise InitError(
                f"{one.settings.data_dir} has lost its store: finish the change without it, then `raftreg rejoin` it"
            )


def _check_stored(change: Change, peer: StoredPeer) -> None:
    identity, origin = peer.identity, change.origin
    if origin is None:
        return
    if _origin_of(identity) == origin:
        if peer.recovering and identity.peer in change.kept:
            raise InitError(
                f"{identity.peer} is recovering and counts for nothing yet: start the present voters and let it catch "
                "up first, or leave it out"
            )
        if not peer.settled:
            raise InitError(
                f"{identity.peer} has not finished the change to generation {identity.membership_generation}: finish "
                f"it on a majority of {', '.join(identity.previous_peers)} and start them, then change again"
            )
    elif identity.peers != change.names or _origin_before(identity) != origin:
        raise InitError(
            f"{peer.settings.data_dir} is of {_origin_of(identity)}, the change starts from {origin}: it is no peer's "
            "present directory, or missed a change. Move its `store` away; while the others run, `raftreg rejoin` "
            "makes a new one"
        )


def refuse_answering(change: Change) -> None:
    """Raises InitError when somebody answers at an old or new address: all peers must be stopped."""
    addresses = [address for peer in change.peers for address in (peer.raft, peer.api)]
    for settings in change.local:
        addresses += addresses_of(settings)
    answering = asyncio.run(cluster_init.answering(dict.fromkeys(addresses)))
    if answering:
        raise InitError(
            f"somebody answers at {', '.join(answering)}: stop all peers first, old and new ones. If that is no peer "
            "of this cluster, --offline skips this check"
        )


def addresses_of(settings: PeerConfig) -> list[str]:
    """Where the peers of a configuration answer."""
    return [*settings.raft_peers.values(), *(url.split("://")[-1].rstrip("/") for url in settings.api_peers.values())]


def carry_out(change: Change) -> list[str]:
    """Do what is not done yet in this directory; returns the names of the peers whose directories were made.

    New directories come first: while an old store is still unchanged, running it again finds what is missing.
    """
    made = _make_added(change)
    for peer in change.stored:
        if change.is_due(peer):
            _change_identity(change, peer.settings)
        if peer.identity.peer in change.names:
            rewrite(peer.configured, change.peers)
    for one in change.empty:
        if one.settings.name in change.names:
            _make_store(change, one.settings)
            rewrite(one, change.peers)
    return made


def _make_added(change: Change) -> list[str]:
    due = change.told or any(change.is_due(peer) for peer in change.stored)
    missing = [peer for peer in change.added if not (change.directory / peer.name).exists()]
    if not due or not missing or not has_authority(change.directory):
        return []
    authority = certificates.load_authority(change.directory)
    for peer in missing:
        workshop = change.directory / f".{peer.name}.new"
        shutil.rmtree(workshop, ignore_errors=True)
        settings = cluster_init.make_directory(workshop, peer, change.peers, authority)
        _make_store(change, settings)
        workshop.rename(change.directory / peer.name)
    store.sync_directory(change.directory)
    return [peer.name for peer in missing]


def has_authority(directory: Path) -> bool:
    """Whether certificates can be made here."""
    return (directory / "ca.key").is_file()


def _make_store(change: Change, settings: PeerConfig) -> None:
    origin = change.origin
    assert origin is not None
    store.initialise(
        settings.data_dir,
        cluster_id=origin.cluster_id,
        peer=settings.name,
        peers=change.names,
        epoch=origin.epoch,
        recovering=change.added_recover,
        membership_generation=origin.generation + 1,
        previous_peers=origin.peers,
    )


def _change_identity(change: Change, settings: PeerConfig) -> None:
    owner = Store(settings.data_dir, map_size_bytes=settings.limits.map_size_bytes, peer=settings.name)
    try:
        change_store(owner, change.names)
    finally:
        owner.close()


def change_store(owner: Store, names: Iterable[str]) -> None:
    """Bring the store of a stopped peer to the next generation, all at once."""
    identity, names = owner.identity, tuple(sorted(names))
    positions = {name: position for name, position in owner.positions().items() if name in names}
    owner.put_identity(
        replace(
            identity,
            peers=names,
            membership_generation=identity.membership_generation + 1,
            previous_peers=identity.peers,
        )
    )
    owner.put_positions(positions)
    owner.commit()


def rewrite(configured: Configured, peers: Sequence[PlannedPeer]) -> None:
    """Put the new addresses into a peer's configuration, atomically; its other settings are kept."""
    file, settings = configured.file, configured.settings
    own = next(peer for peer in peers if peer.name == settings.name)
    scheme = "https" if settings.api_tls else "http"
    raft_before = settings.raft_peers.get(own.name)
    api_before = settings.api_peers.get(own.name, "").split("://")[-1].rstrip("/")
    changed = replace(
        settings,
        # A listener that is not the address which others dial (0.0.0.0, or behind a proxy) is the operator's affair.
        raft_listen=own.raft if settings.raft_listen == raft_before else settings.raft_listen,
        api_listen=own.api if settings.api_listen == api_before else settings.api_listen,
        raft_peers={peer.name: peer.raft for peer in peers},
        api_peers={peer.name: f"{scheme}://{peer.api}" for peer in peers},
    )
    config.validate(changed)
    replace_file(file, config.render(changed, file.parent.resolve()))


def replace_file(file: Path, text: str) -> None:
    """The new content or the old one, whenever the power fails."""
    fresh = file.with_name(f".{file.name}.new")
    with fresh.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)
    store.sync_directory(file.parent)
