"""Configuration of a gateway: zonegw.toml."""

import ipaddress
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zonegw import cache_rules, deletion_rules, import_rules, inspection_rules, quota_rules, store_config
from zonegw.cache_rules import CacheRules
from zonegw.deletion_rules import DeletionRules
from zonegw.errors import ConfigError
from zonegw.import_rules import ImportRules
from zonegw.inspection_rules import InspectionRules
from zonegw.limits import Limits, limits_of
from zonegw.policy import Policy
from zonegw.property_protection import PropertyProtections
from zonegw.quota_rules import QuotaRules
from zonegw.store_config import StoreConfig
from zonegw.tenant_set import query_bytes

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# As the registry takes them.
PROJECT_MAX_CHARS = 255


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of the gateway's own certificate (CN = gateway, OU = gateway, O = zone) and the cluster's CA."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Auth:
    """Who may ask: `methods` are tried in order; `none` makes everyone an administrator of `none_project`."""

    methods: tuple[str, ...] = ("tokens",)
    tokens_file: Path | None = None
    none_project: str = "admin"
    allow_none_off_loopback: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """A gateway's configuration, checked."""

    zone: str
    gateway: str
    data_dir: Path
    listen: tuple[str, int]
    endpoints: tuple[str, ...]
    # Projects whose images the catalogue holds, beside what everyone sees; none named: all images.
    tenants: tuple[str, ...] = ()
    public_url: str | None = None
    interzone_listen: tuple[str, int] | None = None
    advertise: str | None = None
    tls: Tls | None = None
    auth: Auth = field(default_factory=Auth)
    policy: Policy = field(default_factory=Policy)
    protections: PropertyProtections = field(default_factory=PropertyProtections)
    metadefs_dir: Path | None = None
    imports: ImportRules = field(default_factory=ImportRules)
    cache: CacheRules = field(default_factory=CacheRules)
    deletion: DeletionRules = field(default_factory=DeletionRules)
    inspection: InspectionRules = field(default_factory=InspectionRules)
    quotas: QuotaRules = field(default_factory=QuotaRules)
    # Where image bytes are kept, here and in other zones; without entries below data_dir.
    stores: tuple[StoreConfig, ...] = ()
    # Whose X-Forwarded-Proto and X-Forwarded-Host are believed, for links in answers.
    trusted_proxies: tuple[Network, ...] = ()
    # Whether the Images API v1 is served, too.
    v1: bool = True
    limits: Limits = field(default_factory=Limits)


TABLES = {
    "zone", "gateway", "data_dir", "images", "interzone", "registry", "tls", "auth", "policy", "property_protections",
    "import", "inspection", "quotas", "stores", "cache", "deletion", "limits",
}  # fmt: skip


def load(path: Path) -> Config:
    """Read and check a configuration file; relative paths in it are relative to its directory."""
    try:
        raw = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return parse(raw, path.resolve().parent)


def parse(raw: dict[str, Any], base: Path) -> Config:
    """Check the decoded file; `base` is what relative paths start from."""
    _known(raw, "", TABLES)
    images, interzone, registry = (_table(raw, name) for name in ("images", "interzone", "registry"))
    _known(images, "images.", {"listen", "public_url", "trusted_proxies", "metadefs_dir", "v1"})
    _known(interzone, "interzone.", {"listen", "advertise"})
    _known(registry, "registry.", {"endpoints", "tenants"})
    config = Config(
        zone=_name(raw, "zone"),
        gateway=_name(raw, "gateway"),
        data_dir=base / _text(raw, "data_dir"),
        listen=_address(images, "images.listen"),
        public_url=images.get("public_url"),
        interzone_listen=_address(interzone, "interzone.listen") if interzone else None,
        advertise=interzone.get("advertise"),
        endpoints=_endpoints(registry),
        tenants=_tenants(registry),
        tls=_tls(raw, base),
        auth=_auth(_table(raw, "auth"), base),
        policy=Policy(_table(raw, "policy")),
        protections=PropertyProtections(raw.get("property_protections", ())),
        metadefs_dir=base / _text(images, "metadefs_dir") if "metadefs_dir" in images else None,
        imports=import_rules.parse(_table(raw, "import")),
        cache=cache_rules.parse(_table(raw, "cache")),
        deletion=deletion_rules.parse(_table(raw, "deletion")),
        inspection=inspection_rules.parse(_table(raw, "inspection")),
        quotas=quota_rules.parse(_table(raw, "quotas")),
        stores=store_config.parse(raw.get("stores", []), base),
        trusted_proxies=_networks(images, "trusted_proxies"),
        v1=_truth(images, "images.v1", default=True),
        limits=limits_of(_table(raw, "limits")),
    )
    _check_together(config)
    return config


def _check_together(config: Config) -> None:
    """What one key means for another."""
    _check_tenants(config)
    if "none" in config.auth.methods and not config.auth.allow_none_off_loopback and not _loopback(config.listen[0]):
        raise ConfigError(
            'auth.methods contains "none" but images.listen is not a loopback address: everyone who reaches it '
            "would be an administrator; listen on 127.0.0.1, use tokens, or set auth.allow_none_off_loopback = true"
        )
    if "tokens" in config.auth.methods and config.auth.tokens_file is None:
        raise ConfigError('auth.methods contains "tokens": set auth.tokens_file (made by `zonegw token create`)')
    if config.tls is None and (config.interzone_listen or any(e.startswith("https:") for e in config.endpoints)):
        raise ConfigError("https endpoints and the interzone listener need [tls] with ca, cert and key")
    if any(store.zone == config.zone for store in config.stores):
        raise ConfigError(f"[[stores]]: leave zone out of the entries of this zone's own stores (zone {config.zone})")
    if config.interzone_listen and not config.advertise:
        raise ConfigError(
            'interzone.advertise is missing: write the URL at which other zones reach it, "https://HOST:PORT"'
        )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _networks(table: dict[str, Any], key: str) -> tuple[Network, ...]:
    value = table.get(key, [])
    if not isinstance(value, list):
        raise ConfigError(f'images.{key} must be a list of networks, as ["192.0.2.0/24"]')
    try:
        return tuple(ipaddress.ip_network(text) for text in value)
    except ValueError as error:
        raise ConfigError(f"images.{key}: {error}") from None


def _known(table: dict[str, Any], prefix: str, names: set[str]) -> None:
    for key in table:
        if key not in names:
            raise ConfigError(f"unknown key {prefix}{key}; known are: {', '.join(sorted(names))}")


def _table(raw: dict[str, Any], name: str) -> dict[str, Any]:
    value = raw.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError(f"[{name}] must be a table")
    return value


def _text(raw: dict[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f'{key} is missing or not a text; write {key} = "..."')
    return value


def _name(raw: dict[str, Any], key: str) -> str:
    value = _text(raw, key)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise ConfigError(f"{key} must be 1 to 63 letters, digits, '-', '_' or '.', the first no sign, not {value!r}")
    return value


def _truth(table: dict[str, Any], key: str, *, default: bool) -> bool:
    value = table.get(key.rpartition(".")[2], default)
    if not isinstance(value, bool):
        raise ConfigError(f"{key} must be true or false")
    return value


def _address(table: dict[str, Any], key: str) -> tuple[str, int]:
    host, _, port = _text(table, key.rpartition(".")[2]).rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f'{key} must be "HOST:PORT"')
    return host.strip("[]"), int(port)


def _endpoints(registry: dict[str, Any]) -> tuple[str, ...]:
    value = registry.get("endpoints")
    if not isinstance(value, list) or not value or not all(isinstance(e, str) and "://" in e for e in value):
        raise ConfigError('registry.endpoints must be a list of URLs, as ["https://HOST:PORT"]')
    return tuple(value)


def _tenants(registry: dict[str, Any]) -> tuple[str, ...]:
    value = registry.get("tenants", [])
    if not isinstance(value, list) or not all(isinstance(t, str) and 0 < len(t) <= PROJECT_MAX_CHARS for t in value):
        raise ConfigError(
            f'registry.tenants must be a list of project IDs of 1 to {PROJECT_MAX_CHARS} characters, as ["demo"]; '
            "without it the catalogue holds the images of all"
        )
    return tuple(value)


def _check_tenants(config: Config) -> None:
    limits, tenants = config.limits, frozenset(config.tenants)
    fit = query_bytes(tenants) <= limits.tenants_query_max_bytes
    if len(tenants) > limits.tenants_max or not fit:
        raise ConfigError(
            f"registry.tenants names {len(tenants)} projects, more than limits.tenants_max or "
            "limits.tenants_query_max_bytes allow: leave it out, so that the catalogue holds the images of all"
        )


def _tls(raw: dict[str, Any], base: Path) -> Tls | None:
    table = _table(raw, "tls")
    if not table:
        return None
    _known(table, "tls.", {"ca", "cert", "key"})
    paths = {name: base / _text(table, name) for name in ("ca", "cert", "key")}
    for name, path in paths.items():
        if not path.is_file():
            raise ConfigError(f"tls.{name}: there is no file {path}")
    return Tls(**paths)


def _auth(table: dict[str, Any], base: Path) -> Auth:
    _known(table, "auth.", {"methods", "tokens_file", "none_project", "allow_none_off_loopback"})
    methods = table.get("methods", ["tokens"])
    if not isinstance(methods, list) or not methods or any(m not in ("tokens", "none") for m in methods):
        raise ConfigError('auth.methods must be a list of "tokens" and "none"')
    tokens_file = table.get("tokens_file")
    return Auth(
        methods=tuple(methods),
        tokens_file=base / tokens_file if tokens_file else None,
        none_project=table.get("none_project", "admin"),
        allow_none_off_loopback=table.get("allow_none_off_loopback") is True,
    )


def render(
    *,
    zone: str,
    gateway: str,
    data_dir: str,
    listen: str,
    endpoints: list[str],
    tenants: list[str] | None = None,
    tokens_file: str | None = None,
    interzone_listen: str | None = None,
    advertise: str | None = None,
    tls: dict[str, str] | None = None,
    public_url: str | None = None,
    limits: dict[str, int | float] | None = None,
) -> str:
    """The text of a zonegw.toml; without `tokens_file` the method is `none`, which `listen` must then allow."""
    auth = {"methods": ["tokens"], "tokens_file": tokens_file} if tokens_file else {"methods": ["none"]}
    tables: dict[str, dict[str, Any] | None] = {
        "images": {"listen": listen, "public_url": public_url},
        "interzone": {"listen": interzone_listen, "advertise": advertise} if interzone_listen else None,
        "registry": {"endpoints": endpoints, "tenants": tenants},
        "tls": dict(tls) if tls else None,
        "auth": auth,
        "limits": dict(limits) if limits else None,
    }
    lines = [
        f"{key} = {_literal(value)}" for key, value in (("zone", zone), ("gateway", gateway), ("data_dir", data_dir))
    ]
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]", *(f"{k} = {_literal(v)}" for k, v in table.items() if v is not None)]
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    """A TOML literal of a text, number, truth value or list of texts."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_literal(v) for v in value) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)
