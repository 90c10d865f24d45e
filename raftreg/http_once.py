"""Keeps aiohttp from sending a request twice behind our back.

On a kept connection that breaks, aiohttp sends a PUT or DELETE again by itself. When that second attempt then cannot
connect, it looks as if nothing had ever been sent, although the first may have been carried out. Both HTTP clients of
the registry therefore use `send_once` as a middleware and decide themselves what may be repeated.
"""

from __future__ import annotations

import aiohttp


class ConnectionLost(aiohttp.ClientConnectionError):
    """The connection broke after the request may have been sent."""


async def send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Turn what aiohttp would retry into ConnectionLost, which it does not."""
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise ConnectionLost(*error.args) from None
