"""The judge: given what clients were told, is everything there, once, in order and whole?

It sees a history, the registry's images and the zones' listings, all as plain data, and nothing of the cluster that it
judges. Operation kinds, with what it reads of question and answer (all but `uuid` may be missing):

    create    uuid, gateway -> number              an image was made (`write`: a register, or it was changed)
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
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos.history import BadHistory, Operation, read
from chaos.lives import Life, number_of, uuid_of
from chaos.lives import lives as lives_of
from chaos.lives import rows as rows_of
from chaos.validators.contents import judge_data, judge_updates
from chaos.validators.numbers import judge_doubles, judge_number, judge_number_order
from chaos.verdict import Image, Verdict

__all__ = ["Verdict", "judge", "main", "report"]


def judge(
    operations: Iterable[Operation],
    registry: Sequence[Image],
    zones: Mapping[str, Sequence[Image]] | None = None,
    *,
    known: Iterable[str] = (),
    parked: Iterable[str] = (),
) -> Verdict:
    """Judge a history against what the registry and the zones hold after every queue has drained.

    `registry` are its images that are not deleted. `known` are UUIDs that were there before the history began. `parked`
    are UUIDs of images of which a gateway keeps refused writes: these are not lost, and what the image holds is open.
    """
    all_operations = list(operations)
    verdict, lives = Verdict(), lives_of(all_operations)
    rows, kept = rows_of(registry), set(parked)
    verdict.parked = len(kept)
    _judge_presence(verdict, lives, rows, kept)
    _judge_phantoms(verdict, lives, rows, set(known))
    judge_doubles(verdict, all_operations, registry)
    for life in lives.values():
        row = rows.get(life.uuid)
        judge_number(verdict, life, row)
        if life.uuid not in kept:
            judge_updates(verdict, life, row)
            judge_data(verdict, life, row)
    judge_number_order(verdict, all_operations)
    for zone, listing in (zones or {}).items():
        _judge_zone(verdict, zone, lives, rows, listing, kept)
    return verdict


def _judge_presence(
    verdict: Verdict, lives: Mapping[str, Life], rows: Mapping[str, Image], parked: Collection[str]
) -> None:
    for life in lives.values():
        verdict.acknowledged += life.created
        verdict.unknown += bool(life.possible("create")) and not life.created
        verdict.in_registry += life.created and life.uuid in rows
        if life.surely_there and life.uuid not in rows and life.uuid not in parked:
            verdict.breach("lost", f"lost: image {life.uuid} was acknowledged, and the registry does not have it")
        if life.acknowledged("delete") and life.uuid in rows and life.uuid not in parked:
            verdict.breach("other", f"back from the dead: the deletion of image {life.uuid} was acknowledged")


def _judge_phantoms(verdict: Verdict, lives: Mapping[str, Life], rows: Mapping[str, Image], known: set[str]) -> None:
    for uuid in rows.keys() - known:
        life = lives.get(uuid)
        if life is None or not (life.possible("create") or life.possible("write")):
            said = "nobody asked for it" if life is None else "it was refused definitely"
            verdict.breach("phantoms", f"phantom: image {uuid} is in the registry, but {said}")


def _judge_zone(
    verdict: Verdict,
    zone: str,
    lives: Mapping[str, Life],
    rows: Mapping[str, Image],
    listing: Sequence[Image],
    parked: Collection[str],
) -> None:
    """A zone's listing has every image that is surely there, once, with the registry's number. An image whose create is
    parked is in the zone that parked it alone."""
    listed = rows_of(listing)
    for uuid, times in Counter(map(uuid_of, listing)).items():
        if times > 1:
            verdict.breach("duplicate_uuids", f"image {uuid} is listed {times} times in {zone}")
        if uuid not in rows and not (uuid in lives and lives[uuid].possible("create")):
            verdict.breach("phantoms", f"phantom: image {uuid} is listed in {zone}, and nobody asked for it")
    for life in lives.values():
        if life.surely_there and life.uuid not in listed and (life.uuid in rows or life.uuid not in parked):
            verdict.breach("missing_in_zones", f"image {life.uuid} was acknowledged, and {zone} does not list it")
        elif life.uuid in listed and life.uuid in rows and number_of(listed[life.uuid]) != number_of(rows[life.uuid]):
            here, there = number_of(listed[life.uuid]), number_of(rows[life.uuid])
            verdict.breach("other", f"image {life.uuid} is number {here} in {zone} and {there} in the registry")


def report(verdict: Verdict) -> str:
    """The verdict as lines for a person."""
    counts = [f"{name.replace('_', ' ')}: {value}" for name, value in vars(verdict).items() if isinstance(value, int)]
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
