"""[import] of zonegw.toml: which import methods are on, and from where `web-download` may fetch.

[import]
methods = ["glance-direct", "web-download", "copy-image"]
[import.web_download]
allowed_schemes = ["http", "https"]     disallowed_schemes = []
allowed_ports = [80, 443]               disallowed_ports = []
allowed_hosts = []  (any)               disallowed_hosts = []
allow_internal = []                     networks that are let through although they are not public, as ["10.1.0.0/16"]
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from zonegw.errors import ConfigError

GLANCE_DIRECT, WEB_DOWNLOAD, COPY_IMAGE = "glance-direct", "web-download", "copy-image"
METHODS = (GLANCE_DIRECT, WEB_DOWNLOAD, COPY_IMAGE)
SCHEMES = ("http", "https")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class WebRules:
    """Where `web-download` may go. A URL must match what is allowed, where that is given, and nothing disallowed."""

    allowed_schemes: tuple[str, ...] = SCHEMES
    disallowed_schemes: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    disallowed_hosts: tuple[str, ...] = ()
    allowed_ports: tuple[int, ...] = (80, 443)
    disallowed_ports: tuple[int, ...] = ()
    allow_internal: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class ImportRules:
    """The methods that clients may use, as they are told, and the rules of `web-download`."""

    methods: tuple[str, ...] = METHODS
    web: WebRules = WebRules()


def parse(table: Mapping[str, Any]) -> ImportRules:
    """Raises ConfigError that names the key."""
    _known(table, "import.", {"methods", "web_download"})
    methods = _list(table, "import.", "methods", list(METHODS), str)
    if unknown := [method for method in methods if method not in METHODS]:
        raise ConfigError(f"import.methods: {unknown[0]!r} is none of {', '.join(METHODS)}")
    web = table.get("web_download", {})
    if not isinstance(web, dict):
        raise ConfigError("[import.web_download] must be a table")
    return ImportRules(tuple(methods), _web(web))


def _web(table: Mapping[str, Any]) -> WebRules:
    prefix = "import.web_download."
    _known(table, prefix, {field.name for field in fields(WebRules)})
    values: dict[str, Any] = {}
    for name in table:
        given = _list(table, prefix, name, [], int if name.endswith("_ports") else str)
        values[name] = tuple(_host(v) if name.endswith("_hosts") else v for v in given)
    if unknown := set(values.get("allowed_schemes", ())) - set(SCHEMES):
        raise ConfigError(f"{prefix}allowed_schemes: {min(unknown)!r} can't be fetched, only {' and '.join(SCHEMES)}")
    if "allow_internal" in values:
        values["allow_internal"] = _networks(prefix, values["allow_internal"])
    return WebRules(**values)


def _networks(prefix: str, texts: tuple[str, ...]) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise ConfigError(f'{prefix}allow_internal: {error}; write networks, as ["10.1.0.0/16"]') from None


def _host(text: str) -> str:
    return text.lower().rstrip(".")


def _known(table: Mapping[str, Any], prefix: str, names: set[str]) -> None:
    for key in table:
        if key not in names:
            raise ConfigError(f"unknown key {prefix}{key}; known are: {', '.join(sorted(names))}")


def _list(table: Mapping[str, Any], prefix: str, key: str, default: list[Any], kind: type) -> list[Any]:
    value = table.get(key, default)
    if not isinstance(value, list) or any(type(item) is not kind for item in value):
        raise ConfigError(f"{prefix}{key} must be a list of {'whole numbers' if kind is int else 'texts'}")
    return value
