"""What operators do while the cluster is in use; no fault, but nothing may break by it."""

from __future__ import annotations

import contextlib
import random

from chaos.cluster import ClusterUnderTest
from chaos.faults.fault import Aim, Fault
from ops.dev.processes import ProcessError


class Transfer(Fault):
    """`raftreg leader transfer`, to whom the leader chooses."""

    name = "transfer"

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        return Aim(f"the lead of {cluster.wait_leader()}")

    def inject(self, cluster: ClusterUnderTest) -> None:
        # Beside another fault there may be nobody to take over, which is refused.
        with contextlib.suppress(ProcessError):
            cluster.raftreg("leader", "transfer", "--config", str(cluster.wiring.registry))

    def heal(self, cluster: ClusterUnderTest) -> None:
        return


class Stop(Fault):
    """SIGTERM to any process: it hands over, drains and ends, and is started again."""

    name = "stop"
    _victim = ""

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        self._victim = chance.choice([*cluster.peers, *cluster.observers, *cluster.gateways])
        return Aim(self._victim, down=(self._victim,))

    def inject(self, cluster: ClusterUnderTest) -> None:
        cluster.stop_process(self._victim)

    def heal(self, cluster: ClusterUnderTest) -> None:
        cluster.restart(self._victim)


class BackupUnderLoad(Fault):
    """`raftreg backup create` beside a running peer, verified in the end."""

    name = "backup"
    _peer = ""

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        self._peer = chance.choice(cluster.peers)
        return Aim(f"of {self._peer}")

    def inject(self, cluster: ClusterUnderTest) -> None:
        cluster.back_up(self._peer)

    def heal(self, cluster: ClusterUnderTest) -> None:
        file = cluster.backup_file(self._peer)
        if file.exists():
            cluster.raftreg("backup", "verify", str(file))
            file.unlink()
