"""Links behave the same whichever proxy is behind them; each test runs with Toxiproxy and with our own."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from chaos import config, links, ports
from chaos.links import LinkError, Links
from ops.dev import environment, processes

ROOT = Path(__file__).resolve().parents[2]
# For what must happen: as long as a busy machine may need.
SOON_S = 10.0
# For what must not happen: long enough for loopback to have carried it.
NOT_NOW_S = 0.5


class Upstream:
    """A real server that sends back what it gets, and counts what arrives."""

    def __init__(self) -> None:
        self._listener = socket.create_server((ports.HOST, 0))
        self.address = f"{ports.HOST}:{self._listener.getsockname()[1]}"
        self.received = bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            while data := connection.recv(65536):
                self.received += data
                connection.sendall(data)

    def close(self) -> None:
        # A close alone leaves the thread in accept() for ever.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(params=["toxiproxy", "own"])
def proxy_process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, processes.Process]]:
    """A proxy process and its control address."""
    reservation = ports.Reservation()
    own = request.param == "own"
    command = links.own_command(reservation.address) if own else links.toxiproxy_command(reservation.address, ROOT)
    if command is None:
        pytest.skip("there is no toxiproxy-server in PATH or .run/bin (make deps builds it where Go is)")
    process = processes.Process(
        request.param,
        command,
        log=tmp_path / "proxy.log",
        env=environment.clean(os.environ),
        cwd=ROOT,
        data_dir=tmp_path,
    )
    process.start()
    try:
        assert processes.wait_until(lambda: _answers(reservation.address), SOON_S), process.ending()
        yield reservation.address, process
    finally:
        process.kill()
        reservation.release()


@pytest.fixture
def made(proxy_process: tuple[str, processes.Process]) -> Iterator[Links]:
    made = Links(proxy_process[0])
    yield made
    made.close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.close()


def _answers(control: str) -> bool:
    try:
        return bool(Links(control).version())
    except LinkError:
        return False


def dial(address: str) -> socket.socket:
    return socket.create_connection(ports.split(address), timeout=SOON_S)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    got = b""
    while len(got) < len(data) and (more := connection.recv(65536)):
        got += more
    return got


def is_silent(connection: socket.socket) -> bool:
    """Whether nothing comes, neither bytes nor an end."""
    connection.settimeout(NOT_NOW_S)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(SOON_S)
    return False


def is_ended(connection: socket.socket) -> bool:
    """Whether the connection was ended by the other side, without any more bytes."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_bytes_pass_both_ways_and_ends_are_passed_on(made: Links, upstream: Upstream) -> None:
    with closing(dial(made.create("a-b", upstream.address))) as connection:
        data = os.urandom(3_000_000)
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        got = b""
        while len(got) < len(data):
            got += connection.recv(65536)
        sender.join()
        assert got == data
        connection.shutdown(socket.SHUT_WR)
        assert is_ended(connection)


def test_a_reset_link_ends_connections_and_refuses_new_ones_until_healed(made: Links, upstream: Upstream) -> None:
    address = made.create("a-b", upstream.address)
    with closing(dial(address)) as connection:
        assert exchange(connection, b"before") == b"before"
        made.cut("a-b")
        assert is_ended(connection)
    with pytest.raises(ConnectionError):
        dial(address)
    made.heal("a-b")
    with closing(dial(address)) as connection:
        assert exchange(connection, b"after") == b"after"


def test_a_black_hole_swallows_and_keeps_connections_open_until_healed(made: Links, upstream: Upstream) -> None:
    address = made.create("a-b", upstream.address)
    with closing(dial(address)) as old, closing(dial(address)) as idle:
        assert exchange(old, b"before") == b"before"
        assert exchange(idle, b"idle") == b"idle"
        made.cut("a-b", mode="blackhole")
        old.sendall(b"swallowed")
        assert is_silent(old)
        with closing(dial(address)) as new:
            new.sendall(b"swallowed")
            assert is_silent(new)
        assert bytes(upstream.received) == b"beforeidle"
        made.heal("a-b")
        # Bytes are missing, so this stream must not go on.
        assert is_ended(old)
    with closing(dial(address)) as connection:
        assert exchange(connection, b"after") == b"after"


def test_a_black_hole_in_one_direction_lets_the_other_through(made: Links, upstream: Upstream) -> None:
    address = made.create("a-b", upstream.address)
    with closing(dial(address)) as connection:
        made.cut("a-b", "downstream", mode="blackhole")
        connection.sendall(b"heard")
        assert is_silent(connection)
        assert processes.wait_until(lambda: bytes(upstream.received) == b"heard", SOON_S)
        made.heal("a-b")
    with closing(dial(address)) as connection:
        made.cut("a-b", "upstream", mode="blackhole")
        connection.sendall(b"unheard")
        assert is_silent(connection)
        assert bytes(upstream.received) == b"heard"


def test_one_kind_of_cut_can_follow_another(made: Links, upstream: Upstream) -> None:
    address = made.create("a-b", upstream.address)
    made.cut("a-b", mode="blackhole")
    made.cut("a-b")
    with pytest.raises(ConnectionError):
        dial(address)
    made.cut("a-b", "downstream", mode="blackhole")
    with closing(dial(address)) as connection:
        connection.sendall(b"heard")
        assert is_silent(connection)
        assert processes.wait_until(lambda: bytes(upstream.received) == b"heard", SOON_S)
    made.cut("a-b", "downstream", mode="blackhole")
    made.heal("a-b")
    made.heal("a-b")
    with closing(dial(address)) as connection:
        assert exchange(connection, b"after") == b"after"


def test_latency_delays_each_way_and_ends_with_heal(made: Links, upstream: Upstream) -> None:
    address = made.create("a-b", upstream.address)
    made.latency("a-b", 150)
    with closing(dial(address)) as connection:
        began = time.monotonic()
        assert exchange(connection, b"slow") == b"slow"
        assert time.monotonic() - began >= 0.3
        # Delay is no throttle: what is sent together arrives together.
        began = time.monotonic()
        for _ in range(20):
            connection.sendall(b"x" * 1000)
        got = 0
        while got < 20_000:
            got += len(connection.recv(65536))
        assert time.monotonic() - began < 20 * 0.3
    made.heal("a-b")
    with closing(dial(address)) as connection:
        quickest = 1.0
        for _ in range(20):
            began = time.monotonic()
            assert exchange(connection, b"fast") == b"fast"
            quickest = min(quickest, time.monotonic() - began)
        assert quickest < 0.3


def test_a_flapping_link_goes_up_and_down_and_is_healed_in_the_end(made: Links, upstream: Upstream) -> None:
    address = made.create("a-b", upstream.address)
    refused = worked = 0

    def both_seen() -> bool:
        nonlocal refused, worked
        try:
            with closing(dial(address)) as connection:
                worked += exchange(connection, b"x") == b"x"
        except ConnectionError:
            refused += 1
        return refused > 1 and worked > 1

    with made.flap("a-b", down_s=0.1, up_s=0.1):
        assert processes.wait_until(both_seen, SOON_S), (refused, worked)
    with closing(dial(address)) as connection:
        assert exchange(connection, b"after") == b"after"


def test_an_upstream_that_is_away_looks_like_a_dead_process_and_works_when_it_is_back(made: Links) -> None:
    reservation = ports.Reservation()
    address = made.create("a-b", reservation.address)
    with closing(dial(address)) as connection:
        assert is_ended(connection)
    listener = socket.create_server(ports.split(reservation.address))
    with closing(listener), closing(dial(address)) as connection:
        connection.sendall(b"back")
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(4) == b"back"
    reservation.release()


def test_mistakes_are_refused_with_what_is_wrong(made: Links, upstream: Upstream) -> None:
    made.create("a-b", upstream.address)
    with pytest.raises(LinkError, match="a-b"):
        made.create("a-b", upstream.address)
    with pytest.raises(LinkError, match="there are: a-b"):
        made.cut("a-c")
    with pytest.raises(ValueError, match="blackhole"):
        made.cut("a-b", "upstream", mode="reset")
    with pytest.raises(ValueError, match="HOST:PORT"):
        made.create("a-d", "nowhere")
    with pytest.raises(ValueError, match="ms"):
        made.latency("a-b", -1)


def test_a_throttled_link_carries_all_bytes_but_slowly_until_it_is_healed(made: Links, upstream: Upstream) -> None:
    address = made.create("a-b", upstream.address)
    made.throttle("a-b", 32)
    assert made.broken() == ["a-b"]
    data = os.urandom(32 * 1024)
    with closing(dial(address)) as connection:
        began = time.monotonic()
        assert exchange(connection, data) == data
        assert time.monotonic() - began >= 0.8
        made.heal("a-b")
        assert made.broken() == []
        assert exchange(connection, os.urandom(3_000)) != b""
    with pytest.raises(ValueError, match="KiB"):
        made.throttle("a-b", 0)


def test_two_runs_in_one_proxy_may_use_the_same_names(
    proxy_process: tuple[str, processes.Process], upstream: Upstream
) -> None:
    one, two = Links(proxy_process[0]), Links(proxy_process[0])
    kept = two.create("a-b", upstream.address)
    one.create("a-b", upstream.address)
    one.cut("a-b")
    one.close()
    with closing(dial(kept)) as connection:
        assert exchange(connection, b"kept") == b"kept"
    two.close()


def test_a_dead_proxy_is_an_error_and_a_frozen_one_too_within_bounds(
    proxy_process: tuple[str, processes.Process], upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, process = proxy_process
    made = Links(control)
    made.create("a-b", upstream.address)
    monkeypatch.setattr(config, "CONTROL_TIMEOUT_S", NOT_NOW_S)
    process.send(signal.SIGSTOP)
    with pytest.raises(LinkError, match="no answer"):
        made.cut("a-b")
    process.kill()
    monkeypatch.undo()
    with pytest.raises(LinkError):
        made.cut("a-b")


def test_toxiproxy_elsewhere_than_on_loopback_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOXIPROXY_URL", "http://127.0.0.1:9000")
    assert links.external_server() == "127.0.0.1:9000"
    monkeypatch.setenv("TOXIPROXY_URL", "http://proxy.example.org:8474")
    with pytest.raises(LinkError, match="loopback"):
        links.external_server()
    monkeypatch.delenv("TOXIPROXY_URL")
    assert links.external_server() is None
