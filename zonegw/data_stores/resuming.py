"""A read that goes on where its connection broke, within a bound."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from zonegw.errors import DataUnavailable


async def resumed(
    store: str, read: Callable[[int], AsyncGenerator[bytes]], start: int, end: int, failures_max: int
) -> AsyncGenerator[bytes]:
    """The bytes from `start` up to `end`, of which `read` yields those from its argument on; it may fail so often
    without progress. Before the first byte nothing is tried again: that is for whoever makes the connection."""
    at, failures = start, 0
    while at < end:
        before = at
        try:
            async with aclosing(read(at)) as pieces:
                async for piece in pieces:
                    at += len(piece)
                    yield piece
            if at < end:
                raise DataUnavailable(f"store {store} sent fewer bytes than the image has")
        except DataUnavailable:
            failures = failures + 1 if at == before else 0
            if at == start or failures >= failures_max:
                raise
