"""Tenant set: whose images the catalogue holds, and what is to be done when that is configured otherwise.

What the catalogue holds is noted with its rows. A set that only grew is back-filled while the feed goes on from where
it was; after any other change the catalogue is bootstrapped anew, and what nobody of the set sees is forgotten. The
noted set is the old one until either is done, with the new one beside it: whoever breaks off in between starts it
again, and does not take rows of a half-filled set for rows that the feed keeps right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from zonegw.store import Txn

_KEY = b"feed.tenants"

Tenants = frozenset[str]
"""Projects by ID; the empty set stands for all of them."""


class TenantSet:
    """The configured set, beside the one that the catalogue holds."""

    def __init__(self, wanted: Tenants, *, query_max_bytes: int) -> None:
        self._wanted = wanted
        self._query_max_bytes = query_max_bytes

    def needs_bootstrap(self, txn: Txn) -> bool:
        """Whether the catalogue can't be brought to the configured set by a back-fill."""
        held, filling = self._noted(txn)
        return (held, filling) != (self._wanted, None) and self.widened_from(txn) is None

    def widened_from(self, txn: Txn) -> Tenants | None:
        """The set that the catalogue holds, where all that it lacks is what the configured one has beside it."""
        held, filling = self._noted(txn)
        grew = bool(held) and held != self._wanted and (not self._wanted or held < self._wanted)
        fits = query_bytes(held) + query_bytes(self._wanted) <= self._query_max_bytes
        return held if grew and fits and filling in (None, self._wanted) else None

    def begin(self, txn: Txn) -> None:
        """From here on rows of the configured set may be in the catalogue."""
        held, filling = self._noted(txn)
        if held != self._wanted or filling is not None:
            txn.put_row("meta", _KEY, {"held": sorted(held), "filling": sorted(self._wanted)})

    def done(self, txn: Txn) -> None:
        """The catalogue holds the configured set."""
        txn.put_row("meta", _KEY, {"held": sorted(self._wanted), "filling": None})

    @staticmethod
    def _noted(txn: Txn) -> tuple[Tenants, Tenants | None]:
        row = txn.row("meta", _KEY) or {"held": [], "filling": None}
        filling = row["filling"]
        return frozenset(row["held"]), None if filling is None else frozenset(filling)


def query_bytes(tenants: Tenants) -> int:
    """What naming them takes of the first line of a request, at most."""
    return sum(len(quote(tenant, safe="")) + len("&known_tenant=") for tenant in tenants)
