"""`python -m ops.soak NAME [NAME ...] [--count N]`: measure on real processes; figures as JSON, then the verdicts.

N is the number of kills, rounds, transfers or reads, for a shorter look than the one that is recorded.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable

from ops.dev.cluster import forget_caller
from ops.soak import kills, near_observer, no_quorum, restarts, transfers
from ops.soak.outcome import Outcome

RUNS: dict[str, Callable[..., Awaitable[Outcome]]] = {
    "kills": kills.run,
    "restart": restarts.run,
    "transfer": transfers.run,
    "no-quorum": no_quorum.run,
    "observer": near_observer.run,
}
# No run takes longer; one that hangs is a failure too.
RUN_MAX_S = 240.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*RUNS, "all"], metavar="NAME", help=f"{', '.join(RUNS)} or all")
    parser.add_argument("--count", type=int, metavar="N", help="how often; default: as often as each run's targets say")
    options = parser.parse_args()
    forget_caller()
    names = RUNS if "all" in options.names else dict.fromkeys(options.names)
    outcomes = [_measured(name, options.count) for name in names]
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def _measured(name: str, count: int | None) -> Outcome:
    began = time.monotonic()
    outcome = asyncio.run(_bounded(name, count))
    print(outcome.line(time.monotonic() - began), flush=True)
    print(outcome.verdict(), flush=True)
    return outcome


async def _bounded(name: str, count: int | None) -> Outcome:
    try:
        async with asyncio.timeout(RUN_MAX_S) as bound:
            return await (RUNS[name]() if count is None else RUNS[name](count))
    except Exception as error:
        if bound.expired():
            return Outcome(name, problems=[f"not over within {RUN_MAX_S:.0f} s"])
        # Whatever stops a run is its verdict; the cluster's own message names the logs.
        return Outcome(name, problems=[f"{type(error).__name__}: {error}"])


if __name__ == "__main__":
    raise SystemExit(main())
