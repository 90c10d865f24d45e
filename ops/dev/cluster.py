"""The development cluster: three registry peers and a gateway in each of two zones, as processes on this machine.

    python -m ops.dev.cluster up [--proxied]     start it, in .run/dev, and leave it running
    python -m ops.dev.cluster down               stop it; its data stay for the next `up`

`Cluster` serves the story and system tests too, each in a directory of its own. The state file (cluster.json) names
every process with pid and start time, and is renewed with each start: whoever comes later can stop exactly these.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import signal
import ssl
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos import links as proxies
from chaos.links import LinkError, Links
from chaos.ports import Reservation, split
from ops.dev import environment, processes
from ops.dev.processes import Identity, Process, ProcessError
from ops.dev.wiring import GATEWAYS, PEERS, ROOT, Wiring, WiringError
from raftreg import certificates

RUN_DIR = ROOT / ".run"
STATE_FILE = RUN_DIR / "cluster.json"
# Python starts, LMDB opens, a leader is elected, sessions and blocks are granted; on two busy cores it takes seconds.
READY_TIMEOUT_S = 60.0
# A health request is answered on loopback at once.
PROBE_TIMEOUT_S = 2.0
PROBE_BYTES_MAX = 1024 * 1024
PROXY = "links"


class ClusterError(Exception):
    """The cluster can't do what was asked. The message says why, and which log to look at."""


@dataclass(frozen=True)
class Zone:
    """Where a zone's Images API is, and the token of its demo user."""

    url: str
    token: str


class Cluster:
    """One cluster in `base`. `start` makes everything; processes can then be killed, started and cut off one by one.

    With `proxied`, every link goes through a proxy process and `links` can cut it. Methods block; they are for threads
    or for code that may wait.
    """

    def __init__(
        self,
        base: Path,
        *,
        proxied: bool = False,
        peers: Sequence[str] = PEERS,
        gateways: Mapping[str, str] = GATEWAYS,
        state_file: Path | None = None,
        peer_limits: Mapping[str, Any] | None = None,
        gateway_limits: Mapping[str, int | float] | None = None,
        peer_timing: Mapping[str, float] | None = None,
        observers: Sequence[str] = (),
    ) -> None:
        self.base = base
        self.wiring = Wiring(
            base,
            tuple(peers),
            dict(gateways),
            peer_limits or {},
            gateway_limits or {},
            peer_timing or {},
            tuple(observers),
        )
        self.state_file = state_file or base / "cluster.json"
        self.processes: dict[str, Process] = {}
        self.links: Links | None = None
        self._proxied = proxied
        self._proxy_port: Reservation | None = None

    @property
    def peers(self) -> list[str]:
        return list(self.wiring.peers)

    @property
    def observers(self) -> list[str]:
        return list(self.wiring.observers)

    @property
    def gateways(self) -> list[str]:
        return list(self.wiring.gateways)

    def prepare(self) -> None:
        """Make files, links and the processes, none of which runs yet but the proxy. Raises ClusterError."""
        try:
            self.base.mkdir(parents=True, exist_ok=True)
            if self._proxied:
                self._start_links()
            self.wiring.write(self.links)
        except (WiringError, LinkError) as error:
            raise ClusterError(str(error)) from error
        for peer in self.peers:
            self._add_peer(peer)
        for observer in self.observers:
            path = self.wiring.peer_dir(observer)
            self._add(observer, ["-m", "raftreg.cli", "serve", "--observer", str(path)], path)
        for gateway in self.gateways:
            path = self.wiring.gateway_dir(gateway)
            self._add(gateway, ["-m", "zonegw.cli", "serve", "--config", str(path / "zonegw.toml")], path / "data")

    def start(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Prepare and start everything, and wait until it serves. What was started is stopped if that fails."""
        try:
            self.prepare()
            self.start_processes(self.peers)
            self.wait_ready(self.peers, timeout_s)
            self.start_processes(self.observers)
            self.wait_ready(self.observers, timeout_s)
            self.start_processes(self.gateways)
            self.wait_ready(self.gateways, timeout_s)
        except BaseException:
            self.stop()
            raise

    def start_process(self, name: str, extra_env: Mapping[str, str] | None = None) -> None:
        """Start one process that doesn't run. It is not ready yet when this returns; see `wait_ready`."""
        self.processes[name].start(extra_env)
        self.save()

    def start_processes(self, names: Iterable[str]) -> None:
        for name in names:
            self.start_process(name)

    def kill(self, *names: str) -> None:
        """SIGKILL all of them at once, then wait until they are gone."""
        for name in names:
            with contextlib.suppress(ProcessError):
                self.processes[name].send(signal.SIGKILL)
        for name in names:
            self.processes[name].kill()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal and don't wait."""
        self.processes[name].send(number)

    def stop_process(self, name: str) -> None:
        """SIGTERM, and wait until it is gone."""
        self.processes[name].stop()

    def stop(self) -> None:
        """Stop everything, those that ask before those that answer, and forget the state file."""
        for name in (*self.gateways, *self.observers, *self.peers, PROXY):
            if name in self.processes:
                self.processes[name].stop()
        if self.links is not None and PROXY not in self.processes:
            self.links.close()
        self.forget()
        self.state_file.unlink(missing_ok=True)

    def forget(self) -> None:
        """Give up the ports that are held for processes that are down; what runs goes on."""
        self.wiring.release()
        if self._proxy_port:
            self._proxy_port.release()

    def wait_ready(self, names: Iterable[str], timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until each of them serves all that it is for: a leader for peers (and what it has told, for observers),
        the registry for gateways."""
        for name in names:
            process = self.processes[name]
            ready = processes.wait_until(lambda name=name: self._is_ready_or_dead(name), timeout_s)  # type: ignore[misc]
            if not (ready and process.running):
                raise ClusterError(f"{name} is not ready after {timeout_s:.0f} s. {process.ending()}")

    def _is_ready_or_dead(self, name: str) -> bool:
        return not self.processes[name].running or self.is_ready(name)

    def is_ready(self, name: str) -> bool:
        """Whether a process serves all that it is for, by its own word."""
        if name in (*self.peers, *self.observers):
            health = self.ask_peer(name, "/healthcheck")
            return health is not None and health.get("serves") == "linearizable"
        status = self.gateway_status(name)
        return status is not None and status.get("state") == "online"

    def ask_peer(self, peer: str, path: str) -> dict[str, Any] | None:
        """A GET at the API of one peer or observer; None if it has no good answer."""
        context = certificates.client_context(self.wiring.operator_tls())
        return get_json(self.wiring.listen(f"api-{peer}"), path, context)

    def gateway_status(self, gateway: str, address: str | None = None) -> dict[str, Any] | None:
        """What a gateway says of itself, where clients find it or at `address`; None if it has no good answer."""
        headers = {"X-Auth-Token": self.wiring.token(gateway)}
        return get_json(address or self.wiring.listen(f"images-{gateway}"), "/zonegw/v1/status", None, headers)

    def leader(self) -> str | None:
        """The peer that leads by its own word, in the highest term; None while there is none."""
        leading: dict[int, str] = {}
        for peer in self.peers:
            status = self.ask_peer(peer, "/registry/v1/status") if self.processes[peer].running else None
            if status and status.get("role") == "leader":
                leading[status["term"]] = peer
        return leading[max(leading)] if leading else None

    def wait_leader(self, timeout_s: float = READY_TIMEOUT_S) -> str:
        """The leader, as soon as there is one."""
        found: list[str] = []

        def leads() -> bool:
            found.extend(filter(None, [self.leader()]))
            return bool(found)

        if not processes.wait_until(leads, timeout_s):
            raise ClusterError(f"no peer became leader in {timeout_s:.0f} s; see the logs in {self.base / 'logs'}")
        return found[0]

    def cut_zone(self, zone: str, mode: proxies.Mode = "reset") -> None:
        """Cut a zone off from the registry and from other zones."""
        for name in self.wiring.links_of_zone(zone):
            self._proxied_links().cut(name, mode=mode)

    def heal_zone(self, zone: str) -> None:
        """Undo `cut_zone`."""
        for name in self.wiring.links_of_zone(zone):
            self._proxied_links().heal(name)

    def isolate_peer(self, peer: str, mode: proxies.Mode = "blackhole") -> None:
        """Cut a peer off from the other peers; clients still reach it."""
        for name in self.wiring.links_of_peer(peer):
            self._proxied_links().cut(name, mode=mode)

    def heal_peer(self, peer: str) -> None:
        """Undo `isolate_peer`."""
        for name in self.wiring.links_of_peer(peer):
            self._proxied_links().heal(name)

    def isolate_observer(self, observer: str, mode: proxies.Mode = "blackhole") -> None:
        """Cut an observer off from the voters; clients still reach it."""
        for name in self.wiring.links_of_observer(observer):
            self._proxied_links().cut(name, mode=mode)

    def delay_observer(self, observer: str, ms: int) -> None:
        """Put an observer that far away from the voters, each way, until `heal_observer`."""
        for name in self.wiring.links_of_observer(observer):
            self._proxied_links().latency(name, ms)

    def heal_observer(self, observer: str) -> None:
        """Undo `isolate_observer` and `delay_observer`."""
        for name in self.wiring.links_of_observer(observer):
            self._proxied_links().heal(name)

    def url(self, peer: str) -> str:
        """The API of one peer or observer, without a proxy between."""
        return f"https://{self.wiring.listen(f'api-{peer}')}"

    @property
    def registry_urls(self) -> list[str]:
        """The registry's API at each peer, without a proxy between."""
        return [self.url(peer) for peer in self.peers]

    @property
    def zones(self) -> dict[str, Zone]:
        """One gateway's Images API for each zone."""
        return {
            zone: Zone(f"http://{self.wiring.listen(f'images-{gateway}')}", self.wiring.token(gateway))
            for gateway, zone in self.wiring.gateways.items()
        }

    def save(self) -> None:
        """Write the state file: only its owner may read it, for it holds tokens."""
        tls = self.wiring.operator_tls()
        state = {
            "registry": self.registry_urls,
            "zones": {name: {"url": zone.url, "token": zone.token} for name, zone in self.zones.items()},
            "operator": {name: str(getattr(tls, name)) for name in ("ca", "cert", "key")},
            "gateways": dict(self.wiring.gateways),
            "links": self.links.addresses() if self.links else {},
            "proxy": {"control": self.links.control, "run": self.links.run} if self.links else None,
            "processes": [_described(process) for process in self.processes.values() if process.identity],
        }
        _write_private(self.state_file, json.dumps(state, indent=2))

    def _add_peer(self, peer: str) -> None:
        config = self.wiring.peer_dir(peer) / "raftreg.toml"
        self._add(peer, ["-m", "raftreg.cli", "serve", "--config", str(config)], self.wiring.peer_dir(peer))

    def _add(self, name: str, arguments: Sequence[str], data_dir: Path) -> None:
        self.processes[name] = Process(
            name,
            [sys.executable, *arguments],
            log=self.base / "logs" / f"{name}.log",
            env=environment.clean(os.environ),
            cwd=ROOT,
            data_dir=data_dir,
        )

    def _start_links(self) -> None:
        control = proxies.external_server()
        if control is None:
            self._proxy_port = Reservation()
            control = self._proxy_port.address
            self._start_proxy(proxies.server_command(control, ROOT))
        self.links = Links(control, run=uuid.uuid4().hex[:12])
        try:
            ready = processes.wait_until(self._proxy_answers, READY_TIMEOUT_S)
        finally:
            # Others could be told otherwise where the proxy is, but not how to stop it.
            self._save_proxy()
        if not ready:
            ending = self.processes[PROXY].ending() if PROXY in self.processes else ""
            raise ClusterError(f"the proxy at {control} does not answer. {ending}")

    def _start_proxy(self, command: Sequence[str]) -> None:
        self.processes[PROXY] = Process(
            PROXY,
            command,
            log=self.base / "logs" / f"{PROXY}.log",
            env=environment.clean(os.environ),
            cwd=ROOT,
            data_dir=self.base,
        )
        self.processes[PROXY].start()

    def _save_proxy(self) -> None:
        """The state file before there is anything else to tell."""
        if PROXY in self.processes:
            state = {"registry": [], "zones": {}, "processes": [_described(self.processes[PROXY])]}
            _write_private(self.state_file, json.dumps(state, indent=2))

    def _proxy_answers(self) -> bool:
        try:
            return bool(self._proxied_links().version())
        except LinkError:
            return False

    def _proxied_links(self) -> Links:
        if self.links is None:
            raise ClusterError("this cluster's links are not proxied, so they can't be cut; start it with proxied=True")
        return self.links


def _described(process: Process) -> dict[str, Any]:
    identity = process.identity or Identity(0, "")
    return {
        "name": process.name,
        "pid": identity.pid,
        "started": identity.started,
        "data_dir": str(process.data_dir),
        "log": str(process.log),
    }


def get_json(
    address: str, path: str, context: ssl.SSLContext | None, headers: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """A JSON object by GET, within PROBE_TIMEOUT_S; None for every other answer and for none."""
    host, port = split(address)
    connection: http.client.HTTPConnection = (
        http.client.HTTPSConnection(host, port, timeout=PROBE_TIMEOUT_S, context=context)
        if context
        else http.client.HTTPConnection(host, port, timeout=PROBE_TIMEOUT_S)
    )
    try:
        connection.request("GET", path, headers={"Accept": "application/json"} | dict(headers or {}))
        answer = connection.getresponse()
        document = json.loads(answer.read(PROBE_BYTES_MAX)) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return document if isinstance(document, dict) else None


def _write_private(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def read_state(state_file: Path = STATE_FILE) -> dict[str, Any] | None:
    """The state file of a cluster; None if there is none, or none that can be read."""
    try:
        state = json.loads(state_file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def running_processes(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of a state file's processes that still run."""
    return [entry for entry in state.get("processes", []) if processes.is_running(_identity(entry))]


def _identity(entry: Mapping[str, Any]) -> Identity:
    return Identity(int(entry["pid"]), str(entry["started"]))


def stop_left(state_file: Path) -> list[str]:
    """Stop exactly the processes that a state file names, those that ask first; returns their names."""
    state = read_state(state_file) or {}
    order = {name: rank for rank, name in enumerate((*GATEWAYS, *PEERS, PROXY))}
    running = sorted(running_processes(state), key=lambda entry: order.get(entry["name"], -1))
    for entry in running:
        processes.stop(_identity(entry))
    state_file.unlink(missing_ok=True)
    return [entry["name"] for entry in running]


@contextlib.contextmanager
def alone(lock_file: Path) -> Iterator[None]:
    """Hold a lock, so that two of us don't start or stop the same cluster. Raises ClusterError if it is taken."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ClusterError(f"another program is starting, using or stopping this cluster ({lock_file})") from error
        yield


def forget_caller() -> None:
    """Drop from our own environment what could change what we do: above all proxies, which loopback needs none of."""
    for name in set(os.environ) - set(environment.clean(os.environ)):
        del os.environ[name]


def show(state: Mapping[str, Any]) -> str:
    """The URLs of a cluster, for a person."""
    lines = [f"registry   {' '.join(state['registry'])}"]
    lines += [f"zone {name:<5} {zone['url']}   token {zone['token']}" for name, zone in state["zones"].items()]
    if operator := state.get("operator"):
        lines.append(f"operator   --ca {operator['ca']} --cert {operator['cert']} --key {operator['key']}")
    return "\n".join(lines)


def up(proxied: bool) -> int:
    """Start the cluster of this checkout, or show the one that runs."""
    state = read_state()
    running = running_processes(state) if state else []
    if state and running and len(running) == len(state["processes"]) and state["zones"]:
        print(f"The development cluster is running already:\n{show(state)}")
        return 0
    if running:
        print(f"Stopping what is left of an earlier cluster: {', '.join(entry['name'] for entry in running)}")
        stop_left(STATE_FILE)
    cluster = Cluster(RUN_DIR / "dev", proxied=proxied, state_file=STATE_FILE)
    cluster.start()
    cluster.save()
    cluster.forget()
    print(f"The development cluster is up; `make down` stops it.\n{show(read_state() or {})}")
    return 0


def down() -> int:
    """Stop the cluster of this checkout, and what an interrupted story left."""
    stopped = stop_left(STATE_FILE) if STATE_FILE.exists() else []
    story = RUN_DIR / "story" / "cluster.json"
    with contextlib.suppress(ClusterError), alone(RUN_DIR / "story.lock"):
        stopped += stop_left(story) if story.exists() else []
    print(f"Stopped: {', '.join(stopped)}" if stopped else "No development cluster is running.")
    return 0


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ops.dev.cluster", description="The development cluster.")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up", help="start it, or show where it is")
    starting.add_argument("--proxied", action="store_true", help="run every link through a proxy that can cut it")
    commands.add_parser("down", help="stop it")
    given = parser.parse_args(arguments)
    forget_caller()
    try:
        with alone(RUN_DIR / "cluster.lock"):
            return up(given.proxied) if given.command == "up" else down()
    except (ClusterError, ProcessError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
