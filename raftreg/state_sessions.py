"""Gateway sessions in apply: every operation of a gateway exactly once and in order, and stale gateways fenced.

A session holds the sequence of the last operation, a running hash over all of them and the results of the last
`SESSION_WINDOW`. An operation is applied only as last + 1 on top of the right hash; an older one gets its stored
result. Whatever contradicts that shows a gateway whose disk was rolled back or cloned: its session is fenced.

A gateway that was acknowledged more in an older epoch contradicts nothing: that time line was lost. It hears how far
the session got here, rewinds to that, and offers the rest again, in the same session and with the numbers it has.
"""

from __future__ import annotations

from typing import Any

from raftreg.commands import SESSION_OPS, SESSION_WINDOW, SESSIONS_PER_GATEWAY_MAX, Invalid, validate
from raftreg.state_context import Command, Context, Ok, Refused, outcome
from raftreg.state_images import create_image, delete_image, recalled, remembered, update_image
from raftreg.state_numbers import check_floor, hand_over, live_session, raise_floor, seal_all
from raftreg.state_zones import ensure_gateway, save_gateway
from raftreg.tables import Row, hash16, pack, result_key, unpack

CHAIN_START = bytes(16)
DIVERGED, SUPERSEDED = "diverged", "superseded"

_INNER = {"create_image": create_image, "update_image": update_image, "delete_image": delete_image}


# -- opening ------------------------------------------------------------------------------------------------------


def open_session(ctx: Context, command: Command) -> Ok:
    """Begin a session, which fences the gateway's older one; or say how far the known one got.

    `diverged` tells that the gateway's own account contradicts ours: then the session is fenced.
    """
    lost_line = _is_of_an_older_epoch(ctx, command)
    highest: int = command.get("highest_number", 0)
    if lost_line:
        check_floor(ctx, highest)
    session = _known(ctx, command) or _begin(ctx, command, lost_line)
    if session is None:
        return _unknown(ctx, command)
    if session["fenced"] is None and _contradicts(ctx, session, command, lost_line):
        fence(ctx, command, session, DIVERGED)
    if lost_line:
        raise_floor(ctx, command, highest)
        _note_lacking(ctx, command, session)
    return _state(ctx, session)


def _is_of_an_older_epoch(ctx: Context, command: Command) -> bool:
    """Whether the gateway was acknowledged last in an epoch before this one; without an epoch it never was."""
    theirs, began = command.get("epoch", 0), command.get("epoch_began", 0)
    epoch, time_us = ctx.epoch()["epoch"], ctx.epoch()["time"]
    if theirs > epoch or (theirs == epoch and began != time_us):
        raise Refused(
            "epoch_unknown",
            f"gateway {command['gateway']} was acknowledged in an epoch {theirs} that this cluster, in its epoch "
            f"{epoch}, never was in: restore it once more with --epoch {theirs + 1} or higher",
            epoch=epoch,
        )  # fmt: skip
    return bool(0 < theirs < epoch)


def _known(ctx: Context, command: Command) -> Row | None:
    session = ctx.session(command["session"])
    if session is None:
        return None
    if (session["gateway"], session["zone"]) != (command["gateway"], command["zone"]):
        raise Refused("session_unknown", f"session {command['session']} belongs to another gateway; mint a new UUID")
    if session["fenced"] == SUPERSEDED:
        raise Refused(
            "session_fenced",
            f"session {command['session']} was superseded by a newer one of its gateway; open one under a new UUID",
            token=session["token"],
        )
    return session


def _begin(ctx: Context, command: Command, lost_line: bool) -> Row | None:
    """The new session; None when it has a past that is not known here, and was not lost with an epoch.

    One that was lost with it brings back what its gateway numbered out of the blocks of the session before.
    """
    gateway = ensure_gateway(ctx, command, command["gateway"], command["zone"])
    has_past = command["acked_sequence"] > 0 or command["acked_hash"] != CHAIN_START
    forgotten = gateway["token"] > len(gateway["sessions"])
    if has_past and (forgotten or not lost_line):
        return None
    older = ctx.session(gateway["session"]) if gateway["session"] is not None else None
    gateway["token"] += 1
    blocks = hand_over(ctx, older, command["session"], gateway["token"]) if older is not None and lost_line else []
    if older is not None and older["fenced"] is None:
        fence(ctx, command, older, SUPERSEDED)
    gateway["session"] = command["session"]
    gateway["sessions"].append(command["session"])
    while len(gateway["sessions"]) > SESSIONS_PER_GATEWAY_MAX:
        ctx.forget_session(gateway["sessions"].pop(0))
        ctx.head.sessions -= 1
    save_gateway(ctx, gateway)
    session = ctx.new_session(
        {
            "session": command["session"], "gateway": command["gateway"], "zone": command["zone"],
            "token": gateway["token"], "last_sequence": 0, "last_hash": CHAIN_START, "opened_at": ctx.time_us,
            "fenced": None, "blocks": blocks, "follows": older["session"] if older is not None else None, "lacked": 0,
        }
    )  # fmt: skip
    ctx.head.sessions += 1
    _record(ctx, command, session)
    return session


def _unknown(ctx: Context, command: Command) -> Ok:
    return _told(ctx, {
        "session": command["session"], "last_sequence": 0, "last_hash": CHAIN_START, "token": 0, "fenced": DIVERGED,
    }, None)  # fmt: skip


def _state(ctx: Context, session: Row) -> Ok:
    before = ctx.session(session["follows"]) if session["follows"] is not None else None
    return _told(ctx, session, before and {name: before[name] for name in ("session", "last_sequence")})


def _told(ctx: Context, session: Row, before: Row | None) -> Ok:
    """The handshake's answer; `follows` is the gateway's session before, where one is remembered."""
    epoch = ctx.epoch()
    return {
        "session": session["session"], "last_sequence": session["last_sequence"], "last_hash": session["last_hash"],
        "token": session["token"], "diverged": session["fenced"] is not None, "follows": before,
        "epoch": epoch["epoch"], "epoch_revision": epoch["revision"], "epoch_began": epoch["time"],
        "revision": ctx.head.revision,
    }  # fmt: skip


def _note_lacking(ctx: Context, command: Command, session: Row) -> None:
    """For operators: how many operations of an older epoch the gateway has to offer again."""
    lacked = command["acked_sequence"] - session["last_sequence"]
    if lacked > 0 and session["fenced"] is None and session["lacked"] != lacked:
        session["lacked"] = lacked
        ctx.touch(session)
        _record(ctx, command, session)


def _contradicts(ctx: Context, session: Row, command: Command, lost_line: bool) -> bool:
    """Whether the gateway has forgotten operations that we applied, or has acks of some that we didn't, though of this
    epoch."""
    acked, last = command["acked_sequence"], session["last_sequence"]
    if last > command["highest_sequence"]:
        return True
    if acked > last:
        return not lost_line
    if acked == last:
        return bool(command["acked_hash"] != session["last_hash"])
    if acked == 0:
        return bool(command["acked_hash"] != CHAIN_START)
    stored = ctx.row(result_key(session["session"], acked))
    if stored is None:
        # Just pushed out of the window: the replay of the next operation shows whether it follows on ours.
        return bool(acked < last - SESSION_WINDOW)
    return bool(stored[0] != command["acked_hash"])


# -- fencing ------------------------------------------------------------------------------------------------------


def fence(ctx: Context, command: Command, session: Row, reason: str) -> None:
    """Accept nothing of this session any more: its blocks are sealed and its window is dropped."""
    session["fenced"] = reason
    seal_all(ctx, session)
    last = session["last_sequence"]
    for sequence in range(max(1, last - SESSION_WINDOW + 1), last + 1):
        ctx.delete(result_key(session["session"], sequence))
    _record(ctx, command, session)


def _record(ctx: Context, command: Command, session: Row) -> None:
    ctx.next_revision()
    names = ("session", "gateway", "zone", "token", "last_sequence", "fenced", "lacked")
    told = {name: session[name] for name in names}
    ctx.record("session", command, told)


# -- operations ---------------------------------------------------------------------------------------------------


def session_operation(ctx: Context, command: Command) -> Ok:
    """Apply the operation that is next, or tell what became of an older one.

    The refusal `session_diverged` fences the session, so it is the one that comes with a write.
    """
    session = live_session(ctx, command["session"], command["gateway"])
    sequence, last = command["sequence"], session["last_sequence"]
    if sequence > last + 1:
        raise Refused(
            "sequence_gap", f"operation {sequence} came before {last + 1}; send the ones between first",
            last_sequence=last,
        )  # fmt: skip
    if sequence <= last:
        return _replay(ctx, command, session)
    if command["previous_hash"] != session["last_hash"]:
        raise _diverged(ctx, command, session)
    return _advance(ctx, command, session)


def _replay(ctx: Context, command: Command, session: Row) -> Ok:
    sequence = command["sequence"]
    stored = ctx.row(result_key(session["session"], sequence))
    if stored is None or stored[0] != hash16(command["previous_hash"] + command["payload"]):
        raise _diverged(ctx, command, session)
    return {"sequence": sequence, "result": recalled(ctx, stored[1]), "replayed": True}


def _diverged(ctx: Context, command: Command, session: Row) -> Refused:
    fence(ctx, command, session, DIVERGED)
    return Refused(
        "session_diverged",
        f"operation {command['sequence']} is not what this session holds (or is too old to tell); it is fenced now",
        sequence=command["sequence"], last_sequence=session["last_sequence"],
    )  # fmt: skip


def _advance(ctx: Context, command: Command, session: Row) -> Ok:
    sequence = command["sequence"]
    result = _perform(ctx, command["payload"], session)
    session["last_sequence"] = sequence
    session["last_hash"] = hash16(command["previous_hash"] + command["payload"])
    ctx.touch(session)
    ctx.insert(result_key(session["session"], sequence), pack([session["last_hash"], remembered(result)]))
    if sequence > SESSION_WINDOW:
        ctx.delete(result_key(session["session"], sequence - SESSION_WINDOW))
    return {"sequence": sequence, "result": result}


def _perform(ctx: Context, payload: bytes, session: Row) -> dict[str, Any]:
    """The inner command's result; a refused one has used up its sequence as well."""
    try:
        inner = unpack(payload)
        validate(inner, ctx.head.level)
        if inner["op"] not in SESSION_OPS:
            raise Invalid(f"op {inner['op']} cannot come in a session; {', '.join(sorted(SESSION_OPS))} can")
    except (Invalid, ValueError) as invalid:
        return Refused("invalid", str(invalid) or "the payload is not msgpack").result()
    return outcome(_inner, ctx, inner, session)


def _inner(ctx: Context, inner: Command, session: Row) -> Ok:
    actor = {**(inner.get("actor") or {})}
    for name in ("zone", "gateway"):
        if actor.get(name) not in (None, session[name]):
            raise Refused("invalid", f"the actor's {name} is {actor[name]}, the session's is {session[name]}")
        actor[name] = session[name]
    # What a gateway says about its users is not proof of an administrator.
    actor.pop("admin", None)
    return _INNER[inner["op"]](ctx, {**inner, "actor": actor}, session)
