"""Zones, their gateways and leases in apply. Heartbeats stay with the leader; only transitions come here."""

from __future__ import annotations

from raftreg.commands import GATEWAYS_PER_ZONE_MAX, ZONES_MAX
from raftreg.state_context import Command, Context, Ok, Refused
from raftreg.tables import Row, gateway_key, pack, zone_key


def zone_row(ctx: Context, zone: str) -> Row | None:
    row: Row | None = ctx.row(zone_key(zone))
    return row


def require_zone(ctx: Context, zone: str) -> None:
    if ctx.get(zone_key(zone)) is None:
        raise Refused("zone_not_found", f"zone {zone} is not registered; register it first", zone=zone)


def gateway_row(ctx: Context, gateway: str) -> Row | None:
    row: Row | None = ctx.row(gateway_key(gateway))
    return row


def save_gateway(ctx: Context, row: Row) -> None:
    ctx.put(gateway_key(row["gateway"]), pack(row))


def register_zone(ctx: Context, command: Command) -> Ok:
    """Make a zone known, or change what is said about it; saying the same again changes nothing."""
    zone = _zone_or_new(ctx, command["zone"])
    said = {name: command[name] for name in ("endpoint", "capabilities") if command.get(name) is not None}
    if zone["version"] and all(zone[name] == value for name, value in said.items()):
        return {"zone": zone, "revision": ctx.head.revision}
    zone.update(said)
    return _save_zone(ctx, command, zone)


def register_gateway(ctx: Context, command: Command) -> Ok:
    """Make a gateway of a zone known, or change its endpoint; saying the same again changes nothing."""
    name, endpoint = command["gateway"], command.get("endpoint")
    ensure_gateway(ctx, command, name, command["zone"], endpoint)
    zone = zone_row(ctx, command["zone"])
    assert zone is not None
    if endpoint is None or zone["gateways"][name]["endpoint"] == endpoint:
        return {"zone": zone, "revision": ctx.head.revision}
    zone["gateways"][name] = {"endpoint": endpoint}
    return _save_zone(ctx, command, zone)


def ensure_gateway(ctx: Context, command: Command, gateway: str, zone: str, endpoint: str | None = None) -> Row:
    """The gateway's row; it and its zone are made known if need be. A gateway belongs to one zone for ever."""
    row = gateway_row(ctx, gateway)
    if row is not None:
        if row["zone"] != zone:
            raise Refused("gateway_elsewhere", f"gateway {gateway} belongs to zone {row['zone']}", zone=row["zone"])
        return row
    home = _zone_or_new(ctx, zone)
    if len(home["gateways"]) >= GATEWAYS_PER_ZONE_MAX:
        raise Refused("too_many_gateways", f"zone {zone} has {GATEWAYS_PER_ZONE_MAX} gateways, which is the most")
    home["gateways"][gateway] = {"endpoint": endpoint}
    row = {"gateway": gateway, "zone": zone, "session": None, "token": 0, "sessions": []}
    ctx.head.gateways += 1
    save_gateway(ctx, row)
    _save_zone(ctx, command, home)
    return row


def set_zone_lease(ctx: Context, command: Command) -> Ok:
    """A transition that the leader decided on; refused when the zone has changed since."""
    zone = zone_row(ctx, command["zone"])
    if zone is None:
        raise Refused("zone_not_found", f"zone {command['zone']} is not registered", zone=command["zone"])
    if command.get("if_version") not in (None, zone["version"]):
        raise Refused(
            "conflict",
            f"zone {command['zone']} has version {zone['version']}, not {command['if_version']}",
            version=zone["version"],
        )
    if zone["live"] == command["live"]:
        return {"zone": zone, "revision": ctx.head.revision}
    zone["live"], zone["since"] = command["live"], ctx.time_us
    return _save_zone(ctx, command, zone)


def _zone_or_new(ctx: Context, zone: str) -> Row:
    """The zone's row; a new one has version 0 until it is saved."""
    row = zone_row(ctx, zone)
    if row is None:
        if ctx.head.zones >= ZONES_MAX:
            raise Refused("too_many_zones", f"{ZONES_MAX} zones are registered, which is the most")
        row = {
            "zone": zone, "version": 0, "endpoint": None, "capabilities": {}, "live": False, "since": ctx.time_us,
            "gateways": {},
        }  # fmt: skip
    return row


def _save_zone(ctx: Context, command: Command, zone: Row) -> Ok:
    if zone["version"] == 0:
        ctx.head.zones += 1
    zone["version"] += 1
    packed = pack(zone)
    ctx.put(zone_key(zone["zone"]), packed)
    revision = ctx.next_revision()
    ctx.record("zone", command, {"version": zone["version"]}, "zone", packed)
    return {"zone": zone, "revision": revision}
