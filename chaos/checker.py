"""Linearizability: was there, for each image, one order of its operations that explains every answer?

Wing and Gong's search in Lowe's just-in-time form. The operations' beginnings and ends are walked through in order of
time with the set of all *configurations* that are possible so far: a state of the model, and which of the operations
still open have taken effect in it. Only the end of an operation forces a decision: it must have taken effect by then,
so every configuration goes on by each order of open operations that leads to it. Equal configurations are one, however
they came about. Where none is left, no order explains the answers.

What keeps this small, without losing an order that matters:
- a read takes effect as soon as it can: it changes nothing, so waiting gains nothing;
- a configuration in which an operation can't get the answer any more that it got (`hopeless`) is dropped at once;
- an operation of unknown outcome stays open for ever, until no configuration can take it any more;
- of several that are equal (same kind, same question, same knowledge of the answer) the oldest goes first.

The number of configurations is bounded; beyond the bound the verdict is `unknown`, which is not a pass.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos import config
from chaos.history import OK, Operation
from chaos.models import Model, State

LINEARIZABLE, VIOLATION, UNKNOWN = "linearizable", "violation", "unknown"


@dataclass(frozen=True)
class Finding:
    """The verdict on one image (`key`).

    Of a violation, `operations` is the smallest window that shows it: the operation whose answer has no explanation
    comes last, before it those that were open then, and those that ended since its answer was last possible. `states`
    are those that were possible before it.
    """

    key: Hashable
    verdict: str
    checked: int
    operations: Sequence[Operation] = ()
    states: Sequence[State] = ()

    def sentence(self) -> str:
        """What is wrong, for a person."""
        if self.verdict == LINEARIZABLE:
            return f"{self.key}: an order explains all {self.checked} operations"
        if self.verdict == UNKNOWN:
            return f"{self.key}: given up after {config.CONFIGURATIONS_MAX} configurations; use fewer clients per image"
        last = self.operations[-1]
        possible = " or ".join(str(state) for state in self.states[: config.STATES_SHOWN_MAX])
        return (
            f"{self.key}: {last.kind} (operation {last.number} of {last.process}) was answered {last.answered}, "
            f"but only {possible} was possible before it"
        )


@dataclass
class Linearizability:
    """The findings on all images of a history."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def checked(self) -> int:
        """How many operations were taken into account."""
        return sum(finding.checked for finding in self.findings)

    def having(self, verdict: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict == verdict]


def check(operations: Iterable[Operation], model: Model, key: Callable[[Operation], Hashable]) -> Linearizability:
    """Check each key's operations by themselves. `key` gives None for operations that are of no concern."""
    by_key: dict[Hashable, list[Operation]] = defaultdict(list)
    for operation in operations:
        if (one := key(operation)) is not None and operation.possible:
            by_key[one].append(operation)
    return Linearizability([check_one(one, found, model) for one, found in by_key.items()])


def check_one(key: Hashable, operations: Sequence[Operation], model: Model) -> Finding:
    """Check operations on one and the same thing. Those that surely did not happen must be left out."""
    relevant = [o for o in operations if o.acknowledged or not model.reads(o)]
    search, originals = _Search(model), {operation.number: operation for operation in relevant}
    for _, ends, _, operation in sorted(_events(model.learn(relevant))):
        if not (search.end(operation) if ends else search.begin(operation)):
            if search.exhausted:
                return Finding(key, UNKNOWN, len(relevant))
            window = [originals[one.number] for one in (*search.window(operation), operation)]
            return Finding(key, VIOLATION, len(relevant), window, search.states())
    return Finding(key, LINEARIZABLE, len(relevant))


def _events(operations: Iterable[Operation]) -> Iterable[tuple[float, bool, int, Operation]]:
    """Beginnings and ends. What begins when another ends is concurrent with it: beginnings come first."""
    for operation in operations:
        yield operation.invoked, False, operation.number, operation
        if operation.outcome == OK:
            yield operation.completed, True, operation.number, operation


def _effect(operation: Operation) -> str:
    """What tells operations of unknown outcome apart, beside the time at which they began."""
    return repr((operation.kind, sorted(operation.asked.items()), sorted(operation.answered.items())))


Configuration = tuple[Any, int]
"""A state, and a bit for each open operation that has taken effect in it."""


class _Search:
    """The configurations possible so far, and the operations that are open: each has a bit of its own meanwhile."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._possible: set[Configuration] = {(model.initial(), 0)}
        self._bits: dict[int, int] = {}
        self._free: list[int] = []
        # Bit -> operation: those whose end will come, and per effect those whose outcome is unknown, oldest first.
        self._ending: dict[int, Operation] = {}
        self._unknown: dict[str, dict[int, Operation]] = {}
        self._past: deque[tuple[Operation, list[State]]] = deque(maxlen=config.WINDOW_MAX)
        self._ends = 0
        self.exhausted = False

    def begin(self, operation: Operation) -> bool:
        """Whether any configuration is left in which it may still get its answer."""
        bit = self._free.pop() if self._free else 1 << len(self._bits)
        self._bits[operation.number] = bit
        if operation.outcome != OK:
            self._unknown.setdefault(_effect(operation), {})[bit] = operation
            return True
        self._ending[bit] = operation
        left = {one for one in self._possible if not self._model.hopeless(one[0], operation)}
        if left and self._model.reads(operation):
            left = {
                (state, taken if self._model.step(state, operation) is None else taken | bit) for state, taken in left
            }
        self._possible = left or self._possible
        return bool(left)

    def end(self, operation: Operation) -> bool:
        """Whether any configuration is left in which it has taken effect with its answer."""
        bit = self._bits[operation.number]
        found = self._forced(bit)
        if not found or self.exhausted:
            return False
        self._past.append((operation, self.states()))
        self._possible = {(state, taken & ~bit) for state, taken in found}
        del self._ending[bit]
        self._release(operation, bit)
        self._ends += 1
        if self._ends % config.UNKNOWN_REVIEW_EVERY == 0:
            self._review_unknown()
        return True

    def _forced(self, bit: int) -> set[Configuration]:
        """All configurations that follow by taking open operations until that with `bit` has taken effect."""
        found: set[Configuration] = set()
        seen = set(self._possible)
        waiting = list(self._possible)
        while waiting:
            configuration = waiting.pop()
            if configuration[1] & bit:
                found.add(configuration)
                continue
            for following in self._following(configuration):
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)
            if len(seen) > config.CONFIGURATIONS_MAX:
                self.exhausted = True
                return found
        return found

    def _following(self, configuration: Configuration) -> Iterable[Configuration]:
        state, taken = configuration
        for bit, operation in self._candidates(taken):
            after = self._model.step(state, operation)
            if after is not None and (settled := self._settled(after, taken | bit)) is not None:
                yield settled

    def _candidates(self, taken: int) -> Iterable[tuple[int, Operation]]:
        """The open writes that have not taken effect; of those that are equal the oldest."""
        for bit, operation in self._ending.items():
            if not taken & bit and not self._model.reads(operation):
                yield bit, operation
        for equals in self._unknown.values():
            oldest = next((one for one in equals.items() if not taken & one[0]), None)
            if oldest is not None:
                yield oldest

    def _settled(self, state: State, taken: int) -> Configuration | None:
        """With every read that can take effect now; None if an answer that was given has become impossible."""
        for bit, operation in self._ending.items():
            if taken & bit:
                continue
            if self._model.reads(operation) and self._model.step(state, operation) is not None:
                taken |= bit
            elif self._model.hopeless(state, operation):
                return None
        return state, taken

    def _release(self, operation: Operation, bit: int) -> None:
        del self._bits[operation.number]
        self._free.append(bit)
        # Without an open operation all bits are free, and given out from the first again.
        if not self._bits:
            self._free.clear()

    def _review_unknown(self) -> None:
        """Forget operations of unknown outcome that every configuration has taken, or can't take any more."""
        for effect, equals in list(self._unknown.items()):
            for bit, operation in list(equals.items()):
                if not all(taken & bit or self._model.hopeless(state, operation) for state, taken in self._possible):
                    continue
                self._possible = {(state, taken & ~bit) for state, taken in self._possible}
                del equals[bit]
                self._release(operation, bit)
            if not equals:
                del self._unknown[effect]

    def states(self) -> list[State]:
        """The states that are possible, each once."""
        return list(dict.fromkeys(state for state, _ in self._possible))

    def window(self, offending: Operation) -> list[Operation]:
        """The operations that ended since the answer was last possible, and those that are open, in order of time."""
        since: list[Operation] = []
        for operation, states in reversed(self._past):
            since.append(operation)
            if any(self._model.step(state, offending) is not None for state in states):
                break
        else:
            since = since[:1]
        unknown = [operation for equals in self._unknown.values() for operation in equals.values()]
        still = [o for o in self._ending.values() if o is not offending] + unknown[-config.WINDOW_MAX :]
        return sorted([*since, *still], key=lambda operation: operation.invoked)
