"""What an image holds: attributes as they were last written, data as they were stored."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from chaos.history import Operation
from chaos.lives import Life
from chaos.verdict import Image, Verdict


def judge_updates(verdict: Verdict, life: Life, row: Image | None) -> None:
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


def _judge_last_values(verdict: Verdict, life: Life, row: Image) -> None:
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


def judge_data(verdict: Verdict, life: Life, row: Image | None) -> None:
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
