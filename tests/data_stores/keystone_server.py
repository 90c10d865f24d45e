"""A real Keystone on loopback, on SQLite, with a catalogue that names a Swift as the object store.

with keystone(tmp_path, port, object_store_url="http://.../v1/KEY_$(project_id)s") as server:
    server.auth_url
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from ops.dev import environment, processes, setup
from tests.data_stores.swift_server import ASK_S, START_S, STOP_S
from tests.registry import free_ports

USER, PROJECT, PASSWORD, REGION = "admin", "admin", "s3cr3t", "fra"
_CONFIGURATION = """[DEFAULT]
use_stderr = true
[database]
connection = sqlite:///{directory}/keystone.db
sqlite_synchronous = false
[token]
expiration = {token_life_s}
[fernet_tokens]
key_repository = {directory}/fernet
[fernet_receipts]
key_repository = {directory}/receipts
[cache]
enabled = false
"""
# Keystone is a WSGI application; the threads serve requests side by side.
_SERVE = """
import sys
from keystone.server import wsgi
from paste import httpserver
sys.argv[1:], port = ["--config-file", sys.argv[1]], int(sys.argv[2])
httpserver.serve(wsgi.initialize_public_application(), host="127.0.0.1", port=port, use_threadpool=True)
"""


class Keystone:
    """One process."""

    def __init__(self, directory: Path, token_life_s: int) -> None:
        self.directory = directory
        (self.port,) = free_ports(1)
        self.auth_url = f"http://127.0.0.1:{self.port}/v3"
        self.password_file = directory / "password"
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("fernet", "receipts"):
            (directory / name).mkdir(parents=True)
        self.password_file.write_text(PASSWORD)
        text = _CONFIGURATION.format(directory=directory, token_life_s=token_life_s)
        (directory / "keystone.conf").write_text(text)

    def start(self, object_store_url: str) -> None:
        """With a user, a project, and the object store in the catalogue."""
        for command in (
            ["db_sync"], ["fernet_setup", "--keystone-user", str(os.geteuid()), "--keystone-group", str(os.getegid())],
            ["bootstrap", "--bootstrap-password", PASSWORD, "--bootstrap-region-id", REGION,
             "--bootstrap-public-url", self.auth_url],
        ):  # fmt: skip
            self._run([setup.SWIFT.command("keystone-manage"), "--config-file", self._conf, *command])
        self._serve()
        assert processes.wait_until(self._answers, START_S), self.log()
        self._offer(object_store_url)

    @property
    def _conf(self) -> Path:
        return self.directory / "keystone.conf"

    def _run(self, command: list[str | Path]) -> None:
        with (self.directory / "log").open("ab") as log:
            done = subprocess.run(command, env=environment.clean(os.environ), stdout=log, stderr=log, check=False)
        assert done.returncode == 0, self.log()

    def _serve(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [setup.SWIFT.python, "-I", "-c", _SERVE, self._conf, str(self.port)],
                env=environment.clean(os.environ), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            with urlopen(self.auth_url, timeout=ASK_S):
                return True
        except OSError:
            return False

    def _offer(self, url: str) -> None:
        scope = {"project": {"name": PROJECT, "domain": {"name": "Default"}}}
        user = {"name": USER, "domain": {"name": "Default"}, "password": PASSWORD}
        identity = {"methods": ["password"], "password": {"user": user}}
        token, _ = self._post("auth/tokens", {"auth": {"identity": identity, "scope": scope}})
        _, made = self._post("services", {"service": {"type": "object-store", "name": "swift"}}, token)
        for interface, place in (("internal", "http://127.0.0.1:1"), ("public", url)):
            row = {"service_id": made["service"]["id"], "interface": interface, "region_id": REGION, "url": place}
            self._post("endpoints", {"endpoint": row}, token)

    def _post(self, path: str, body: dict[str, Any], token: str = "") -> tuple[str, dict[str, Any]]:
        headers = {"Content-Type": "application/json"} | ({"X-Auth-Token": token} if token else {})
        request = Request(f"{self.auth_url}/{path}", json.dumps(body).encode(), headers, method="POST")
        with urlopen(request, timeout=ASK_S) as answer:
            return answer.headers.get("X-Subject-Token", ""), json.load(answer)

    def log(self) -> str:
        return (self.directory / "log").read_text()[-4000:]

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def keystone(directory: Path, object_store_url: str, *, token_life_s: int = 3600) -> Iterator[Keystone]:
    server = Keystone(directory / "keystone", token_life_s)
    try:
        server.start(object_store_url)
        yield server
    finally:
        server.stop()
