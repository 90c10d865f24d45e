"""`raftreg backup create|verify`: the replicated state as one file."""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path

from raftreg import backup, config
from raftreg.backup import Label
from raftreg.cli_connection import CONFIG_VARIABLE, DONE, Commands, add_noun, config_path, print_json
from raftreg.cli_progress import bar

_EXAMPLES = """\
  raftreg backup create /backup/registry.backup --config /srv/registry/a
  raftreg backup verify /backup/registry.backup
"""
_HOUR_S = 3600


def add(commands: Commands) -> None:
    verbs = add_noun(commands, "backup", "the state as one file", _EXAMPLES)
    create = verbs.add_parser(
        "create",
        help="copy the state of a peer on this machine, which may be running",
        description="The file is compressed, and whole once it has its name. The copy pins pages of the database for "
        "at most limits.snapshot_reader_max_s, and leaves limits.disk_reserve_bytes free. What a peer makes by "
        "itself: table [backup] of its configuration.",
    )
    create.add_argument("file", metavar="FILE", type=Path)
    create.add_argument("--config", type=Path, metavar="PATH", help=f"the peer's; default ${CONFIG_VARIABLE}")
    create.add_argument("--json", action="store_true", help="JSON instead of a sentence")
    create.set_defaults(run=_create)
    verify = verbs.add_parser("verify", help="read all of a backup and check every checksum and the state's digest")
    verify.add_argument("file", metavar="FILE", type=Path)
    verify.add_argument("--json", action="store_true", help="JSON instead of sentences")
    verify.set_defaults(run=_verify)


def _create(arguments: argparse.Namespace) -> int:
    with bar(f"backup to {arguments.file}") as progress:
        label = backup.create(config.load(config_path(arguments)), arguments.file, progress=progress)
    if arguments.json:
        print_json(vars(label))
    else:
        print(f"{arguments.file} holds {described(label)}")
    return DONE


def _verify(arguments: argparse.Namespace) -> int:
    with bar(f"reading {arguments.file}") as progress:
        label, rows = backup.verify(arguments.file, progress)
    if arguments.json:
        print_json({**vars(label), "rows": rows})
    else:
        print(f"{arguments.file} is whole: {described(label)}, {rows} rows")
    return DONE


def described(label: Label) -> str:
    """A backup in one line."""
    made = datetime.datetime.fromtimestamp(label.created_us / 1e6, datetime.UTC).isoformat(timespec="seconds")
    hours = label.age_s(time.time_ns() // 1000) / _HOUR_S
    behind = label.log_last - label.log_index
    return (
        f"cluster {label.cluster_id}, epoch {label.epoch}, revision {label.revision}, {label.images} images and "
        f"{behind} log entries behind that, by {label.peer} at {made} ({hours:.1f} hours ago, raftreg {label.release})"
    )
