"""The faults of one run: injected one step after the other, healed, and waited for until the cluster serves again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos import config, schedule
from chaos.faults.fault import Aim, Fault
from chaos.links import LinkError
from chaos.schedule import Step
from chaos.workloads.workload import Site
from ops.dev.cluster import ClusterError
from ops.dev.processes import ProcessError

PROCESS, KIND = "faults", "fault"


@dataclass
class Injected:
    """One fault on the history's clock. `healed` is when healing was over, `recovered` when everything served again."""

    name: str
    target: str
    began: float
    healed: float | None = None
    recovered: float | None = None


class FaultSequence:
    """Injects faults of the given kinds until a moment; `injected` and `troubles` tell of it, and so does the file."""

    def __init__(self, site: Site, kinds: Sequence[type[Fault]], path: Path) -> None:
        self._site, self._path = site, path
        self._kinds = {kind.name: kind for kind in kinds}
        self.injected: list[Injected] = []
        self.troubles: list[str] = []
        self.now: Callable[[str], None] = lambda _: None

    async def run(self, until: float, *, each_once: bool = False) -> None:
        """Steps until then, by the monotonic clock; the last one is healed before this returns.

        `each_once`: no end before every fault has come, for which there is ROUND_MAX_S more.
        """
        together = [name for name, kind in self._kinds.items() if not kind.alone]
        alone = [name for name, kind in self._kinds.items() if kind.alone]
        least, latest = (len(self._kinds), until + config.ROUND_MAX_S) if each_once else (0, until)
        for step in schedule.steps(self._site.seed, together, alone):
            end = latest if step.number <= least else until
            self.now("nothing is broken")
            await _sleep_until(min(end, time.monotonic() + step.calm_s))
            if time.monotonic() >= end:
                return
            await self._step(step, until)
        # There may be no fault that fits; clients work all the same.
        await _sleep_until(until)

    async def _step(self, step: Step, until: float) -> None:
        aimed = await self._aimed(step)
        records: list[Injected] = []
        with contextlib.ExitStack() as noted:
            try:
                for fault, aim in aimed:
                    records.append(await self._inject(fault, aim, noted))
                self.now(", ".join(f"{one.name}: {one.target}" for one in records))
                await _sleep_until(
                    min(max(until, time.monotonic() + config.FAULT_MIN_S), time.monotonic() + step.lasts_s)
                )
            except (LinkError, ProcessError, ClusterError) as error:
                self.troubles.append(f"step {step.number} ({', '.join(step.faults)}): {error}")
        await self._heal([fault for fault, _ in aimed])
        await self._recovered(step, records)

    async def _aimed(self, step: Step) -> list[tuple[Fault, Aim]]:
        """The faults with their targets; none hits a process that is down by another one already."""
        chance, aimed, down = random.Random(f"{self._site.seed}.{step.number}"), list[tuple[Fault, Aim]](), set[str]()
        for name in step.faults:
            fault = self._kinds[name]()
            aim = await asyncio.to_thread(fault.aim, self._site.cluster, chance)
            if down.isdisjoint(aim.down):
                aimed.append((fault, aim))
                down |= set(aim.down)
        return aimed

    async def _inject(self, fault: Fault, aim: Aim, noted: contextlib.ExitStack) -> Injected:
        """Inject; the history has it from before a process is down, and from when a zone is surely cut off."""
        began = time.monotonic()
        if aim.down:
            self._note(fault, aim, began, noted)
        await asyncio.to_thread(fault.inject, self._site.cluster)
        if not aim.down:
            self._note(fault, aim, began, noted)
        self.injected.append(Injected(fault.name, aim.target, began))
        return self.injected[-1]

    def _note(self, fault: Fault, aim: Aim, began: float, noted: contextlib.ExitStack) -> None:
        history = self._site.history
        told = {"name": fault.name, "detail": aim.target, "began": began, "down": aim.down, "cut": aim.cut}
        operation = history.invoke(PROCESS, KIND, **told)
        noted.callback(history.ok, operation)

    async def _heal(self, faults: Sequence[Fault]) -> None:
        self.now("healing")
        history = self._site.history
        healing = history.invoke(PROCESS, "healing", names=[fault.name for fault in faults])
        for fault in reversed(faults):
            try:
                await asyncio.to_thread(fault.heal, self._site.cluster)
            except (LinkError, ProcessError, ClusterError) as error:
                self.troubles.append(f"healing {fault.name}: {error}")
        history.ok(healing)

    async def _recovered(self, step: Step, records: Sequence[Injected]) -> None:
        healed, cluster = time.monotonic(), self._site.cluster
        whole = await asyncio.to_thread(cluster.wait, cluster.is_whole, config.RECOVERY_MAX_S)
        for record in records:
            record.healed, record.recovered = healed, time.monotonic() if whole else None
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        if not whole:
            await asyncio.to_thread(self._describe, step)

    def _describe(self, step: Step) -> None:
        """Say what does not serve, and start again what has ended by itself, so that the run can go on."""
        cluster = self._site.cluster
        away = cluster.away()
        after = f"{config.RECOVERY_MAX_S:.0f} s after {', '.join(step.faults)}"
        self.troubles.append(f"{after} there is no full service from {', '.join(away) or 'anyone at the same time'}")
        self.troubles += cluster.mend()


async def _sleep_until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))
