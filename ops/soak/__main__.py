"""`python -m ops.soak [NAME ...] [--count N]` (`make soak`): measure on real processes; figures as JSON, then verdicts.

N is the number of kills, rounds, transfers, reads, images, writes, gateways, consumers or operations, for a shorter
look than the one that is recorded. What is measured is added to .run/soak/results.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from ops.dev.cluster import RUN_DIR, forget_caller
from ops.soak import (
    checker,
    feed,
    gateway_lists,
    kills,
    long_queue,
    many_gateways,
    near_observer,
    no_quorum,
    offline,
    rejoin,
    restarts,
    scale,
    streams,
    transfers,
    uplink,
    uplink_traffic,
)
from ops.soak.outcome import Outcome

RUNS: dict[str, Callable[..., Awaitable[Outcome]]] = {
    "kills": kills.run,
    "restart": restarts.run,
    "transfer": transfers.run,
    "no-quorum": no_quorum.run,
    "observer": near_observer.run,
    "rejoin": rejoin.run,
    "feed": feed.run,
    "scale": scale.run,
    "gateway-lists": gateway_lists.run,
    "gateways": many_gateways.run,
    "offline": offline.run,
    "queue": long_queue.run,
    "streams": streams.run,
    "uplink": uplink.run,
    "uplink-traffic": uplink_traffic.run,
    "checker": checker.run,
}
# No run takes longer; one that hangs is a failure too. A million images are loaded first.
RUN_MAX_S = 240.0
LONG_RUN_MAX_S = {
    "feed": 600.0, "gateway-lists": 1800.0, "gateways": 900.0, "offline": 3600.0, "queue": 3600.0, "rejoin": 1800.0,
    "scale": 2400.0, "streams": 2400.0, "uplink": 900.0, "uplink-traffic": 600.0,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", help=f"{', '.join(RUNS)}; default: all")
    parser.add_argument("--count", type=int, metavar="N", help="how often; default: as often as each run's targets say")
    parser.add_argument("--any-speed", action="store_true", help="let missed targets of time pass, on a busy machine")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in RUNS]:
        parser.error(f"{unknown[0]} is none of {', '.join(RUNS)}")
    forget_caller()
    try:
        outcomes = [_measured(name, options.count) for name in options.names or RUNS]
    except asyncio.CancelledError:
        print("soak: stopped before its end")
        return 1
    return 1 if any(outcome.problems or (outcome.slow and not options.any_speed) for outcome in outcomes) else 0


def _measured(name: str, count: int | None) -> Outcome:
    began = time.monotonic()
    outcome = asyncio.run(_bounded(name, count))
    line = outcome.line(time.monotonic() - began)
    print(line, flush=True)
    results = RUN_DIR / "soak" / "results.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(outcome.verdict(), flush=True)
    return outcome


async def _bounded(name: str, count: int | None) -> Outcome:
    """The run, in time; SIGTERM ends it and what it started."""
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    limit_s = LONG_RUN_MAX_S.get(name, RUN_MAX_S)
    try:
        async with asyncio.timeout(limit_s) as bound:
            return await (RUNS[name]() if count is None else RUNS[name](count))
    except Exception as error:
        if bound.expired():
            return Outcome(name, problems=[f"not over within {limit_s:.0f} s"])
        # Whatever stops a run is its verdict; the cluster's own message names the logs.
        return Outcome(name, problems=[f"{type(error).__name__}: {error}"])


if __name__ == "__main__":
    raise SystemExit(main())
