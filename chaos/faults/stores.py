"""Stores of peers that are gone, old or damaged; the peer comes back by what an operator would do."""

from __future__ import annotations

import random
import shutil

import lmdb

from chaos import config
from chaos.cluster import ClusterUnderTest
from chaos.faults.fault import Aim, Fault
from ops.dev.cluster import Cluster
from ops.dev.processes import ProcessError
from raftreg.store import store_path
from raftreg.tables import CHANGES

_STATE = b"state@"


class StoreFault(Fault):
    """Something about the store of one voter, half of the time the leader's. At most one voter may be without data."""

    alone = True
    _victim = ""

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        other = chance.choice(cluster.peers)
        self._victim = cluster.wait_leader() if chance.random() < 0.5 else other
        return Aim(self._victim, down=(self._victim,))


class WipedDisk(StoreFault):
    """The store is gone while the peer is down; `raftreg rejoin`, and it catches up."""

    name = "wiped-disk"

    def inject(self, cluster: ClusterUnderTest) -> None:
        cluster.kill(self._victim)
        cluster.wipe(self._victim)

    def heal(self, cluster: ClusterUnderTest) -> None:
        cluster.rejoin(self._victim)
        cluster.restart(self._victim)


class RolledBackDisk(StoreFault):
    """The peer runs on; then its disk is that of the beginning of the fault. The others remember, and it catches up."""

    name = "rolled-back-disk"

    def inject(self, cluster: ClusterUnderTest) -> None:
        store = cluster.store_of(self._victim)
        cluster.kill(self._victim)
        shutil.copytree(store, store.with_name("store of before"))
        cluster.restart(self._victim)

    def heal(self, cluster: ClusterUnderTest) -> None:
        store = cluster.store_of(self._victim)
        cluster.kill(self._victim)
        cluster.wipe(self._victim)
        store.with_name("store of before").rename(store)
        cluster.restart(self._victim)


class CorruptedFile(StoreFault):
    """A bit flips in a row that nothing reads. A scrub finds it, the peer stops for good and rejoins."""

    name = "corrupted-file"

    def inject(self, cluster: ClusterUnderTest) -> None:
        cluster.kill(self._victim)
        rot(cluster, self._victim)
        cluster.restart(self._victim)

    def heal(self, cluster: ClusterUnderTest) -> None:
        process = cluster.processes[self._victim]
        cluster.wait_ready([self._victim])
        cluster.scrub()
        if not cluster.wait(lambda: not process.running, config.RECOVERY_MAX_S):
            raise ProcessError(f"{self._victim} goes on with a damaged row, which a scrub should have found")
        cluster.rejoin(self._victim, "--replace")
        cluster.restart(self._victim)


def rot(cluster: Cluster, peer: str) -> None:
    """Flip a bit in the store of a stopped peer, in the middle of the oldest change, which nobody reads any more."""
    store = store_path(cluster.wiring.peer_dir(peer))
    with lmdb.open(str(store), max_dbs=32, map_size=1 << 36) as environment:
        with environment.begin() as txn:
            newest = max(bytes(name) for name, _ in txn.cursor() if bytes(name).startswith(_STATE))
        state = environment.open_db(newest, create=False)
        with environment.begin(write=True, db=state) as txn, txn.cursor() as cursor:
            cursor.set_range(CHANGES)
            key, value = bytes(cursor.key()), bytearray(cursor.value())
            value[len(value) // 2] ^= 1
            txn.put(key, bytes(value))
