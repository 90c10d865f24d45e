"""`raftreg recover`: a new epoch from one survivor or from a backup, after the quorum is lost for good.

The result is a cluster of one voter that holds all of what is left, so it leads alone; others join by
`raftreg peer replace`, as when a single peer grows. The last entry of its log is `begin_epoch`, in a term of its own:
whatever is applied in the new life comes behind it, and what was in the log before it is applied first, once more than
was committed perhaps, but nothing that was acknowledged and is still here is dropped.

Everything is one transaction (survivor) or one rename (backup), then the configuration; running it again completes it.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack

from raftreg import cluster_init, state_machine, store, stored_peer, voter_change
from raftreg.backup_file import Backup, Label, Progress, no_progress
from raftreg.cluster_init import InitError, PlannedPeer
from raftreg.config import PeerConfig
from raftreg.engine import regular_entry
from raftreg.proposer import ENTRY_VERSION
from raftreg.store import Identity, Store
from raftreg.stored_peer import Configured, StoredPeer
from raftreg.voter_change import Origin

_COMMIT_ROWS = 50_000  # a restore is no emergency for memory: pages of so many rows wait for one commit


def begin_epoch_entry(epoch: int, id_floor: int | None, now_us: int) -> bytes:
    """The log entry with which an epoch begins."""
    command: dict[str, Any] = {"op": "begin_epoch", "epoch": epoch}
    if id_floor is not None:
        command["id_floor"] = id_floor
    return regular_entry(msgpack.packb([ENTRY_VERSION, now_us, [command]]))


def refuse_answering(settings: PeerConfig) -> None:
    """Raises InitError while any peer of the configuration answers: then the quorum may not be lost."""
    addresses = dict.fromkeys(voter_change.addresses_of(settings))
    if answering := asyncio.run(cluster_init.answering(addresses)):
        raise InitError(
            f"somebody answers at {', '.join(answering)}. If a majority can still be started, start it: then nothing "
            "is lost. If not, stop that peer; --offline skips this check"
        )


# -- from a survivor ----------------------------------------------------------------------------------------------


def survivor(configured: Configured) -> StoredPeer:
    """What the survivor holds. Raises InitError, StoreError when it can be none."""
    if not configured.has_store:
        raise InitError(f"{configured.settings.data_dir} has no store: it is no survivor. A backup may be left")
    if stored_peer.in_use(configured.settings.data_dir):
        raise InitError(f"{configured.settings.name} is running on {configured.settings.data_dir}; stop it first")
    found = stored_peer.read(configured)
    if found.last[1] == 0:
        raise InitError(f"{configured.settings.data_dir} has never been started: it holds nothing")
    return found


def losses(found: StoredPeer) -> list[str]:
    """What may be missing in a survivor, in sentences. It knows the others only as of its last contact."""
    term, index = found.last
    name = found.identity.peer
    lines = [f"{name} holds the log up to term {term}, index {index}, of that committed for sure: {found.commit_index}"]
    if found.recovering:
        lines.append(f"{name} was recovering: its disk had forgotten entries, and it has not caught up since")
    for other, (known_term, known_index, _) in sorted(found.positions.items()):
        if other == name or other not in found.identity.peers:
            continue
        behind = known_index - index
        lacks = f"{name} lacks at least {behind} entries of it" if behind > 0 else f"{name} has all of that"
        if known_term > found.term:
            lacks = f"{name} has not seen that term: how much it lacks is not known"
        lines.append(f"{other} was last known to hold index {known_index} in term {known_term}: {lacks}")
    lines.append(
        "writes that a majority without it acknowledged since its last contact are lost. Compare all survivors and "
        "take the one with the highest (term, index)"
    )
    return lines


def is_begun(found: StoredPeer) -> bool:
    """Whether a recovery of this survivor was done and not started since: running it again only completes it."""
    alone = (found.identity.peer,)
    if found.identity.epoch == 1 or alone not in (found.identity.peers, found.identity.previous_peers):
        return False
    with stored_peer.opened(found.settings) as reading:
        last = reading.last_log_entry()
    return last is not None and _begins(last[0], found.identity.epoch)


def _begins(entry: bytes, epoch: int) -> bool:
    try:
        _, _, commands = msgpack.unpackb(entry[1:])
        return bool(commands[0]["op"] == "begin_epoch" and commands[0]["epoch"] == epoch)
    except (ValueError, TypeError, LookupError):
        return False


def from_survivor(configured: Configured, *, id_floor: int | None, now_us: int) -> Identity:
    """Make a survivor the only voter of a new epoch, with everything that its log holds."""
    settings = configured.settings
    owner = Store(settings.data_dir, map_size_bytes=settings.limits.map_size_bytes, peer=settings.name)
    try:
        begin_life(owner, owner.identity.epoch + 1, id_floor=id_floor, now_us=now_us)
        identity = owner.identity
        owner.commit()
    finally:
        owner.close()
    return identity


def begin_life(owner: Store, epoch: int, *, id_floor: int | None, now_us: int) -> None:
    """Write into the store of a stopped peer, without commit, that it is the only voter of `epoch`."""
    before = owner.identity
    owner.put_identity(
        replace(
            before,
            epoch=epoch,
            peers=(before.peer,),
            membership_generation=before.membership_generation + 1,
            previous_peers=(),
        )
    )
    last = owner.last_log_entry()
    assert last is not None
    term = max(owner.hard_state()[0], last[2]) + 1
    # As if it had been elected in a term of its own and had written this one entry.
    owner.put_log(last[1] + 1, term, begin_epoch_entry(epoch, id_floor, now_us))
    owner.put_hard_state(term, before.peer)
    owner.put_recovering(False)
    owner.put_positions({})


# -- from a backup ------------------------------------------------------------------------------------------------


def from_backup(
    configured: Configured,
    file: Path,
    *,
    epoch: int | None,
    id_floor: int | None,
    now_us: int,
    progress: Progress = no_progress,
) -> Identity:
    """Make the state of a backup the store of this peer, as the only voter of a new epoch. `progress` is told bytes.

    Raises InitError, BackupError, StoreError: nothing was changed.
    """
    settings = configured.settings
    if configured.has_store:
        raise InitError(f"{settings.data_dir} has a store; a backup has less than that. Move it away if you are sure")
    with Backup(file, progress) as backup:
        begun = new_epoch(backup.label, epoch)
        workshop = settings.data_dir / ".recover"
        shutil.rmtree(workshop, ignore_errors=True)
        try:
            identity = _restored(settings, workshop, backup, begun, id_floor, now_us)
            store.store_path(workshop).rename(store.store_path(settings.data_dir))
            store.sync_directory(settings.data_dir)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
    return identity


def new_epoch(label: Label, wanted: int | None) -> int:
    """The epoch to begin: the next one, or a later one by name. Raises InitError."""
    epoch = wanted if wanted is not None else label.epoch + 1
    if epoch <= label.epoch:
        raise InitError(f"the backup is of epoch {label.epoch}; --epoch must be higher")
    return epoch


def _restored(
    settings: PeerConfig, workshop: Path, backup: Backup, epoch: int, id_floor: int | None, now_us: int
) -> Identity:
    label = backup.label
    store.initialise(
        workshop,
        cluster_id=label.cluster_id,
        peer=settings.name,
        peers=(settings.name,),
        epoch=label.epoch,
        membership_generation=label.generation,
    )
    owner = Store(workshop, map_size_bytes=settings.limits.map_size_bytes)
    try:
        _install(owner, backup)
        begin_life(owner, epoch, id_floor=id_floor, now_us=now_us)
        owner.commit()
        return owner.identity
    finally:
        owner.close()


def _install(owner: Store, backup: Backup) -> None:
    owner.begin_install()
    waiting = 0
    for rows in backup.rows():
        owner.install_rows(rows)
        waiting += len(rows)
        if waiting > _COMMIT_ROWS:
            owner.commit()
            waiting = 0
    applied = state_machine.applied_index(owner.installing_view())
    if applied != backup.last[1]:
        raise InitError(f"the backup's state has applied index {applied}, its log ends at {backup.last[1]}")
    owner.flip_generation()
    for command, index, term in (backup.previous, backup.last, *backup.log()):
        owner.put_log(index, term, command)
    owner.put_commit_index(applied)
    owner.put_hard_state(backup.last[2], None)


# -- both ---------------------------------------------------------------------------------------------------------


def origin_of(identity: Identity) -> Origin:
    """The single voter with which the epoch began, as the set that others join."""
    grown = identity.peers != (identity.peer,)
    generation = identity.membership_generation - (1 if grown else 0)
    return Origin(identity.cluster_id, identity.epoch, generation, (identity.peer,))


def stand_alone(configured: Configured, identity: Identity) -> None:
    """Let the configuration name this peer as the only voter, until others have joined it."""
    settings = configured.settings
    if identity.peers != (identity.peer,):
        return
    raft = settings.raft_peers[settings.name]
    api = settings.api_peers.get(settings.name, settings.api_listen)
    own = PlannedPeer(settings.name, raft, api.split("://")[-1].rstrip("/"))
    voter_change.rewrite(configured, [own])


def set_aside_older(directory: Path, identity: Identity) -> list[str]:
    """Move stores of the life before aside, so that their peers can join the new one; returns what was moved."""
    moved = []
    for one in stored_peer.below(directory):
        data_dir = one.settings.data_dir
        if not one.has_store or one.settings.name == identity.peer or stored_peer.in_use(data_dir):
            continue
        epoch = stored_peer.read(one).identity.epoch
        if epoch < identity.epoch:
            path = store.store_path(data_dir)
            path.rename(path.with_name(f"{path.name}.epoch-{epoch}"))
            store.sync_directory(data_dir)
            moved.append(f"{path} is {path.name}.epoch-{epoch} now")
    return moved
