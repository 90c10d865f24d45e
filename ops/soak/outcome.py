"""What a measured run says: figures, what went wrong, and whether it kept its targets."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """One run. `problems`: a sentence for each promise that was broken; `slow`: one for each target of time that was
    missed; `skipped`: why nothing was measured."""

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: str | None = None
    slow: list[str] = field(default_factory=list)

    def within(self, holds: bool, problem: str) -> None:
        """A target of time: missed on a machine that is busy with other things, it is no fault."""
        if not holds:
            self.slow.append(problem)

    def require(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)

    @property
    def passed(self) -> bool:
        return not self.problems and not self.slow

    def line(self, seconds: float) -> str:
        """One JSON object, to be recorded."""
        return json.dumps(
            {
                "soak": self.name,
                "commit": commit(),
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "python": platform.python_version(),
                "load": [round(load, 1) for load in os.getloadavg()],
                "seconds": round(seconds, 1),
                "pass": self.passed,
                "skipped": self.skipped,
                **self.figures,
                "problems": self.problems,
                "slow": self.slow,
            }
        )

    def verdict(self) -> str:
        """One sentence, to be read."""
        if self.skipped is not None:
            return f"soak {self.name}: SKIPPED, {self.skipped}"
        told = ", ".join(f"{name} {value}" for name, value in self.figures.items() if not isinstance(value, list))
        return (
            f"soak {self.name}: {'PASS' if self.passed else 'FAIL: ' + '; '.join(self.problems + self.slow)} ({told})"
        )


def commit() -> str:
    """The commit that is measured, marked when the checkout differs from it."""
    said = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Median and p99 of some times, in milliseconds; 0 of fewer than two."""
    if len(seconds) < 2:
        return {"p50_ms": 0.0, "p99_ms": 0.0}
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_ms": round(cuts[49] * 1000, 2), "p99_ms": round(cuts[98] * 1000, 2)}


def spread_ms(what: str, seconds: Sequence[float]) -> dict[str, Any]:
    """Count, least, median and most of some times, as figures in milliseconds."""
    if not seconds:
        return {f"{what}_count": 0}
    least, median, most = min(seconds), statistics.median(seconds), max(seconds)
    named = {"least": least, "median": median, "most": most}
    return {f"{what}_count": len(seconds), **{f"{what}_{name}_ms": round(s * 1000, 1) for name, s in named.items()}}
