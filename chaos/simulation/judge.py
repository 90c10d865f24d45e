"""What must hold: after every event, of every answer, and at the end of a schedule.

The order of all writes is the log's, and every answer says at which revision it stands; so linearizability needs no
search. An answer is right when its revision lies behind that of everything that was answered before it was asked, and
what it says is what the state of that revision holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from raftreg import queries, state_machine
from raftreg.tables import View, read_head

ROUNDING_S = 1e-6  # what happens at one moment of the virtual clock is in no order


class Violation(Exception):
    """A promise is broken. The message says which, for whom and when."""


@dataclass
class Operation:
    """One request of a client, from the first attempt to the answer. `asked` and `answered` count all such moments."""

    client: str
    kind: str
    asked: int
    asked_s: float
    details: dict[str, Any]
    answered: int | None = None
    revision: int | None = None
    result: dict[str, Any] = field(default_factory=dict)
    level: str = "linearizable"


class Judge:
    """Sees what is applied, asked and answered."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.acknowledged = 0
        self.reads = 0
        self._moment = 0
        self._leaders: dict[int, str] = {}
        self._entries: dict[int, bytes] = {}
        self._digests: dict[int, bytes] = {}
        self._floor: list[tuple[int, int]] = [(0, 0)]  # (moment, highest revision answered up to then), both rising
        self._written: list[tuple[float, int]] = []  # (time, revision) of acknowledged writes, times rising

    # -- peers ----------------------------------------------------------------------------------------------------

    def applied(self, name: str, index: int, payload: bytes | None, view: View) -> None:
        """A peer has applied an entry: everybody's entry of that index, with everybody's outcome."""
        entry = blake2b(payload or b"", digest_size=16).digest()
        if self._entries.setdefault(index, entry) != entry:
            raise Violation(f"{name} applied another entry at index {index} than others did")
        head = read_head(view)
        digest = blake2b(repr((head.rows_digest, head.counters())).encode(), digest_size=16).digest()
        if self._digests.setdefault(index, digest) != digest:
            raise Violation(f"{name} has another state at index {index} than others had")

    def leads(self, name: str, term: int) -> None:
        """A peer says that it leads."""
        if self._leaders.setdefault(term, name) != name:
            raise Violation(f"two leaders in term {term}: {self._leaders[term]} and {name}")

    # -- clients --------------------------------------------------------------------------------------------------

    def ask(self, client: str, kind: str, now_s: float, **details: Any) -> Operation:
        self._moment += 1
        operation = Operation(client, kind, self._moment, now_s, details)
        self.operations.append(operation)
        return operation

    def answer(self, operation: Operation, revision: int, now_s: float, result: dict[str, Any]) -> None:
        """A write was acknowledged."""
        self._close(operation, revision, result)
        before = self._floor_at(operation.asked)
        if revision < before or (operation.kind == "create" and revision == before):
            raise Violation(f"{operation.client}: {operation.kind} got revision {revision} after {before} was answered")
        self.acknowledged += 1
        self._raise_floor(revision)
        if not self._written or revision > self._written[-1][1]:
            self._written.append((now_s, revision))

    def answer_read(
        self, operation: Operation, revision: int, at_s: float, level: str, age_s: float | None, result: dict[str, Any]
    ) -> None:
        """A read was answered at `at_s` from the state of `revision`, which was said to be no older than `age_s`."""
        self._close(operation, revision, result)
        operation.level = level
        self.reads += 1
        if level == "linearizable":
            before = self._floor_at(operation.asked)
            if revision < before:
                raise Violation(f"{operation.client} read revision {revision} after {before} had been answered")
            self._raise_floor(revision)
        if age_s is not None:
            self._check_age(operation, at_s, age_s, "said to be")
        if "max_staleness_s" in operation.details:
            # The bound holds for the moment of the question: an answer may have waited for its quorum.
            self._check_age(operation, operation.asked_s, operation.details["max_staleness_s"], "to be at most")

    def _check_age(self, operation: Operation, at_s: float, age_s: float, told: str) -> None:
        revision = operation.revision or 0
        needed = max((r for at, r in self._written if at < at_s - age_s - ROUNDING_S), default=0)
        if revision < needed:
            raise Violation(
                f"{operation.client} read revision {revision}, {told} {age_s:.2f} s old at {at_s:.2f}, "
                f"but {needed} had been acknowledged before"
            )

    def _close(self, operation: Operation, revision: int, result: dict[str, Any]) -> None:
        self._moment += 1
        operation.answered, operation.revision, operation.result = self._moment, revision, result

    def _raise_floor(self, revision: int) -> None:
        if revision > self._floor[-1][1]:
            self._floor.append((self._moment, revision))

    def _floor_at(self, moment: int) -> int:
        """The highest revision that anybody had been answered before this moment."""
        low, high = 0, len(self._floor)
        while low < high - 1:
            middle = (low + high) // 2
            if self._floor[middle][0] < moment:
                low = middle
            else:
                high = middle
        return self._floor[low][1]

    # -- the end --------------------------------------------------------------------------------------------------

    def agree(self, views: dict[str, View]) -> None:
        """All peers hold the same state, and it is consistent in itself."""
        digests = {name: state_machine.recompute_digest(view) for name, view in views.items()}
        if len(set(digests.values())) != 1:
            raise Violation(f"the peers' states differ at the end: {digests}")
        for name, view in views.items():
            if state_machine.digest(view) != digests[name]:
                raise Violation(f"the rows of {name} contradict its digest")
        try:
            state_machine.validate_state(next(iter(views.values())))
        except AssertionError as error:
            raise Violation(f"the final state is inconsistent: {error}") from error

    def nothing_lost(self, view: View) -> dict[int, str]:
        """What was acknowledged is in the final state, once; numbers are unique and rise. Returns who has which."""
        owners: dict[int, str] = {}
        created: list[tuple[int, int]] = []
        for operation in self.operations:
            if operation.answered is None or operation.kind == "read":
                continue
            if operation.kind == "allocate":
                self._claim_range(owners, operation)
            else:
                self._check_write(operation, view, owners, created)
        created.sort()
        numbers = [number for _, number in created]
        if numbers != sorted(numbers):
            raise Violation("numbers that the registry issued do not rise in the order of commits")
        return owners

    @staticmethod
    def _claim_range(owners: dict[int, str], operation: Operation) -> None:
        for number in range(operation.result["first"], operation.result["last"] + 1):
            owner = owners.setdefault(number, f"the range of {operation.client} at {operation.asked}")
            if owner != f"the range of {operation.client} at {operation.asked}":
                raise Violation(f"number {number} was issued twice: to {owner} and to {operation.client}")

    def _check_write(
        self, operation: Operation, view: View, owners: dict[int, str], created: list[tuple[int, int]]
    ) -> None:
        uuid, result = operation.details["uuid"], operation.result
        image = queries.get_image(view, {"uuid": uuid})
        if image is None:
            raise Violation(f"lost: the {operation.kind} of image {uuid} was acknowledged to {operation.client}")
        if image["number"] != result["number"]:
            raise Violation(f"image {uuid} was acknowledged as {result['number']}, and is {image['number']}")
        if image["version"] < result["version"]:
            raise Violation(f"image {uuid} was acknowledged in version {result['version']}, is in {image['version']}")
        deleted = bool(image.get("deleted"))
        if operation.kind == "delete" and not deleted:
            raise Violation(f"image {uuid} is there, though its deletion was acknowledged")
        if operation.kind in ("create", "update") and not deleted and image["version"] == result["version"]:
            self._check_value(operation, image)
        if owners.setdefault(image["number"], uuid) != uuid:
            raise Violation(f"number {image['number']} belongs to {owners[image['number']]} and to {uuid}")
        if operation.kind == "create":
            created.append((operation.revision or 0, image["number"]))

    @staticmethod
    def _check_value(operation: Operation, image: dict[str, Any]) -> None:
        if image["name"] != operation.details["name"]:
            raise Violation(
                f"image {image['uuid']} is called {image['name']!r} in version {image['version']}, "
                f"which was acknowledged as {operation.details['name']!r}"
            )
