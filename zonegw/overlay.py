"""Overlay: own pending writes laid over the catalogue's image, as pure functions on one image's overlay row.

Row: {"base": the image as the last ack returned it, or None; "acked": highest revision acked;
      "deleted": an acked delete;
      "own_versions": versions of the image that own acks made, "own_before": those of epochs before;
      "patches": [patch, ...] in the order of acknowledgement}
Patch: {"position", "kind": create | update | delete, "state": pending | parked | acked, "time": µs,
        "image" (create), "set", "unset", "add_locations", "remove_locations" and, where it is about members,
        "set_members", "remove_members" (update), "revision" (acked)}
Many updates are folded (`folding`): one patch then stands for the positions "first" to "position", with "writers" and
"fresh_members".

What a reader sees is the newer, by version, of the catalogue's image and the acked one, with the patches laid over it.
An acked write is not applied a second time: its result replaces it. The row goes when the catalogue has reached
`acked`.
"""

from typing import Any

from zonegw import folding

# Own writes of one image between two moments at which the catalogue has caught up; older ones then count as others'.
OWN_VERSIONS_MAX = 256
# In attribute_versions: the version of all that are not named, where the registry summed up the oldest.
OTHERS = "*"
# "acked" of a delete that another side made first, at a revision that is not known: until the feed says it.
WHEN_THE_FEED_SAYS = 2**63 - 1

Image = dict[str, Any]
Row = dict[str, Any]


def empty() -> Row:
    return {"base": None, "acked": 0, "deleted": False, "patches": [], "own_versions": [], "own_before": []}


def initial(create: dict[str, Any]) -> Image:
    """The image that a create_image command makes, as the zone shows it until the registry has it."""
    image: Image = create["attributes"] | {
        "number": create.get("number"), "uuid": create["uuid"], "version": 0, "revision": 0,
        "home_zone": create["home_zone"], "status": "queued", "size": None, "virtual_size": None, "checksum": None,
        "os_hash_algo": None, "os_hash_value": None, "created_at": create["created_at"],
        "updated_at": create["created_at"], "tags": create["tags"], "properties": create["properties"],
        "locations": [], "members": {}, "attribute_versions": {},
    }  # fmt: skip
    return image


def patch_of(position: int, time_us: int, command: dict[str, Any]) -> Row:
    """The patch that lays a queued command over its image."""
    patch: Row = {"position": position, "state": "pending", "time": time_us}
    if command["op"] == "create_image":
        return patch | {"kind": "create", "image": initial(command)}
    if command["op"] == "delete_image":
        return patch | {"kind": "delete"}
    names = ("set", "unset", "add_locations", "remove_locations", "set_members", "remove_members")
    return patch | {"kind": "update"} | {name: command[name] for name in names if name in command}


def newest(catalogued: Image | None, acked: Image | None) -> Image | None:
    """The one with the higher version."""
    if catalogued is None or acked is None:
        return catalogued or acked
    return catalogued if catalogued["version"] >= acked["version"] else acked


def effective(catalogued: Image | None, row: Row | None) -> Image | None:
    """The image as this zone's tenants see it, or None. A parked create carries "parked": True."""
    if row is None:
        return catalogued
    image = None if row["deleted"] else newest(catalogued, row["base"])
    created_here = created(row)
    if created_here and image is not None and not same_create(created_here["image"], image):
        return image  # another zone's image under the same UUID: the registry's wins
    for patch in row["patches"]:
        if patch["kind"] == "create":
            # The feed may bring our own create before its ack does (a lost answer): what follows stays laid over it.
            image = image or patch["image"] | {"parked": patch["state"] == "parked"}
        elif patch["kind"] == "delete":
            return None
        elif image is not None:
            image = patched(image, patch)
    return image


def same_create(pending: Image, registered: Image) -> bool:
    """Whether the registry's image is the one that we created, and not another zone's under the same UUID."""
    if pending["number"] is not None:
        return bool(registered["number"] == pending["number"])
    return bool(registered["home_zone"] == pending["home_zone"])


def patched(image: Image, patch: Row) -> Image:
    """`image` after one update."""
    image = image | {"properties": dict(image["properties"]), "updated_at": patch["time"]}
    for attribute, value in patch["set"].items():
        if attribute.startswith("properties."):
            image["properties"][attribute.removeprefix("properties.")] = value
        else:
            image[attribute] = value
    for attribute in patch["unset"]:
        if attribute.startswith("properties."):
            image["properties"].pop(attribute.removeprefix("properties."), None)
        else:
            image[attribute] = None
    gone = {*patch["remove_locations"], *(location["key"] for location in patch["add_locations"])}
    kept = [location for location in image["locations"] if location["key"] not in gone]
    return image | {"locations": kept + patch["add_locations"], "members": _members(image["members"], patch)}


def _members(members: Row, patch: Row) -> Row:
    """As the registry will do it: a new member is pending, and what is not named of an old one stays."""
    given, time = patch.get("set_members"), patch["time"]
    if given:
        fresh = {"status": "pending", "can_share": False, "created_at": time}
        old = {project: member for project, member in members.items() if project not in patch.get("fresh_members", ())}
        members = members | {
            project: {**old.get(project, fresh), **fields, "updated_at": time} for project, fields in given.items()
        }
    if removed := patch.get("remove_members"):
        members = {project: member for project, member in members.items() if project not in removed}
    return members


def created(row: Row) -> Row | None:
    """The create that is still pending or parked in this row."""
    return next((patch for patch in row["patches"] if patch["kind"] == "create" and patch["state"] != "acked"), None)


def acknowledge(row: Row, position: int, revision: int, version: int | None, image: Image | None) -> None:
    """The registry applied the write at `position` as `revision`, which made `version`.

    `image` is as it was when the registry answered, where it told: a repeated answer shows what others did since.
    """
    row["acked"] = max(row["acked"], revision)
    if version is not None:
        row["own_versions"] = [*row["own_versions"], version][-OWN_VERSIONS_MAX:]
    patch = _holding(row, position)
    if patch is None:
        return
    if patch["kind"] == "delete":
        row["deleted"], row["base"] = True, None
    elif image is not None:
        row["base"] = newest(row["base"], image)
    elif not folding.is_folded(patch):
        patch |= {"state": "acked", "revision": revision}
        return
    remove(row, position)


def park(row: Row, position: int) -> None:
    """The write at `position` is parked: it stays laid over a parked create, else the registry's image shows again."""
    here = created(row)
    if here is None or here["position"] > position:
        remove(row, position)
        return
    for patch in row["patches"]:
        if patch["position"] == position:
            patch["state"] = "parked"


def remove(row: Row, position: int) -> None:
    """The write at `position`, the oldest of its patch, is not laid over the image any more."""
    patch = _holding(row, position)
    if patch is None:
        return
    if patch["position"] == position:
        row["patches"].remove(patch)
    else:
        folding.take_out(patch, position)


def _holding(row: Row, position: int) -> Row | None:
    """The patch that the write at `position` is in."""
    return next((p for p in row["patches"] if p.get("first", p["position"]) <= position <= p["position"]), None)


def lay_before_parked(row: Row, patch: Row) -> None:
    """A parked write is pending again: what is still parked behind it comes later."""
    states = [one["state"] for one in row["patches"]]
    row["patches"].insert(states.index("parked") if "parked" in states else len(states), patch)


def adopt(row: Row, registered: Image) -> None:
    """A parked create that the registry has all the same (its answer was lost, then the session) is no longer laid
    over it, nor what was parked behind it: the registry's image shows, and takes writes again."""
    here = created(row)
    if here is not None and here["state"] == "parked" and same_create(here["image"], registered):
        row["patches"] = [patch for patch in row["patches"] if patch["state"] != "parked"]


def is_pending(row: Row) -> bool:
    """Whether a write of it waits for the registry's verdict."""
    return any(patch["state"] == "pending" for patch in row["patches"])


def reached(row: Row, revision: int) -> bool:
    """Drop what the catalogue contains at `revision`; True when nothing of the row is left."""
    row["patches"] = [p for p in row["patches"] if p["state"] != "acked" or p["revision"] > revision]
    return not row["patches"] and row["acked"] <= revision


def forget_acks(row: Row) -> None:
    """The registry's next life may not have what it acknowledged in this one: what is pending or parked stays."""
    own = [*row["own_before"], *row["own_versions"]][-OWN_VERSIONS_MAX:]
    row |= {"base": None, "acked": 0, "deleted": False, "own_versions": [], "own_before": own}
    row["patches"] = [patch for patch in row["patches"] if patch["state"] != "acked"]


def lay_again(row: Row, patch: Row) -> None:
    """A write that was acknowledged is pending again: its patch takes its place among the others."""
    others = [one for one in row["patches"] if one["position"] != patch["position"]]
    row["patches"] = sorted([*others, patch], key=lambda one: one["position"])


def tombstone(row: Row, revision: int) -> None:
    """The registry deleted the image, for ever: delete wins over every update."""
    row["deleted"], row["base"], row["acked"] = True, None, revision


def version_before(registered: Image, epoch_revision: int) -> int:
    """The version that the image had when the epoch began with `epoch_revision`; 1 for one that is younger."""
    if registered["revision"] <= epoch_revision:
        return int(registered["version"])
    return int(registered.get("epoch_version", 1))


def base_version(registered: Image, own_versions: list[int], base: int, attributes: list[str]) -> int:
    """The base version to send for an update that was made on version `base` and own writes since.

    When none of `attributes` was changed by another side since `base`, the present version is as good a base; else
    `base` stays, and the registry finds the conflict.
    """
    changed = registered["attribute_versions"]
    for attribute in attributes:
        version = changed.get(attribute, changed.get(OTHERS, 0))
        if version > base and version not in own_versions:
            return base
    return int(registered["version"])
