"""What the commands of `raftreg` share: which configuration, which endpoints, how to ask and how to print."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from raftreg import cluster_init, config, wire
from raftreg.certificates import api_client_context
from raftreg.client import Client
from raftreg.config import ConfigError, TlsFiles

CONFIG_VARIABLE = "RAFTREG_CONFIG"
DONE, FAILED = 0, 1
Commands = Any  # argparse gives its subparsers no public type


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
