"""A gateway whose store is an old one again: a copy that somebody put back, or a machine that went back to a snapshot.

What it had acknowledged since then it has told the registry; but it does not know any more which image numbers it gave.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from chaos import config
from chaos.cluster import ClusterUnderTest
from chaos.faults.fault import Aim, Fault
from chaos.ports import Reservation
from ops.dev.processes import ProcessError


class RolledBackZone(Fault):
    """The store is copied; later, when all that the gateway took since has drained, the copy takes its place.

    Clients are kept away while it drains, and after that until it has caught up: a zone can't know what nobody but its
    lost disk knew.
    """

    name = "rolled-back-zone"
    alone = True
    _victim = ""

    def aim(self, cluster: ClusterUnderTest, chance: random.Random) -> Aim:
        self._victim = chance.choice(cluster.gateways)
        return Aim(self._victim, down=(self._victim,))

    def inject(self, cluster: ClusterUnderTest) -> None:
        store = cluster.store_of(self._victim)
        cluster.kill(self._victim)
        shutil.copytree(store, _copy_of(store))
        cluster.restart(self._victim)

    def heal(self, cluster: ClusterUnderTest) -> None:
        store = cluster.store_of(self._victim)
        cluster.kill(self._victim)
        if _copy_of(store).exists():
            with _kept_from_clients(cluster, self._victim) as address:
                _catch_up(cluster, self._victim, address)
                shutil.rmtree(store)
                _copy_of(store).rename(store)
                _catch_up(cluster, self._victim, address)
        cluster.restart(self._victim)


def _copy_of(store: Path) -> Path:
    return store.with_name("store of before")


@contextlib.contextmanager
def _kept_from_clients(cluster: ClusterUnderTest, gateway: str) -> Iterator[str]:
    """A gateway that is started within listens here, where no client looks."""
    path, elsewhere = cluster.wiring.gateway_dir(gateway) / "zonegw.toml", Reservation()
    known = path.read_text(encoding="utf-8")
    path.write_text(known.replace(cluster.wiring.listen(f"images-{gateway}"), elsewhere.address), encoding="utf-8")
    try:
        yield elsewhere.address
    finally:
        path.write_text(known, encoding="utf-8")
        elsewhere.release()


def _catch_up(cluster: ClusterUnderTest, gateway: str, address: str) -> None:
    """Run it until the registry has all that it holds, and it all that the registry held when it started."""
    head = cluster.head()
    cluster.restart(gateway)

    def has_caught_up() -> bool:
        status = cluster.gateway_status(gateway, address)
        return (
            status is not None
            and (status["state"], status["queue_depth"]) == ("online", 0)
            and tuple(map(int, status["feed_position"].split("."))) >= head
        )

    try:
        if not cluster.wait(has_caught_up, config.RECOVERY_MAX_S):
            raise ProcessError(f"{gateway} has not caught up {config.RECOVERY_MAX_S:.0f} s after its start")
    finally:
        cluster.kill(gateway)
