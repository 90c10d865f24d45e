"""A cluster of real processes whose zone fra can be cut off, and the unmodified clients in it.

Everything is made once, and `place` runs a module's tests twice, online and cut off from the registry and the other
zone. When a zone is healed again, all that its clients did must reach the registry, with nothing parked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chaos.ports import split
from ops.dev import processes, setup
from ops.dev.cluster import Cluster
from tests.clients.driving import Commands, Libraries, Library, Shell
from tests.clients.servers import Identity, offering, serving
from zonegw.auth import create_token

# For everything that must happen in the end, on a busy machine.
SOON_S = 45.0
GATEWAY = "fra-1"
# How long a zone waits for the data of another one that says nothing.
FETCH_IDLE_S = 2
DATA = os.urandom(300_000)


@dataclass(frozen=True)
class Person:
    """Somebody in fra: an administrator, or a tenant of a project of his own."""

    project: str
    token: str


@dataclass(frozen=True)
class Place:
    """The zone fra as its tenants see it, and whether it can reach the registry."""

    cluster: Cluster
    url: str
    alice: Person
    bob: Person
    root: Person
    # Alice's images whose home is ams: one without data, one with data that fra never fetched.
    of_ams: str
    with_data: str
    cut_off: bool

    def ask(
        self, method: str, path: str, who: Person | None = None, body: str | None = None, **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """A bare request, for what clients don't show of an answer."""
        connection = http.client.HTTPConnection(*split(self.url.removeprefix("http://")), timeout=SOON_S)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers={"X-Auth-Token": (who or self.alice).token} | sent)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clients' home directory. Skips where their environment can't be made."""
    try:
        setup.prepare(setup.CLIENTS)
    except setup.SetupError as error:
        pytest.skip(f"the clients' environment can't be made: {error}")
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def shell(home: Path) -> Iterator[Shell]:
    shell = Shell(home)
    yield shell
    shell.close()


@pytest.fixture(scope="session")
def libraries(home: Path) -> Iterator[Libraries]:
    libraries = Libraries(home)
    yield libraries
    libraries.close()


@pytest.fixture(scope="session")
def identity(home: Path) -> Iterator[str]:
    """URL of an identity service. It tells tenants nothing of projects, so clients take a given name for an ID."""
    with serving(Identity) as url:
        yield url


@pytest.fixture(scope="session")
def source(home: Path) -> Iterator[str]:
    """URL of a server outside the zone that offers DATA as /image."""
    offered = home / "offered"
    offered.mkdir()
    (offered / "image").write_bytes(DATA)
    with offering(offered) as url:
        yield url


@pytest.fixture(scope="session")
def cluster(source: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One registry peer is enough: what is tested is the zone's side."""
    limits = {"fetch_idle_max_s": FETCH_IDLE_S}
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), proxied=True, peers=("a",), gateway_limits=limits)
    try:
        cluster.prepare()
        for gateway in cluster.gateways:
            allow(source, cluster.wiring.gateway_dir(gateway) / "zonegw.toml")
        for names in (cluster.peers, cluster.gateways):
            cluster.start_processes(names)
            cluster.wait_ready(names)
        yield cluster
    finally:
        cluster.stop()


def allow(source: str, config: Path) -> None:
    """Let a gateway import from the source, which is inside the cloud and not on a usual port."""
    _, port = split(source.removeprefix("http://"))
    with config.open("a") as file:
        file.write(f'\n[import.web_download]\nallowed_ports = [{port}]\nallow_internal = ["127.0.0.1/32"]\n')


def a_person(cluster: Cluster, project: str, *roles: str) -> Person:
    tokens = cluster.wiring.gateway_dir(GATEWAY) / "tokens.json"
    return Person(project, create_token(tokens, user=project, project=project, roles=list(roles)))


@pytest.fixture(scope="session")
def a_place(cluster: Cluster, libraries: Libraries, home: Path) -> Place:
    """fra, online, with two images that it knows from ams."""
    ams, fra = cluster.zones["ams"], cluster.zones["fra"]
    glance = libraries.glanceclient(ams.url, ams.token)
    formats = {"disk_format": "raw", "container_format": "bare"}
    empty, full = (glance.images.create(name=name, **formats)["id"] for name in ("of ams", "data of ams"))
    file = home / "data of ams"
    file.write_bytes(DATA)
    glance.images.upload(full, file)
    place = Place(
        cluster, fra.url, Person("demo", fra.token), a_person(cluster, "other", "member"),
        a_person(cluster, "admin", "admin"), empty, full, cut_off=False,
    )  # fmt: skip
    soon(lambda: b'"active"' in place.ask("GET", f"/v2/images/{full}")[1], "fra knows the images of ams")
    return place


@pytest.fixture(scope="module", params=["online", "cut off"])
def place(request: pytest.FixtureRequest, a_place: Place) -> Iterator[Place]:
    """fra with and without its links to the registry and to ams."""
    if request.param == "online":
        yield a_place
    else:
        with cut_off(a_place) as place:
            yield place


@pytest.fixture(scope="module")
def place_cut_off(a_place: Place) -> Iterator[Place]:
    with cut_off(a_place) as place:
        yield place


@contextlib.contextmanager
def cut_off(place: Place) -> Iterator[Place]:
    """fra without its links; healed, it must get rid of all that was written meanwhile, with nothing parked."""
    # What leaves is swallowed: a client that waited for the link would wait for long.
    place.cluster.cut_zone("fra", "blackhole")
    try:
        soon(lambda: status(place.cluster).get("state") == "degraded", "fra is degraded")
        yield dataclasses.replace(place, cut_off=True)
    finally:
        place.cluster.heal_zone("fra")
    soon(lambda: status(place.cluster).get("state") == "online", "fra is online again")
    assert status(place.cluster)["queue_depth"] == 0
    assert status(place.cluster)["parked"] == 0, "the registry refused what the zone had acknowledged"


def status(cluster: Cluster) -> dict[str, object]:
    return cluster.gateway_status(GATEWAY) or {}


def soon(condition: Callable[[], bool], what: str) -> None:
    assert processes.wait_until(condition, SOON_S), f"not within {SOON_S} s: {what}"


@pytest.fixture
def glance(place: Place, shell: Shell) -> Commands:
    """The glance command of alice."""
    return glance_of(place, shell, place.alice)


def glance_of(place: Place, shell: Shell, who: Person, *options: str) -> Commands:
    return Commands(shell, "glance", ("--os-image-url", place.url, "--os-auth-token", who.token, *options))


@pytest.fixture
def openstack(place: Place, shell: Shell, identity: str) -> Commands:
    """The openstack command of alice."""
    return openstack_of(place, shell, place.alice, OS_IDENTITY_ENDPOINT_OVERRIDE=identity)


def openstack_of(place: Place, shell: Shell, who: Person, *, version: str = "2", **environment: str) -> Commands:
    where = ("--os-auth-type", "admin_token", "--os-endpoint", f"{place.url}/v{version}", "--os-token", who.token)
    return Commands(shell, "openstack", (*where, "--os-image-api-version", version), environment)


@pytest.fixture
def library(place: Place, libraries: Libraries) -> Library:
    """glanceclient as a service uses it, for alice."""
    return libraries.glanceclient(place.url, place.alice.token)


@pytest.fixture
def sdk(place: Place, libraries: Libraries) -> Library:
    return libraries.sdk(place.url, place.alice.token)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file with the bytes of an image."""
    file = tmp_path / "image data"
    file.write_bytes(DATA)
    return file


def fresh(name: str) -> str:
    """A name that nothing else has: tests of a module share a zone."""
    return f"{name}-{uuid.uuid4().hex[:12]}"
