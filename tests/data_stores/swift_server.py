"""A real Swift on loopback: proxy, account, container and object server, each a process, with one device and one copy.

async with swift(tmp_path) as server:
    server.auth_url, server.key, server.s3_url

Its tokens are Fernet tokens, so that there is nothing of them to be remembered, and no memcached.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from ops.dev import environment, setup
from tests.registry import free_ports, until

ACCOUNT, USER, KEY = "images", "gateway", "s3cr3t"
READER = "reader"
MIB = 1 << 20
SERVERS = ("account", "container", "object", "proxy")
STOP_S = 10.0

_COMMON = """[DEFAULT]
swift_dir = {directory}
devices = {directory}
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
workers = 0
log_level = INFO
"""
_STORAGE = """[pipeline:main]
pipeline = {server}-server
[app:{server}-server]
use = egg:swift#{server}
"""
# Segments are small, so that tests of large objects are not.
_PROXY = """[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck proxy-logging s3api tempauth copy container-quotas \
account-quotas slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
token_life = {token_life_s}
fernet_key_1 = {fernet_key}
active_fernet_key_id = 1
user_{account}_{user_name} = {key} .admin
user_{account}_{reader} = {key}
[filter:copy]
use = egg:swift#copy
[filter:container-quotas]
use = egg:swift#container_quotas
[filter:account-quotas]
use = egg:swift#account_quotas
[filter:slo]
use = egg:swift#slo
min_segment_size = 1
[filter:dlo]
use = egg:swift#dlo
"""


class Swift:
    """The servers; the proxy alone can be stopped and started again."""

    def __init__(self, directory: Path, token_life_s: int) -> None:
        self.directory = directory
        self.ports = dict(zip(SERVERS, free_ports(len(SERVERS)), strict=True))
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._configure(token_life_s)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['proxy']}"

    @property
    def auth_url(self) -> str:
        return f"{self.url}/auth/v1.0"

    def _configure(self, token_life_s: int) -> None:
        (self.directory / "disk").mkdir(parents=True)
        (self.directory / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_suffix = test\n[storage-policy:0]\nname = one\ndefault = yes\n"
        )
        (self.directory / "key").write_text(KEY)
        for server in SERVERS:
            values: dict[str, Any] = {
                "directory": self.directory, "port": self.ports[server], "server": server, "account": ACCOUNT,
                "user": os.environ.get("USER", "root") if os.geteuid() else "root", "user_name": USER, "key": KEY,
                "reader": READER, "token_life_s": token_life_s,
                "fernet_key": urlsafe_b64encode(os.urandom(32)).decode(),
            }  # fmt: skip
            text = (_COMMON + (_PROXY if server == "proxy" else _STORAGE)).format(**values)
            (self.directory / f"{server}.conf").write_text(text)

    async def make_rings(self) -> None:
        rings = [f"{server}={self.ports[server]}" for server in SERVERS if server != "proxy"]
        process = await asyncio.create_subprocess_exec(
            str(setup.SWIFT.python), "-I", str(Path(__file__).with_name("make_rings.py")), str(self.directory), *rings,
            env=environment.clean(os.environ),
        )  # fmt: skip
        assert await process.wait() == 0

    async def start(self, *servers: str) -> None:
        for server in servers or SERVERS:
            with (self.directory / f"{server}.log").open("ab") as log:
                self._running[server] = await asyncio.create_subprocess_exec(
                    str(setup.SWIFT.python), "-I", str(setup.SWIFT.command(f"swift-{server}-server")),
                    str(self.directory / f"{server}.conf"), "--verbose",
                    env=environment.clean(os.environ), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
        await until(self._answers)

    async def _answers(self) -> bool:
        """Whether an account can be made, for which all storage servers are needed but the object server."""
        for server, process in self._running.items():
            if process.returncode is not None:
                raise AssertionError((self.directory / f"{server}.log").read_text())
        async with aiohttp.ClientSession() as http:
            try:
                async with http.get(f"{self.url}/healthcheck") as answer:
                    if answer.status != 200:
                        return False
                headers = await self.login(http)
                async with http.put(f"{self.account_url}/ready", headers=headers) as answer:
                    return answer.status in (201, 202)
            except aiohttp.ClientError:
                return False

    @property
    def account_url(self) -> str:
        return f"{self.url}/v1/AUTH_{ACCOUNT}"

    async def login(self, http: aiohttp.ClientSession) -> dict[str, str]:
        """Headers of somebody who may do everything in the account."""
        headers = {"X-Auth-User": f"{ACCOUNT}:{USER}", "X-Auth-Key": KEY}
        async with http.get(self.auth_url, headers=headers) as answer:
            return {"X-Auth-Token": answer.headers.get("X-Auth-Token", "")}

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, str]:
        """A request with the account's rights; `path` is below the account."""
        async with aiohttp.ClientSession() as http:
            headers = await self.login(http) | options.pop("headers", {})
            async with http.request(method, f"{self.account_url}/{path}", headers=headers, **options) as answer:
                return answer.status, await answer.text()

    async def names(self, container: str) -> list[str]:
        """What lies in a container."""
        status, text = await self.ask("GET", container)
        return text.split() if status == 200 else []

    async def stop(self, *servers: str) -> None:
        for server in servers or list(self._running):
            process = self._running.pop(server)
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def why_not() -> str | None:
    """Why there can be no Swift here."""
    if not setup.SWIFT.command("swift-proxy-server").exists():
        return "there is no Swift: make test-all installs it in .run"
    return None if hasattr(os, "setxattr") else "Swift's object server needs extended attributes"


@contextlib.asynccontextmanager
async def swift(directory: Path, *, token_life_s: int = 3600) -> AsyncIterator[Swift]:
    server = Swift(directory / "swift", token_life_s)
    try:
        await server.make_rings()
        await server.start()
        yield server
    finally:
        await server.stop()
