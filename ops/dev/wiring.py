"""Who listens where and who dials whom in a development cluster: ports, links, and the configuration files with both.

A peer or gateway *listens* on a port of its own and is *dialled* through a link where links are proxied. There is one
link for each pair, so that one direction of one pair can be cut:

    raft-A-B       peer or observer A's Raft connection to peer B
    api-A-B        peer A forwards a write to peer B
    registry-G-B   gateway G asks peer B
    interzone-G    other zones fetch image data from gateway G
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.links import Links
from chaos.ports import Reservation
from ops.dev import environment
from raftreg import config as registry_config
from zonegw import auth
from zonegw import config as gateway_config

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("a", "b", "c")
GATEWAYS: Mapping[str, str] = {"ams-1": "ams", "fra-1": "fra"}
OPERATOR = "operator"
# One tenant in each zone, the same in all: what it backs up in one zone it sees in the others.
USER, PROJECT, ROLES = "demo", "demo", ["member"]
INIT_TIMEOUT_S = 120


class WiringError(Exception):
    """The cluster's files can't be made. The message says why and what to do."""


@dataclass
class Wiring:
    """The addresses of one cluster in `base`, and its files.

    base/registry/         what `raftreg init` made: authority, peers, observers, certificates
    base/gateways/NAME/    zonegw.toml, tokens.json, token, data/
    """

    base: Path
    peers: Sequence[str] = PEERS
    gateways: Mapping[str, str] = field(default_factory=lambda: dict(GATEWAYS))
    peer_limits: Mapping[str, Any] = field(default_factory=dict)
    gateway_limits: Mapping[str, int | float] = field(default_factory=dict)
    peer_timing: Mapping[str, float] = field(default_factory=dict)
    observers: Sequence[str] = ()
    _ports: dict[str, Reservation] = field(default_factory=dict)

    def listen(self, name: str) -> str:
        """Where `raft-PEER`, `api-PEER`, `images-GATEWAY` or `interzone-GATEWAY` listens; chosen once."""
        if name not in self._ports:
            self._ports[name] = Reservation()
        return self._ports[name].address

    def release(self) -> None:
        """Give all ports back."""
        for port in self._ports.values():
            port.release()
        self._ports.clear()

    @property
    def registry(self) -> Path:
        return self.base / "registry"

    def peer_dir(self, peer: str) -> Path:
        return self.registry / peer

    def gateway_dir(self, gateway: str) -> Path:
        return self.base / "gateways" / gateway

    def operator_tls(self) -> registry_config.TlsFiles:
        """The certificate with which tools of ours ask the registry."""
        return _tls(self.registry / "clients" / OPERATOR / "tls")

    def write(self, links: Links | None) -> None:
        """Make the registry's files once, and the configuration with this run's addresses every time."""
        if not (self.base / "initialised").exists():
            self._initialise()
        for observer in self.observers:
            if not self.peer_dir(observer).exists():
                self._raftreg("observer", "add", str(self.registry), f"{observer}={self.listen(f'api-{observer}')}")
        dialled = self._dialled(links)
        self.write_peers(dialled)
        for gateway in self.gateways:
            self._write_gateway(gateway, dialled)

    def write_peers(self, dialled: Mapping[str, str]) -> None:
        """Put this run's addresses into the configurations of peers and observers; `dialled` are those of the links."""
        for peer in (*self.peers, *self.observers):
            self._write_peer(peer, dialled)

    def token(self, gateway: str) -> str:
        """The token of the demo user in a gateway's zone."""
        return (self.gateway_dir(gateway) / "token").read_text(encoding="utf-8")

    def _initialise(self) -> None:
        # Left by an `init` that was interrupted: no peer has ever run on it.
        shutil.rmtree(self.registry, ignore_errors=True)
        self.base.mkdir(parents=True, exist_ok=True)
        plan = []
        for peer in self.peers:
            plan += ["--peer", f"{peer}={self.listen(f'raft-{peer}')},{self.listen(f'api-{peer}')}"]
        for gateway, zone in self.gateways.items():
            plan += ["--gateway", f"{gateway}={zone}"]
        self._raftreg("init", str(self.registry), *plan)
        (self.base / "initialised").touch()

    @staticmethod
    def _raftreg(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "raftreg.cli", *arguments],
            cwd=ROOT,
            env=environment.clean(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INIT_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            output = done.stdout.decode("utf-8", "replace")
            raise WiringError(f"'raftreg {arguments[0]}' failed ({done.returncode}):\n{output}")

    def _dialled(self, links: Links | None) -> dict[str, str]:
        """Link name -> address to dial: the link's where links are proxied, else the listener's own."""
        upstreams = self.link_upstreams()
        return upstreams if links is None else {name: links.create(name, to) for name, to in upstreams.items()}

    def link_upstreams(self) -> dict[str, str]:
        """Every link with the address that it leads to."""
        found: dict[str, str] = {}
        for peer in self.peers:
            raft, api = self.listen(f"raft-{peer}"), self.listen(f"api-{peer}")
            for other in self.peers:
                if other != peer:
                    found |= {f"raft-{other}-{peer}": raft, f"api-{other}-{peer}": api}
            found |= {f"raft-{observer}-{peer}": raft for observer in self.observers}
            found |= {f"registry-{gateway}-{peer}": api for gateway in self.gateways}
        return found | {f"interzone-{gateway}": self.listen(f"interzone-{gateway}") for gateway in self.gateways}

    def links_of_peer(self, peer: str) -> list[str]:
        """The links that cut a peer off from the other peers, both ways."""
        others = [other for other in self.peers if other != peer]
        pairs = [(peer, other) for other in others] + [(other, peer) for other in others]
        return [f"{kind}-{one}-{two}" for kind in ("raft", "api") for one, two in pairs]

    def links_of_observer(self, observer: str) -> list[str]:
        """The links from an observer to the voters."""
        return [f"raft-{observer}-{peer}" for peer in self.peers]

    def links_of_zone(self, zone: str) -> list[str]:
        """The links that cut a zone off from the registry and from the other zones.

        A gateway has one interzone address for all zones, so the links of the others are among them.
        """
        gateways = [gateway for gateway, its_zone in self.gateways.items() if its_zone == zone]
        registry = [f"registry-{gateway}-{peer}" for gateway in gateways for peer in self.peers]
        return registry + [f"interzone-{gateway}" for gateway in self.gateways]

    def _write_peer(self, peer: str, dialled: Mapping[str, str]) -> None:
        path = self.peer_dir(peer)
        raft_peers = {other: dialled.get(f"raft-{peer}-{other}", self.listen(f"raft-{other}")) for other in self.peers}
        api_peers = {other: dialled.get(f"api-{peer}-{other}", self.listen(f"api-{other}")) for other in self.peers}
        made = registry_config.load(path)
        changed = dataclasses.replace(
            made,
            raft_listen="" if made.observer else self.listen(f"raft-{peer}"),
            api_listen=self.listen(f"api-{peer}"),
            raft_peers=raft_peers,
            api_peers={other: f"https://{address}" for other, address in api_peers.items()},
            limits=dataclasses.replace(made.limits, **self.peer_limits),
            timing=dataclasses.replace(made.timing, **self.peer_timing),
        )
        _write(path / registry_config.FILE_NAME, registry_config.render(changed, path.resolve()))

    def _write_gateway(self, gateway: str, dialled: Mapping[str, str]) -> None:
        path = self.gateway_dir(gateway)
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "token").exists():
            token = auth.create_token(path / "tokens.json", user=USER, project=PROJECT, roles=ROLES)
            _write(path / "token", token)
        tls = _tls(self.registry / "gateways" / gateway / "tls")
        text = gateway_config.render(
            zone=self.gateways[gateway],
            gateway=gateway,
            data_dir=str((path / "data").resolve()),
            listen=self.listen(f"images-{gateway}"),
            endpoints=[f"https://{dialled[f'registry-{gateway}-{peer}']}" for peer in self.peers],
            tokens_file="tokens.json",
            interzone_listen=self.listen(f"interzone-{gateway}"),
            advertise=f"https://{dialled[f'interzone-{gateway}']}",
            tls={name: str(getattr(tls, name).resolve()) for name in ("ca", "cert", "key")},
            limits=dict(self.gateway_limits),
        )
        _write(path / "zonegw.toml", text)


def _tls(directory: Path) -> registry_config.TlsFiles:
    return registry_config.TlsFiles(*(directory / f"{name}.pem" for name in ("ca", "cert", "key")))


def _write(path: Path, text: str) -> None:
    """Replace a file that only its owner may read: it names tokens and keys."""
    fresh = path.with_name(f"{path.name}.new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)
