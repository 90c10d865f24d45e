"""Loopback ports that stay ours: chosen by the kernel, and not given to anybody else while their process is down."""

from __future__ import annotations

import socket
import sys

HOST = "127.0.0.1"


class Reservation:
    """A free TCP port on loopback, held until `release`.

    On Linux a socket that is bound but doesn't listen keeps the port from being chosen for others, while a server
    that sets SO_REUSEADDR (asyncio's do) can still bind it. Elsewhere such a bind fails, so the port is merely known
    to have been free a moment ago.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((HOST, 0))
        self.port: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            self.release()

    @property
    def address(self) -> str:
        """HOST:PORT, to listen on or to dial."""
        return f"{HOST}:{self.port}"

    def release(self) -> None:
        """Give the port back. Can be called twice."""
        self._socket.close()


def split(address: str) -> tuple[str, int]:
    """HOST:PORT as a pair. Raises ValueError saying what an address looks like."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise ValueError(f"{address!r} is no address; write HOST:PORT, for example 127.0.0.1:8474")
    return host.strip("[]"), int(port)
