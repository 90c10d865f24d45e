"""Small HTTP servers on loopback: what stands around a zone in a cloud."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Identity(BaseHTTPRequestHandler):
    """An identity service as tenants see it: it says its version, and forbids to look for projects."""

    def do_GET(self) -> None:
        if self.path.strip("/") not in ("", "v3"):
            return self.send_error(403)
        links = [{"rel": "self", "href": f"http://{self.headers['Host']}/v3/"}]
        version = {"id": "v3.14", "status": "stable", "links": links}
        body = json.dumps({"versions": {"values": [version]}, "version": version}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def log_message(self, *arguments: object) -> None:
        pass


class Files(SimpleHTTPRequestHandler):
    """Offers the files of a directory."""

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving(handler: Callable[..., Any]) -> Iterator[str]:
    """The URL of a server that runs in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def offering(directory: Path) -> contextlib.AbstractContextManager[str]:
    """The URL of a server that offers the files of a directory."""
    return serving(functools.partial(Files, directory=str(directory)))
