"""[[stores]] of zonegw.toml: where this zone keeps image bytes, and how it reads those of other zones directly.

[[stores]]
name = "swift"                          as locations name it, for ever; "default" is shown as the zone's own name
type = "swift"                          "filesystem": directory, max_bytes
default = true                          takes what no client chose a store for; else the first entry does
auth = "v1"                             "v3" (Keystone: project, user_domain, project_domain, region, interface), "none"
auth_url = "https://swift.example/auth/v1.0"
user = "images:gateway"
password_file = "swift-password"        secrets stand in files of their own
container = "images"

[[stores]]
zone = "fra"                            another zone's store of this name, which is read here and never written
name = "default"
type = "s3"
endpoint = "https://s3.fra.example"     region, virtual_hosted; without access_key and secret_key_file: public
bucket = "images"

Without any entry there is one store, `default`, below `data_dir`. `ca_file` names the authority of a private store.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from zonegw.errors import ConfigError

# Bytes that wait for an import lie in a store of this name where the default one has no files.
STAGING = "staging"
AUTHS = ("v1", "v3", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """What all kinds have: without a `zone` it is one of this zone's."""

    name: str
    zone: str | None = None
    default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesystemConfig(StoreConfig):
    """`max_bytes` is limits.data_store_max_bytes where it is not given."""

    directory: Path
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SwiftConfig(StoreConfig):
    """A container of an account; `url` is the account's where the login does not tell, or tells another one."""

    container: str
    auth: str = "v3"
    auth_url: str = ""
    url: str = ""
    user: str = ""
    password_file: Path | None = None
    project: str = ""
    user_domain: str = "Default"
    project_domain: str = "Default"
    region: str | None = None
    interface: str = "public"
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Config(StoreConfig):
    """A bucket; `endpoint` has the bucket in its host name where `virtual_hosted` says so."""

    endpoint: str
    bucket: str
    region: str = "us-east-1"
    access_key: str = ""
    secret_key_file: Path | None = None
    virtual_hosted: bool = False
    ca_file: Path | None = None


KINDS: dict[str, type[StoreConfig]] = {"filesystem": FilesystemConfig, "swift": SwiftConfig, "s3": S3Config}


def parse(tables: Any, base: Path) -> tuple[StoreConfig, ...]:
    """The entries, checked; relative paths start from `base`. Raises ConfigError that names the key."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError("write each store as a table: [[stores]]")
    found = tuple(_entry(table, base) for table in tables)
    names = [(store.zone, store.name) for store in found]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"[[stores]] has two entries with the name {doubled[1]!r}")
    if len(own_default := [store for store in found if store.default]) > 1:
        raise ConfigError(f"[[stores]]: {own_default[0].name} and {own_default[1].name} both have default = true")
    return found


def _entry(table: Mapping[str, Any], base: Path) -> StoreConfig:
    kind = table.get("type")
    if kind not in KINDS:
        raise ConfigError(f"[[stores]]: type must be one of {', '.join(KINDS)}, not {kind!r}")
    where, wanted = f"[[stores]] {table.get('name')!r}", KINDS[kind]
    _check_keys(where, table, wanted)
    values = {
        name: _value(f"{where}: {name}", value, wanted, name, base) for name, value in table.items() if name != "type"
    }
    store = wanted(**values)
    _check_entry(where, store)
    return store


def _check_keys(where: str, table: Mapping[str, Any], wanted: type[StoreConfig]) -> None:
    known = {field.name: field.default is MISSING for field in fields(wanted)}
    if unknown := [name for name in table if name not in known and name != "type"]:
        is_secret = unknown[0] in ("password", "secret_key")
        secret = "; secrets stand in files: password_file, secret_key_file" if is_secret else ""
        raise ConfigError(f"{where}: unknown key {unknown[0]}; known are: {', '.join(sorted(known))}{secret}")
    if missing := [name for name, needed in known.items() if needed and name not in table]:
        raise ConfigError(f"{where}: {missing[0]} is missing")


def _value(where: str, value: Any, wanted: type[StoreConfig], name: str, base: Path) -> Any:
    hint = get_type_hints(wanted)[name]
    kind = next(iter(kind for kind in get_args(hint) if kind is not type(None)), hint)
    if type(value) is not (str if kind is Path else kind) or (value <= 0 if type(value) is int else value == ""):
        said = {bool: "true or false", int: "a positive whole number"}.get(kind, "a text")
        raise ConfigError(f"{where} must be {said}")
    if kind is Path:
        return base / value
    return value.rstrip("/") if name in ("auth_url", "url", "endpoint") else value


def _check_entry(where: str, store: StoreConfig) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", store.name) or store.name == STAGING:
        raise ConfigError(f"{where}: name must be 1 to 63 letters, digits, '-' or '_', and not {STAGING!r}")
    if store.zone is not None and (store.default or isinstance(store, FilesystemConfig)):
        raise ConfigError(f"{where}: a store of another zone is read through Swift or S3, and is no default")
    if isinstance(store, SwiftConfig):
        _check_swift(where, store)
    if isinstance(store, S3Config):
        _check_s3(where, store)


def _check_swift(where: str, store: SwiftConfig) -> None:
    if store.auth not in AUTHS:
        raise ConfigError(f"{where}: auth must be one of {', '.join(AUTHS)}")
    needed = {"v1": ("auth_url", "user", "password_file"), "none": ("url",)}
    missing = [
        name
        for name in needed.get(store.auth, ("auth_url", "user", "password_file", "project"))
        if not getattr(store, name)
    ]
    if missing:
        raise ConfigError(f'{where}: {missing[0]} is missing, which auth = "{store.auth}" needs')
    _check_urls(where, store.auth_url, store.url)
    _check_file(where, store.password_file)
    _check_file(where, store.ca_file)
    if store.auth == "none" and store.zone is None:
        raise ConfigError(f'{where}: auth = "none" reads a public container, but this zone writes to its own stores')
    if "/" in store.container:
        raise ConfigError(f"{where}: container is a name, without a slash")


def _check_s3(where: str, store: S3Config) -> None:
    if bool(store.access_key) != (store.secret_key_file is not None):
        raise ConfigError(f"{where}: access_key and secret_key_file belong together")
    if not store.access_key and store.zone is None:
        raise ConfigError(f"{where}: access_key and secret_key_file are missing: this zone writes to its own stores")
    _check_urls(where, store.endpoint)
    _check_file(where, store.secret_key_file)
    _check_file(where, store.ca_file)


def _check_urls(where: str, *urls: str) -> None:
    for url in urls:
        if url and not url.startswith(("http://", "https://")):
            raise ConfigError(f"{where}: {url!r} is no URL, as https://HOST:PORT/PATH")


def _check_file(where: str, path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise ConfigError(f"{where}: there is no file {path}")


def own(stores: Sequence[StoreConfig]) -> list[StoreConfig]:
    return [store for store in stores if store.zone is None]
