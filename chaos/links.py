"""TCP links between processes that can be cut, slowed and healed.

A link is a listener on loopback that forwards to an upstream. The links of a run live in one proxy process: Toxiproxy
where it can be had ($TOXIPROXY_URL, `toxiproxy-server` in PATH or in .run/bin), else our own. Both are driven through
its HTTP API by toxiproxy-python, behind `Links` alone: that client keeps its server's address in a class attribute,
waits for ever, and takes an error of the server for success. `Links` does none of this.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import requests
from toxiproxy import Toxiproxy
from toxiproxy.exceptions import InvalidToxic, NotFound, ProxyExists

from chaos import config, ports

Direction = Literal["upstream", "downstream"]
Mode = Literal["reset", "blackhole"]
BOTH: tuple[Direction, ...] = ("upstream", "downstream")
BUILT_SERVER = Path(".run") / "bin" / "toxiproxy-server"

T = TypeVar("T")

# The client's address is global, so one thread makes all calls of all Links, each with the address set first.
_CALLER = ThreadPoolExecutor(1, thread_name_prefix="links")


class LinkError(Exception):
    """A link could not be made or changed. The message names the link and says what the proxy answered."""


def toxiproxy_command(control: str, root: Path = Path()) -> list[str] | None:
    """The command of a Toxiproxy server with its control on HOST:PORT; None if there is no such program."""
    built = root / BUILT_SERVER
    program = shutil.which("toxiproxy-server") or (str(built.resolve()) if os.access(built, os.X_OK) else None)
    host, port = ports.split(control)
    return [program, "-host", host, "-port", str(port)] if program else None


def own_command(control: str) -> list[str]:
    """The command of our own proxy; to be run at the top of the checkout."""
    return [sys.executable, "-m", "chaos.tcp_proxy", control]


def server_command(control: str, root: Path = Path()) -> list[str]:
    """The command of the best proxy that this machine has."""
    return toxiproxy_command(control, root) or own_command(control)


def external_server() -> str | None:
    """HOST:PORT of the Toxiproxy server that $TOXIPROXY_URL names, or None. It must be on loopback, like the links."""
    url = os.environ.get("TOXIPROXY_URL")
    if not url:
        return None
    parts = urlsplit(url if "//" in url else f"//{url}")
    if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise LinkError(f"TOXIPROXY_URL is {url}, but links need a server on loopback: unset it, or name a local one")
    return f"{parts.hostname}:{parts.port or 8474}"


class Links:
    """The links of one run, in the proxy process whose control is on HOST:PORT.

    Names are this object's own, also in a proxy that others use. Every method waits until the proxy says that it is so,
    and raises LinkError otherwise. Methods may be called from any thread.
    """

    def __init__(self, control: str, run: str | None = None) -> None:
        self.control, self.run = control, run or uuid.uuid4().hex[:12]
        self._host, self._port = ports.split(control)
        self._prefix = f"{self.run}-"
        self._addresses: dict[str, str] = {}
        self._client = Toxiproxy()

    def version(self) -> str:
        """What the proxy says that it is. The first call that succeeds shows that it is up."""
        return self._call("asking for the version", lambda: str(self._request("GET", "/version").text))

    def create(self, name: str, upstream: str) -> str:
        """Make the link `name` to HOST:PORT and return the address to dial instead."""
        ports.split(upstream)
        proxy = self._call(
            f"making link {name}", lambda: self._client.create(upstream, self._prefix + name, "127.0.0.1:0")
        )
        self._addresses[name] = str(proxy.listen)
        return self._addresses[name]

    def adopt(self, name: str) -> str:
        """Take over the link `name` that an earlier Links of the same run made; returns its address."""
        self._addresses[name] = str(self._call(f"finding link {name}", lambda: self._proxy(name)).listen)
        return self._addresses[name]

    def addresses(self) -> dict[str, str]:
        """Name -> address to dial, of every link of this object."""
        return dict(self._addresses)

    def cut(self, name: str, direction: Direction | None = None, *, mode: Mode = "reset") -> None:
        """Cut a link until `heal`.

        `reset`: its connections end and new ones are refused, as when a process dies. `blackhole`: what is sent is
        swallowed, in one direction or both, as when packets are dropped: connections stay, and so does every wait on
        them. A link that was cut otherwise is then cut this way.
        """
        if mode == "reset" and direction is not None:
            raise ValueError("a connection can't be reset in one direction; use mode='blackhole'")
        self._known(name)
        swallowed = () if mode == "reset" else ((direction,) if direction else BOTH)
        self._call(f"cutting link {name}", lambda: self._set(name, enabled=mode != "reset", swallowed=swallowed))

    def heal(self, name: str) -> None:
        """Undo every cut, delay and throttle. Connections that lost bytes end; new ones work."""
        self._known(name)
        self._call(f"healing link {name}", lambda: self._set(name, enabled=True, swallowed=(), whole=True))

    def broken(self) -> list[str]:
        """The links that are cut, delayed or otherwise not as they were made, by one question to the proxy."""
        told = self._call("asking for all links", lambda: self._request("GET", "/proxies").json())
        shown = {name: told.get(self._prefix + name) for name in self._addresses}
        return [name for name, link in shown.items() if link is None or not link["enabled"] or link["toxics"]]

    def latency(self, name: str, ms: int) -> None:
        """Delay what is sent by `ms`, each way, until `heal` or another delay."""
        self._known(name)
        if not 0 <= ms <= config.LATENCY_MS_MAX:
            raise ValueError(f"a delay is 0 to {config.LATENCY_MS_MAX} ms, not {ms}")
        attributes = {"latency": ms, "jitter": 0} if ms else None
        self._call(f"delaying link {name}", lambda: self._shape(name, "delay", "latency", attributes))

    def throttle(self, name: str, kib_per_s: int | None) -> None:
        """Let through so much per second, each way, until `heal` or another bound; None takes the bound away."""
        self._known(name)
        least, most = config.BANDWIDTH_KIB_PER_S_MIN, config.BANDWIDTH_KIB_PER_S_MAX
        if kib_per_s is not None and not least <= kib_per_s <= most:
            raise ValueError(f"a bandwidth is {least} to {most} KiB/s, not {kib_per_s}")
        attributes = None if kib_per_s is None else {"rate": kib_per_s}
        self._call(f"throttling link {name}", lambda: self._shape(name, "rate", "bandwidth", attributes))

    @contextmanager
    def flap(self, name: str, *, down_s: float, up_s: float, mode: Mode = "reset") -> Iterator[None]:
        """Cut and heal the link in turn while the body runs; healed when it ends. Raises what a change raised."""
        self._known(name)
        ended = threading.Event()
        failures: list[Exception] = []
        flapping = threading.Thread(target=self._flap, args=(name, down_s, up_s, mode, ended, failures), daemon=True)
        flapping.start()
        try:
            yield
        finally:
            ended.set()
            flapping.join(4 * config.CONTROL_TIMEOUT_S)
            self.heal(name)
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Remove the links of this object from the proxy."""
        for name in list(self._addresses):
            self._call(f"removing link {name}", lambda name=name: self._proxy(name).destroy())  # type: ignore[misc]
            del self._addresses[name]

    def _flap(
        self, name: str, down_s: float, up_s: float, mode: Mode, ended: threading.Event, failures: list[Exception]
    ) -> None:
        try:
            for _ in range(config.FLAP_CUTS_MAX):
                self.cut(name, mode=mode)
                ended.wait(down_s)
                self.heal(name)
                if ended.wait(up_s):
                    return
        except LinkError as error:
            failures.append(error)

    def _known(self, name: str) -> None:
        if name not in self._addresses:
            known = ", ".join(sorted(self._addresses)) or "none yet"
            raise LinkError(f"there is no link {name}; there are: {known}")

    def _call(self, what: str, act: Callable[[], T]) -> T:
        """Run `act` in the calling thread of all Links, with this server's address, bounded in time."""

        def addressed() -> T:
            self._client.update_api_consumer(self._host, self._port)
            return act()

        try:
            return _CALLER.submit(addressed).result(config.CONTROL_TIMEOUT_S)
        except FutureTimeout as error:
            raise LinkError(f"{what}: the proxy gave no answer in {config.CONTROL_TIMEOUT_S} s") from error
        except (requests.RequestException, ProxyExists, NotFound, InvalidToxic, KeyError, ValueError) as error:
            raise LinkError(f"{what}: the proxy at {self._host}:{self._port} said: {error!r}") from error

    def _request(self, method: str, path: str) -> requests.Response:
        answer = requests.request(method, f"http://{self._host}:{self._port}{path}", timeout=config.CONTROL_TIMEOUT_S)
        answer.raise_for_status()
        return answer

    def _proxy(self, name: str) -> Any:
        proxy = self._client.get_proxy(self._prefix + name)
        if proxy is None:
            raise LinkError(f"the proxy has lost link {name}; was it restarted?")
        return proxy

    def _set(self, name: str, *, enabled: bool, swallowed: tuple[Direction, ...], whole: bool = False) -> None:
        """Bring the link into this state, a `whole` one without delay and throttle, and check it."""
        proxy = self._proxy(name)
        wanted = {f"swallow_{direction}" for direction in swallowed}
        if proxy.enabled and not enabled:
            proxy.disable()
        present = {toxic for toxic in proxy.toxics() if toxic.startswith("swallow_")}
        for toxic in present - wanted:
            proxy.destroy_toxic(toxic)
        for direction in swallowed:
            if f"swallow_{direction}" not in present:
                _add(proxy, f"swallow_{direction}", "timeout", direction, {"timeout": 0})
        if whole:
            self._shape(name, "delay", "latency", None)
            self._shape(name, "rate", "bandwidth", None)
        if enabled and not proxy.enabled:
            proxy.enable()
        self._check(name, enabled, wanted)

    def _check(self, name: str, enabled: bool, wanted: set[str]) -> None:
        proxy = self._proxy(name)
        present = {toxic for toxic in proxy.toxics() if toxic.startswith("swallow_")}
        if proxy.enabled != enabled or present != wanted:
            raise LinkError(f"link {name} should be enabled={enabled} with {wanted}, but is {proxy.enabled}, {present}")

    def _shape(self, name: str, prefix: str, kind: str, attributes: dict[str, int] | None) -> None:
        """Have toxics of this kind in both directions, with these attributes, or none of them."""
        proxy = self._proxy(name)
        present = proxy.toxics()
        for direction in BOTH:
            toxic = f"{prefix}_{direction}"
            if toxic in present:
                proxy.destroy_toxic(toxic)
            if attributes:
                _add(proxy, toxic, kind, direction, attributes)
        found = {toxic for toxic in proxy.toxics() if toxic.startswith(f"{prefix}_")}
        if len(found) != (len(BOTH) if attributes else 0):
            raise LinkError(f"link {name} should have {kind} {attributes}, but the proxy shows {sorted(found)}")


def _add(proxy: Any, name: str, kind: str, stream: Direction, attributes: dict[str, int]) -> None:
    proxy.add_toxic(name=name, type=kind, stream=stream, attributes=attributes)
