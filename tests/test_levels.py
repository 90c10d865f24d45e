"""The feature level: who holds it back, its rise with a migration, what comes before and after, and the way back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from raftreg import backup, backup_file, commands, errors, levels, queries, state_machine, tables
from raftreg import store as store_module
from raftreg.config import Limits
from raftreg.journal import Journal
from raftreg.snapshot_file import ChunkWriter, read_chunk, write_snapshot
from raftreg.snapshots import Snapshots
from raftreg.store import Store, StoreError, initialise
from raftreg.tables import MIGRATION, UnknownLevel, pack
from tests.cluster.test_peers_over_tls import Group, hello, say
from tests.gateway.running import running
from tests.gateway.running import until as gateway_until
from tests.next_release import LEVEL, pretend
from tests.registry import Registry, registry, until
from tests.state_life import Gateway, Life, a_state, create
from zonegw import uplink

RAISE = {"op": "raise_level", "level": LEVEL}
IMAGES = 5


@contextlib.contextmanager
def next_release() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch)
        yield


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    with a_state(tmp_path) as view:
        yield Life(view)


def marks(view: tables.View) -> list[Any]:
    return [image.get("mark") for image in queries.state_chunk(view, 0, 100)[0]]


# -- apply --------------------------------------------------------------------------------------------------------


def test_a_level_rises_in_bounded_steps_and_is_in_force_with_the_last_one(life: Life) -> None:
    life.do(*(create(f"image {number}") for number in range(IMAGES)))
    with next_release():
        for step in range(2):
            assert life.ok(RAISE) == {"level": 1, "more": True, "revision": IMAGES}
            head = tables.read_head(life.view)
            assert (head.level, head.format) == (1, LEVEL)
            assert marks(life.view) == [0] * 2 * (step + 1) + [None] * (IMAGES - 2 * (step + 1))
            assert life.refused({"op": "allocate_ids", "count": 1, "reason": "early"})["code"] == "invalid"
        assert life.ok(RAISE) == {"level": LEVEL, "more": False, "revision": IMAGES + 1}
        assert marks(life.view) == [0] * IMAGES
        assert life.view.get(MIGRATION) is None
        (change,) = queries.changes_since(life.view, IMAGES, 10, 1 << 20)
        assert (change["kind"], change["op"], change["level"]) == ("level", "raise_level", LEVEL)
        assert life.ok({"op": "mark_image", "number": 3})["mark"] == 1
        assert life.ok({"op": "allocate_ids", "count": 1, "reason": "now"})["first"] == IMAGES + 1


def test_raising_again_changes_nothing_and_no_level_is_skipped(life: Life) -> None:
    with next_release():
        assert life.ok(RAISE)["level"] == LEVEL
        before = life.digest()
        assert life.ok(RAISE) == {"level": LEVEL, "more": False, "revision": 1}
        assert life.refused({"op": "raise_level", "level": LEVEL + 2})["code"] == "level_skipped"
        assert life.digest() == before


def test_the_digest_tells_one_level_from_another(tmp_path: Path, life: Life) -> None:
    with next_release(), a_state(tmp_path, "other") as view:
        other = Life(view)
        assert life.digest() == other.digest()
        life.do()
        other.do()
        head = tables.read_head(view)
        head.level = LEVEL
        tables.write_head(view, head)
        assert life.digest() != other.digest()


def test_before_the_rise_a_newer_release_judges_as_the_older_one_does(tmp_path: Path, life: Life) -> None:
    """What a gateway of the next release sends too early: its refusal is remembered, so every word of it counts."""
    early: list[Any] = [
        {"op": "mark_image", "number": 1},
        {"op": "allocate_ids", "count": 1, "reason": "early"},
        {"op": "atomic", "operations": [{"op": "allocate_ids", "count": 1, "reason": "early"}]},
    ]

    def live(one: Life) -> list[Any]:
        gateway = Gateway(one)
        gateway.open()
        carried = [gateway.send(command) for command in early]
        return [*carried, *one.do(*early[1:], {**early[1], "key": "once"})]

    with next_release(), a_state(tmp_path, "newer") as view:
        newer = Life(view)
        told = live(newer)
        digest = newer.digest()
    assert live(life) == told
    assert all(result["error"]["code"] == "invalid" for result in told)
    assert life.digest() == digest


@pytest.mark.parametrize("command", [RAISE, {"op": "mark_image", "number": 1}])
def test_an_older_release_stops_at_an_entry_that_it_does_not_know(life: Life, command: dict[str, Any]) -> None:
    with pytest.raises((UnknownLevel, state_machine.UnknownEntry), match=r"feature level 2|upgrade this peer"):
        life.do(command)


def test_a_command_of_a_newer_level_never_gets_into_the_log_before_it_is_in_force(life: Life) -> None:
    nested: dict[str, Any] = {
        "op": "atomic",
        "operations": [create("a"), {"op": "allocate_ids", "count": 1, "reason": "x"}],
    }
    newer = [nested, {"op": "mark_image", "number": 1}, {"op": "allocate_ids", "count": 1, "reason": "x"}]
    with next_release():
        assert [commands.level_of(command) for command in newer] == [LEVEL] * 3
        assert commands.level_of({"op": "allocate_ids", "count": 1}) == 1
        for command in newer:
            with pytest.raises(errors.LevelNotInForce, match="needs feature level 2, and 1 is in force"):
                levels.admit(life.view, [create("b"), command])
        levels.admit(life.view, [RAISE, {"op": "allocate_ids", "count": 1}])
        life.ok(RAISE)
        levels.admit(life.view, newer)


# -- stores, snapshots, backups -----------------------------------------------------------------------------------


def written_by_the_next_release(directory: Path, *, level: int) -> None:
    """A peer's directory with images and the beginning of a log."""
    initialise(directory, cluster_id="c", peer="a", peers="a")
    with next_release():
        store = Store(directory, map_size_bytes=1 << 26)
        state_machine.apply(store.view(), 2, pack([1, 1, [create(f"image {n}") for n in range(IMAGES)]]))
        while queries.level(store.view()) < level:
            index = state_machine.applied_index(store.view()) + 1
            state_machine.apply(store.view(), index, pack([1, 2, [RAISE]]))
        applied = state_machine.applied_index(store.view())
        for index in range(1, applied + 1):
            store.put_log(index, 1, b"\x00entry")
        store.put_hard_state(1, None)
        store.commit()
        store.close()


def opened(directory: Path) -> Store:
    return Store(directory, map_size_bytes=1 << 26)


def test_before_the_level_rises_the_release_before_reads_what_the_next_one_wrote(tmp_path: Path) -> None:
    written_by_the_next_release(tmp_path / "a", level=1)
    store = opened(tmp_path / "a")
    state_machine.validate_state(store.view())
    assert queries.counts(store.view())["images"] == IMAGES
    with next_release():
        digest = state_machine.digest(store.view())
    assert state_machine.digest(store.view()) == digest
    store.close()


def test_what_the_next_release_says_beyond_this_one_s_fields_is_passed_over(tmp_path: Path) -> None:
    limits = Limits(map_size_bytes=1 << 26, disk_reserve_bytes=0)
    written_by_the_next_release(tmp_path / "a", level=1)
    with next_release(), pytest.MonkeyPatch.context() as patch:
        told = asdict
        patch.setattr(store_module, "asdict", lambda identity: {**told(identity), "later": 1})
        store = opened(tmp_path / "a")
        store.put_identity(store.identity)
        store.commit()
        store.close()
        patch.setattr(backup_file, "vars", lambda label: {**label.__dict__, "later": 1}, raising=False)
        backup.create_at(tmp_path / "a", "a", limits, tmp_path / "backup")
    store = opened(tmp_path / "a")
    assert store.identity.peer == "a"
    store.close()
    assert backup.verify(tmp_path / "backup")[0].peer == "a"


@pytest.mark.parametrize("steps", [1, 3])
def test_once_a_rise_has_begun_the_release_before_refuses_the_store_with_what_to_do(tmp_path: Path, steps: int) -> None:
    written_by_the_next_release(tmp_path / "a", level=1)
    with next_release():
        store = opened(tmp_path / "a")
        for _ in range(steps):
            index = state_machine.applied_index(store.view()) + 1
            state_machine.apply(store.view(), index, pack([1, 2, [RAISE]]))
        store.commit()
        store.close()
    with pytest.raises(StoreError, match=r"feature level 2, this release reads up to 1: start a release that supports"):
        opened(tmp_path / "a")
    with next_release():
        opened(tmp_path / "a").close()


def snapshot_of(directory: Path, file: Path) -> str:
    """Writes the state of a store as a snapshot; its digest."""
    store = opened(directory)
    store.commit()
    with file.open("wb") as spool:
        index = state_machine.applied_index(store.view())
        write_snapshot(store.begin_read(), index, ChunkWriter(spool, 1 << 16), lambda _rows: None)
    digest = state_machine.digest(store.view())
    store.close()
    return digest


def test_a_snapshot_of_a_newer_level_is_installed_by_a_release_that_supports_it_and_ends_any_other(
    tmp_path: Path,
) -> None:
    written_by_the_next_release(tmp_path / "a", level=LEVEL)
    with next_release():
        digest = snapshot_of(tmp_path / "a", tmp_path / "spool")
    initialise(tmp_path / "b", cluster_id="c", peer="b", peers="ab")
    store = opened(tmp_path / "b")
    reasons: list[str] = []

    def fatal(reason: str) -> None:
        reasons.append(reason)

    snapshots = Snapshots(
        store, Journal(store), Limits(), applied_index=state_machine.applied_index, buffered=lambda _peer: 0,
        fatal=fatal, threaded=False,
    )  # fmt: skip

    def received() -> list[bool]:
        with (tmp_path / "spool").open("rb") as spool:
            return [snapshots.setTransmissionData([chunk]) for chunk in iter(lambda: read_chunk(spool), None)]

    with pytest.raises(UnknownLevel):
        received()
    assert ["start a release that supports feature level 2" in reason for reason in reasons] == [True]
    with next_release():
        assert received()[-1]
        snapshots.deserialize()
        assert state_machine.digest(store.view()) == state_machine.recompute_digest(store.view()) == digest
    store.close()


def test_a_backup_of_a_newer_level_is_refused_with_what_to_do(tmp_path: Path) -> None:
    written_by_the_next_release(tmp_path / "a", level=LEVEL)
    limits = Limits(map_size_bytes=1 << 26, disk_reserve_bytes=0)
    with next_release():
        backup.create_at(tmp_path / "a", "a", limits, tmp_path / "backup")
        assert backup.verify(tmp_path / "backup")[0].images == IMAGES
    with pytest.raises(backup.BackupError, match="start a release that supports feature level 2"):
        backup.verify(tmp_path / "backup")


# -- hellos -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, "it supports feature level 1, the registry has level 2: start a newer release there"),
        ({"level": 1}, "it supports feature level 1"),
        ({"level": "new"}, "incomplete or malformed"),
        ({"level": 2}, None),
        ({"level": 3, "of_a_later_release": {"unknown": True}}, None),
    ],
)
async def test_a_peer_that_supports_less_than_the_level_in_force_is_refused_at_its_hello(
    tmp_path: Path, changes: dict[str, Any], error: str | None
) -> None:
    made = Group(tmp_path, "ab")
    with next_release():
        store = opened(tmp_path / "a")
        state_machine.apply(store.view(), 2, pack([1, 2, [RAISE]]))
        # The harness's list machine counts for itself.
        store.view().put(b"applied", b"1")
        store.commit()
        store.close()
        await made.start("a")
        try:
            answer = await say(made.addresses["a"], made.configs["b"].tls, hello(**changes))
            assert answer is not None
            assert error in answer["error"] if error else "error" not in answer
        finally:
            await made.stop("a")


# -- a registry ---------------------------------------------------------------------------------------------------


async def raised(cluster: Registry) -> dict[str, Any]:
    """What the leader says of levels."""
    async with cluster.client(at=await cluster.leader()) as client:
        level: dict[str, Any] = (await client.status())["level"]
        return level


async def digests(cluster: Registry) -> set[str]:
    """The digests of all peers at one index."""

    async def level_index() -> bool:
        return len({peer.raft.applied for peer in cluster.peers.values()}) == 1

    await until(level_index)
    return {state_machine.digest(peer.store.view()) for peer in cluster.peers.values()}


async def test_a_registry_raises_its_level_once_every_member_supports_it(tmp_path: Path) -> None:
    """Voters of this release, then of the next one: held back by one that is away, then raised with a migration in many
    steps. The digests agree, also after a restart."""
    async with registry(tmp_path, "abc") as cluster, cluster.client() as client:
        for number in range(IMAGES):
            await client.create_image(attributes={"name": f"image {number}"})
        assert await client.raise_level() == 1, "nobody supports more"
        with pytest.raises(errors.LevelHeldBack, match=r"voter a \(supports 1\), voter b \(supports 1\)"):
            await client.raise_level(LEVEL)
        assert await raised(cluster) == {
            "in_force": 1, "raising": False, "highest": 1,
            "members": [{"kind": "voter", "name": name, "level": 1} for name in "abc"],
        }  # fmt: skip
        await cluster.stop_all()
        with next_release():
            await cluster.start("a")
            await cluster.start("b")
            await cluster.leader()
            with pytest.raises(errors.LevelHeldBack, match=r"voter c \(away\)") as held:
                await client.raise_level()
            assert held.value.details["by"] == [{"kind": "voter", "name": "c", "level": None}]
            with pytest.raises(errors.LevelNotInForce):
                await client.batch([{"op": "allocate_ids", "count": 1, "reason": "early", "key": "k"}])
            await cluster.start("c")
            leader = cluster.peers[await cluster.leader()]
            await until(lambda: _all_linked(leader))
            assert await client.raise_level() == LEVEL
            (early,) = await client.batch([{"op": "allocate_ids", "count": 1, "reason": "now", "key": "k"}])
            assert "ok" in early
            assert len(await digests(cluster)) == 1
            assert marks(leader.store.view()) == [0] * IMAGES
            with pytest.raises(errors.BadRequest, match="levels never go back"):
                await client.raise_level(1)
            await cluster.stop_all()
            for name in "abc":
                await cluster.start(name)
            assert (await raised(cluster))["in_force"] == LEVEL
            assert len(await digests(cluster)) == 1
            await cluster.stop_all()


async def _all_linked(leader: Any) -> bool:
    return set(leader.links.levels()) == set(leader.raft.others)


async def test_a_migration_that_was_interrupted_goes_on_whoever_is_away_by_then(tmp_path: Path) -> None:
    with next_release():
        async with registry(tmp_path, "abc") as cluster, cluster.client() as client:
            for number in range(IMAGES):
                await client.create_image(attributes={"name": f"image {number}"})
            leader = cluster.peers[await cluster.leader()]
            (step,) = await leader.proposer.propose([RAISE])
            assert step["ok"]["more"]
            away = next(name for name in "abc" if name != leader.config.name)
            await cluster.stop(away)
            status = await client.status()
            assert (status["level"]["in_force"], status["level"]["raising"]) == (1, True)
            assert any("migration to feature level 2 is not complete" in error for error in status["errors"])
            with pytest.raises(errors.BadRequest, match="feature level 2 was begun"):
                await client.raise_level(1)
            assert await client.raise_level() == LEVEL
            assert marks(leader.store.view()) == [0] * IMAGES
            assert not any("migration" in error for error in (await client.status())["errors"])
            await cluster.start(away)
            assert len(await digests(cluster)) == 1


async def test_a_live_gateway_holds_the_level_back_and_a_later_one_is_refused(tmp_path: Path) -> None:
    with next_release():
        async with registry(tmp_path, "a") as cluster, cluster.client("ams-1") as gateway, cluster.client() as client:
            await gateway.register_zone("ams")
            await gateway.register_gateway("ams", "ams-1", "https://ams-1")
            assert (await gateway.heartbeat("ams", "ams-1"))["level"] == 1
            with pytest.raises(errors.LevelHeldBack, match=r"gateway ams-1 \(supports 1\)"):
                await client.raise_level()
            # Another leader has not heard of it yet, and must not take its silence for consent.
            await cluster.stop("a")
            await cluster.start("a")
            await cluster.leader()
            with pytest.raises(errors.LevelHeldBack, match=r"gateway ams-1 \(not heard since this peer leads\)"):
                await client.raise_level()
            await gateway.heartbeat("ams", "ams-1", level=LEVEL)
            assert await client.raise_level() == LEVEL
            with pytest.raises(errors.GatewayTooOld, match="ams-1 supports feature level 1, the registry has level 2"):
                await gateway.heartbeat("ams", "ams-1")
            assert (await gateway.heartbeat("ams", "ams-1", level=LEVEL))["level"] == LEVEL


async def test_a_zone_whose_gateway_was_not_upgraded_keeps_its_writes_and_says_why(tmp_path: Path) -> None:
    """It came too late to hold the level back; upgraded, it drains what it had acknowledged meanwhile."""
    with next_release():
        async with registry(tmp_path, "a") as cluster, cluster.client() as client:
            async with running(tmp_path / "zone", registry=cluster) as zone:
                await zone.create(name="before")
                await zone.drained()
                with pytest.raises(errors.LevelHeldBack, match=r"gateway fra-1 \(supports 1\)"):
                    await client.raise_level()
            with pytest.MonkeyPatch.context() as upgraded:
                upgraded.setattr(uplink, "FEATURE_LEVEL", LEVEL)
                async with running(tmp_path / "zone", registry=cluster) as zone:
                    await zone.drained()
                    assert await client.raise_level() == LEVEL
            async with running(tmp_path / "zone", registry=cluster) as zone:
                link = zone.gateway.uplink
                await gateway_until(lambda: "gateway_too_old" in link.away_reason(), "a refusal")
                assert not link.up
                await zone.create(name="meanwhile")
            with pytest.MonkeyPatch.context() as upgraded:
                upgraded.setattr(uplink, "FEATURE_LEVEL", LEVEL)
                async with running(tmp_path / "zone", registry=cluster) as zone:
                    await zone.drained()
            names = {image["name"] for image in (await client.list_images())["images"]}
            assert names == {"before", "meanwhile"}
