"""What the commands of `raftreg` share: which configuration, which endpoints, how to ask and how to print."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import functools
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raftreg import cluster_init, config, wire
from raftreg.certificates import api_client_context
from raftreg.client import Client
from raftreg.config import ConfigError, TlsFiles

CONFIG_VARIABLE = "RAFTREG_CONFIG"
DONE, FAILED, WRONG_USAGE, OUTCOME_UNKNOWN, CURSOR_GONE = range(5)
EXIT_STATUSES = """\
exit status: 0 done, 1 refused or failed (the message says why), 2 wrong usage, 3 the outcome is not known (repeat it
with the --key that the message names), 4 the cursor of `change tail` is gone (read the images again)
"""
Commands = Any  # argparse gives its subparsers no public type


class WrongUsage(Exception):
    """Options that make no sense together; the message says what to name."""


class _Help(argparse.HelpFormatter):
    """Wraps what is one line, and leaves what has been laid out already."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def explained(examples: str) -> dict[str, Any]:
    """Options of a parser whose help ends with examples, lines that a user can copy."""
    return {"epilog": f"examples:\n{examples}\n{EXIT_STATUSES}", "formatter_class": _Help}


class _Verb(argparse.ArgumentParser):
    """The parser of a verb, whose help has the noun's examples of it."""

    def __init__(self, *, examples: str, prog: str, **options: Any) -> None:
        # An example may go on in lines that are indented further.
        each = re.findall(r"^  \S.*\n(?:   .*\n)*", examples, re.MULTILINE)
        own = "".join(example for example in each if example.strip().startswith(prog))
        super().__init__(prog=prog, **{**explained(own), **options})


def add_noun(commands: Commands, noun: str, help_text: str, examples: str) -> Commands:
    """The parser of a noun; what it returns takes its verbs. `examples` has lines for each of them."""
    description = help_text[0].upper() + help_text[1:] + "."
    parser = commands.add_parser(noun, help=help_text, description=description, **explained(examples))
    return parser.add_subparsers(
        metavar="VERB", required=True, parser_class=functools.partial(_Verb, examples=examples)
    )


def add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", help="idempotency key of a write whose outcome was not known; default: a new one")


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE, as a type of argparse."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE")
    return name, value


def count(text: str) -> int:
    """A whole number of 1 or more, as a type of argparse."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:17]) < 2**53):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of 1 or more")
    return int(text)


def add_peer_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path, nargs="?", help=f"directory with {config.FILE_NAME}")
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"instead of DIR; default ${CONFIG_VARIABLE}")


def add_connection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        help=f"a peer's configuration, or what `init` made; default ${CONFIG_VARIABLE}",
    )
    parser.add_argument("--endpoint", action="append", default=[], metavar="URL", help="instead of those in --config")
    parser.add_argument("--tls", type=Path, metavar="DIR", help="directory with ca.pem, cert.pem and key.pem")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def config_path(arguments: argparse.Namespace) -> Path:
    """DIR, --config, or the environment variable, in this order. Raises ConfigError."""
    named = [path for path in (getattr(arguments, "directory", None), arguments.config) if path is not None]
    if len(named) > 1:
        raise ConfigError("name either DIR or --config, not both")
    if named:
        return Path(named[0])
    if CONFIG_VARIABLE in os.environ:
        return Path(os.environ[CONFIG_VARIABLE])
    raise ConfigError(f"which cluster? Name its configuration with --config, or in ${CONFIG_VARIABLE}")


def client(arguments: argparse.Namespace) -> Client:
    """A client from --endpoint and --tls, completed by the configuration. Raises ConfigError."""
    endpoints, files = list(arguments.endpoint), _tls_directory(arguments.tls)
    needs_tls = any(url.startswith("https://") for url in endpoints)
    if not endpoints or (needs_tls and files is None):
        path = config_path(arguments)
        settings = config.load(_any_peer(path))
        endpoints = endpoints or list(settings.api_peers.values())
        files = files or cluster_init.operator_files(path) or settings.tls
        needs_tls = any(url.startswith("https://") for url in endpoints)
    return Client(endpoints, ssl=api_client_context(files) if needs_tls and files is not None else None)


def _tls_directory(directory: Path | None) -> TlsFiles | None:
    if directory is None:
        return None
    return TlsFiles(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")


def _any_peer(path: Path) -> Path:
    """A peer's configuration; of a cluster's directory, the first one: all name the same peers."""
    below = sorted(path.glob(f"*/{config.FILE_NAME}")) if path.is_dir() else []
    return below[0] if below and not (path / config.FILE_NAME).is_file() else path


def ask(arguments: argparse.Namespace, question: Callable[[Client], Awaitable[Any]]) -> Any:
    async def asking() -> Any:
        async with client(arguments) as registry:
            return await question(registry)

    return asyncio.run(asking())


def print_json(value: Any) -> None:
    sys.stdout.write(wire.to_json(value).decode() + "\n")


def print_rows(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A table for people: these columns of each row."""
    table = Table()
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(shown(row[column]) for column in columns))
    Console().print(table)


def print_fields(row: Mapping[str, Any]) -> None:
    """A table for people: one line per field."""
    table = Table(show_header=False)
    for name, value in row.items():
        table.add_row(name, shown(value))
    Console().print(table)


def shown(value: Any) -> str:
    """A value as a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, dict | list):
        return escape(wire.to_json(value).decode())
    return value.hex() if isinstance(value, bytes) else escape(str(value))


def moment(time_us: int) -> str:
    """A time of the registry, in microseconds since 1970, in UTC."""
    return datetime.datetime.fromtimestamp(time_us / 1e6, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
