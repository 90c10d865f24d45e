"""Operator socket: what operators do to a running gateway, over HTTP on a Unix socket in its data directory.

Whoever may open the socket, which is its owner, is the operator; no tenant comes here. The running process answers,
because only it writes to the store. Each noun has a module (`control_NOUN`) with its routes.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from zonegw.errors import BadRequest, GatewayError
from zonegw.limits import Limits

log = logging.getLogger(__name__)

SOCKET = "control.sock"


class Noun(Protocol):
    """Routes about one noun."""

    def add_routes(self, router: web.UrlDispatcher) -> None: ...


def build_app(nouns: Iterable[Noun], limits: Limits) -> web.Application:
    """The operator socket's application."""
    app = web.Application(middlewares=[_answering], client_max_size=limits.json_body_max_bytes)
    for noun in nouns:
        noun.add_routes(app.router)
    return app


@web.middleware
async def _answering(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals as {"error": what to do}."""
    try:
        return await handler(request)
    except GatewayError as error:
        return answer({"error": error.message}, status=error.http_status)
    except web.HTTPException as error:
        said = f"this gateway knows no {request.method} {request.path}: it may be of another release than the command"
        return answer({"error": said if error.status == 404 else error.reason}, status=error.status)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return answer({"error": "the gateway failed to answer; its log has the reason"}, status=500)


def answer(document: Any, *, status: int = 200) -> web.Response:
    """A JSON answer; bytes in it as hexadecimal digits."""
    body = orjson.dumps(document, default=_printable, option=orjson.OPT_NON_STR_KEYS)
    return web.Response(status=status, body=body, content_type="application/json")


def _printable(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


async def asked(request: web.Request) -> dict[str, Any]:
    """The JSON object that was sent, empty where there was no body. Raises BadRequest."""
    body = await request.read()
    try:
        document = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadRequest("the body must be a JSON object")
    return document


def listening(directory: Path) -> socket.socket:
    """A socket that listens in `directory`, in place of one that an earlier life left; the store's lock makes this
    process the only one that may."""
    (directory / SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listener.fileno(), 0o600)  # before it has a name
        with address_of(directory) as address:
            listener.bind(address)
        os.chmod(directory / SOCKET, 0o600)  # where the system does not take the mode from the socket
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def address_of(directory: Path) -> Iterator[str]:
    """A name of the socket that fits into an address of 108 bytes, however long the directory's is."""
    plain = str(directory / SOCKET)
    if len(os.fsencode(plain)) < 100:
        yield plain
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{SOCKET}"
    finally:
        os.close(handle)
