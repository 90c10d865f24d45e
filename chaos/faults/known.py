"""All faults by name. A new one needs its class and a line here."""

from __future__ import annotations

from collections.abc import Iterable

from chaos.faults.fault import Fault
from chaos.faults.kill import Kill, RestartAll
from chaos.faults.partition import LeaderAlone, MajorityRing, OneWay, ZoneAlone, ZoneFromPeer
from chaos.faults.pause import Pause
from chaos.faults.slow_links import Latency
from chaos.names import chosen

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (Kill, Pause, LeaderAlone, MajorityRing, OneWay, ZoneAlone, ZoneFromPeer, Latency, RestartAll)
}


def faults(names: Iterable[str]) -> list[type[Fault]]:
    """Those with these names, or all for none. "partition" means all that begin with "partition-"."""
    return chosen("fault", FAULTS, names)
