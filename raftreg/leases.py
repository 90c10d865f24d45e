"""Zone leases: heartbeats stay in the leader's memory, only a change of a lease is a command.

A leader that has just been elected knows nothing of its predecessor's heartbeats and therefore grants every lease a
full term from its election. A transition names the version of the zone that it was decided on; apply refuses it when
somebody else was first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raftreg import errors, queries, tables
from raftreg.tables import View

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_CHECKS_PER_LEASE = 10
_PROPOSE_DEADLINE_S = 2.0


@dataclass(frozen=True, slots=True)
class _Heard:
    """A gateway's last heartbeat, by the clock of this peer, and the highest feature level that it supports."""

    at: float
    level: int


class LeaseProposer(Protocol):
    """What leases need of the consensus service `Proposer`."""

    async def propose(
        self, commands: Sequence[dict[str, Any]], *, deadline_s: float = 10.0
    ) -> list[dict[str, Any]]: ...


class LeaseReads(Protocol):
    """What leases need of the consensus service `Reads`."""

    def view(self) -> View: ...

    def freshness(self) -> dict[str, Any]: ...


class LeaseKeeper:
    """Decides which zones are live while this peer leads.

    `run` is a task of the process; `heartbeat` is called by the API. Zones and their gateways are bounded by what is
    registered: a heartbeat of an unknown zone is refused.
    """

    def __init__(
        self,
        proposer: LeaseProposer,
        reads: LeaseReads,
        *,
        peer_name: str,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proposer, self._reads, self._name = proposer, reads, peer_name
        self._lease_s, self._clock = lease_s, clock
        self._heard: dict[str, float] = {}
        self._gateways: dict[str, _Heard] = {}
        self._leading_since: float | None = None

    async def heartbeat(self, zone: str, gateway: str, level: int = 1) -> dict[str, Any]:
        """A gateway of the zone is there, and supports feature levels up to `level`.

        Raises NotLeader, NoQuorum, NotFound, GatewayTooOld and what a proposal raises.
        """
        self._require_leader()
        view = self._reads.view()
        value = view.get(tables.zone_key(zone))
        if value is None:
            raise errors.NotFound(f"zone {zone!r} is not registered; PUT it first", code="zone_not_found", zone=zone)
        head = tables.read_head(view)
        if level < head.format:
            raise errors.GatewayTooOld(
                f"gateway {gateway} supports feature level {level}, the registry has level {head.format}: upgrade it",
                level=head.format,
            )
        row: Row = tables.unpack(value)
        self._heard[zone] = self._clock()
        if gateway in row["gateways"]:
            self._gateways[gateway] = _Heard(self._clock(), level)
        if not row["live"]:
            await self._propose(zone, row, live=True)
        return {"zone": zone, "gateway": gateway, "live": True, "lease_s": self._lease_s, "level": head.level}

    def levels(self) -> dict[str, int | None]:
        """The highest feature level of every live gateway. None for one whose zone is live and which may be there, but
        has not been heard since this peer leads. Raises NotLeader, NoQuorum.
        """
        self._require_leader()
        assert self._leading_since is not None
        now = self._clock()
        found: dict[str, int | None] = {}
        for zone in queries.zones(self._reads.view()).values():
            for gateway in zone["gateways"] if zone["live"] else ():
                heard = self._gateways.get(gateway)
                if heard is not None and now - heard.at <= self._lease_s:
                    found[gateway] = heard.level
                elif now - self._leading_since <= self._lease_s:
                    found[gateway] = None
        return found

    def _require_leader(self) -> None:
        if not self._leads():
            leader = self._reads.freshness()["leader"]
            if leader is None:
                raise errors.NoQuorum("no leader is known: a majority of the peers is not reachable or still electing")
            raise errors.NotLeader(leader)

    def _leads(self) -> bool:
        """Notes the moment from which this peer leads; what was heard in an earlier reign does not count."""
        if self._reads.freshness()["leader"] != self._name:
            self._leading_since = None
            self._heard.clear()
            self._gateways.clear()
            return False
        if self._leading_since is None:
            self._leading_since = self._clock()
        return True

    async def run(self) -> None:
        """Check all leases a few times per term until cancelled."""
        while True:
            await asyncio.sleep(self._lease_s / _CHECKS_PER_LEASE)
            try:
                await self.check()
            except errors.RegistryError as error:
                logger.info("zone leases: %s; the next check tries again", error.message)

    async def check(self) -> list[str]:
        """Let the leases lapse that nobody renewed; returns their zones."""
        if not self._leads():
            return []
        live = {zone: row for zone, row in queries.zones(self._reads.view()).items() if row["live"]}
        # All ages before the first proposal: while one is on its way, this peer may stop to lead.
        overdue = {zone: age_s for zone in live if (age_s := self._age_s(zone)) > self._lease_s}
        for zone, age_s in overdue.items():
            logger.warning("zone %s: no heartbeat for %.1f s; its lease lapses", zone, age_s)
            await self._propose(zone, live[zone], live=False)
        return list(overdue)

    def _age_s(self, zone: str) -> float:
        assert self._leading_since is not None
        return self._clock() - max(self._heard.get(zone, 0.0), self._leading_since)

    async def _propose(self, zone: str, row: dict[str, Any], *, live: bool) -> None:
        command = {"op": "set_zone_lease", "actor": {}, "zone": zone, "live": live, "if_version": row["version"]}
        (result,) = await self._proposer.propose([command], deadline_s=_PROPOSE_DEADLINE_S)
        # A refusal means that the zone has changed meanwhile; the next heartbeat or check decides anew.
        if "error" in result:
            logger.info("zone %s: lease transition refused: %s", zone, result["error"]["message"])
