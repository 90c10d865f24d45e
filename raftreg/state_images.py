"""Images in apply: create, update with per-attribute conflicts, delete to a tombstone, and the home zone's rule."""

from __future__ import annotations

from typing import Any

from raftreg.commands import (
    ATTRIBUTE_VERSIONS_MAX,
    DEFAULTS,
    LOCATIONS_MAX,
    MEMBER_PREFIX,
    MEMBER_STATUSES,
    MEMBERS_MAX,
    NUMBER_MAX,
    PROPERTIES_MAX,
    PROPERTY_PREFIX,
    VISIBILITIES,
    Invalid,
    check_metadata_size,
)
from raftreg.state_context import Command, Context, Ok, Refused
from raftreg.state_deletions import holders
from raftreg.state_numbers import claim
from raftreg.state_projects import charges
from raftreg.state_zones import require_zone, zone_row
from raftreg.tables import (
    INDEXED,
    SORTS,
    Row,
    audience,
    image_key,
    index_keys,
    pack,
    plan_of_changed,
    result_key,
    tombstone_key,
    u64,
    unpack,
    uuid_key,
)

OTHERS = "*"
"""In attribute_versions: the version for all attributes that are not named; without it, 1."""

_TRANSITIONS = {
    "queued": ("saving", "active"),
    "saving": ("queued", "active"),
    "active": ("deactivated",),
    "deactivated": ("active",),
}
# What says which bytes an image is; fixed from the moment that it has them.
_OF_THE_BYTES = ("size", "checksum", "os_hash_algo", "os_hash_value")
_LOCATION_DEFAULTS = {"size": None, "md5": None, "sha512": None, "status": "active"}


# -- create -------------------------------------------------------------------------------------------------------


def create_image(ctx: Context, command: Command, session: Row | None = None) -> Ok:
    """Bind a UUID and a number, for ever. `session` is the gateway session that carries the command, if one does."""
    uuid, home_zone, number = command["uuid"], command.get("home_zone"), command.get("number")
    by_uuid = uuid_key(uuid)
    taken = ctx.get(by_uuid)
    if taken is not None:
        raise Refused("uuid_taken", f"UUID {uuid} was used already", uuid=uuid, number=int.from_bytes(taken, "big"))
    if home_zone is not None:
        require_zone(ctx, home_zone)
    image = _new_image(ctx, command, home_zone)
    charged = charges(ctx, None, image)
    if number is not None:
        claim(ctx, command, number, session)
    else:
        number = ctx.issue(1)
    image["number"], image["revision"] = number, ctx.next_revision()
    packed = pack(image)
    ctx.insert(image_key(number), packed)
    ctx.put_derived(by_uuid, u64(number))
    for key in index_keys(image):
        ctx.put_derived(key)
    for project in charged:
        ctx.charge(project)
    ctx.head.images += 1
    _record(ctx, command, image, packed, [], None)
    return {"number": number, "uuid": uuid, "version": 1, "revision": image["revision"], "image": image}


def _new_image(ctx: Context, command: Command, home_zone: str | None) -> Row:
    """All of it but number and revision."""
    now = ctx.time_us
    # A zone that was cut off says when it acknowledged the create; nothing comes from the future.
    created_at = min(command.get("created_at", now), now)
    return {
        "number": 0, "uuid": command["uuid"], "version": 1, "revision": 0,
        "home_zone": home_zone, **DEFAULTS, **command["attributes"], "created_at": created_at, "updated_at": created_at,
        "tags": command.get("tags") or [], "properties": command.get("properties") or {},
        "locations": [_location(location) for location in command.get("locations") or ()], "members": {},
        "attribute_versions": {},
    }  # fmt: skip


def _location(location: Row) -> Row:
    return {**_LOCATION_DEFAULTS, **location}


def _record(
    ctx: Context, command: Command, image: Row, packed: bytes | None, changed: list[str], before: Row | None
) -> None:
    """`before`: who saw the image until now, where that differs afterwards; the feed keeps it to itself."""
    fields = {
        "number": image["number"], "uuid": image["uuid"], "version": image["version"], "changed": changed,
    }  # fmt: skip
    if before is not None:
        fields["before"] = before
    if packed is None:
        ctx.record("image", command, {**fields, "deleted": True})
    else:
        ctx.record("image", command, fields, "image", packed)


# -- finding ------------------------------------------------------------------------------------------------------


def find_image(ctx: Context, ref: Row, session: Row | None) -> tuple[bytes, Row]:
    """Stored value and image that `ref` names. Refused: image_not_found, image_deleted, image_mismatch."""
    number = _number_of(ctx, ref, session)
    packed = ctx.get(image_key(number))
    if packed is None:
        tombstone = ctx.row(tombstone_key(number))
        if tombstone is None:
            raise Refused("image_not_found", f"no image has {_named(ref)}")
        _require_same(tombstone, ref)
        raise Refused(
            "image_deleted", f"the image with {_named(ref)} was deleted",
            number=number, uuid=tombstone["uuid"], version=tombstone["version"], revision=tombstone["revision"],
        )  # fmt: skip
    image: Row = unpack(packed)
    _require_same(image, ref)
    return packed, image


def _number_of(ctx: Context, ref: Row, session: Row | None) -> int:
    if "sequence" in ref:
        return _created_by(ctx, ref["sequence"], session)
    number: int | None = ref.get("number")
    if "uuid" not in ref:
        assert number is not None
        return number
    found = ctx.get(uuid_key(ref["uuid"]))
    if found is not None:
        return int.from_bytes(found, "big")
    # An unknown UUID beside a known number is a mismatch, which the row behind the number will show.
    return NUMBER_MAX + 1 if number is None else number


def _created_by(ctx: Context, sequence: int, session: Row | None) -> int:
    if session is None:
        raise Refused("invalid", "an image is named by sequence only inside its gateway's session")
    row = ctx.row(result_key(session["session"], sequence))
    ok = row[1].get("ok", {}) if row is not None else {}
    if "image" not in ok or ok["version"] != 1:
        raise Refused(
            "image_not_found", f"operation {sequence} of this session created no image, or is too old to tell"
        )
    number: int = ok["number"]
    return number


def _require_same(image: Row, ref: Row) -> None:
    if ref.get("number", image["number"]) != image["number"] or ref.get("uuid", image["uuid"]) != image["uuid"]:
        raise Refused(
            "image_mismatch", f"{_named(ref)} are not the same image; name it by one of them",
            number=ref.get("number"), uuid=ref.get("uuid"),
        )  # fmt: skip


def _named(ref: Row) -> str:
    return " and ".join(f"{kind} {value}" for kind, value in ref.items())


# -- results that are kept ----------------------------------------------------------------------------------------


def remembered(result: dict[str, Any]) -> dict[str, Any]:
    """A result as it is stored for retries: what it bound, without copies of images, which have rows of their own."""
    (kind,) = result
    kept = dict(result[kind])
    if "image" in kept:
        kept["image"] = None
    if "results" in kept:
        kept["results"] = [remembered(inner) for inner in kept["results"]]
    return {kind: kept}


def recalled(ctx: Context, result: dict[str, Any]) -> dict[str, Any]:
    """A stored result as a retry gets it: with the image as it is now, or null where that was deleted since."""
    (kind,) = result
    told = dict(result[kind])
    if "image" in told and "number" in told:
        told["image"] = ctx.row(image_key(told["number"]))
    if "results" in told:
        told["results"] = [recalled(ctx, inner) for inner in told["results"]]
    return {kind: told}


def check_home_zone(ctx: Context, command: Command, image: Row) -> None:
    """Another zone's gateway writes only while the home zone's lease is live: it hears of the change then."""
    home = image["home_zone"]
    actor = command.get("actor") or {}
    if home is None or actor.get("zone") in (None, home):
        return
    if command.get("force") and actor.get("admin"):
        return
    zone = zone_row(ctx, home)
    if zone is None or not zone["live"]:
        raise Refused(
            "home_zone_away",
            f"the image is at home in zone {home}, which is away; try again when it is back",
            home_zone=home,
            since=zone["since"] if zone is not None else None,
        )


# -- update -------------------------------------------------------------------------------------------------------


def update_image(ctx: Context, command: Command, session: Row | None = None) -> Ok:
    """Set and unset attributes, locations and members; conflicts only where one of the same attributes has changed
    since base_version. The first change in an epoch that is not the first leaves `epoch_version`: the image's version
    when that epoch began."""
    packed, image = find_image(ctx, command["image"], session)
    check_home_zone(ctx, command, image)
    wanted = dict(command.get("set") or {})
    unset = command.get("unset") or []
    members = [MEMBER_PREFIX + project for project in command.get("set_members") or ()]
    _check_conflicts(image, wanted, [*unset, *members], command.get("base_version"))
    before = image
    image = {**image, **{name: dict(image[name]) for name in ("properties", "members", "attribute_versions")}}
    changed = _set(image, wanted) + _unset(image, unset, wanted) + _move_locations(image, command)
    changed += _change_members(image["members"], command, ctx.time_us)
    _check_whole(before, image)
    charged = charges(ctx, before, image)
    if image["revision"] <= ctx.epoch()["revision"]:
        image["epoch_version"] = image["version"]
    image["version"] += 1
    image["updated_at"] = ctx.time_us
    image["attribute_versions"].update(dict.fromkeys(changed, image["version"]))
    _bound_attribute_versions(image)
    image["revision"] = ctx.next_revision()
    new = pack(image)
    ctx.replace(image_key(image["number"]), packed, new)
    for project in charged:
        ctx.charge(project)
    _reindex(ctx, before, image, changed)
    seen_by = audience(before)
    _record(ctx, command, image, new, changed, None if seen_by == audience(image) else seen_by)
    return {name: image[name] for name in ("number", "uuid", "version", "revision")} | {"image": image}


def _check_conflicts(image: Row, wanted: Row, removed: list[str], base_version: int | None) -> None:
    if base_version is None or base_version >= image["version"]:
        return
    versions = image["attribute_versions"]
    others = versions.get(OTHERS, 1)
    conflicts = [
        name
        for name in (*wanted, *removed)
        if versions.get(name, others) > base_version and not _always_wins(image, name, wanted.get(name))
    ]
    if conflicts:
        raise Refused(
            "conflict",
            f"{', '.join(conflicts)} changed after version {base_version}; now it is at {image['version']}",
            attributes=conflicts,
            version=image["version"],
            image=image,
        )


def _always_wins(image: Row, name: str, value: Any) -> bool:
    """Deactivation and narrower visibility protect somebody; they are not lost to a concurrent change."""
    if name == "status":
        return bool(value == "deactivated")
    if name == "visibility":
        return VISIBILITIES.index(value) < VISIBILITIES.index(image["visibility"])
    return False


def _set(image: Row, wanted: Row) -> list[str]:
    """Names of what is different afterwards."""
    changed = []
    for name, value in wanted.items():
        target, key = (image["properties"], name[len(PROPERTY_PREFIX) :]) if "." in name else (image, name)
        if key not in target or target[key] != value:
            target[key] = value
            changed.append(name)
    return changed


def _unset(image: Row, unset: list[str], wanted: Row) -> list[str]:
    """Removing what is not there is no change and no error: somebody else was first."""
    for name in unset:
        if name in wanted:
            raise Refused("invalid", f"{name} is both in set and in unset; decide for one")
    return [name for name in unset if image["properties"].pop(name[len(PROPERTY_PREFIX) :], None) is not None]


def _move_locations(image: Row, command: Command) -> list[str]:
    added, removed = command.get("add_locations") or (), command.get("remove_locations") or ()
    if not added and not removed:
        return []
    by_key = {location["key"]: location for location in image["locations"] if location["key"] not in removed}
    by_key.update((location["key"], _location(location)) for location in added)
    locations = list(by_key.values())
    if locations == image["locations"]:
        return []
    image["locations"] = locations
    return ["locations"]


def _change_members(members: Row, command: Command, now_us: int) -> list[str]:
    """Names of what is different afterwards. A new member's status is pending; removing wins over what others set."""
    given, removed = command.get("set_members") or {}, command.get("remove_members") or ()
    if both := [project for project in removed if project in given]:
        raise Refused("invalid", f"{both[0]} is both in set_members and in remove_members; decide for one")
    changed = [project for project in removed if members.pop(project, None) is not None]
    for project, fields in given.items():
        old = members.get(project)
        if old is None or any(old[name] != value for name, value in fields.items()):
            fresh = {"status": MEMBER_STATUSES[0], "can_share": False, "created_at": now_us}
            members[project] = {**(old or fresh), **fields, "updated_at": now_us}
            changed.append(project)
    return [MEMBER_PREFIX + project for project in changed]


def _check_whole(before: Row, image: Row) -> None:
    """What an image must be as a whole, whatever was changed."""
    was, status = before["status"], image["status"]
    if status != was and status not in _TRANSITIONS[was]:
        raise Refused("invalid_transition", f"status cannot change from {was} to {status}", status=was)
    if was in ("active", "deactivated") and any(image[name] != before[name] for name in _OF_THE_BYTES):
        raise Refused(
            "data_already_there",
            f"the image has its data already; {', '.join(_OF_THE_BYTES)} of an {was} image do not change",
            status=was,
        )
    if status == "active" and not image["locations"]:
        raise Refused("invalid", "an active image needs data: keep or add a location, or delete the image")
    if len(image["properties"]) > PROPERTIES_MAX:
        raise Refused(
            "invalid", f"the image would have {len(image['properties'])} properties; {PROPERTIES_MAX} are allowed"
        )
    if len(image["locations"]) > LOCATIONS_MAX:
        raise Refused(
            "invalid", f"the image would have {len(image['locations'])} locations; {LOCATIONS_MAX} are allowed"
        )
    if len(image["members"]) > MEMBERS_MAX:
        raise Refused("invalid", f"the image would have {len(image['members'])} members; {MEMBERS_MAX} are allowed")
    try:
        check_metadata_size(image["properties"], image["tags"])
    except Invalid as invalid:
        raise Refused("invalid", str(invalid)) from None


def _bound_attribute_versions(image: Row) -> None:
    """Sum up the oldest when too many names were ever changed: that can only make a conflict of a non-conflict."""
    versions = image["attribute_versions"]
    if len(versions) <= ATTRIBUTE_VERSIONS_MAX:
        return
    oldest_first = sorted((version, name) for name, version in versions.items() if name != OTHERS)
    for version, name in oldest_first[: len(oldest_first) - ATTRIBUTE_VERSIONS_MAX // 2]:
        del versions[name]
        versions[OTHERS] = max(versions.get(OTHERS, 1), version)


def _reindex(ctx: Context, before: Row, image: Row, changed: list[str]) -> None:
    moving = INDEXED.intersection([*changed, "updated_at"])
    plan = plan_of_changed(moving, any(name.startswith(MEMBER_PREFIX) for name in changed))
    old, new = set(index_keys(before, plan)), set(index_keys(image, plan))
    for key in sorted(old - new):
        ctx.delete_derived(key)
    for key in sorted(new - old):
        ctx.put_derived(key)


# -- delete -------------------------------------------------------------------------------------------------------

# Whatever a listing is sorted by, so that a page may go on behind an image that was deleted meanwhile.
_KEPT = ("number", "uuid", "owner", "visibility", "home_zone", "locations", *SORTS)


def delete_image(ctx: Context, command: Command, session: Row | None = None) -> Ok:
    """Leave a tombstone. A delete wins over whatever else changed, so base_version is no condition here."""
    _, image = find_image(ctx, command["image"], session)
    check_home_zone(ctx, command, image)
    if image["protected"]:
        raise Refused("protected", f"image {image['number']} is protected; unprotect it first", number=image["number"])
    number = image["number"]
    for project in charges(ctx, image, None):
        ctx.charge(project)
    ctx.delete(image_key(number))
    for key in index_keys(image):
        ctx.delete_derived(key)
    image["version"] += 1
    image["revision"] = ctx.next_revision()
    tombstone = {name: image[name] for name in _KEPT}
    tombstone |= {"version": image["version"], "revision": image["revision"], "deleted_at": ctx.time_us}
    tombstone["holders"] = holders(image)
    ctx.insert(tombstone_key(number), pack(tombstone))
    ctx.head.images -= 1
    ctx.head.tombstones += 1
    _record(ctx, command, image, None, ["status"], audience(image))
    return {name: image[name] for name in ("number", "uuid", "version", "revision")}
