"""A client that costs next to nothing: it sends known bytes from a file by sendfile, and compares what it gets."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
# The bytes repeat after so many: enough that nothing on the way profits, little enough to stay in memory.
_PERIOD = 64
_TIMEOUT_S = 600.0
_HEAD_MAX = 65_536


class KnownBytes:
    """Pseudo-random bytes without an end, of which the beginning lies in a file."""

    def __init__(self, directory: Path) -> None:
        self._period = os.urandom(_PERIOD * MIB)
        self.path = directory / "known-bytes"
        self.path.write_bytes(self._period)

    def chunk(self, number: int) -> bytes:
        """The MiB of this number."""
        start = number % _PERIOD * MIB
        return self._period[start : start + MIB]

    def chunks(self, count: int) -> Iterator[bytes]:
        return (self.chunk(number) for number in range(count))

    def sha512(self, mib: int) -> str:
        digest = hashlib.sha512()
        for chunk in self.chunks(mib):
            digest.update(chunk)
        return digest.hexdigest()


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as connection:
        yield connection


def upload(url: str, path: str, known: KnownBytes, mib: int) -> float:
    """PUT `mib` MiB; the seconds until the answer. Raises RuntimeError for one that is no success."""
    with connected(url) as connection, known.path.open("rb") as file:
        head = f"PUT {path} HTTP/1.1\r\nHost: soak\r\nContent-Type: application/octet-stream\r\n"
        began = time.monotonic()
        connection.sendall(f"{head}Content-Length: {mib * MIB}\r\n\r\n".encode())
        for first in range(0, mib, _PERIOD):
            connection.sendfile(file, 0, min(_PERIOD, mib - first) * MIB)
        answer = http.client.HTTPResponse(connection, method="PUT")
        answer.begin()
        took = time.monotonic() - began
        said = answer.read()
    if answer.status >= 300:
        raise RuntimeError(f"PUT {path}: {answer.status} {said[:200]!r}")
    return took


def download(url: str, path: str, known: KnownBytes, mib: int) -> float:
    """GET `mib` MiB; the seconds it took. Raises RuntimeError for other bytes than were expected."""
    with connected(url) as connection:
        began = time.monotonic()
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: soak\r\n\r\n".encode())
        received = bytearray(MIB)
        filled = _body_begins(connection, received)
        for chunk in known.chunks(mib):
            _fill(connection, memoryview(received)[filled:])
            if received != chunk:
                raise RuntimeError(f"GET {path}: other bytes came than were sent")
            filled = 0
        return time.monotonic() - began


def _body_begins(connection: socket.socket, received: bytearray) -> int:
    """Read the head; what came of the body with it goes into `received`, and this is its size."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _HEAD_MAX:
        head += connection.recv(4096)
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"the answer begins with {head[:200]!r}")
    body = head.partition(b"\r\n\r\n")[2]
    received[: len(body)] = body
    return len(body)


def _fill(connection: socket.socket, view: memoryview) -> None:
    while view:
        size = connection.recv_into(view)
        if not size:
            raise RuntimeError("the body ended early")
        view = view[size:]
