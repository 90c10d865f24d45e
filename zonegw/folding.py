"""Folding: many updates of one image as one patch, so that the thousandth one made offline costs what the tenth does.

A folded patch lays what its updates lay one after the other. It knows which update wrote what it holds ("writers"): as
they are settled, in their order, what they alone wrote is taken out. "fresh_members" were removed and added again.
What is shown of a member that is pending (`created_at`) is the time of the last update.
"""

from typing import Any

Row = dict[str, Any]

# Patches of one image that are kept apart.
PATCHES_MAX = 16
_MEMBERS = ("set_members", "remove_members")


def is_folded(patch: Row) -> bool:
    return "writers" in patch


def fold(patches: list[Row]) -> list[int]:
    """Bring the patches of one image down to PATCHES_MAX, as far as two updates stand side by side; returns the
    positions of those that were folded."""
    folded: list[int] = []
    while len(patches) > PATCHES_MAX:
        at = next((n for n in range(len(patches) - 2, -1, -1) if _foldable(patches[n], patches[n + 1])), None)
        if at is None:
            break
        folded += [patch["position"] for patch in patches[at : at + 2] if not is_folded(patch)]
        patches[at : at + 2] = [_folded(patches[at], patches[at + 1])]
    return folded


def _foldable(older: Row, newer: Row) -> bool:
    return bool(older["kind"] == newer["kind"] == "update" and older["state"] == newer["state"] != "acked")


def _folded(older: Row, newer: Row) -> Row:
    """Both as one patch."""
    locations = {*newer["remove_locations"], *(location["key"] for location in newer["add_locations"])}
    kept = [location for location in older["add_locations"] if location["key"] not in locations]
    return {
        "position": newer["position"], "first": older.get("first", older["position"]), "kind": "update",
        "state": newer["state"], "time": newer["time"],
        "set": {name: value for name, value in older["set"].items() if name not in newer["unset"]} | newer["set"],
        "unset": sorted({*older["unset"], *newer["unset"]} - set(newer["set"])),
        "add_locations": kept + newer["add_locations"],
        "remove_locations": sorted({*older["remove_locations"], *newer["remove_locations"]}),
        **_members(older, newer),
        "writers": {kind: _writers(older)[kind] | of_newer for kind, of_newer in _writers(newer).items()},
    }  # fmt: skip


def _members(older: Row, newer: Row) -> Row:
    given, removed = dict(older.get("set_members", {})), set(older.get("remove_members", ()))
    fresh = set(older.get("fresh_members", ()))
    for project, fields in newer.get("set_members", {}).items():
        if project in removed or project in newer.get("fresh_members", ()):
            fresh.add(project)
            given[project] = fields
        else:
            given[project] = given.get(project, {}) | fields
        removed.discard(project)
    for project in newer.get("remove_members", ()):
        given.pop(project, None)
        fresh.discard(project)
        removed.add(project)
    return {"set_members": given, "remove_members": sorted(removed), "fresh_members": sorted(fresh)}


def _writers(patch: Row) -> dict[str, dict[str, int]]:
    """Of all that the patch touches, the position of the update that did so last."""
    if is_folded(patch):
        writers: dict[str, dict[str, int]] = patch["writers"]
        return writers
    locations = [*patch["remove_locations"], *(location["key"] for location in patch["add_locations"])]
    members = [name for part in _MEMBERS for name in patch.get(part, ())]
    touched: dict[str, list[str]] = {
        "attributes": [*patch["set"], *patch["unset"]],
        "locations": locations,
        "members": members,
    }
    position: int = patch["position"]
    return {kind: dict.fromkeys(names, position) for kind, names in touched.items()}


def take_out(patch: Row, position: int) -> None:
    """The update at `position`, the oldest that is left in the folded patch, is settled."""
    gone: dict[str, set[str]] = {}
    for kind, writers in patch["writers"].items():
        gone[kind] = {name for name, writer in writers.items() if writer == position}
        patch["writers"][kind] = {name: writer for name, writer in writers.items() if writer != position}
    for part, kind in (("set", "attributes"), ("set_members", "members")):
        patch[part] = {name: value for name, value in patch[part].items() if name not in gone[kind]}
    for part, kind in (
        ("unset", "attributes"), ("remove_locations", "locations"), ("remove_members", "members"),
        ("fresh_members", "members"),
    ):  # fmt: skip
        patch[part] = [name for name in patch[part] if name not in gone[kind]]
    patch["add_locations"] = [
        location for location in patch["add_locations"] if location["key"] not in gone["locations"]
    ]
