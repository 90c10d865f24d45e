"""Mutual TLS between gateways: who is who is said by the certificate (CN, OU, O), never by an address."""

import ssl
from typing import Any

from zonegw.config import Tls

GATEWAY_ROLE = "gateway"


def server_context(tls: Tls) -> ssl.SSLContext:
    """For the interzone listener: only certificates of the cluster's CA get through the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return _load(context, tls)


def client_context(tls: Tls) -> ssl.SSLContext:
    """For fetching from other gateways: the name in their certificate is checked by `subject`, not their address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _load(context, tls)


def _load(context: ssl.SSLContext, tls: Tls) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(tls.ca)
    context.load_cert_chain(tls.cert, tls.key)
    return context


def subject(certificate: Any) -> dict[str, str]:
    """commonName, organizationalUnitName, organizationName of a verified peer certificate; empty without one."""
    if not certificate:
        return {}
    return {name: value for relative in certificate.get("subject", ()) for name, value in relative}


def is_gateway(certificate: Any, zone: str | None = None) -> bool:
    """Whether the certificate is a gateway's, and of `zone` where one is expected."""
    names = subject(certificate)
    return names.get("organizationalUnitName") == GATEWAY_ROLE and zone in (None, names.get("organizationName"))
