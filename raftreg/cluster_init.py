"""`raftreg init`: how the data directories of a new cluster come into being.

A cluster is initialised once. Everything is made in a hidden directory and moved into place at the end, so that a
failure leaves nothing that looks like a cluster.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raftreg import certificates, config, store
from raftreg.certificates import Authority, Subject
from raftreg.config import FILE_NAME, PeerConfig, TlsFiles

GATEWAYS, CLIENTS, OPERATOR = "gateways", "clients", "operator"
DEFAULT_PEER = "a"
DEFAULT_RAFT, DEFAULT_API = "127.0.0.1:9590", "127.0.0.1:9591"

_RESERVED = frozenset({GATEWAYS, CLIENTS})
_PROBE_S = 0.5


class InitError(Exception):
    """Nothing was made; the message says why and what to do."""


@dataclass(frozen=True)
class PlannedPeer:
    """One voter: its name and where it listens for peers and for the API."""

    name: str
    raft: str
    api: str


@dataclass(frozen=True)
class Plan:
    """What `init` makes: voters, gateways as name -> zone, clients by name."""

    peers: Sequence[PlannedPeer]
    gateways: dict[str, str] = field(default_factory=dict)
    clients: Sequence[str] = ()


def parse_peer(text: str) -> PlannedPeer:
    """NAME=RAFT_HOST:PORT,API_HOST:PORT. Raises InitError."""
    name, equals, addresses = text.partition("=")
    raft, comma, api = addresses.partition(",")
    if not (equals and comma):
        raise InitError(f"--peer {text!r}: write NAME=RAFT_HOST:PORT,API_HOST:PORT")
    try:
        certificates.check_name(name, "peer")
        for address in (raft, api):
            config.split_address(address)
    except (ValueError, config.ConfigError) as error:
        raise InitError(f"--peer {text!r}: {error}") from None
    return PlannedPeer(name, raft, api)


def parse_gateway(text: str) -> tuple[str, str]:
    """NAME=ZONE. Raises InitError."""
    name, equals, zone = text.partition("=")
    if not equals:
        raise InitError(f"--gateway {text!r}: write NAME=ZONE")
    try:
        return certificates.check_name(name, "gateway"), certificates.check_name(zone, "zone")
    except ValueError as error:
        raise InitError(f"--gateway {text!r}: {error}") from None


def initialise(directory: Path, plan: Plan, *, offline: bool = False) -> str:
    """Make authority, certificates, configurations and empty stores below `directory`; returns the cluster ID.

    Raises InitError when any listed peer has state: a directory here, or (unless `offline`) somebody who answers at
    one of its addresses.
    """
    check_plan(plan)
    _refuse_existing(directory, plan)
    if not offline:
        _refuse_answering(plan.peers)
    cluster_id = secrets.token_hex(8)
    directory.mkdir(parents=True, exist_ok=True)
    workshop = directory / f".init-{cluster_id}"
    workshop.mkdir(mode=0o700)
    try:
        _make(workshop, plan, cluster_id)
        for made in sorted(workshop.iterdir()):
            made.rename(directory / made.name)
    finally:
        shutil.rmtree(workshop)
    return cluster_id


def check_plan(plan: Plan) -> None:
    """Refuse voters, gateways and clients which make no sense together. Raises InitError."""
    names = [peer.name for peer in plan.peers]
    addresses = [address for peer in plan.peers for address in (peer.raft, peer.api)]
    for values, what in ((names, "peer"), (addresses, "address")):
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            raise InitError(f"{what} {min(twice)} is listed twice")
    if not names:
        raise InitError("a cluster has at least one peer")
    if len(names) % 2 == 0:
        raise InitError(f"{len(names)} peers survive no more failures than {len(names) - 1}; take an odd number")
    if reserved := _RESERVED.intersection(names):
        raise InitError(f"a peer cannot be called {min(reserved)}: that is a directory for certificates")
    if OPERATOR in plan.clients:
        raise InitError(f"the client {OPERATOR} is made in any case; don't list it")
    try:
        for client in plan.clients:
            certificates.check_name(client, "client")
    except ValueError as error:
        raise InitError(str(error)) from None


def _refuse_existing(directory: Path, plan: Plan) -> None:
    for name in ("ca.pem", "ca.key", GATEWAYS, CLIENTS, *(peer.name for peer in plan.peers)):
        if (directory / name).exists():
            raise InitError(
                f"{directory / name} is there already. A cluster is initialised once: `raftreg serve` starts it again; "
                "for a new cluster take another directory, or move this one away."
            )


def _refuse_answering(peers: Sequence[PlannedPeer]) -> None:
    addresses = [address for peer in peers for address in (peer.raft, peer.api)]
    for address in asyncio.run(answering(addresses)):
        raise InitError(
            f"somebody answers at {address}: a peer of an existing cluster, or another program on that port. "
            "Stop it or choose other addresses; --offline skips this check."
        )


async def answering(addresses: Iterable[str]) -> list[str]:
    """Those addresses at which somebody takes connections."""

    async def answers(address: str) -> bool:
        host, port = config.split_address(address)
        if port == 0:
            return False
        try:
            async with asyncio.timeout(_PROBE_S):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    listed = list(addresses)
    found = await asyncio.gather(*(answers(address) for address in listed))
    return [address for address, answered in zip(listed, found, strict=True) if answered]


def _make(directory: Path, plan: Plan, cluster_id: str) -> None:
    authority = certificates.create_authority(cluster_id)
    certificates.save_authority(authority, directory)
    for peer in plan.peers:
        settings = make_directory(directory / peer.name, peer, plan.peers, authority)
        store.initialise(settings.data_dir, cluster_id=cluster_id, peer=peer.name, peers=settings.cluster_peers)
    for gateway, zone in plan.gateways.items():
        certificates.issue(authority, Subject(gateway, "gateway", zone), directory / GATEWAYS / gateway / "tls")
    certificates.issue(authority, Subject(OPERATOR, "operator"), directory / CLIENTS / OPERATOR / "tls")
    for client in plan.clients:
        certificates.issue(authority, Subject(client, "client"), directory / CLIENTS / client / "tls")


def make_directory(
    directory: Path, peer: PlannedPeer, peers: Sequence[PlannedPeer], authority: Authority
) -> PeerConfig:
    """Make a peer's directory with certificate and configuration, and no store yet."""
    directory.mkdir(mode=0o700)
    hosts = [config.split_address(address)[0] for address in (peer.raft, peer.api)]
    tls = certificates.issue(authority, Subject(peer.name, "peer"), directory / "tls", hosts)
    settings = PeerConfig(
        name=peer.name,
        data_dir=directory,
        raft_listen=peer.raft,
        raft_peers={other.name: other.raft for other in peers},
        api_listen=peer.api,
        api_tls=True,
        api_peers={other.name: f"https://{other.api}" for other in peers},
        tls=tls,
    )
    config.validate(settings)
    (directory / FILE_NAME).write_text(config.render(settings, directory), encoding="utf-8")
    return settings


def operator_files(directory: Path) -> TlsFiles | None:
    """The operator's certificate below a directory that `initialise` made, if it is there."""
    tls = directory / CLIENTS / OPERATOR / "tls"
    return TlsFiles(tls / "ca.pem", tls / "cert.pem", tls / "key.pem") if (tls / "key.pem").is_file() else None
