"""`checker`: the search for an order in a history of 100,000 operations, on one image, on ten and on a hundred.

N is the number of operations. The history is that of clients of a correct register of which some answers were lost, so
it must be found linearizable, and no more so once one read in it is stale.
"""

from __future__ import annotations

import random
import time
from collections.abc import Hashable
from dataclasses import replace

from chaos.checker import LINEARIZABLE, VIOLATION, Linearizability, check
from chaos.history import INFO, OK, Operation
from chaos.models import Register
from ops.soak.outcome import Outcome

OPERATIONS, CLIENTS, IMAGES = 100_000, 12, (1, 10, 100)
TARGET_S = 60.0
SEED = 1

# More writes than can be under way at the same time.
STALE_BY = 2 * CLIENTS
# Of all operations, and twice of all writes.
READS, UNKNOWN, NEVER_HAPPENED = 0.4, 0.05, 0.1


async def run(count: int = OPERATIONS) -> Outcome:
    outcome = Outcome("checker", {"operations": count})
    for images in IMAGES:
        operations = history(SEED, count, CLIENTS, images)
        began = time.process_time()
        found = _checked(operations)
        took = time.process_time() - began
        unknown = sum(operation.outcome == INFO for operation in operations)
        outcome.figures[f"images_{images}"] = f"{took:.2f} s of processor, {unknown} of unknown outcome"
        outcome.require(
            found.checked == count and len(found.having(LINEARIZABLE)) == images,
            f"of {images} images {len(found.having(LINEARIZABLE))} were found linearizable",
        )
        outcome.within(took < TARGET_S, f"{images} images took {took:.0f} s, {TARGET_S:.0f} were aimed at")
        broken = _checked(with_stale_read(operations))
        outcome.require(len(broken.having(VIOLATION)) == 1, f"a stale read among {images} images was not found")
    return outcome


def history(seed: int, count: int, clients: int, images: int = 1) -> list[Operation]:
    """Operations on correct registers, of which some answers are lost. Each client has one under way at a time, and
    takes as long as the next one. Answers are drawn at the moment of the question, so the order of the questions
    explains them."""
    chance, free = random.Random(seed), [0.0] * clients
    held: list[tuple[int, int | None]] = [(0, None)] * images
    operations = []
    for number in range(1, count + 1):
        client, image = min(range(clients), key=free.__getitem__), chance.randrange(images)
        at, took = free[client], chance.uniform(0.5, 1.0)
        free[client] = at + took + chance.random()
        version, value = held[image]
        one = Operation(number, f"client-{client}", "read", at, {"uuid": image}, OK, at + took)
        if chance.random() < READS:
            one.answered = {"version": version, "value": value}
        else:
            known, happens = chance.random() >= UNKNOWN, chance.random() >= NEVER_HAPPENED
            one.kind, one.asked = "write", {"uuid": image, "value": number}
            if known or happens:
                held[image] = version + 1, number
            if known:
                one.answered = {"version": version + 1}
            else:
                one.outcome, one.completed = INFO, float("inf")
        operations.append(one)
    return operations


def with_stale_read(operations: list[Operation]) -> list[Operation]:
    """The same, the last read answered as an earlier one of its image was, which is true no more."""
    reads = [one for one in operations if one.kind == "read"]
    last = reads[-1]
    newest = last.answered["version"] - STALE_BY
    old = next(one for one in reversed(reads) if one.asked == last.asked and one.answered["version"] <= newest)
    return [replace(one, answered=old.answered) if one is last else one for one in operations]


def _checked(operations: list[Operation]) -> Linearizability:
    return check(operations, Register(), _image)


def _image(operation: Operation) -> Hashable:
    image: Hashable = operation.asked["uuid"]
    return image
