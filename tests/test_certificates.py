"""The cluster's authority: who gets into a TLS handshake and who does not. Real sockets, real certificates."""

from __future__ import annotations

import asyncio
import ssl
import stat
from pathlib import Path

import pytest

from raftreg import certificates
from raftreg.certificates import Authority, Subject
from raftreg.config import TlsFiles


@pytest.fixture
def authority() -> Authority:
    return certificates.create_authority("c1")


def issue(authority: Authority, directory: Path, subject: Subject) -> TlsFiles:
    return certificates.issue(authority, subject, directory / subject.name / "tls")


async def greet(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[Subject | None, Subject | None]:
    """(who the server sees, who the client sees) after one byte each way."""
    seen: asyncio.Future[Subject | None] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(certificates.subject_of(writer.get_extra_info("peercert")))
        writer.write(await reader.readexactly(1))
        writer.close()

    async with asyncio.timeout(10), await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server) as listener:
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        try:
            writer.write(b"x")
            await reader.readexactly(1)
            return await seen, certificates.subject_of(writer.get_extra_info("peercert"))
        finally:
            writer.close()


async def test_both_ends_learn_each_others_name_role_and_zone(authority: Authority, tmp_path: Path) -> None:
    peer = issue(authority, tmp_path, Subject("a", "peer"))
    gateway = issue(authority, tmp_path, Subject("ams-1", "gateway", "ams"))
    seen = await greet(certificates.server_context(peer), certificates.api_client_context(gateway))
    assert seen == (Subject("ams-1", "gateway", "ams"), Subject("a", "peer"))


async def test_a_client_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    peer = issue(authority, tmp_path, Subject("a", "peer"))
    foreign = issue(certificates.create_authority("c1"), tmp_path, Subject("b", "peer"))
    trusting = TlsFiles(peer.ca, foreign.cert, foreign.key)
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await greet(certificates.server_context(peer), certificates.client_context(trusting))


async def test_a_client_without_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    peer = issue(authority, tmp_path, Subject("a", "peer"))
    anonymous = ssl.create_default_context(cafile=str(peer.ca))
    anonymous.check_hostname = False
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await greet(certificates.server_context(peer), anonymous)


async def test_a_server_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    mine = issue(authority, tmp_path, Subject("me", "client"))
    foreign = issue(certificates.create_authority("c1"), tmp_path, Subject("a", "peer"))
    with pytest.raises(ssl.SSLCertVerificationError):
        await greet(certificates.server_context(foreign), certificates.api_client_context(mine))


@pytest.mark.parametrize("role", ["gateway", "client", "operator"])
async def test_an_http_client_does_not_talk_to_what_is_no_peer(authority: Authority, tmp_path: Path, role: str) -> None:
    """Somebody with a certificate of the cluster cannot pose as the registry and collect requests."""
    impostor = issue(authority, tmp_path, Subject("x", role, "ams" if role == "gateway" else None))
    mine = issue(authority, tmp_path, Subject("me", "client"))
    with pytest.raises(ssl.SSLError):
        await greet(certificates.server_context(impostor), certificates.api_client_context(mine))


async def test_an_observer_serves_http_clients_but_gets_nothing_forwarded(authority: Authority, tmp_path: Path) -> None:
    observer = certificates.server_context(issue(authority, tmp_path, Subject("o", "observer")))
    mine = issue(authority, tmp_path, Subject("a", "peer"))
    assert await greet(observer, certificates.api_client_context(mine)) == (
        Subject("a", "peer"),
        Subject("o", "observer"),
    )
    with pytest.raises(ssl.SSLError):
        await greet(observer, certificates.api_client_context(mine, observers=False))


async def test_old_tls_versions_are_refused(authority: Authority, tmp_path: Path) -> None:
    peer = issue(authority, tmp_path, Subject("a", "peer"))
    old = certificates.client_context(issue(authority, tmp_path, Subject("me", "client")))
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await greet(certificates.server_context(peer), old)


def test_keys_are_readable_by_their_owner_alone_and_never_overwritten(authority: Authority, tmp_path: Path) -> None:
    certificates.save_authority(authority, tmp_path)
    files = issue(authority, tmp_path, Subject("a", "peer"))
    for key in (tmp_path / "ca.key", files.key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = files.key.read_bytes()
    with pytest.raises(FileExistsError):
        issue(authority, tmp_path, Subject("a", "peer"))
    with pytest.raises(FileExistsError):
        certificates.save_authority(authority, tmp_path)
    assert files.key.read_bytes() == before


def test_a_saved_authority_signs_on_and_a_wrong_key_is_noticed(authority: Authority, tmp_path: Path) -> None:
    certificates.save_authority(authority, tmp_path)
    assert certificates.load_authority(tmp_path).certificate == authority.certificate
    other = tmp_path / "other"
    other.mkdir()
    certificates.save_authority(certificates.create_authority("c2"), other)
    (tmp_path / "ca.key").write_bytes((other / "ca.key").read_bytes())
    with pytest.raises(ValueError, match="is not the key of"):
        certificates.load_authority(tmp_path)


@pytest.mark.parametrize(
    "subject",
    [
        Subject("", "peer"), Subject("../x", "peer"), Subject("a b", "peer"), Subject("x" * 64, "peer"),
        Subject("a", "root"), Subject("a", "gateway"), Subject("a", "peer", "ams"), Subject("a", "gateway", "a;b"),
    ],
)  # fmt: skip
def test_a_subject_that_cannot_be_used_is_refused(authority: Authority, tmp_path: Path, subject: Subject) -> None:
    with pytest.raises(ValueError, match=r"use up to 63|role|zone"):
        certificates.issue(authority, subject, tmp_path / "tls")
    assert not (tmp_path / "tls" / "cert.pem").exists()


def test_a_certificate_without_a_role_names_nobody() -> None:
    assert certificates.subject_of(None) is None
    assert certificates.subject_of({"subject": ((("commonName", "a"),),)}) is None
    assert certificates.subject_of({"subject": ((("commonName", "a"),), (("organizationalUnitName", "x"),))}) is None
