"""Projects in apply: what each owns, kept and never computed, and the most that it may own.

A project's bytes are those in the zones' data stores: an image that three zones hold counts three times.
"""

from __future__ import annotations

from raftreg.state_context import Command, Context, Ok, Refused
from raftreg.tables import Row, pack


def charges(ctx: Context, before: Row | None, after: Row | None) -> list[Row]:
    """Rows of the projects whose sums change when an image goes from `before` to `after`, for `Context.charge`.

    None: not there. Needs owner, size and locations only. Refused: quota_exceeded, where a project would own more than
    it did, and more than its quota.
    """
    old, new = _owned(before), _owned(after)
    if old == new:
        return []
    rows = []
    for project in {**old, **new}:
        images = (project in new) - (project in old)
        size = new.get(project, 0) - old.get(project, 0)
        row = dict(ctx.project(project))
        _add(row, "images", images)
        _add(row, "bytes", size)
        rows.append(row)
    return rows


def _owned(image: Row | None) -> dict[str, int]:
    """Bytes that the image's owner owns by it, under the owner's name; nothing where it has no owner."""
    if image is None or image["owner"] is None:
        return {}
    held = sum(location["status"] == "active" for location in image["locations"])
    return {image["owner"]: held * (image["size"] or 0)}


def _add(row: Row, what: str, more: int) -> None:
    most = row[what + "_max"]
    if more > 0 and most is not None and row[what] + more > most:
        raise Refused(
            "quota_exceeded",
            f"project {row['project']} has {row[what]} of {most} {what} and would have {row[what] + more}; delete "
            f"images, or have an administrator raise its quota",
            project=row["project"], quota=most, used=row[what], of=what,
        )  # fmt: skip
    row[what] += more


def set_quota(ctx: Context, command: Command) -> Ok:
    """Bound what a project may own from now on; what it owns already stays. None: no bound; not named: as before."""
    row = ctx.project(command["project"])
    given: Row = {name: command[name] for name in ("images_max", "bytes_max") if name in command}
    if all(row[name] == value for name, value in given.items()):
        return {"project": row, "revision": ctx.head.revision}
    row = {**row, **given}
    ctx.charge(row)
    revision = ctx.next_revision()
    ctx.record("project", command, {}, "project", pack(row))
    return {"project": row, "revision": revision}
