"""How the API of a stopping peer lets go of its clients, so that nobody's request meets a connection that closes.

HTTP/1.1 cannot tell a client on a quiet connection that it will be closed. So the listener closes first, and new
clients go elsewhere at once; whatever still comes on the connections that exist is answered, with the word that this
connection ends; and those on which nothing came for a while are closed last.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from raftreg.api_context import Context

_POLL_S = 0.01


async def drain(runner: web.AppRunner, context: Context) -> None:
    """Call when this peer leads no more; `runner.cleanup()` afterwards closes what is quiet. Bounded by `drain_max_s`.

    Feeds end at once: their consumers resume elsewhere from where they are.
    """
    clock = asyncio.get_running_loop().time
    limits, began = context.limits, clock()
    context.stopping = True
    context.feed.close()
    for site in list(runner.sites):
        await site.stop()
    await asyncio.sleep(limits.drain_handshakes_s)
    seen, quiet_since = context.served, began
    while _connections(runner) and clock() - began < limits.drain_max_s:
        if context.running or context.served != seen:
            seen, quiet_since = context.served, clock()
        elif clock() - quiet_since >= limits.drain_quiet_s:
            return
        await asyncio.sleep(_POLL_S)


def _connections(runner: web.AppRunner) -> int:
    return len(runner.server.connections) if runner.server is not None else 0
