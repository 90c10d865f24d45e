"""What a registry peer is told at start: one TOML file, read once, passed around as frozen values.

Every limit of the package has its name, unit and reason here. `load` refuses what it does not know, so that a
misspelt limit is an error and not a default.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

FILE_NAME = "raftreg.toml"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# Not settings: how much log one append_entries carries at most, and from which size on pysyncobj would split an entry,
# which it does wrong.
APPEND_BATCH_BYTES = 8 * MIB
ENTRY_BYTES_MAX = APPEND_BATCH_BYTES // 4
# Scheduled backups: a shorter period would keep a reader of the database open for good; each file kept has its label
# read before older ones are removed.
BACKUP_EVERY_MIN_S = 60.0
BACKUPS_KEPT_MAX = 1000


class ConfigError(Exception):
    """The configuration cannot be used; the message names file, key and remedy."""


@dataclass(frozen=True)
class Timing:
    """Clocks of the consensus. The ratios matter: heartbeat << election timeout << what a client waits for."""

    # Drawn anew for each election; below this a busy machine's scheduling pauses look like a dead leader.
    raft_min_timeout_s: float = 0.3
    # The spread keeps two peers from standing at the same moment.
    raft_max_timeout_s: float = 0.6
    # Six heartbeats may get lost before anyone stands.
    heartbeat_s: float = 0.05
    # A leader that hears no majority for so long steps down, so that its clients look for the other one.
    leader_fallback_s: float = 0.6
    # Longest time between two turns of the loop.
    tick_s: float = 0.01
    # A turn (with its fsync) that takes longer ends the process: such a disk must not lead.
    turn_max_s: float = 10.0
    # A link on which nothing was heard for so long is broken and dialled again: twice the shortest election timeout.
    link_silence_s: float = 0.6
    # A quiet link says something this often; four pings may get lost.
    link_ping_s: float = 0.15
    # How long a transfer of the lead may take, and with it the stop of a leader; normally it is tens of milliseconds.
    transfer_max_s: float = 2.0
    # How often the leader has all peers compare the digests of their states; a few small messages each time.
    digest_period_s: float = 10.0
    # Pause between two steps of the scrub (limits.scrub_*): with 200 rows a step about 1 % of a core, and five hours
    # for a million images of 16 rows each.
    scrub_step_s: float = 0.25
    # A pass over a small database is over in seconds; rotting takes longer.
    scrub_pass_s: float = 3600.0


@dataclass(frozen=True)
class Limits:
    """Bounds of one peer. Bytes, rows, seconds as the name's end says."""

    # -- proposals: two entries of at most 1 MiB in flight keep a slow link's round trip busy and memory bounded.
    propose_queue_max: int = 8192
    entry_bytes_max: int = 1 * MIB
    entry_commands_max: int = 1024
    inflight_entries_max: int = 2
    # What finds no leader waits for the next one: longer than an election, and refused within a second.
    leader_wait_s: float = 0.8
    # What waited in a leader's queue when the lead went elsewhere gets so long to find the successor.
    successor_wait_s: float = 0.2
    # New commands wait from when the successor lacks so few entries: it gets them in a round trip or two.
    transfer_lag_entries_max: int = 8
    # A client that names no deadline gets this one, and none may ask for more than the maximum.
    propose_deadline_s: float = 10.0
    propose_deadline_max_s: float = 60.0

    # -- log: kept behind the snapshot, so that a peer which was away for a while catches up without one.
    log_keep_entries: int = 20_000
    log_keep_bytes: int = 64 * MIB
    # While a peer takes a snapshot, the log is kept from there on, so that it need not take another one. Held in
    # memory. At 5,000 creates per second (4 MiB/s) four minutes, in which 8 GiB pass a link of 300 Mbit/s.
    log_serving_bytes_max: int = 1 * GIB

    # -- database: growth is refused above the soft limit; the map is sparse and far above it, since a full map
    #    in the middle of apply stops the peer.
    db_soft_limit_bytes: int = 8 * GIB
    map_size_bytes: int = 64 * GIB
    # Deletes, compaction and what is in flight still fit after growth was refused.
    disk_reserve_bytes: int = 256 * MIB

    # -- snapshots: one chunk must pass a slow link well within an election timeout.
    snapshot_chunk_bytes: int = 256 * KIB
    # A read transaction pins every page that is freed meanwhile; the copy to the spool must be over by then. 8 GiB in
    # that time are 28 MiB/s, a quarter of what an SSD does beside its other work.
    snapshot_reader_max_s: float = 300.0
    # After a copy that failed (no room, too slow), the next one waits so long: it pins pages half of the time at most.
    snapshot_retry_s: float = 60.0
    # A peer whose link broke in the middle of a snapshot may come back so long and take the rest.
    snapshot_resume_s: float = 60.0
    # What a peer writes of an incoming snapshot in one transaction: one sync for many chunks, a turn of a tenth second.
    snapshot_commit_bytes: int = 8 * MIB
    # Enough chunks wait in a link to keep it busy, few enough that heartbeats don't queue behind them.
    snapshot_send_buffer_max_bytes: int = 1 * MIB
    # Rows of an abandoned generation deleted per turn (5 to 10 ms), until so many are left that all go at once (0.1 s;
    # 200,000 images): 12 million rows go in half a minute.
    reclaim_rows_max: int = 4_000
    reclaim_whole_rows_max: int = 2_000_000

    # -- backups by schedule: one that failed is tried again so soon, or after the period where that is shorter.
    backup_retry_s: float = 600.0

    # -- integrity: every peer notes the digest of its state so often, a few microseconds each time...
    digest_every_entries: int = 256
    # ...and keeps so many, so that the last ones are known even at a peer that is some seconds ahead.
    digests_kept_max: int = 64
    # Rows and bytes that one step of the scrub reads: a few milliseconds without a turn.
    scrub_step_rows: int = 200
    scrub_step_bytes: int = 256 * KIB
    # The same per tick of a pass that an operator waits for: heartbeats still leave in time.
    scrub_fast_step_rows: int = 1_000
    scrub_fast_step_bytes: int = 1 * MIB

    # -- links between peers: a frame holds a few entries; a link with more waiting is broken, never skipped.
    frame_bytes_max: int = 16 * MIB
    # Log under way to a peer that it has not answered for: what it applies in one turn, a fraction of link_silence_s
    # (1 MiB are 1,500 creates), yet 5 MiB/s over a link with a round trip of 100 ms.
    append_window_bytes: int = 512 * KIB
    transport_buffer_max_bytes: int = 64 * MIB

    # -- observers: each costs a voter a link, and the leader the sending of the whole log once more.
    observers_max: int = 16
    # To all observers together; about a tenth of a core's time for encryption. What they get behind by, they say.
    observers_bytes_per_s_max: int = 64 * MIB

    # -- API: a body holds one full batch. Waiting requests cost memory (a few KiB each).
    body_bytes_max: int = 1 * MIB
    requests_max: int = 4096
    reads_waiting_max: int = 4096
    # Time for a linearizable read in all: a follower that is behind must first apply what the leader had committed.
    read_deadline_s: float = 5.0
    batch_operations_max: int = 512
    session_operations_max: int = 256
    # Images of which one request asks what has become of them: two rows each, a few milliseconds between two turns.
    fates_max: int = 512
    page_rows_max: int = 1000
    page_rows_default: int = 100
    # Longest single page, whatever its rows hold; one turn's worth of encoding.
    page_bytes_max: int = 1 * MIB
    id_count_max: int = 65_536
    idempotency_key_bytes_max: int = 128
    # An idempotency key that carries its time is refused afterwards, never re-applied.
    idempotency_retention_h: float = 24.0
    # Time the leader's answer may take to cross the network on top of the deadline that it was given.
    forward_grace_s: float = 0.5
    forward_connections_max: int = 256
    # A leader in reach accepts within a round trip; one that does not leaves time to find its successor.
    forward_connect_s: float = 0.4
    # A stopping peer answers on the connections that it has until no request came for so long; what comes over a kept
    # connection meanwhile is answered and told to go elsewhere.
    drain_quiet_s: float = 0.2
    # Connections whose handshake is under way turn up within this time.
    drain_handshakes_s: float = 0.05
    drain_max_s: float = 2.0

    # -- changefeed: a consumer reads at its own pace up to what waits in its socket.
    feed_consumers_max: int = 512
    feed_buffer_max_bytes: int = 1 * MIB
    # How long a consumer's socket may stay full before the consumer is cut off.
    feed_stall_max_s: float = 10.0
    # One turn of a consumer that catches up; others get the loop in between.
    feed_chunk_rows: int = 200
    feed_chunk_bytes: int = 256 * KIB
    # Encoded changes kept for consumers that follow closely (a few KiB each, per encoding).
    feed_encoded_max_bytes: int = 16 * MIB
    # Changes are written to all consumers of a peer together so often (40 µs of its loop each). Where many follow, a
    # change waits for its turn, at most a third of a second, and goes together with what came meanwhile.
    feed_writes_per_s_max: int = 1500
    # Kinds, tenants and visibilities that one consumer may name, each: as many tenants as fit a request's first line.
    feed_filter_values_max: int = 128
    feed_heartbeat_s: float = 0.5
    feed_heartbeat_max_s: float = 1.0

    # -- changes: kept for consumers that were away; whoever is further behind resyncs. About 1 KiB each. So many, and
    # none older than 30 days.
    changes_keep_rows: int = 200_000
    changes_keep_s: float = 30 * 24 * 3600.0
    # While the database is full, only so many are kept.
    changes_keep_full_rows: int = 1_000
    # Changes deleted by one command: a few milliseconds of apply (the state allows no more than this at once).
    compact_rows_max: int = 1_000
    # A bootstrap that takes no longer than this still finds every change since its start.
    bootstrap_max_s: float = 600.0

    # -- zone leases: three heartbeats of a gateway may get lost.
    zone_lease_s: float = 15.0
    zones_max: int = 10_000
    gateways_per_zone_max: int = 64


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: the cluster's authority, and the certificate and key of whoever presents them."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True)
class BackupSchedule:
    """Backups that a running peer makes by itself: into `directory` every `every_s` seconds (0: none).

    The newest `keep` stay, and of each of the last `keep_daily` days that have some, in UTC, the newest one.
    """

    directory: Path | None = None
    every_s: float = 0.0
    keep: int = 7
    keep_daily: int = 7


@dataclass(frozen=True)
class PeerConfig:
    """One registry peer.

    `raft_peers` are the addresses to dial (host:port, maybe a proxy's) by name, the own one included; `api_peers` the
    URLs to which this peer forwards writes, own one included or not. `api_tls` off is only for a loopback listener.
    Of an `observer`, `raft_peers` are the voters alone, `raft_listen` is empty, since nobody dials it, and `api_peers`
    are where its clients are sent with their writes.
    """

    name: str
    data_dir: Path
    raft_listen: str
    raft_peers: dict[str, str]
    api_listen: str
    api_tls: bool
    api_peers: dict[str, str]
    tls: TlsFiles
    limits: Limits = field(default_factory=Limits)
    timing: Timing = field(default_factory=Timing)
    observer: bool = False
    backup: BackupSchedule = field(default_factory=BackupSchedule)

    @property
    def cluster_peers(self) -> tuple[str, ...]:
        """Names of all voters, sorted."""
        return tuple(sorted(self.raft_peers))


def split_address(address: str, what: str = "address") -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPV6]:PORT. Raises ConfigError."""
    host, colon, port = address.rpartition(":")
    if colon and host and port.isascii() and port.isdecimal() and int(port) <= 65_535:
        return host.removeprefix("[").removesuffix("]"), int(port)
    raise ConfigError(f"{what} {address!r} is not HOST:PORT (for IPv6 [HOST]:PORT)")


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def find(path: Path) -> Path:
    """The configuration file that `path` names: itself, or the one in that directory. Raises ConfigError.

    A directory that `raftreg init` made for a single peer is accepted in place of the peer's own.
    """
    if path.is_file():
        return path
    if (path / FILE_NAME).is_file():
        return path / FILE_NAME
    below = sorted(path.glob(f"*/{FILE_NAME}"))
    if len(below) == 1:
        return below[0]
    if below:
        names = ", ".join(file.parent.name for file in below)
        raise ConfigError(f"{path} holds several peers ({names}); name one of their directories")
    raise ConfigError(
        f"no {FILE_NAME} in {path}; run `raftreg init {path}` for a new cluster, or name a directory with one"
    )


def load(path: Path) -> PeerConfig:
    """Read a peer's configuration; paths in it are relative to the file. Raises ConfigError."""
    file = find(path)
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    try:
        return _from_document(document, file.parent.resolve())
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _from_document(document: dict[str, Any], base: Path) -> PeerConfig:
    top = _Table(document, "")
    raft, api, tls = top.table("raft"), top.table("api"), top.table("tls")
    observer = top.flag("observer", False)
    config = PeerConfig(
        name=top.text("name"),
        data_dir=base / top.text("data_dir", "."),
        raft_listen="" if observer else raft.text("listen"),
        raft_peers=raft.texts("peers"),
        api_listen=api.text("listen"),
        api_tls=api.flag("tls", True),
        api_peers=api.texts("peers"),
        tls=TlsFiles(*(base / tls.text(name) for name in ("ca", "cert", "key"))),
        limits=_numbers(Limits, top.table("limits", optional=True)),
        timing=_numbers(Timing, top.table("timing", optional=True)),
        observer=observer,
        backup=_schedule(top.table("backup", optional=True), base),
    )
    for table in (top, raft, api, tls):
        table.refuse_rest()
    validate(config)
    return config


class _Table:
    """A TOML table from which keys are taken with a check of their type; what is left over is a mistake."""

    def __init__(self, values: dict[str, Any], name: str) -> None:
        self.values, self.name = dict(values), name

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.values.pop(key, default)
        if value is None:
            raise ConfigError(f"{self.name}{key} is missing")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{self.name}{key} must be a {_KIND_NAMES[kind]}, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return str(self.take(key, str, default))

    def number(self, key: str, default: float) -> float:
        whole = type(self.values.get(key)) is int
        return float(self.take(key, int if whole else float, default))

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.take(key, bool, default))

    def table(self, key: str, *, optional: bool = False) -> _Table:
        return _Table(self.take(key, dict, {} if optional else None), f"{self.name}{key}.")

    def texts(self, key: str) -> dict[str, str]:
        table = self.table(key)
        return {name: table.text(name) for name in list(table.values)}

    def refuse_rest(self) -> None:
        if self.values:
            raise ConfigError(f"{self.name}{next(iter(self.values))} is not a known setting")


_KIND_NAMES = {str: "string", bool: "boolean (true or false)", dict: "table", int: "whole number", float: "number"}
_Numbers = TypeVar("_Numbers", Limits, Timing)


def _numbers(kind: type[_Numbers], table: _Table) -> _Numbers:
    """A dataclass of positive numbers, from the defaults and the table's changes."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        if item.name not in table.values:
            continue
        whole = isinstance(item.default, int)
        if not whole and isinstance(table.values[item.name], int) and not isinstance(table.values[item.name], bool):
            table.values[item.name] = float(table.values[item.name])
        value = table.take(item.name, int if whole else float)
        if not 0 < value < math.inf:
            raise ConfigError(f"{table.name}{item.name} must be above 0, not {value}")
        values[item.name] = value
    table.refuse_rest()
    return kind(**values)


def _schedule(table: _Table, base: Path) -> BackupSchedule:
    default = BackupSchedule()
    directory = table.text("directory", "")
    made = BackupSchedule(
        directory=base / directory if directory else None,
        every_s=table.number("every_s", default.every_s),
        keep=int(table.take("keep", int, default.keep)),
        keep_daily=int(table.take("keep_daily", int, default.keep_daily)),
    )
    table.refuse_rest()
    return made


def validate(config: PeerConfig) -> None:
    """Refuse settings which contradict each other. Raises ConfigError."""
    known = ", ".join(sorted(config.raft_peers))
    if config.observer and config.name in config.raft_peers:
        raise ConfigError(f"name {config.name!r} is among raft.peers ({known}); an observer lists the voters only")
    if not config.observer and config.name not in config.raft_peers:
        raise ConfigError(f"name {config.name!r} is not among raft.peers ({known}); the peer lists itself too")
    if not config.observer:
        split_address(config.raft_listen, "raft.listen")
    host, _ = split_address(config.api_listen, "api.listen")
    for name, address in config.raft_peers.items():
        split_address(address, f"raft.peers.{name}")
    if not config.api_tls and not is_loopback(host):
        raise ConfigError(f"api.tls = false is only for a loopback address, but api.listen is {config.api_listen}")
    for name, url in config.api_peers.items():
        _validate_url(name, url, config)
    _validate_numbers(config.limits, config.timing)
    _validate_schedule(config.backup)


def _validate_url(name: str, url: str, config: PeerConfig) -> None:
    scheme = "https://" if config.api_tls else "http://"
    if name not in config.raft_peers:
        raise ConfigError(f"api.peers.{name} is not among raft.peers")
    if not url.startswith(scheme):
        raise ConfigError(f"api.peers.{name} must start with {scheme} as api.tls = {str(config.api_tls).lower()}")
    split_address(url.removeprefix(scheme).rstrip("/"), f"api.peers.{name}")


def _validate_numbers(limits: Limits, timing: Timing) -> None:
    rules = (
        (timing.heartbeat_s * 2 < timing.raft_min_timeout_s, "timing.heartbeat_s exceeds half raft_min_timeout_s"),
        (timing.raft_min_timeout_s < timing.raft_max_timeout_s, "timing.raft_min_timeout_s must be the lesser one"),
        (timing.tick_s <= timing.heartbeat_s, "timing.tick_s must not exceed heartbeat_s"),
        (limits.entry_bytes_max < ENTRY_BYTES_MAX, f"limits.entry_bytes_max must stay below {ENTRY_BYTES_MAX}"),
        (APPEND_BATCH_BYTES + 2 * limits.entry_bytes_max <= limits.frame_bytes_max, "limits.frame_bytes_max must hold "
         f"a batch of {APPEND_BATCH_BYTES} bytes and two entries"),
        (limits.snapshot_chunk_bytes * 2 <= limits.frame_bytes_max, "limits.frame_bytes_max must hold two chunks"),
        (limits.log_keep_bytes * 2 <= limits.log_serving_bytes_max, "limits.log_serving_bytes_max: below twice "
         "log_keep_bytes"),
        (limits.body_bytes_max <= limits.entry_bytes_max, "limits.body_bytes_max must not exceed entry_bytes_max"),
        (limits.batch_operations_max <= limits.entry_commands_max, "limits.batch_operations_max must fit an entry"),
        (limits.session_operations_max <= limits.entry_commands_max, "limits.session_operations_max must fit an entry"),
        (limits.page_rows_default <= limits.page_rows_max, "limits.page_rows_default must not exceed page_rows_max"),
        (limits.db_soft_limit_bytes * 2 <= limits.map_size_bytes, "limits.map_size_bytes: below twice the soft limit"),
        (limits.propose_deadline_s <= limits.propose_deadline_max_s, "limits.propose_deadline_s exceeds its maximum"),
        (limits.feed_heartbeat_s <= limits.feed_heartbeat_max_s, "limits.feed_heartbeat_s exceeds its maximum"),
    )  # fmt: skip
    for holds, sentence in rules:
        if not holds:
            raise ConfigError(sentence)


def _validate_schedule(backup: BackupSchedule) -> None:
    most = BACKUPS_KEPT_MAX
    rules = (
        (backup.every_s == 0 or BACKUP_EVERY_MIN_S <= backup.every_s < math.inf, "backup.every_s must be 0 (off) or at "
         f"least {BACKUP_EVERY_MIN_S}"),
        (backup.every_s == 0 or backup.directory is not None, "backup.directory is missing; backup.every_s needs it"),
        (1 <= backup.keep <= most, f"backup.keep must be 1 to {most}"),
        (0 <= backup.keep_daily <= most, f"backup.keep_daily must be 0 (none) to {most}"),
    )  # fmt: skip
    for holds, sentence in rules:
        if not holds:
            raise ConfigError(sentence)


def render(config: PeerConfig, base: Path) -> str:
    """The TOML text which `load` reads back from a file in `base`; limits and timing only where not the default."""
    lines = [
        f"name = {_toml(config.name)}",
        f"data_dir = {_toml(_relative(config.data_dir, base))}",
        *(["observer = true # receives log and snapshots, does not vote"] if config.observer else []),
        "",
        *([] if config.observer else ["[raft]", f"listen = {_toml(config.raft_listen)}", ""]),
        f"[raft.peers] # addresses to dial, {'of the voters' if config.observer else 'the own one included'}",
        *(f"{_toml(name)} = {_toml(address)}" for name, address in sorted(config.raft_peers.items())),
        "",
        "[api]",
        f"listen = {_toml(config.api_listen)}",
        f"tls = {_toml(config.api_tls)}",
        "",
        f"[api.peers] # where {'writes are to be sent' if config.observer else 'a follower forwards writes'} to",
        *(f"{_toml(name)} = {_toml(url)}" for name, url in sorted(config.api_peers.items())),
        "",
        "[tls]",
        *(f"{name} = {_toml(_relative(getattr(config.tls, name), base))}" for name in ("ca", "cert", "key")),
    ]
    for title, values in (("limits", config.limits), ("timing", config.timing)):
        lines += ["", f"[{title}]", *(f"{name} = {_toml(value)}" for name, value in _changed(values))]
    lines += _rendered_schedule(config.backup, base)
    return "\n".join(lines) + "\n"


def _rendered_schedule(backup: BackupSchedule, base: Path) -> list[str]:
    if backup == BackupSchedule():
        return []
    where = [] if backup.directory is None else [f"directory = {_toml(_relative(backup.directory, base))}"]
    numbers = ("every_s", "keep", "keep_daily")
    return ["", "[backup]", *where, *(f"{name} = {_toml(getattr(backup, name))}" for name in numbers)]


def _changed(values: Limits | Timing) -> list[tuple[str, Any]]:
    return [
        (item.name, getattr(values, item.name))
        for item in dataclasses.fields(values)
        if getattr(values, item.name) != item.default
    ]


def _toml(value: str | bool | int | float) -> str:
    """JSON's strings, numbers and booleans are TOML as well (but DEL, which TOML wants escaped)."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _relative(path: Path, base: Path) -> str:
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
