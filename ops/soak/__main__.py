"""`python -m ops.soak NAME [NAME ...]`: measure on real processes; the figures as JSON, then one verdict for each."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable

from ops.dev.cluster import forget_caller
from ops.soak import kills, near_observer, no_quorum, restarts, transfers
from ops.soak.outcome import Outcome

RUNS: dict[str, Callable[[], Awaitable[Outcome]]] = {
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
    names = parser.parse_args().names
    forget_caller()
    outcomes = [_measured(name) for name in (RUNS if "all" in names else dict.fromkeys(names))]
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def _measured(name: str) -> Outcome:
    began = time.monotonic()
    outcome = asyncio.run(_bounded(name))
    print(outcome.line(time.monotonic() - began), flush=True)
    print(outcome.verdict(), flush=True)
    return outcome


async def _bounded(name: str) -> Outcome:
    try:
        async with asyncio.timeout(RUN_MAX_S):
            return await RUNS[name]()
    except Exception as error:
        # Whatever stops a run is its verdict; the cluster's own message names the logs.
        return Outcome(name, problems=[f"{type(error).__name__}: {error}"])


if __name__ == "__main__":
    raise SystemExit(main())
