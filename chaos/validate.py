"""The judge: given what clients were told, is everything there, once, in order and whole?

It sees a history, the registry's images and the zones' listings, all as plain data, and nothing of the cluster that it
judges. Operation kinds, with what it reads of question and answer (all but `uuid` may be missing):

    create    uuid, gateway -> number              an image was made
    upload    uuid, sha512, size                   its data was stored
    download  uuid -> sha512, size                 its data was read
    update    uuid, set: {attribute: value} -> version
    delete    uuid
    allocate  -> first, last                       image numbers without an image

`python -m chaos.validate HISTORY --registry IMAGES.json [--zone NAME=LISTING.json ...]` judges files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from chaos import config
from chaos.history import BadHistory, Operation, read

Image = Mapping[str, Any]


@dataclass
class Verdict:
    """The counts, and a sentence for every breach of a promise. Counts are of images unless they say otherwise."""

    acknowledged: int = 0
    unknown: int = 0
    in_registry: int = 0
    lost: int = 0
    duplicate_numbers: int = 0
    duplicate_uuids: int = 0
    phantoms: int = 0
    out_of_order: int = 0
    checksums_verified: int = 0
    checksums_wrong: int = 0
    missing_in_zones: int = 0
    other: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing lost, doubled, made up, out of order or changed."""
        return not self.breaches

    @property
    def breaches(self) -> int:
        """How many promises were broken, however many of the sentences are kept."""
        return (
            self.lost + self.duplicate_numbers + self.duplicate_uuids + self.phantoms + self.out_of_order
            + self.checksums_wrong + self.missing_in_zones + self.other
        )  # fmt: skip

    def breach(self, count: str, sentence: str) -> None:
        """Count one breach and keep its sentence, if there is room."""
        setattr(self, count, getattr(self, count) + 1)
        if len(self.problems) < config.PROBLEMS_SHOWN_MAX:
            self.problems.append(sentence)


@dataclass
class _Life:
    """All operations on one image, by kind, in order of invocation."""

    uuid: str
    by_kind: dict[str, list[Operation]] = field(default_factory=lambda: defaultdict(list))

    def acknowledged(self, kind: str) -> list[Operation]:
        return [operation for operation in self.by_kind.get(kind, ()) if operation.acknowledged]

    def possible(self, kind: str) -> list[Operation]:
        return [operation for operation in self.by_kind.get(kind, ()) if operation.possible]

    @property
    def created(self) -> bool:
        return bool(self.acknowledged("create"))

    @property
    def surely_there(self) -> bool:
        """Acknowledged, and nobody can have deleted it."""
        return self.created and not self.possible("delete")


def judge(
    operations: Iterable[Operation],
    registry: Sequence[Image],
    zones: Mapping[str, Sequence[Image]] | None = None,
    *,
    known: Iterable[str] = (),
) -> Verdict:
    """Judge a history against what the registry and the zones hold after every queue has drained.

    `registry` are its images that are not deleted. `known` are UUIDs that were there before the history began.
    """
    all_operations = list(operations)
    verdict, lives = Verdict(), _lives(all_operations)
    rows = _rows(registry)
    _judge_presence(verdict, lives, rows)
    _judge_phantoms(verdict, lives, rows, set(known))
    _judge_doubles(verdict, all_operations, registry)
    for life in lives.values():
        row = rows.get(life.uuid)
        _judge_number(verdict, life, row)
        _judge_updates(verdict, life, row)
        _judge_data(verdict, life, row)
    _judge_number_order(verdict, all_operations)
    for zone, listing in (zones or {}).items():
        _judge_zone(verdict, zone, lives, rows, listing)
    return verdict


def _lives(operations: Iterable[Operation]) -> dict[str, _Life]:
    lives: dict[str, _Life] = {}
    for operation in operations:
        if uuid := operation.value("uuid"):
            lives.setdefault(uuid, _Life(uuid)).by_kind[operation.kind].append(operation)
    return lives


def _rows(images: Iterable[Image]) -> dict[str, Image]:
    return {_uuid(image): image for image in images}


def _uuid(image: Image) -> str:
    """The UUID of a registry's image, or of an Images API's."""
    return str(image["uuid"] if "uuid" in image else image["id"])


def _number(image: Image) -> int | None:
    number = image["number"] if "number" in image else image.get("os_glance_v1_id")
    return None if number is None else int(number)


def _judge_presence(verdict: Verdict, lives: Mapping[str, _Life], rows: Mapping[str, Image]) -> None:
    for life in lives.values():
        verdict.acknowledged += life.created
        verdict.unknown += bool(life.possible("create")) and not life.created
        verdict.in_registry += life.created and life.uuid in rows
        if life.surely_there and life.uuid not in rows:
            verdict.breach("lost", f"lost: image {life.uuid} was acknowledged, and the registry does not have it")
        if life.acknowledged("delete") and life.uuid in rows:
            verdict.breach("other", f"back from the dead: the deletion of image {life.uuid} was acknowledged")


def _judge_phantoms(verdict: Verdict, lives: Mapping[str, _Life], rows: Mapping[str, Image], known: set[str]) -> None:
    for uuid in rows.keys() - known:
        life = lives.get(uuid)
        if life is None or not life.possible("create"):
            said = "nobody asked for it" if life is None else "it was refused definitely"
            verdict.breach("phantoms", f"phantom: image {uuid} is in the registry, but {said}")


def _judge_doubles(verdict: Verdict, operations: Sequence[Operation], registry: Sequence[Image]) -> None:
    """One number for one image, one row for one UUID, and one acknowledged create for one UUID."""
    owners: dict[int, set[str]] = defaultdict(set)
    for image in registry:
        if (number := _number(image)) is not None:
            owners[number].add(_uuid(image))
    for operation in operations:
        if operation.acknowledged and operation.kind == "create" and operation.value("number") is not None:
            owners[operation.value("number")].add(operation.value("uuid"))
    _add_allocated(verdict, owners, operations)
    for number, holders in owners.items():
        if len(holders) > 1:
            verdict.breach("duplicate_numbers", f"number {number} was given to {', '.join(sorted(holders))}")
    creates = (o.value("uuid") for o in operations if o.kind == "create" and o.acknowledged)
    for what, uuids in (("in the registry", map(_uuid, registry)), ("acknowledged as created", creates)):
        for uuid, times in Counter(uuids).items():
            if times > 1:
                verdict.breach("duplicate_uuids", f"image {uuid} is {times} times {what}")


def _add_allocated(verdict: Verdict, owners: dict[int, set[str]], operations: Iterable[Operation]) -> None:
    """Enter ranges of bare numbers without unrolling them: sorted, each must end before the next begins."""
    ranges = sorted(
        (o.answered["first"], o.answered["last"], o.number)
        for o in operations
        if o.acknowledged and o.kind == "allocate"
    )
    for (_, last, one), (first, _, other) in pairwise(ranges):
        if first <= last:
            verdict.breach(
                "duplicate_numbers", f"numbers {first} to {last} were allocated by operations {one} and {other}"
            )
    numbers = sorted(owners)
    position = 0
    for first, last, operation in ranges:
        while position < len(numbers) and numbers[position] <= last:
            if numbers[position] >= first:
                owners[numbers[position]].add(f"the range of operation {operation}")
            position += 1


def _judge_number(verdict: Verdict, life: _Life, row: Image | None) -> None:
    """What a client was told is the image's number stays its number."""
    for create in life.acknowledged("create"):
        told = create.value("number")
        if row is not None and told is not None and _number(row) != told:
            verdict.breach("other", f"image {life.uuid} was acknowledged as number {told}, and is now {_number(row)}")


def _judge_updates(verdict: Verdict, life: _Life, row: Image | None) -> None:
    """Versions rise in the order of acknowledgement, and each attribute has a value which could have come last."""
    updates = life.acknowledged("update")
    versioned = [u for u in updates if u.answered.get("version") is not None]
    for rank, one in enumerate(versioned):
        for other in versioned[rank + 1 :]:
            before, after = (one, other) if one.precedes(other) else (other, one)
            if before.precedes(after) and before.answered["version"] >= after.answered["version"]:
                verdict.breach(
                    "out_of_order",
                    f"image {life.uuid}: version {before.answered['version']} was acknowledged before version "
                    f"{after.answered['version']} was asked for",
                )
    if row is None:
        return
    newest = max((u.answered["version"] for u in versioned), default=0)
    if row.get("version", newest) < newest:
        verdict.breach("lost", f"image {life.uuid} is at version {row['version']}, but {newest} was acknowledged")
    _judge_last_values(verdict, life, row)


def _judge_last_values(verdict: Verdict, life: _Life, row: Image) -> None:
    writes: dict[str, list[tuple[Operation, Any]]] = defaultdict(list)
    for update in life.possible("update"):
        for attribute, value in (update.asked.get("set") or {}).items():
            writes[attribute].append((update, value))
    for attribute, made in writes.items():
        acknowledged = [update for update, _ in made if update.acknowledged]
        last = [value for update, value in made if not any(update.precedes(later) for later in acknowledged)]
        present = _attribute(row, attribute)
        if acknowledged and present not in last:
            verdict.breach(
                "lost", f"image {life.uuid}: {attribute} is {present!r}, but the last write was one of {last}"
            )


def _attribute(row: Image, name: str) -> Any:
    prefix, _, key = name.partition(".")
    return (row.get("properties") or {}).get(key) if prefix == "properties" and key else row.get(name)


def _judge_data(verdict: Verdict, life: _Life, row: Image | None) -> None:
    """Every download, and the registry's hash, match an upload; an acknowledged upload is not forgotten."""
    stored = {upload.value("sha512") for upload in life.possible("upload")}
    for download in life.acknowledged("download"):
        if not stored or download.value("sha512") in stored:
            verdict.checksums_verified += bool(stored)
        else:
            verdict.breach(
                "checksums_wrong", f"image {life.uuid}: operation {download.number} read other data than was stored"
            )
    if row is None or not life.acknowledged("upload"):
        return
    if row.get("status") != "active":
        verdict.breach(
            "lost", f"lost data: the upload of image {life.uuid} was acknowledged, but it is {row.get('status')}"
        )
    elif row.get("os_hash_value") not in stored:
        verdict.breach("checksums_wrong", f"image {life.uuid}: the registry has another sha512 than was stored")
    else:
        verdict.checksums_verified += 1


def _judge_number_order(verdict: Verdict, operations: Iterable[Operation]) -> None:
    """Numbers from one gateway rise: an image asked for after another was acknowledged has a higher number."""
    by_gateway: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.acknowledged and operation.kind == "create" and operation.value("number") is not None:
            by_gateway[str(operation.value("gateway"))].append(operation)
    for gateway, creates in by_gateway.items():
        _judge_rising(verdict, gateway, creates)


def _judge_rising(verdict: Verdict, gateway: str, creates: list[Operation]) -> None:
    """In order of invocation, each number is above the highest of those that were acknowledged before."""
    by_completion = sorted(creates, key=lambda create: create.completed)
    position, highest = 0, 0
    for create in sorted(creates, key=lambda create: create.invoked):
        while position < len(by_completion) and by_completion[position].precedes(create):
            highest = max(highest, by_completion[position].value("number"))
            position += 1
        if create.value("number") <= highest:
            verdict.breach(
                "out_of_order",
                f"gateway {gateway}: image {create.value('uuid')} got number {create.value('number')} after {highest} "
                f"had been acknowledged",
            )


def _judge_zone(
    verdict: Verdict, zone: str, lives: Mapping[str, _Life], rows: Mapping[str, Image], listing: Sequence[Image]
) -> None:
    """A zone's listing has every image that is surely there, once, with the registry's number."""
    listed = _rows(listing)
    for uuid, times in Counter(map(_uuid, listing)).items():
        if times > 1:
            verdict.breach("duplicate_uuids", f"image {uuid} is listed {times} times in {zone}")
        if uuid not in rows and not (uuid in lives and lives[uuid].possible("create")):
            verdict.breach("phantoms", f"phantom: image {uuid} is listed in {zone}, and nobody asked for it")
    for life in lives.values():
        if life.surely_there and life.uuid not in listed:
            verdict.breach("missing_in_zones", f"image {life.uuid} was acknowledged, and {zone} does not list it")
        elif life.uuid in listed and life.uuid in rows and _number(listed[life.uuid]) != _number(rows[life.uuid]):
            here, there = _number(listed[life.uuid]), _number(rows[life.uuid])
            verdict.breach("other", f"image {life.uuid} is number {here} in {zone} and {there} in the registry")


def report(verdict: Verdict) -> str:
    """The verdict as lines for a person."""
    counts = [f"{name.replace('_', ' ')}: {value}" for name, value in vars(verdict).items() if name != "problems"]
    hidden = verdict.breaches - len(verdict.problems)
    more = [f"... and {hidden} more"] if hidden > 0 else []
    closing = "nothing was lost or doubled" if verdict.ok else f"{verdict.breaches} promises were broken"
    return "\n".join([*counts, *verdict.problems, *more, closing])


def main(arguments: Sequence[str]) -> int:
    """Judge files: 0 if all is well, 1 if not, 2 if they can't be read."""
    parser = argparse.ArgumentParser(prog="python -m chaos.validate", description="Judge what a run did to the data.")
    parser.add_argument("history", type=Path, help="JSON lines, as chaos.history writes them")
    parser.add_argument("--registry", type=Path, required=True, help="JSON list of the registry's images")
    parser.add_argument("--zone", action="append", default=[], metavar="NAME=FILE", help="JSON list of a zone's images")
    parser.add_argument("--known", type=Path, help="JSON list of UUIDs that were there before")
    given = parser.parse_args(arguments)
    try:
        zones = {name: _load(Path(file)) for name, _, file in (zone.partition("=") for zone in given.zone)}
        known = _load(given.known) if given.known else []
        verdict = judge(read(given.history), _load(given.registry), zones, known=known)
    except (OSError, ValueError, BadHistory) as error:
        print(f"can't judge: {error}", file=sys.stderr)
        return 2
    print(report(verdict))
    return 0 if verdict.ok else 1


def _load(path: Path) -> list[Any]:
    loaded = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(loaded, list):
        raise ValueError(f"{path} holds no JSON list")
    return loaded


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
