"""A real Swift on loopback: proxy, account, container and object server, each a process, with one device and one copy.

with swift(tmp_path) as server:
    server.auth_url, server.url for S3, server.key_file

Its tokens are Fernet tokens, so that there is nothing of them to be remembered, and no memcached.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import aiohttp

from ops.dev import environment, processes, setup
from tests.registry import free_ports

ACCOUNT, USER, KEY = "images", "gateway", "s3cr3t"
READER = "reader"
MIB = 1 << 20
SERVERS = ("account", "container", "object", "proxy")
# Four interpreters that load much, on a busy machine.
START_S = 90.0
ASK_S = 60.0
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
# Segments may be small, so that tests of large objects are; and they are deleted at once, for there is no expirer.
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
allow_async_delete = false
[filter:dlo]
use = egg:swift#dlo
"""
# A second proxy before the same servers, whose users are Keystone's.
_KEYSTONE_PROXY = """[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck proxy-logging authtoken keystoneauth copy slo dlo proxy-server
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
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = {auth_url}
auth_url = {auth_url}
auth_type = password
username = {user_name}
password = {password}
project_name = {project}
user_domain_name = Default
project_domain_name = Default
delay_auth_decision = true
[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = admin
reseller_prefix = KEY
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


class Swift:
    """The servers; the proxy alone can be stopped and started again."""

    def __init__(self, directory: Path, token_life_s: int) -> None:
        self.directory = directory
        self.ports = dict(zip(SERVERS, free_ports(len(SERVERS)), strict=True))
        (self._keystone_port,) = free_ports(1)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._configure(token_life_s)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['proxy']}"

    @property
    def auth_url(self) -> str:
        return f"{self.url}/auth/v1.0"

    @property
    def key_file(self) -> Path:
        return self.directory / "key"

    def _configure(self, token_life_s: int) -> None:
        (self.directory / "disk").mkdir(parents=True)
        (self.directory / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_suffix = test\n[storage-policy:0]\nname = one\ndefault = yes\n"
        )
        self.key_file.write_text(KEY)
        for server in SERVERS:
            values: dict[str, Any] = {
                "directory": self.directory, "port": self.ports[server], "server": server, "account": ACCOUNT,
                "user": _user(), "user_name": USER, "key": KEY,
                "reader": READER, "token_life_s": token_life_s,
                "fernet_key": urlsafe_b64encode(os.urandom(32)).decode(),
            }  # fmt: skip
            text = (_COMMON + (_PROXY if server == "proxy" else _STORAGE)).format(**values)
            (self.directory / f"{server}.conf").write_text(text)

    def start(self, *servers: str) -> None:
        """Start the named ones, or all of them for the first time."""
        if not servers:
            self._make_rings()
        for server in servers or SERVERS:
            self._start(server, f"swift-{server}-server")
        assert processes.wait_until(self._answers, START_S), self.log()

    def _start(self, server: str, program: str) -> None:
        with (self.directory / f"{server}.log").open("ab") as log:
            self._running[server] = subprocess.Popen(
                [setup.SWIFT.python, "-I", setup.SWIFT.command(program), self.directory / f"{server}.conf"],
                env=environment.clean(os.environ), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def keystone_url(self) -> str:
        """Where the proxy for Keystone's users listens, once it runs: its accounts are KEY_ and a project's ID."""
        return f"http://127.0.0.1:{self._keystone_port}"

    def start_keystone_proxy(self, **values: str) -> None:
        common = {"directory": self.directory, "port": self._keystone_port, "user": _user()}
        (self.directory / "keystone.conf").write_text((_COMMON + _KEYSTONE_PROXY).format(**common, **values))
        self._start("keystone", "swift-proxy-server")
        assert processes.wait_until(lambda: self._is_healthy(self.keystone_url), START_S), self.log()

    def _is_healthy(self, url: str) -> bool:
        try:
            with urlopen(f"{url}/healthcheck", timeout=ASK_S):
                return True
        except OSError:
            return False

    def _make_rings(self) -> None:
        rings = [f"{server}={self.ports[server]}" for server in SERVERS if server != "proxy"]
        maker = Path(__file__).with_name("make_rings.py")
        subprocess.run(
            [setup.SWIFT.python, "-I", maker, self.directory, *rings], env=environment.clean(os.environ), check=True
        )

    def _answers(self) -> bool:
        """Whether a container can be made and an object be put."""
        assert all(process.poll() is None for process in self._running.values()), self.log()
        try:
            return all(self._put(path) for path in ("ready", "ready/object"))
        except OSError:
            return False

    def _put(self, path: str) -> bool:
        login = Request(self.auth_url, headers={"X-Auth-User": f"{ACCOUNT}:{USER}", "X-Auth-Key": KEY})
        with urlopen(login, timeout=ASK_S) as answer:
            token = answer.headers["X-Auth-Token"]
        url = f"{self.account_url}/{path}"
        with urlopen(Request(url, b"", {"X-Auth-Token": token}, method="PUT"), timeout=ASK_S) as answer:
            return answer.status in (201, 202)

    def log(self) -> str:
        """The ends of what the servers said."""
        return "\n".join((self.directory / f"{server}.log").read_text()[-2000:] for server in self._running)

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

    def stop(self, *servers: str) -> None:
        for server in servers or list(self._running):
            process = self._running.pop(server)
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _user() -> str:
    """Swift's servers become this user; only root may become another one."""
    return pwd.getpwuid(os.geteuid()).pw_name


def why_not() -> str | None:
    """Why there can be no Swift here."""
    if not setup.SWIFT.command("swift-proxy-server").exists():
        return "there is no Swift: make test-all installs it in .run"
    return None if hasattr(os, "setxattr") else "Swift's object server needs extended attributes"


@contextlib.contextmanager
def swift(directory: Path, *, token_life_s: int = 3600) -> Iterator[Swift]:
    server = Swift(directory / "swift", token_life_s)
    try:
        server.start()
        yield server
    finally:
        server.stop()
