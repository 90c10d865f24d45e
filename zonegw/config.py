"""Configuration of a gateway: zonegw.toml, and every bound with its name and reason."""

import ipaddress
import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from zonegw import cache_rules, deletion_rules, import_rules, inspection_rules, quota_rules, store_config
from zonegw.cache_rules import CacheRules
from zonegw.deletion_rules import DeletionRules
from zonegw.errors import ConfigError
from zonegw.import_rules import ImportRules
from zonegw.inspection_rules import InspectionRules
from zonegw.policy import Policy
from zonegw.property_protection import PropertyProtections
from zonegw.quota_rules import QuotaRules
from zonegw.store_config import StoreConfig
from zonegw.tenant_set import query_bytes

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# The registry remembers 256 results. One of them is the last that was acked, which the handshake names: a batch of 256
# with a lost answer would push it out, and the session would count as diverged.
SESSION_WINDOW_MAX = 255
# As the registry takes them.
PROJECT_MAX_CHARS = 255


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds; each can be set under [limits] of zonegw.toml."""

    # Metadata store. The map is address space only (sparse), far above the quota, so that a full map never decides.
    store_map_size_bytes: int = 16 * GIB
    # Growth is refused above this: a million pending creates with their uploads, and a million images of other zones.
    store_soft_limit_bytes: int = 8 * GIB
    # Kept above the soft limit for deletes, acks and the feed, which make room again.
    store_reserve_bytes: int = 64 * MIB
    # Free space of the disk below which nothing that grows is accepted: a full disk stops the process.
    disk_reserve_bytes: int = 256 * MIB
    # A day of twelve writes a second: a million backups. A pending create takes 3.6 KB of the quota with all that shows
    # it, an upload or another update 1 KB more.
    queue_depth_max: int = 1_000_000
    # Drained writes are kept so that they can be offered again to a restored registry.
    queue_retain_h: float = 7 * 24
    queue_retain_max_writes: int = 1_000_000
    # Parked, or put back by a retry, in one transaction: well below a tenth of a second, in which no request is served.
    park_batch_max: int = 100
    # Images remembered that got another number than the one they had in this zone.
    renumbered_max: int = 100_000
    # Taken back into the queue in one transaction when an epoch was lost.
    rewind_batch_max: int = 100
    # Removed per turn, so that pruning never holds up a request.
    prune_batch_max: int = 256
    # Operations in flight.
    session_window: int = SESSION_WINDOW_MAX
    # Verdicts, or changes of the feed, taken between two turns of the loop: under a millisecond, in which no request is
    # served.
    turn_rows_max: int = 2
    # After so many such turns what was taken is committed, although nobody waits for it and more is to come.
    commit_postponed_turns_max: int = 32
    # One request to the registry; below its body limit with room for the envelope.
    drain_batch_max_bytes: int = 512 * KIB

    # Offline time that the IDs on hand must last for at the current rate.
    runway_h: float = 24
    # Smallest and largest block asked for: two thousand creates before the rate is known; the registry's own bound.
    id_block_min: int = 2_000
    id_block_max: int = 1_000_000
    # Blocks on hand; more would mean that grants loop.
    id_blocks_max: int = 64
    # The rate is forgotten over this time: a burst must not buy IDs for a week.
    id_rate_window_s: float = 3600
    # A burst shows over this time, and half of what it takes in that one must last until more numbers are there: a few
    # requests to a registry that is slow, or has just lost its leader.
    id_burst_window_s: float = 20
    id_burst_s: float = 120
    # Numbers for less than this time, or less than this share of the smallest block, are said to be few.
    runway_warning_h: float = 4
    id_low_share: float = 0.25

    # Uplink: how long a request to the registry may take, and how the link is probed.
    uplink_deadline_s: float = 5
    # A registry 500 ms away answers on a new connection after three round trips; one that is silent for longer, or does
    # not even accept, is left for another peer.
    uplink_connect_s: float = 1
    uplink_attempt_s: float = 2
    # The interval is a small part of the lease; an election of the registry fits into the deadline.
    heartbeat_interval_s: float = 0.5
    heartbeat_deadline_s: float = 1.5
    # Failed heartbeats after which the zone counts as degraded.
    heartbeat_failures_max: int = 2
    retry_delay_min_s: float = 0.2
    retry_delay_max_s: float = 5
    # How long a client waits for the registry's verdict: on an image of another zone, or because it asks for that.
    registry_wait_max_s: float = 30
    # Feed changes applied in one transaction, and those read ahead.
    feed_batch_max: int = 256
    # No heartbeat of the feed for so long: the stream is dead even if the connection is not.
    feed_silence_max_s: float = 5
    # Projects of a tenant set: no more are named to the registry in one request, whose first line they must fit.
    tenants_max: int = 128
    tenants_query_max_bytes: int = 7 * KIB
    # What the registry said of its state that the catalogue has yet to catch up with: two minutes of heartbeats.
    confirmations_max: int = 256
    zones_refresh_s: float = 30
    # How long a client that has seen a newer revision elsewhere waits for this catalogue to reach it.
    revision_wait_max_s: float = 2

    # Bodies and answers.
    json_body_max_bytes: int = MIB
    # Time in which such a body must have come.
    json_body_max_s: float = 30
    image_max_bytes: int = 10 << 40
    page_images_default: int = 25
    page_images_max: int = 1000
    # Rows read for one page of a filtered list; then the page ends early and its `next` goes on.
    list_scan_max: int = 20_000
    # Of such scans for one page of v1, which has no `next`: a million rows, some ten seconds.
    list_full_scans_max: int = 50
    # UUIDs of deleted images, which a create can't have again; some tens of MiB.
    deleted_uuids_max: int = 1_000_000
    # Rows read between two turns of the loop.
    list_chunk_rows: int = 500
    # Images with equal first sort key that are put in order in memory.
    list_group_max: int = 5_000
    name_max_chars: int = 255
    tag_max_chars: int = 255
    tags_max: int = 128
    # As many as the registry takes.
    members_max: int = 128
    properties_max: int = 128
    property_value_max_bytes: int = 64 * KIB
    metadata_max_bytes: int = 64 * KIB
    patch_operations_max: int = 1000

    # Image data.
    data_chunk_bytes: int = MIB
    # Such chunks of one upload on their way to the disk and the digests: what any of the three may lag behind.
    data_batches_max: int = 4
    data_store_max_bytes: int = 1 << 60
    data_cache_max_bytes: int = 50 * GIB
    # Beside these, pinned ones: base images that a zone must have, and of which an operator decides.
    data_pinned_max_bytes: int = 50 * GIB
    # Fetches ahead of any client: few, so that the link and the disk stay with those who wait.
    prefetch_running_max: int = 2
    # Images that wait for it; a scan of the catalogue, which comes now and then, waits where there are more.
    prefetch_queue_max: int = 1000
    prefetch_scan_s: float = 300
    # After a failure it comes sooner, and less soon after each further one.
    prefetch_retry_min_s: float = 5
    # What a connection may have received and nobody read yet; a body is read in pieces of up to twice this.
    read_buffer_bytes: int = 512 * KIB
    # How long the rest of a body that was refused is read and dropped: a client that can't send it does not hear why.
    refused_body_max_s: float = 60
    uploads_max: int = 64
    downloads_max: int = 512
    # Seconds without progress of an uploading or a downloading client, or of the zone that data is fetched from.
    upload_idle_max_s: float = 60
    download_idle_max_s: float = 60
    fetch_idle_max_s: float = 10
    fetch_attempts_max: int = 5
    interzone_streams_max: int = 128
    # Swift and S3: how long a connection may take to come, how long an answer or the next bytes of one, and how long
    # the last bytes of an upload may take to all their disks. A passing failure is tried again after a delay.
    store_connect_max_s: float = 5
    store_idle_max_s: float = 30
    store_put_wait_max_s: float = 300
    store_attempts_max: int = 3
    store_retry_delay_s: float = 0.5
    # What is read of a store's complaint, for the log and the answer.
    store_complaint_max_bytes: int = 1000
    # Swift takes no object above 5 GiB, and by default no manifest of more than 1000 segments.
    swift_segment_bytes: int = 4 * GIB
    swift_segments_max: int = 1000
    # Parts of an S3 upload are held in memory, this many on their way beside the one that fills. S3 takes 10,000.
    s3_part_bytes: int = 16 * MIB
    s3_parts_at_once_max: int = 2
    s3_parts_max: int = 10_000
    # How long another zone may take to bring the last bytes to its disk, which a slow one does in one fsync.
    interzone_put_wait_max_s: float = 300
    # Keys that were withdrawn before their data came: a broken connection holds what was sent on it for moments only.
    withdrawn_keys_max: int = 1024
    # How long a zone that holds a copy which nobody owns is left alone after it could not be reached.
    far_garbage_retry_s: float = 30
    # How often the end of a delay is looked for, and images that a resync did not find are asked for again.
    deletions_look_s: float = 60
    # Bytes without an owner are told of only after this time, and so many at once; the scan for their owners goes
    # through all metadata for so many of them.
    orphan_age_min_h: float = 24
    orphans_list_max: int = 10_000
    orphans_scan_max: int = 200_000
    fates_ask_s: float = 600
    # Images in one request about deletions; as many as the registry takes.
    deletions_batch_max: int = 512
    # A zone that answers is near; a list of stores must not wait for one that does not, and asks each once in a while.
    store_probe_max_s: float = 1.5
    store_probe_keep_s: float = 5
    # How long a zone that did not answer is not asked for data: its clients hear so at once meanwhile.
    zone_away_keep_s: float = 5

    # Imports. Each one that runs fills a disk or a link: a few at a time, the others wait in the order they came.
    imports_running_max: int = 4
    imports_pending_max: int = 256
    # A job that ends the process each time it runs must not do so for ever.
    import_starts_max: int = 3
    # What is known of an import that is over; the number bounds memory.
    import_results_keep_h: float = 48
    import_results_max: int = 1000
    # Images with bytes that wait for their import, and how long they may: as long as drained writes are kept.
    staged_images_max: int = 1000
    staged_keep_h: float = 7 * 24
    # web-download: a source without progress is given up, one that drips is too, in the end.
    web_idle_max_s: float = 30
    web_download_max_s: float = 24 * 3600
    web_redirects_max: int = 5
    web_uri_max_chars: int = 2048

    # Client programs told apart in the metrics of v1; the others are counted together.
    v1_user_agents_max: int = 32

    requests_max: int = 1024
    # What a stopping gateway waits for requests that are under way.
    shutdown_grace_s: float = 5


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
        limits=_limits(_table(raw, "limits")),
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


def _limits(table: dict[str, Any]) -> Limits:
    kinds = {f.name: f.type for f in fields(Limits)}
    for name, value in table.items():
        if name not in kinds:
            raise ConfigError(f"unknown bound limits.{name}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"limits.{name} must be a positive number")
        if kinds[name] is int and not isinstance(value, int):
            raise ConfigError(f"limits.{name} must be a whole number")
    if table.get("session_window", 1) > SESSION_WINDOW_MAX:
        raise ConfigError(f"limits.session_window must be at most {SESSION_WINDOW_MAX}: the registry remembers no more")
    return Limits(**table)


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
