"""`raftreg init`: how the data directories of a new cluster come into being.

A cluster is initialised once. Everything is made in a hidden directory and moved into place at the end, so that a
failure leaves nothing that looks like a cluster.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raftreg import certificates, config, errors, store
from raftreg.certificates import Authority, Subject
from raftreg.client import Client
from raftreg.config import FILE_NAME, PeerConfig, TlsFiles

GATEWAYS, CLIENTS, OPERATOR = "gateways", "clients", "operator"
DEFAULT_PEER = "a"
DEFAULT_RAFT, DEFAULT_API = "127.0.0.1:9590", "127.0.0.1:9591"

_RESERVED = frozenset({GATEWAYS, CLIENTS})
_PROBE_S = 0.5
_ASK_S = 5.0


class InitError(Exception):
    """Nothing was made; the message says why and what to do."""


@dataclass(frozen=True)
class PlannedPeer:
    """One voter: its name and where it listens for peers and for the API."""

    name: str
    raft: str
    api: str


@dataclass(frozen=True)
class PlannedObserver:
    """One observer: its name and where it listens for the API. It dials the voters; nobody dials it for Raft."""

    name: str
    api: str


@dataclass(frozen=True)
class Plan:
    """What `init` makes: voters, gateways as name -> zone, clients by name, observers."""

    peers: Sequence[PlannedPeer]
    gateways: dict[str, str] = field(default_factory=dict)
    clients: Sequence[str] = ()
    observers: Sequence[PlannedObserver] = ()


@dataclass(frozen=True)
class ClusterIdentity:
    """Which life of which cluster a new store belongs to."""

    cluster_id: str
    epoch: int = 1
    membership_generation: int = 1
    previous_peers: tuple[str, ...] = ()


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


def parse_observer(text: str) -> PlannedObserver:
    """NAME=API_HOST:PORT. Raises InitError."""
    name, equals, api = text.partition("=")
    if not equals or "," in api:
        raise InitError(f"observer {text!r}: write NAME=API_HOST:PORT; an observer dials the voters, nobody dials it")
    try:
        certificates.check_name(name, "observer")
        config.split_address(api)
    except (ValueError, config.ConfigError) as error:
        raise InitError(f"observer {text!r}: {error}") from None
    return PlannedObserver(name, api)


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
        refuse_answering([*_addresses(plan.peers), *(observer.api for observer in plan.observers)])
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


def _addresses(peers: Sequence[PlannedPeer]) -> list[str]:
    return [address for peer in peers for address in (peer.raft, peer.api)]


def check_plan(plan: Plan) -> None:
    """Refuse voters, gateways and clients which make no sense together. Raises InitError."""
    names = [peer.name for peer in plan.peers]
    observers = [observer.name for observer in plan.observers]
    addresses = [*_addresses(plan.peers), *(observer.api for observer in plan.observers)]
    for values, what in ((names + observers, "peer"), (addresses, "address")):
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            raise InitError(f"{what} {min(twice)} is listed twice")
    if not names:
        raise InitError("a cluster has at least one peer")
    if len(names) % 2 == 0:
        raise InitError(f"{len(names)} peers survive no more failures than {len(names) - 1}; take an odd number")
    if reserved := _RESERVED.intersection(names + observers):
        raise InitError(f"a peer cannot be called {min(reserved)}: that is a directory for certificates")
    if OPERATOR in plan.clients:
        raise InitError(f"the client {OPERATOR} is made in any case; don't list it")
    try:
        for client in plan.clients:
            certificates.check_name(client, "client")
    except ValueError as error:
        raise InitError(str(error)) from None


def _refuse_existing(directory: Path, plan: Plan) -> None:
    made = [peer.name for peer in plan.peers] + [observer.name for observer in plan.observers]
    for name in ("ca.pem", "ca.key", GATEWAYS, CLIENTS, *made):
        if (directory / name).exists():
            raise InitError(
                f"{directory / name} is there already. A cluster is initialised once: `raftreg serve` starts it again; "
                "for a new cluster take another directory, or move this one away."
            )


def refuse_answering(addresses: Sequence[str]) -> None:
    """Raise InitError when somebody listens at an address that something new is to have."""
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
    raft_peers = {peer.name: peer.raft for peer in plan.peers}
    api_peers = {peer.name: f"https://{peer.api}" for peer in plan.peers}
    for observer in plan.observers:
        identity = ClusterIdentity(cluster_id)
        make_observer(directory / observer.name, observer, raft_peers, api_peers, authority, identity)
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


def make_observer(
    directory: Path,
    observer: PlannedObserver,
    raft_peers: dict[str, str],
    api_peers: dict[str, str],
    authority: Authority,
    identity: ClusterIdentity,
) -> None:
    """Configuration, certificate and empty store of an observer; `raft_peers` and `api_peers` are the voters'."""
    directory.mkdir(mode=0o700)
    host = config.split_address(observer.api)[0]
    settings = PeerConfig(
        name=observer.name,
        data_dir=directory,
        raft_listen="",
        raft_peers=raft_peers,
        api_listen=observer.api,
        api_tls=True,
        api_peers=api_peers,
        tls=certificates.issue(authority, Subject(observer.name, "observer"), directory / "tls", [host]),
        observer=True,
    )
    config.validate(settings)
    (directory / FILE_NAME).write_text(config.render(settings, directory), encoding="utf-8")
    store.initialise(
        settings.data_dir,
        cluster_id=identity.cluster_id,
        peer=settings.name,
        peers=settings.cluster_peers,
        epoch=identity.epoch,
        membership_generation=identity.membership_generation,
        observer=True,
        previous_peers=identity.previous_peers,
    )


def asked_identity(endpoints: list[str], tls: ssl.SSLContext | None) -> ClusterIdentity:
    """What a running peer says of its cluster. Raises InitError."""
    return asyncio.run(_identity(endpoints, tls))


async def _identity(endpoints: list[str], tls: ssl.SSLContext | None) -> ClusterIdentity:
    async with Client(endpoints, ssl=tls, deadline_s=_ASK_S) as client:
        try:
            status = await client.status()
        except errors.RegistryError as error:
            raise InitError(f"no other peer of the cluster says who it is: {error.message}") from None
    voters = status["voters"]
    return ClusterIdentity(
        str(status["cluster_id"]), int(status["epoch"]), int(voters["generation"]), tuple(voters["previous"])
    )


def operator_files(directory: Path) -> TlsFiles | None:
    """The operator's certificate below a directory that `initialise` made, if it is there."""
    tls = directory / CLIENTS / OPERATOR / "tls"
    return TlsFiles(tls / "ca.pem", tls / "cert.pem", tls / "key.pem") if (tls / "key.pem").is_file() else None
