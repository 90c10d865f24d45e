"""What commands ask the running gateway over its operator socket."""

import argparse
import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

from zonegw import config
from zonegw.control import SOCKET, address_of
from zonegw.errors import ConfigError

CONFIG_VARIABLE = "ZONEGW_CONFIG"
# Operators wait for what the gateway works through, such as a long list.
ANSWER_MAX_S = 600


def config_argument(command: argparse.ArgumentParser) -> None:
    """The option that names the gateway."""
    default = os.environ.get(CONFIG_VARIABLE)
    command.add_argument("--config", type=Path, default=default, help=f"default: ${CONFIG_VARIABLE}")


def json_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON document")


def configured(arguments: argparse.Namespace) -> config.Config:
    """The configuration that the options name. Raises ConfigError."""
    if arguments.config is None:
        raise ConfigError(f"name the configuration: --config FILE, or ${CONFIG_VARIABLE}")
    return config.load(Path(arguments.config))


def ask(arguments: argparse.Namespace, method: str, path: str, **body: Any) -> Any:
    """The document with which the gateway answers. Raises RuntimeError with its refusal, or when it does not run."""
    directory = configured(arguments).data_dir
    connection = _Connection(directory)
    try:
        headers = {"Content-Type": "application/json"} if body else {}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        document = json.loads(answer.read() or b"null")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RuntimeError(
            f"no answer from {directory / SOCKET} ({error or type(error).__name__}): this needs the running gateway; "
            "start it, and run the command as the user who owns its data directory"
        ) from error
    finally:
        connection.close()
    if answer.status >= 400:
        raise RuntimeError(document["error"])
    return document


class _Connection(http.client.HTTPConnection):
    def __init__(self, directory: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_MAX_S)
        self._directory = directory

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        with address_of(self._directory) as address:
            self.sock.connect(address)
