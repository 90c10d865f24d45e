"""All workloads by name. A new one needs its class and a line here."""

from __future__ import annotations

from collections.abc import Iterable

from chaos.names import chosen
from chaos.workloads.backup import Backup
from chaos.workloads.conflict import Conflict
from chaos.workloads.data import Data
from chaos.workloads.feed import Feed
from chaos.workloads.ids import Ids
from chaos.workloads.image_set import ImageSet
from chaos.workloads.life import Life
from chaos.workloads.register import Register
from chaos.workloads.registry_images import RegistryImages
from chaos.workloads.sharing import Sharing
from chaos.workloads.workload import Workload

WORKLOADS: dict[str, type[Workload]] = {
    workload.name: workload
    for workload in (Register, RegistryImages, ImageSet, Ids, Life, Conflict, Sharing, Feed, Data, Backup)
}


def workloads(names: Iterable[str]) -> list[type[Workload]]:
    """Those with these names, or all for none."""
    return chosen("workload", WORKLOADS, names)
