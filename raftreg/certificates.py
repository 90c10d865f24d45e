"""The cluster's certificate authority, its certificates, and the TLS contexts that use them.

Who someone is stands in the certificate's subject, never in an address: CN = name, OU = role (peer, observer, gateway,
client, operator), O = zone for gateways. So links may run through proxies and addresses may change. Nothing signed by
another authority is ever accepted, hence contexts check no host names; whoever dials checks name or role itself.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from raftreg.config import TlsFiles

ROLES = ("peer", "observer", "gateway", "client", "operator")

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
# X.509 has no renewal here yet: `raftreg init` is done once, and an expired certificate stops a cluster.
_CERTIFICATE_DAYS = 3650
# Clocks of machines that were just installed are off; a certificate must not begin in their future.
_BACKDATE = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a certificate names. `zone` is set for gateways only."""

    name: str
    role: str
    zone: str | None = None


@dataclass(frozen=True)
class Authority:
    """The signing pair of one cluster. The key stays with whoever ran `raftreg init`; no peer needs it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def check_name(name: str, what: str = "name") -> str:
    """`name` if it fits certificates, files and TOML keys. Raises ValueError with a sentence."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{what} {name!r}: use up to 63 letters, digits, dots, dashes and underscores")
    return name


def create_authority(cluster_id: str) -> Authority:
    """A new authority, named after the cluster."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"raftreg {cluster_id}"[:64])])
    public = key.public_key()
    usage = _key_usage(signs_certificates=True)
    builder = (
        _builder(subject, subject, public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def save_authority(authority: Authority, directory: Path) -> None:
    """Write ca.pem and ca.key (0600). Raises FileExistsError: an authority is never overwritten."""
    _write(directory / "ca.key", _key_pem(authority.key), 0o600)
    _write(directory / "ca.pem", _certificate_pem(authority.certificate), 0o644)


def load_authority(directory: Path) -> Authority:
    """What `save_authority` wrote."""
    certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError(f"{directory / 'ca.key'} is not the key of {directory / 'ca.pem'}")
    return Authority(certificate, key)


def issue(authority: Authority, subject: Subject, directory: Path, hosts: Iterable[str] = ()) -> TlsFiles:
    """Make key and certificate for `subject` in `directory` as ca.pem, cert.pem, key.pem (0600).

    `hosts` (names or addresses) become subject alternative names, for clients which check them. Raises ValueError for
    a name or role that cannot be used, FileExistsError rather than overwrite.
    """
    check_name(subject.name)
    if subject.role not in ROLES:
        raise ValueError(f"role {subject.role!r} is not one of {', '.join(ROLES)}")
    if (subject.role == "gateway") != (subject.zone is not None):
        raise ValueError("a gateway's certificate names its zone, no other one does")
    key = ec.generate_private_key(ec.SECP256R1())
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    files = TlsFiles(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")
    _write(files.key, _key_pem(key), 0o600)
    _write(files.cert, _certificate_pem(_sign(authority, subject, key, hosts)), 0o644)
    _write(files.ca, _certificate_pem(authority.certificate), 0o644)
    return files


def _sign(
    authority: Authority, subject: Subject, key: ec.EllipticCurvePrivateKey, hosts: Iterable[str]
) -> x509.Certificate:
    builder = (
        _builder(_x509_name(subject), authority.certificate.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_purposes(subject.role)), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(subject.name, hosts)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    return builder.sign(authority.key, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + datetime.timedelta(days=_CERTIFICATE_DAYS))
    )


def _x509_name(subject: Subject) -> x509.Name:
    attributes = [
        x509.NameAttribute(NameOID.COMMON_NAME, subject.name),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, subject.role),
    ]
    if subject.zone is not None:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, check_name(subject.zone, "zone")))
    return x509.Name(attributes)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _purposes(role: str) -> list[x509.ObjectIdentifier]:
    """Peers, observers and gateways (for the data of other zones) also listen."""
    client = [ExtendedKeyUsageOID.CLIENT_AUTH]
    return [ExtendedKeyUsageOID.SERVER_AUTH, *client] if role in ("peer", "observer", "gateway") else client


def _alternative_names(name: str, hosts: Iterable[str]) -> list[x509.GeneralName]:
    return [_general_name(host) for host in dict.fromkeys([name, *hosts])]


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Create the file with its final mode: a key is never readable by others, not even for a moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def subject_of(peercert: Mapping[str, Any] | None) -> Subject | None:
    """Whom the certificate of `getpeercert()` names; None for no certificate or one without name and role."""
    if not peercert:
        return None
    fields = {key: value for part in peercert.get("subject", ()) for key, value in part}
    name, role = fields.get("commonName"), fields.get("organizationalUnitName")
    if name is None or role not in ROLES:
        return None
    return Subject(name, role, fields.get("organizationName"))


def server_context(tls: TlsFiles) -> ssl.SSLContext:
    """For listeners: clients without a certificate of the cluster's authority fail in the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return _prepared(context, tls)


def client_context(tls: TlsFiles) -> ssl.SSLContext:
    """For dialling. The caller checks the name in the other end's certificate; host names are not looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _prepared(context, tls)


def _prepared(context: ssl.SSLContext, tls: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cafile=str(tls.ca))
    context.load_cert_chain(str(tls.cert), str(tls.key))
    return context


class _RegistryOnly(ssl.SSLObject):
    """Ends the handshake unless the other end serves the registry's API, before one byte of a request was sent."""

    roles: tuple[str, ...] = ("peer", "observer")

    def do_handshake(self) -> None:
        super().do_handshake()
        subject = subject_of(self.getpeercert())
        if subject is None or subject.role not in self.roles:
            raise ssl.SSLCertVerificationError(f"the other end is {subject}, not a registry peer")


class _VoterOnly(_RegistryOnly):
    roles = ("peer",)


def api_client_context(tls: TlsFiles, *, observers: bool = True) -> ssl.SSLContext:
    """For HTTP clients of the registry: any peer of the cluster will do, nobody else.

    Without `observers` voters only: whoever forwards for others tells nobody else for whom.
    """
    context = client_context(tls)
    context.sslobject_class = _RegistryOnly if observers else _VoterOnly
    return context
