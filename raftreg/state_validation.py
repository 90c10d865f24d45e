"""Checks of a whole state: slow, for tests, for doubt and for comparing peers. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raftreg.commands import BLOCKS_PER_SESSION_MAX, SESSION_WINDOW, SESSIONS_PER_GATEWAY_MAX
from raftreg.tables import (
    BLOCKS,
    CHANGES,
    DIGEST_MODULUS,
    DIGESTED,
    EPOCHS,
    GATEWAYS,
    IMAGES,
    KEYS,
    KEYS_BY_AGE,
    LISTING,
    MIGRATION,
    PROJECTS,
    RESULTS,
    SESSIONS,
    TOMBSTONES,
    UUIDS,
    ZONES,
    Head,
    Row,
    View,
    block_key,
    gateway_key,
    head_hash,
    index_keys,
    prefix_end,
    project_key,
    read_head,
    result_key,
    row_hash,
    session_key,
    u64,
    unpack,
    uuid_key,
    zone_key,
)


def digest(view: View) -> str:
    """Hash of the state, kept up to date by apply: equal on all peers at the same applied index."""
    head = read_head(view)
    return _hex(head.rows_digest, head)


def recompute_digest(view: View) -> str:
    """The same from a scan of all rows; differs from `digest` when rows were damaged behind apply's back."""
    total = sum(row_hash(key, value) for key, value in view.scan(b"\x00", b"\xff") if key[0] in DIGESTED)
    return _hex(total, read_head(view))


def _hex(rows_digest: int, head: Head) -> str:
    return f"{(rows_digest + head_hash(head)) % DIGEST_MODULUS:032x}"


def validate_state(view: View) -> None:
    """Every invariant between rows, indexes, counters and digest. AssertionError names what is wrong."""
    head = read_head(view)
    images, tombstones = _check_images(view)
    _check_counters(view, head, images, tombstones)
    _check_projects(view, images)
    _check_changes(view, head)
    _check_numbers(view, head, [*images, *tombstones])
    _check_zones(view)
    _check_epochs(view, head)
    _check_sessions(view)
    _check_keys(view)
    assert (view.get(MIGRATION) is not None) == bool(head.raising), "a migration is under way, or none is"
    assert digest(view) == recompute_digest(view), "the digest kept by apply is not that of the rows"


def rows(view: View, prefix: bytes) -> Iterator[tuple[bytes, Any]]:
    """Keys behind the prefix and decoded values of one table."""
    for key, value in view.scan(prefix, prefix_end(prefix)):
        yield key[len(prefix) :], unpack(value)


def _keys(view: View, prefix: bytes) -> set[bytes]:
    return {key for key, _ in view.scan(prefix, prefix_end(prefix))}


def _check_images(view: View) -> tuple[list[Row], list[Row]]:
    images = [image for _, image in rows(view, IMAGES)]
    tombstones = [tombstone for _, tombstone in rows(view, TOMBSTONES)]
    for prefix, table in ((IMAGES, images), (TOMBSTONES, tombstones)):
        assert [key for key, _ in rows(view, prefix)] == [u64(row["number"]) for row in table], f"{prefix!r}: keys"
    numbers = {row["number"] for row in (*images, *tombstones)}
    assert len(numbers) == len(images) + len(tombstones), "a number is both an image's and a tombstone's"
    uuids = {uuid_key(row["uuid"]): u64(row["number"]) for row in (*images, *tombstones)}
    assert uuids == dict(view.scan(UUIDS, prefix_end(UUIDS))), "the UUID index is not that of images and tombstones"
    listing = {key for image in images for key in index_keys(image)}
    assert listing == _keys(view, LISTING), "the listing indexes are not those of the images"
    for image in images:
        versions = image["attribute_versions"].values()
        assert all(1 < version <= image["version"] for version in versions), f"attribute versions of {image['number']}"
        assert image.get("epoch_version", 0) < image["version"], f"epoch version of {image['number']}"
    return images, tombstones


def _check_counters(view: View, head: Head, images: list[Row], tombstones: list[Row]) -> None:
    counted = {
        "images": len(images), "tombstones": len(tombstones), "changes": len(_keys(view, CHANGES)),
        "keys": len(_keys(view, KEYS)), "zones": len(_keys(view, ZONES)), "gateways": len(_keys(view, GATEWAYS)),
        "sessions": len(_keys(view, SESSIONS)), "blocks": len(_keys(view, BLOCKS)),
        "projects": len(_keys(view, PROJECTS)),
    }  # fmt: skip
    for name, count in counted.items():
        assert getattr(head, name) == count, f"counter {name} is {getattr(head, name)}, there are {count} rows"
    for row in (*images, *tombstones):
        assert row["revision"] <= head.revision, f"image {row['number']} is of a revision to come"


def _check_projects(view: View, images: list[Row]) -> None:
    owned: dict[str, list[int]] = {}
    for image in images:
        if image["owner"] is not None:
            held = sum(location["status"] == "active" for location in image["locations"])
            sums = owned.setdefault(image["owner"], [0, 0])
            sums[0] += 1
            sums[1] += held * (image["size"] or 0)
    kept = {}
    for _, project in rows(view, PROJECTS):
        assert view.get(project_key(project["project"])) is not None, f"project {project['project']}: its key"
        used = [project["images"], project["bytes"]]
        if used != [0, 0]:
            kept[project["project"]] = used
        else:
            assert (project["images_max"], project["bytes_max"]) != (None, None), "a project's row says nothing"
    assert kept == owned, "what projects are said to own is not what they own"


def _check_changes(view: View, head: Head) -> None:
    revisions = [change["revision"] for _, change in rows(view, CHANGES)]
    assert revisions == list(range(head.floor, head.revision + 1)), "changes are not those from floor to revision"
    assert [key for key, _ in rows(view, CHANGES)] == [u64(revision) for revision in revisions], "keys of changes"
    for _, change in rows(view, CHANGES):
        assert change["time"] <= head.time_us, f"change {change['revision']} is of a time to come"


def _check_numbers(view: View, head: Head, bound: list[Row]) -> None:
    end = 0
    for key, block in rows(view, BLOCKS):
        assert key == u64(block["first"]), f"block {block['first']} lies under another key"
        assert end < block["first"] <= block["last"], f"block {block['first']} overlaps the one before"
        end = block["last"]
    assert end < head.next_id, "a block reaches beyond the next number"
    assert all(row["number"] < head.next_id for row in bound), "a number was bound that was never issued"


def _check_zones(view: View) -> None:
    zones = {key.decode(): zone for key, zone in rows(view, ZONES)}
    gateways = {key.decode(): gateway for key, gateway in rows(view, GATEWAYS)}
    listed = {(name, zone["zone"]) for zone in zones.values() for name in zone["gateways"]}
    assert listed == {(name, gateway["zone"]) for name, gateway in gateways.items()}, "gateways and their zones"
    for zone in zones.values():
        assert view.get(zone_key(zone["zone"])) is not None, f"zone {zone['zone']} lies under another key"
        assert zone["version"] >= 1, f"zone {zone['zone']} has no version"


def _check_epochs(view: View, head: Head) -> None:
    numbers = [0]
    for key, epoch in rows(view, EPOCHS):
        assert key == u64(epoch["epoch"]), f"epoch {epoch['epoch']} lies under another key"
        assert epoch["revision"] <= head.revision, f"epoch {epoch['epoch']} began at a revision to come"
        numbers += [epoch["skipped_from"], epoch["next_id"]]
        skipped = view.get(block_key(epoch["skipped_from"]))
        if epoch["next_id"] > epoch["skipped_from"]:
            last = None if skipped is None else unpack(skipped)["last"]
            assert last == epoch["next_id"] - 1, f"the numbers that epoch {epoch['epoch']} skipped are no block"
    assert sorted([*numbers, head.next_id]) == [*numbers, head.next_id], "numbers went back with an epoch"


def _check_sessions(view: View) -> None:
    sessions = {session["session"]: session for _, session in rows(view, SESSIONS)}
    gateways = [gateway for _, gateway in rows(view, GATEWAYS)]
    known = sorted(name for gateway in gateways for name in gateway["sessions"])
    assert known == sorted(sessions), "the sessions are not those of the gateways"
    for gateway in gateways:
        assert len(gateway["sessions"]) <= SESSIONS_PER_GATEWAY_MAX, f"sessions of {gateway['gateway']}"
        live = [name for name in gateway["sessions"] if sessions[name]["fenced"] is None]
        assert live in ([], [gateway["session"]]), f"gateway {gateway['gateway']} has several live sessions: {live}"
    live_blocks = set()
    results = _keys(view, RESULTS)
    for session in sessions.values():
        live_blocks |= _check_session(view, session)
        results -= {result_key(session["session"], sequence) for sequence in window(session)}
    assert not results, "results are kept of no session's window"
    blocks = [block for _, block in rows(view, BLOCKS)]
    unsealed = {block["first"] for block in blocks if not block["sealed"] and block["session"] is not None}
    assert unsealed == live_blocks, "the unsealed blocks are not those of live sessions"


def window(session: Row) -> range:
    """Sequences whose results a session keeps; none when it is fenced."""
    last = session["last_sequence"]
    return range(0) if session["fenced"] else range(max(1, last - SESSION_WINDOW + 1), last + 1)


def _check_session(view: View, session: Row) -> set[int]:
    name = session["session"]
    assert view.get(session_key(name)) is not None, f"session {name} lies under another key"
    assert view.get(gateway_key(session["gateway"])) is not None, f"session {name} is of no known gateway"
    stored = [view.get(result_key(name, sequence)) for sequence in window(session)]
    assert None not in stored, f"session {name} misses results of its window"
    if stored and stored[-1] is not None:
        assert unpack(stored[-1])[0] == session["last_hash"], f"session {name}: its hash is not the last result's"
    assert len(session["blocks"]) <= BLOCKS_PER_SESSION_MAX, f"session {name} has too many live blocks"
    assert not (session["fenced"] and session["blocks"]), f"fenced session {name} has live blocks"
    return set(session["blocks"])


def _check_keys(view: View) -> None:
    by_age = {KEYS_BY_AGE + u64(row[0]) + name for name, row in rows(view, KEYS)}
    assert by_age == _keys(view, KEYS_BY_AGE), "idempotency rows by age are not those by key"
