"""When which faults are injected: decided by a seed alone, before the run begins."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chaos import config


@dataclass(frozen=True)
class Step:
    """Some faults at once: how long before them nothing is broken, and how long they last once they are in force."""

    number: int
    faults: tuple[str, ...]
    calm_s: float
    lasts_s: float


def steps(seed: int, together: Sequence[str], alone: Sequence[str] = ()) -> Iterator[Step]:
    """Steps without end. Every fault comes once before any comes again; of `together` every third step has two."""
    chance, number = random.Random(f"{seed}.schedule"), 0
    while together or alone:
        order = [*together, *alone]
        chance.shuffle(order)
        for name in order:
            number += 1
            pair = name in together and len(together) > 1 and chance.random() < 1 / 3
            other = (chance.choice([one for one in together if one != name]),) if pair else ()
            calm_s = chance.uniform(config.CALM_MIN_S, config.CALM_MAX_S)
            yield Step(number, (name, *other), calm_s, chance.uniform(config.FAULT_MIN_S, config.FAULT_MAX_S))
