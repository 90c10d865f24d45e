"""The registry stopped and begun anew: from a backup, or with another set of voters. Zones go on meanwhile."""

from __future__ import annotations

import random

from chaos import config
from chaos.cluster import ClusterUnderTest
from chaos.faults.fault import Aim, Fault
from ops.dev.processes import ProcessError

FEWER, MORE = "abc", "abcde"


class Restore(Fault):
    """All peers lose their disks and are restored from the backup of the beginning: a new epoch, in which the zones
    offer again what it lacks. What clients wrote to the registry itself since then is lost, as promised.
    """

    name = "restore"
    alone = True
    spoils = ("register", "images", "ids", "feed", "conflict")
    _peer = ""

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        self._peer = chance.choice(cluster.peers)
        return Aim(f"backup of {self._peer}, then the loss of all peers")

    def inject(self, cluster: ClusterUnderTest) -> None:
        cluster.back_up(self._peer)

    def heal(self, cluster: ClusterUnderTest) -> None:
        file = cluster.backup_file(self._peer)
        cluster.kill(*cluster.voters_and_observers)
        if not file.exists():
            cluster.restart(*cluster.voters_and_observers)
            return
        for peer in cluster.peers:
            cluster.wipe(peer)
        directories = [str(cluster.wiring.peer_dir(peer)) for peer in cluster.peers]
        # Links answer in the name of peers that are down: hence --offline.
        cluster.raftreg("restore", str(file), *directories, "--yes", "--offline")
        file.unlink()
        cluster.begin_anew()


class VoterChange(Fault):
    """Three voters become five, and three again: all peers are stopped, `raftreg peer replace`, and started."""

    name = "voter-change"
    alone = True

    def available(self, cluster: ClusterUnderTest) -> str | None:
        return None if "".join(cluster.peers) == FEWER else "it begins with three voters"

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        return Aim(f"{FEWER} to {MORE} and back")

    def inject(self, cluster: ClusterUnderTest) -> None:
        cluster.replace_voters(MORE)
        if not cluster.wait(lambda: not any(map(cluster.is_recovering, MORE)), config.RECOVERY_MAX_S):
            raise ProcessError(f"new voters have not caught up {config.RECOVERY_MAX_S:.0f} s after they were added")

    def heal(self, cluster: ClusterUnderTest) -> None:
        cluster.replace_voters(FEWER)
