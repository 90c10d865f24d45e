"""The cluster under test: the development cluster's real processes, every link between them through a proxy."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos import config
from chaos.disturbances import Disturbances
from chaos.links import Links
from chaos.small_disks import SmallDisks
from ops.dev import processes
from ops.dev.cluster import Cluster
from ops.dev.wiring import ROOT
from raftreg.store import store_path
from zonegw import auth

# A second tenant in every zone, with whom the first one shares.
GUEST_USER, GUEST_PROJECT = "guest", "guest"


@dataclass(frozen=True)
class Shape:
    """How many voters (3 or 5) and observers, and the zones with a gateway each."""

    peers: int = 3
    observers: int = 1
    zones: tuple[str, ...] = ("ams", "fra")


class ClusterUnderTest(Cluster):
    """A proxied cluster in `base` that faults may break; `mend` undoes whatever they did. Methods block."""

    def __init__(self, base: Path, shape: Shape = Shape(), **options: Any) -> None:
        super().__init__(
            base,
            proxied=True,
            peers=tuple("abcde"[: shape.peers]),
            observers=tuple(f"o{number}" for number in range(1, shape.observers + 1)),
            gateways={f"{zone}-1": zone for zone in shape.zones},
            **options,
        )
        self.guest_tokens: dict[str, str] = {}
        self.disturbances = Disturbances(base / "disturbances")
        self.small_disks = SmallDisks(base / "disks")

    @property
    def proxy(self) -> str:
        """Which proxy the links go through, for the report."""
        said = str(json.loads(self.through.version())["version"])
        return "our own proxy (chaos.tcp_proxy)" if said.startswith("raftreg") else f"Toxiproxy {said}"

    @property
    def through(self) -> Links:
        """The links; a cluster under test has them from its start on."""
        return self._proxied_links()

    @property
    def voters_and_observers(self) -> list[str]:
        return [*self.peers, *self.observers]

    def zone_of(self, gateway: str) -> str:
        return self.wiring.gateways[gateway]

    def prepare(self) -> None:
        """As ever, with the second tenant's tokens."""
        super().prepare()
        for gateway in self.gateways:
            tokens = self.wiring.gateway_dir(gateway) / "tokens.json"
            self.guest_tokens[gateway] = auth.create_token(
                tokens, user=GUEST_USER, project=GUEST_PROJECT, roles=["member"]
            )

    def start_process(self, name: str, extra_env: Mapping[str, str] | None = None) -> None:
        """As ever, so that disk and clock of the process can be disturbed."""
        super().start_process(name, {**self.disturbances.environment(name), **(extra_env or {})})

    def stop(self) -> None:
        """As ever; what is on small disks is gone with them."""
        super().stop()
        self.small_disks.remove_all()

    def store_of(self, name: str) -> Path:
        """The directory with the database of a peer, observer or gateway."""
        if name in self.gateways:
            return self.wiring.gateway_dir(name) / "data" / "store"
        return store_path(self.wiring.peer_dir(name))

    def answers(self, name: str) -> bool:
        """Whether it tells its status, however little else it does."""
        if name in self.gateways:
            return self.gateway_status(name) is not None
        return self.ask_peer(name, "/registry/v1/status") is not None

    def head(self) -> tuple[int, int]:
        """Epoch and newest revision, by the leader's word. Raises ClusterError."""
        while (status := self.ask_peer(self.wait_leader(), "/registry/v1/status")) is None:
            pass
        return status["epoch"], status["revision"]

    def pause(self, name: str) -> None:
        """SIGSTOP: the process stands still with all its connections open."""
        self.signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT; nothing for a process that runs or has ended."""
        process = self.processes[name]
        if process.running:
            process.send(signal.SIGCONT)

    def restart(self, *names: str) -> None:
        """Start those of the processes that don't run."""
        self.start_processes(name for name in names if not self.processes[name].running)

    def mend(self) -> list[str]:
        """Heal every link, let every process go on and start the ones that are down; a sentence for each of these."""
        for name in self.through.broken():
            self.through.heal(name)
        names = [*self.voters_and_observers, *self.gateways]
        down = [name for name in names if not self.processes[name].running]
        found = [f"{name} was down although no fault had it down: {self.processes[name].ending()}" for name in down]
        for name in names:
            self.resume(name)
        self.restart(*down)
        return found

    def is_whole(self) -> bool:
        """Whether everything serves all that it is for, by its own word. A gateway may still have much to drain."""
        return not self.away()

    def away(self) -> list[str]:
        """Who does not serve, or not yet as a voter."""
        peers = [name for name in self.voters_and_observers if not self.is_ready(name)]
        recovering = [name for name in self.peers if name not in peers and self.is_recovering(name)]
        return [*peers, *recovering, *(name for name in self.gateways if not self._is_linked(name))]

    def _is_linked(self, gateway: str) -> bool:
        status = self.gateway_status(gateway)
        return status is not None and status["state"] != "degraded"

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Poll until it holds; False if it does not in time, however long one look takes."""
        end = time.monotonic() + timeout_s
        while not (holds := condition()) and time.monotonic() < end:
            processes.wait_until(lambda: False, config.LOOK_S)
        return holds

    def is_settled(self) -> bool:
        """Whether it is whole, every queue is drained and every zone has seen all that the registry holds."""
        if not all(map(self.is_ready, [*self.voters_and_observers, *self.gateways])):
            return False
        leader = self.leader()
        head = self.ask_peer(leader, "/registry/v1/status") if leader else None
        statuses = [self.gateway_status(gateway) for gateway in self.gateways]
        return head is not None and all(
            status is not None
            and status["queue_depth"] == 0
            and status["feed_position"] == f"{head['epoch']}.{head['revision']}"
            for status in statuses
        )

    def settle(self, timeout_s: float) -> list[str]:
        """Wait until it is settled; a sentence for everything that is not in time."""
        if self.wait(self.is_settled, timeout_s):
            return []
        troubles = [
            f"{name} does not serve {timeout_s:.0f} s after healing; see {self.processes[name].log}"
            for name in self.away()
        ]
        for gateway in self.gateways:
            status = self.gateway_status(gateway) or {}
            troubles.append(
                f"{gateway} has {status.get('queue_depth')} pending writes at {status.get('feed_position')}"
            )
        return troubles

    def wipe(self, peer: str) -> None:
        """Remove the store of a stopped peer, as a new disk does."""
        shutil.rmtree(store_path(self.wiring.peer_dir(peer)))

    def rejoin(self, peer: str, *options: str) -> None:
        """`raftreg rejoin`, for a stopped peer."""
        self.raftreg("rejoin", "--config", str(self.wiring.peer_dir(peer) / "raftreg.toml"), *options)

    def begin_anew(self) -> None:
        """Start the peers after their voter set or epoch has changed, then the observers with empty stores."""
        self.wiring.write_peers(self.through.addresses())
        self.restart(*self.peers)
        self.wait_ready(self.peers)
        for observer in self.observers:
            self.rejoin(observer, "--replace")
        self.restart(*self.observers)

    def replace_voters(self, names: Sequence[str]) -> None:
        """`raftreg peer replace` with these voters, while all peers are down; the others' directories are removed."""
        before, listen = self.peers, self.wiring.listen
        self.kill(*self.voters_and_observers)
        self.wiring.peers = tuple(names)
        known = self.through.addresses()
        for link, upstream in self.wiring.link_upstreams().items():
            if link not in known:
                self.through.create(link, upstream)
        wanted = [f"--peer={name}={listen(f'raft-{name}')},{listen(f'api-{name}')}" for name in names]
        # Links answer in the name of peers that are down: hence --offline.
        self.raftreg("peer", "replace", str(self.wiring.registry), *wanted, "--offline")
        for gone in set(before) - set(names):
            del self.processes[gone]
            shutil.rmtree(self.wiring.peer_dir(gone))
        for fresh in set(names) - set(before):
            self._add_peer(fresh)
        self.begin_anew()

    def is_recovering(self, peer: str) -> bool:
        """Whether a peer does not vote yet; True also while it does not answer."""
        status = self.ask_peer(peer, "/registry/v1/status")
        return status is None or bool(status["recovering"])

    def raftreg(self, *arguments: str, longest_s: float = config.COMMAND_TIMEOUT_S) -> str:
        """A command of the registry; its output. Raises ProcessError."""
        return _command("raftreg.cli", *arguments, longest_s=longest_s)

    def scrub(self) -> None:
        """Have every peer read all its rows again. What it finds ends a peer, and with it the command."""
        with contextlib.suppress(processes.ProcessError):
            self.raftreg("verify", "--scrub", "--config", str(self.wiring.registry), longest_s=config.SCRUB_MAX_S)

    def backup_file(self, peer: str) -> Path:
        return self.base / f"{peer}.backup"

    def back_up(self, peer: str) -> None:
        """`raftreg backup create` beside a peer, into its `backup_file`."""
        configuration = self.wiring.peer_dir(peer) / "raftreg.toml"
        self.raftreg("backup", "create", str(self.backup_file(peer)), "--config", str(configuration))

    def parked(self) -> list[str]:
        """UUIDs of images of which some zone keeps writes that the registry refused."""
        found: set[str] = set()
        for gateway in self.gateways:
            configuration = self.wiring.gateway_dir(gateway) / "zonegw.toml"
            said = _command("zonegw.cli", "parked", "list", "--json", "--config", str(configuration))
            found |= {row["write"]["uuid"] for row in json.loads(said)}
        return sorted(found)


def _command(module: str, *arguments: str, longest_s: float = config.COMMAND_TIMEOUT_S) -> str:
    said = f"{module} {' '.join(arguments)}"
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=longest_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise processes.ProcessError(f"{said} took more than {longest_s:.0f} s") from error
    if done.returncode != 0:
        raise processes.ProcessError(f"{said} failed: {done.stdout}{done.stderr}")
    return done.stdout
