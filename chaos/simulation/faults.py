"""What can go wrong: one function per kind. Each does it now if it can, and says whether it did.

Faults stay within what the registry promises to survive: at most a minority of the voters is without its data at any
time, and a disk is only replaced by an older copy, or by an empty one that is passed off as intact, where others
remember what it had promised (see `raftreg.positions`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raftreg import errors

if TYPE_CHECKING:
    from chaos.simulation.schedule import Schedule

Fault = Callable[["Schedule"], bool]
PAUSE_S = (0.3, 1.2, 3.0, 8.0)
JUMP_S = (0.5, 2.0, 30.0)
WALL_JUMP_US = (-3_600_000_000, -2_000_000, 2_000_000, 3_600_000_000)
SLOW_COMMIT_S = (0.2, 0.6, 1.5)


def crash(schedule: Schedule) -> bool:
    """SIGKILL of a peer; it starts again later."""
    victim = schedule.draw(schedule.world.up())
    if victim is None:
        return False
    victim.crash()
    schedule.world.note(f"{victim.name} is killed")
    return True


def power_cut(schedule: Schedule) -> bool:
    """All peers at once."""
    victims = schedule.world.up()
    for victim in victims:
        victim.crash()
    schedule.world.note("all peers are killed")
    return bool(victims)


def failing_disk(schedule: Schedule) -> bool:
    """The next durable commit of a peer fails."""
    victim = schedule.draw([peer for peer in schedule.world.up() if not peer.commit_fails])
    if victim is None:
        return False
    victim.commit_fails = True
    schedule.world.note(f"the next commit of {victim.name} will fail")
    return True


def slow_disk(schedule: Schedule) -> bool:
    """Every commit of a peer takes long, until its disk is replaced or `mend` says otherwise."""
    victim = schedule.draw([peer for peer in schedule.world.up() if not peer.commit_takes_s])
    if victim is None:
        return False
    victim.commit_takes_s = schedule.random.choice(SLOW_COMMIT_S)
    schedule.mend_later(lambda: setattr(victim, "commit_takes_s", 0.0))
    schedule.world.note(f"commits of {victim.name} take {victim.commit_takes_s} s")
    return True


def flap(schedule: Schedule) -> bool:
    """A connection breaks, and what was under way in it is lost."""
    connection = schedule.draw(schedule.world.network.connections)
    if connection is None:
        return False
    schedule.world.reset(connection, "both")
    return True


def half_open(schedule: Schedule) -> bool:
    """A connection breaks at one end only; the other still reads what is under way, beside a newer connection."""
    connection = schedule.draw(schedule.world.network.connections)
    if connection is None:
        return False
    schedule.world.reset(connection, schedule.random.choice(("dialler", "listener")))
    return True


def one_way(schedule: Schedule) -> bool:
    """Nothing arrives from one peer at another one."""
    a, b = schedule.pair()
    schedule.block({(a, b)})
    return True


def partition(schedule: Schedule) -> bool:
    """Some peers can't reach the others; clients still reach all."""
    names = [peer.name for peer in schedule.world.peers]
    side = set(schedule.random.sample(names, schedule.random.randint(1, len(names) // 2)))
    schedule.block({(a, b) for a in names for b in names if (a in side) != (b in side)})
    return True


def isolation(schedule: Schedule) -> bool:
    """One peer hears nobody, is heard by nobody, or both."""
    lonely = schedule.random.choice([peer.name for peer in schedule.world.voters])
    others = [name for name in schedule.world.processes if name != lonely]
    deaf = {(other, lonely) for other in others}
    mute = {(lonely, other) for other in others}
    schedule.block(schedule.random.choice((deaf, mute, deaf | mute)))
    return True


def delay(schedule: Schedule) -> bool:
    """One direction of one link stands still for a while and then delivers everything."""
    a, b = schedule.pair()
    schedule.block({(a, b)}, short=True)
    return True


def lost_request(schedule: Schedule) -> bool:
    """A client's connection breaks: question or answer is lost."""
    call = schedule.draw(schedule.world.calls)
    if call is None:
        return False
    schedule.world.note(f"lost: {call}")
    call.lose()
    call.client.run()
    return True


def pause(schedule: Schedule) -> bool:
    """A process stands still, as under SIGSTOP."""
    victim = schedule.draw(schedule.world.up())
    if victim is None:
        return False
    victim.paused_until = schedule.world.now + schedule.random.choice(PAUSE_S)
    schedule.world.note(f"{victim.name} stands still until {victim.paused_until - 1000:.2f} s")
    return True


def clock_jump(schedule: Schedule) -> bool:
    """A peer's monotonic clock jumps ahead, or its wall clock to wherever."""
    victim = schedule.random.choice(schedule.world.peers)
    if schedule.random.random() < 0.5:
        victim.clock_ahead_s += schedule.random.choice(JUMP_S)
        schedule.world.note(f"the clock of {victim.name} jumps ahead to +{victim.clock_ahead_s} s")
    else:
        victim.wall_ahead_us = schedule.random.choice(WALL_JUMP_US)
        schedule.world.note(f"the wall clock of {victim.name} jumps to {victim.wall_ahead_us} us")
    return True


def transfer(schedule: Schedule) -> bool:
    """An operator has the lead handed over, to a certain voter or to any; or its leader is about to stop."""
    leader = schedule.draw(schedule.world.leaders())
    if leader is None:
        return False
    to = schedule.random.choice((None, *(peer.name for peer in schedule.world.voters)))
    with schedule.world.inside(leader), leader.loop.running():
        try:
            leader.running.leadership.begin(to)
        except errors.RegistryError:
            return False
    schedule.world.note(f"{leader.name} hands over")
    return True


# -- disks --------------------------------------------------------------------------------------------------------


def wiped_disk(schedule: Schedule) -> bool:
    """A peer's disk is replaced by an empty one and its operator says `raftreg rejoin`."""
    victim = schedule.random.choice(schedule.world.peers)
    if not schedule.may_lose(victim):
        return False
    schedule.replace(victim, lambda: victim.wipe(recovering=True))
    schedule.world.note(f"{victim.name} gets an empty disk and rejoins")
    return True


def passed_off_disk(schedule: Schedule) -> bool:
    """A voter's disk is replaced by an empty one, and nobody says so."""
    victim = schedule.random.choice(schedule.world.voters)
    if not schedule.may_lose(victim) or not schedule.is_remembered(victim, (-1, -1)):
        return False
    schedule.replace(victim, lambda: victim.wipe(recovering=False))
    schedule.world.note(f"{victim.name} gets an empty disk that is passed off as its own")
    return True


def rolled_back_disk(schedule: Schedule) -> bool:
    """A voter comes back with an older copy of its disk; where none was made yet, one is made now."""
    victim = schedule.random.choice(schedule.world.voters)
    if not victim.has_copy:
        if victim.alive:
            victim.copy_disk()
        return False
    if not schedule.may_lose(victim) or not schedule.is_remembered(victim, victim.copied):
        return False
    schedule.replace(victim, victim.roll_back)
    schedule.world.note(f"the disk of {victim.name} is rolled back")
    return True


# -- gateways -----------------------------------------------------------------------------------------------------


def gateway_crash(schedule: Schedule) -> bool:
    """SIGKILL of a gateway; it starts again at once."""
    victim = schedule.draw([gateway for gateway in schedule.gateways if gateway.alive])
    if victim is None:
        return False
    victim.crash()
    victim.start()
    schedule.world.note(f"{victim.name} is killed and starts again")
    return True


def gateway_rollback(schedule: Schedule) -> bool:
    """A gateway comes back with an older copy of its disk."""
    victim = schedule.draw([gateway for gateway in schedule.gateways if gateway.alive])
    if victim is None:
        return False
    if not victim.has_copy:
        victim.copy_disk()
        return False
    victim.crash()
    victim.roll_back()
    victim.start()
    schedule.world.note(f"the disk of {victim.name} is rolled back")
    return True


def gateway_cut(schedule: Schedule) -> bool:
    """A zone is cut off from the registry."""
    victim = schedule.draw(schedule.gateways)
    if victim is None:
        return False
    peers = [peer.name for peer in schedule.world.peers]
    schedule.block({(victim.name, peer) for peer in peers} | {(peer, victim.name) for peer in peers})
    return True


FAULTS: dict[str, Fault] = {
    kind.__name__.replace("_", "-"): kind
    for kind in (
        crash, power_cut, failing_disk, slow_disk, flap, half_open, one_way, partition, isolation, delay, lost_request,
        pause, clock_jump, transfer, wiped_disk, passed_off_disk, rolled_back_disk, gateway_crash, gateway_rollback,
        gateway_cut,
    )
}  # fmt: skip
