"""A real gateway for tests: Images API on a free loopback port, LMDB and files on the disk, in this process's loop.

async with running(tmp_path) as zone:            # no registry in reach
    image = await zone.create(name="cirros")
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from raftreg.config import TlsFiles
from tests.registry import free_ports
from zonegw import config, store_identity
from zonegw.auth import create_token
from zonegw.id_pool import IdPool
from zonegw.main import Gateway
from zonegw.store import Store
from zonegw.write_queue import WriteQueue

WAIT_S = 20.0
PATCH_TYPE = "application/openstack-images-v2.1-json-patch"
NOWHERE = "http://127.0.0.1:1"
USERS = {
    "alice": ("demo", ["member"]), "bob": ("other", ["member"]), "root": ("admin", ["admin"]),
    "nova": ("service", ["service"]),
}  # fmt: skip


class Reachable(Protocol):
    """Where a registry is reached, and with whose certificates."""

    @property
    def urls(self) -> list[str]: ...

    def tls(self, who: str) -> TlsFiles: ...


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait, for a bounded time, until `condition` holds; `what` names it in the failure."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110 - what is asked has no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {WAIT_S} s: {what}") from None


class Zone:
    """A running gateway and clients of it."""

    def __init__(self, gateway: Gateway, http: aiohttp.ClientSession, tokens: dict[str, str]) -> None:
        self.gateway = gateway
        self.http = http
        self.tokens = tokens
        host, port = gateway.address
        self.url = f"http://{host}:{port}"

    @contextlib.asynccontextmanager
    async def ask(
        self,
        method: str,
        path: str,
        *,
        user: str | None = "alice",
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        token = {"X-Auth-Token": self.tokens[user]} if user else {}
        async with self.http.request(
            method, self.url + path, headers={**token, **(headers or {})}, **options
        ) as answer:
            yield answer

    async def status(self, method: str, path: str, **options: Any) -> int:
        async with self.ask(method, path, **options) as answer:
            await answer.read()
            return answer.status

    async def get(self, path: str, **options: Any) -> Any:
        async with self.ask("GET", path, **options) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def create(self, *, user: str = "alice", **attributes: Any) -> dict[str, Any]:
        async with self.ask("POST", "/v2/images", user=user, json=attributes) as answer:
            assert answer.status == 201, await answer.text()
            image: dict[str, Any] = await answer.json()
            return image

    async def upload(self, image: dict[str, Any], data: bytes, **options: Any) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        async with self.ask("PUT", f"{image['self']}/file", data=data, headers=headers, **options) as answer:
            assert answer.status == 204, await answer.text()

    async def create_active(self, data: bytes, *, user: str = "alice", **attributes: Any) -> dict[str, Any]:
        attributes = {"disk_format": "raw", "container_format": "bare", **attributes}
        image = await self.create(user=user, **attributes)
        await self.upload(image, data, user=user)
        return image

    async def patch(self, image: dict[str, Any], *operations: dict[str, Any], user: str = "alice") -> int:
        headers = {"Content-Type": PATCH_TYPE}
        async with self.ask("PATCH", image["self"], json=list(operations), headers=headers, user=user) as answer:
            await answer.read()
            return answer.status

    async def rename(self, image: dict[str, Any], name: str, **options: Any) -> int:
        return await self.patch(image, {"op": "replace", "path": "/name", "value": name}, **options)

    async def data(self, image: dict[str, Any], **options: Any) -> bytes:
        async with self.ask("GET", f"{image['self']}/file", **options) as answer:
            assert answer.status in (200, 206), await answer.text()
            return await answer.read()

    async def names(self, query: str = "", **options: Any) -> list[str]:
        return [image["name"] for image in (await self.get(f"/v2/images{query}", **options))["images"]]

    async def drained(self) -> None:
        """Wait until nothing is pending and the catalogue holds what was drained."""
        gateway = self.gateway
        await until(lambda: gateway.status.state == "online", f"online: {gateway.status.document()}")
        await until(lambda: gateway.queue.depth(gateway.store.read()) == 0, "an empty queue")
        await until(lambda: not list(gateway.catalogue.overlaid(gateway.store.committed())), "an empty overlay")

    async def drained_but_parked(self) -> None:
        """Wait until nothing is pending; parked writes stay laid over the catalogue."""
        gateway = self.gateway
        await until(lambda: gateway.status.state == "online", f"online: {gateway.status.document()}")
        await until(lambda: gateway.queue.depth(gateway.store.read()) == 0, "an empty queue")


def settings(
    directory: Path,
    *,
    zone: str = "fra",
    gateway: str = "fra-1",
    registry: Reachable | None = None,
    endpoint: str = NOWHERE,
    tenants: list[str] | None = None,
    images: str = "",
    more: str = "",
    **limits: Any,
) -> config.Config:
    """A configuration below `directory`, with a token for each of USERS; without `registry` there is
    only what listens at `endpoint`. `images` are TOML lines of [images], `more` is TOML
    behind the rest."""
    directory.mkdir(parents=True, exist_ok=True)
    tls: dict[str, str] | None = None
    interzone: dict[str, str] = {}
    if registry is not None:
        files = registry.tls(gateway)
        tls = {"ca": str(files.ca), "cert": str(files.cert), "key": str(files.key)}
        address = f"127.0.0.1:{free_ports(1)[0]}"
        interzone = {"interzone_listen": address, "advertise": f"https://{address}"}
    text = config.render(
        zone=zone, gateway=gateway, data_dir="data", listen="127.0.0.1:0", tls=tls, tokens_file="tokens.json",
        endpoints=registry.urls if registry else [endpoint], limits=limits or None, tenants=tenants, **interzone,
    )  # fmt: skip
    text = text.replace("[images]", f"[images]\n{images}")
    (directory / "zonegw.toml").write_text(f"{text}\n{more}")
    plain_tokens(directory)
    return config.load(directory / "zonegw.toml")


def plain_tokens(directory: Path) -> dict[str, str]:
    """Tokens of USERS; made once, and kept beside the digests for the test."""
    path = directory / "plain-tokens"
    if not path.exists():
        made = [
            f"{user} {create_token(directory / 'tokens.json', user=user, project=project, roles=roles)}"
            for user, (project, roles) in USERS.items()
        ]
        path.write_text("\n".join(made))
    return dict(line.split() for line in path.read_text().splitlines())


@contextlib.asynccontextmanager
async def running(directory: Path, **options: Any) -> AsyncIterator[Zone]:
    """A gateway on `directory`; `options` are those of `settings`."""
    chosen = settings(directory, **options)
    async with Gateway(chosen) as gateway, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(WAIT_S)) as http:
        yield Zone(gateway, http, plain_tokens(directory))
        if gateway.failed.done():  # the process would have ended
            gateway.failed.result()


def seed_block(directory: Path, first: int, last: int, **options: Any) -> None:
    """Put an ID block on hand, as if the registry had granted it before the link was lost."""
    chosen = settings(directory, **options)
    store = Store(chosen.data_dir / "store", chosen.limits)
    with store.transaction() as txn:
        store_identity.unchanged(txn, store.directory)
        IdPool(chosen.limits).add(txn, first, last, 1)
    store.close()


def queued_commands(zone: Zone) -> list[dict[str, Any]]:
    """The pending writes' commands, in order."""
    gateway = zone.gateway
    queue: WriteQueue = gateway.queue
    return [write.command for write in queue.pending(gateway.store.read())]
