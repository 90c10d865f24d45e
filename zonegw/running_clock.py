"""How long gateways on this store have run altogether: a clock that no step of the wall clock moves.

It stands still while no gateway runs, and a crash takes back what was not saved: what waits for it waits longer then,
never less.
"""

import time
from collections.abc import Callable

from zonegw.store import Store, Txn

_KEY = b"running_ms"


class RunningClock:
    """Milliseconds, over all lives of the gateway."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._before = int(store.read().row("meta", _KEY) or 0)
        self._started = clock()

    def now_ms(self) -> int:
        return self._before + int((self._clock() - self._started) * 1000)

    def save(self, txn: Txn) -> None:
        """Call it now and then."""
        txn.put_row("meta", _KEY, self.now_ms())
