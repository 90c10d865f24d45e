"""All faults by name. A new one needs its class and a line here."""

from __future__ import annotations

from collections.abc import Iterable

from chaos.faults.disk_and_clock import ClockOffset, SlowSync
from chaos.faults.fault import Fault
from chaos.faults.full_disk import FullDisk
from chaos.faults.kill import Kill, RestartAll
from chaos.faults.operations import BackupUnderLoad, Stop, Transfer
from chaos.faults.partition import LeaderAlone, MajorityRing, OneWay, ZoneAlone, ZoneFromPeer
from chaos.faults.pause import Pause
from chaos.faults.rebuilds import Restore, VoterChange
from chaos.faults.rolled_back_zone import RolledBackZone
from chaos.faults.slow_links import Bandwidth, FarPeer, FarZone, Flapping
from chaos.faults.stores import CorruptedFile, RolledBackDisk, WipedDisk
from chaos.names import chosen

_ALL: tuple[type[Fault], ...] = (
    Kill, Pause, LeaderAlone, MajorityRing, OneWay, ZoneAlone, ZoneFromPeer, FarPeer, FarZone, Bandwidth, Flapping,
    RestartAll, Stop, Transfer, BackupUnderLoad, SlowSync, ClockOffset, FullDisk, WipedDisk, RolledBackDisk,
    CorruptedFile, RolledBackZone, Restore, VoterChange,
)  # fmt: skip
FAULTS = {fault.name: fault for fault in _ALL}


def faults(names: Iterable[str]) -> list[type[Fault]]:
    """Those with these names, or all for none. "partition" means all that begin with "partition-"."""
    return chosen("fault", FAULTS, names)
