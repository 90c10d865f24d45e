"""Operator socket: the write-ahead queue, and the image numbers on hand."""

import time
from itertools import islice
from typing import Any

from aiohttp import web

from zonegw.control import answer
from zonegw.control_parked import ROWS_MAX, number_of
from zonegw.errors import NotFound
from zonegw.id_pool import IdPool
from zonegw.retries import Retries
from zonegw.store import Store
from zonegw.write_queue import WriteQueue

RENUMBERED_SHOWN = 100


class ControlQueue:
    """Read only: what is pending goes its way by itself."""

    def __init__(self, store: Store, queue: WriteQueue, ids: IdPool, retries: Retries) -> None:
        self._store = store
        self._queue = queue
        self._ids = ids
        self._retries = retries

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/queue", self.list)
        router.add_get("/queue/stats", self.stats)
        router.add_get("/queue/{position:[0-9]+}", self.show)
        router.add_get("/ids", self.ids)

    async def list(self, request: web.Request) -> web.Response:
        after, rows = number_of(request, "after", 0), min(number_of(request, "limit", ROWS_MAX), ROWS_MAX)
        pending = islice(self._queue.pending(self._store.read(), after), rows)
        return answer({"pending": [_fields(write) for write in pending]})

    async def show(self, request: web.Request) -> web.Response:
        position = min(int(request.match_info["position"][:20]), 2**63)
        write = self._queue.get(self._store.read(), position)
        if write is None:
            raise NotFound(f"no write is pending as position {position}: it is drained, or parked")
        return answer(_fields(write))

    async def stats(self, request: web.Request) -> web.Response:
        read = self._store.read()
        session, oldest = self._queue.session(read), self._queue.oldest_us(read)
        return answer({
            "depth": self._queue.depth(read), "depth_max": self._queue.depth_max,
            "oldest_s": None if oldest is None else max(0.0, time.time() - oldest / 1e6),
            "highest_position": self._queue.highest_position(read), "parked": self._queue.parked_count(read),
            "retained": read.count("retained"), "session": None if session is None else session.uuid,
            "sent": 0 if session is None else session.highest_sequence - session.acked_sequence,
            "acked_sequence": 0 if session is None else session.acked_sequence,
            "retrying": self._retries.under_way(),
        })  # fmt: skip

    async def ids(self, request: web.Request) -> web.Response:
        read = self._store.read()
        runway = self._ids.runway(read)
        return answer({
            "numbers": runway.numbers, "rate_per_s": runway.rate_per_s, "runway_s": runway.seconds,
            "target": self._ids.target(), "low": self._ids.low(read), "highest": self._ids.highest(read),
            "blocks": self._ids.blocks(read), "renumbered_images": read.count("renumbered"),
            "renumbered": self._retries.renumbered(read, RENUMBERED_SHOWN),
        })  # fmt: skip


def _fields(write: Any) -> dict[str, Any]:
    return {name: getattr(write, name) for name in write.__slots__}
