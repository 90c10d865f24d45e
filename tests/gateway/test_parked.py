"""Parked writes and what operators do to them: retried in order, never twice; renamed everywhere; discarded whole."""

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from raftreg.client import Client
from tests.gateway.running import Zone, running, seed_block, until
from tests.gateway.test_drainer import lose, parked
from tests.registry import Registry, registry
from zonegw import cli
from zonegw.cli_control import ask


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as running_cluster:
        yield running_cluster


async def operator(zone: Zone, method: str, path: str, **body: Any) -> Any:
    """What a command gets from the gateway's operator socket."""
    settings = zone.gateway.config.data_dir.parent / "zonegw.toml"
    return await asyncio.to_thread(ask, argparse.Namespace(config=settings), method, path, **body)


async def retry(zone: Zone, position: int, **body: Any) -> Any:
    done = await operator(zone, "POST", f"/parked/{position}/retry", **body)
    await zone.drained_but_parked()
    return done


def places(zone: Zone) -> list[tuple[int, int | None]]:
    """(position, behind) of every parked write."""
    return [(row["write"]["position"], row["behind"]) for row in parked(zone)]


async def fence(client: Client) -> None:
    """Another session takes over, as a copy of the gateway would."""
    await client.open_session(
        gateway="fra-1", zone="fra", session=str(uuid4()), highest_sequence=0, acked_sequence=0, acked_hash=bytes(16)
    )  # fmt: skip


async def conflicting(cluster: Registry, directory: Path, renames: int = 1, **limits: Any) -> dict[str, Any]:
    """An image that this zone renamed offline, while another side did so too."""
    async with running(directory, registry=cluster) as zone, cluster.client() as client:
        await zone.drained()
        image = await zone.create(name="old", min_ram=1)
        await zone.drained()
    async with running(directory, **limits) as zone:
        for n in range(renames):
            assert await zone.rename(image, f"ours-{n}") == 200
        assert await zone.patch(image, {"op": "replace", "path": "/min_ram", "value": 7}) == 200
    async with cluster.client() as client:
        await client.update_image(image["id"], set={"name": "theirs"}, force=True)
    return image


async def test_a_retried_update_wins_over_what_the_other_side_set_and_its_followers_come_along(
    cluster: Registry, tmp_path: Path
) -> None:
    image = await conflicting(cluster, tmp_path / "fra", renames=3)
    async with running(tmp_path / "fra", registry=cluster) as zone, cluster.client() as client:
        await zone.drained_but_parked()
        first = places(zone)[0][0]
        assert places(zone) == [(first, None), *((first + n, first) for n in (1, 2, 3))]
        assert (await zone.get(image["self"]))["name"] == "theirs"
        assert (await retry(zone, first))["retried"] == 4
        registered = await client.get_image(image["id"])
        assert (registered["name"], registered["min_ram"]) == ("ours-2", 7)
        assert parked(zone) == []
        await zone.drained()


async def test_a_long_chain_is_parked_and_retried_in_many_transactions_and_keeps_its_order(
    cluster: Registry, tmp_path: Path
) -> None:
    """More updates than are kept apart, and than are parked at once."""
    small: dict[str, Any] = {"park_batch_max": 4}
    image = await conflicting(cluster, tmp_path / "fra", renames=40, **small)
    async with running(tmp_path / "fra", registry=cluster, **small) as zone, cluster.client() as client:
        await zone.drained_but_parked()
        first = places(zone)[0][0]
        assert places(zone) == [(first, None), *((first + n, first) for n in range(1, 41))]
        assert (await zone.get(image["self"]))["name"] == "theirs"
        assert (await retry(zone, first))["retried"] == 41
        registered = await client.get_image(image["id"])
        assert (registered["name"], registered["min_ram"]) == ("ours-39", 7)
        await zone.drained()


async def test_a_retry_that_a_crash_cut_off_is_ended_by_the_next_one(cluster: Registry, tmp_path: Path) -> None:
    small: dict[str, Any] = {"park_batch_max": 4}
    image = await conflicting(cluster, tmp_path / "fra", renames=9, **small)
    async with running(tmp_path / "fra", registry=cluster, **small) as zone, cluster.client() as client:
        await zone.drained_but_parked()
        head = parked(zone)[0]
        zone.gateway.retries._retry_some(head, image["id"])  # the first transaction of several
        rest = places(zone)
        assert len(rest) == 6
        assert (await retry(zone, rest[0][0]))["retried"] == 6
        assert (await client.get_image(image["id"]))["name"] == "ours-8"
        assert parked(zone) == []


async def test_a_write_that_is_to_follow_another_one_is_not_retried_or_discarded_alone(
    cluster: Registry, tmp_path: Path
) -> None:
    await conflicting(cluster, tmp_path / "fra")
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await zone.drained_but_parked()
        (first, _), (second, _) = places(zone)
        for verb in ("retry", "discard"):
            with pytest.raises(RuntimeError, match=f"to follow position {first}"):
                await operator(zone, "POST", f"/parked/{second}/{verb}")
        with pytest.raises(RuntimeError, match="no write is parked as position 99"):
            await operator(zone, "POST", "/parked/99/retry")
        shown = await operator(zone, "GET", f"/parked/{first}")
        assert [row["write"]["position"] for row in shown["chain"]] == [second]
        assert shown["registered"]["name"] == "theirs"
        assert (await operator(zone, "POST", f"/parked/{first}/discard"))["discarded"] == 2
        assert parked(zone) == []


async def taken(cluster: Registry, directory: Path) -> dict[str, Any]:
    """An image with data, shared and labelled offline, whose UUID another image got meanwhile."""
    async with running(directory, registry=cluster) as zone:
        await zone.drained()
    async with running(directory) as zone:
        image = await zone.create(
            id=str(uuid4()), name="second", disk_format="raw", container_format="bare", visibility="shared"
        )
        await zone.upload(image, b"second's")
        assert await zone.status("POST", f"{image['self']}/members", json={"member": "other"}) == 200
        assert await zone.status("PUT", f"{image['self']}/tags/nightly") == 204
    async with cluster.client() as client:
        await client.create_image(uuid=image["id"], attributes={"name": "first", "visibility": "public"})
    return image


async def test_an_image_whose_uuid_was_taken_gets_a_new_one_everywhere(cluster: Registry, tmp_path: Path) -> None:
    image = await taken(cluster, tmp_path / "fra")
    async with running(tmp_path / "fra", registry=cluster) as zone, cluster.client() as client:
        await zone.drained_but_parked()
        first = places(zone)[0][0]
        assert [behind for _, behind in places(zone)] == [None, first, first, first]
        with pytest.raises(RuntimeError, match="--new-uuid"):
            await operator(zone, "POST", f"/parked/{first}/retry")
        done = await retry(zone, first, new_uuid=True)
        await zone.drained()
        renamed = await zone.get(f"/v2/images/{done['uuid']}")
        assert (renamed["name"], renamed["status"], renamed["tags"]) == ("second", "active", ["nightly"])
        assert await zone.data(renamed) == b"second's"
        assert await zone.status("GET", renamed["self"], user="bob") == 200
        registered = await client.get_image(done["uuid"])
        assert registered["number"] == renamed["os_glance_v1_id"] == image["os_glance_v1_id"]
        assert (await zone.get(image["self"]))["name"] == "first"
        assert parked(zone) == []
        assert sorted(await zone.names()) == ["first", "second"]


async def test_discarding_an_image_with_data_has_to_be_confirmed_and_removes_its_bytes(
    cluster: Registry, tmp_path: Path
) -> None:
    await taken(cluster, tmp_path / "fra")
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await zone.drained_but_parked()
        first = places(zone)[0][0]
        with pytest.raises(RuntimeError, match="--yes"):
            await operator(zone, "POST", f"/parked/{first}/discard")
        assert zone.gateway.data.used_bytes == len(b"second's")
        assert (await operator(zone, "POST", f"/parked/{first}/discard", yes=True))["discarded"] == 4
        await until(lambda: zone.gateway.data.used_bytes == 0, "the bytes to be removed")
        assert parked(zone) == []
        await zone.drained()
        assert await zone.names() == ["first"]


async def test_bytes_that_may_be_a_registered_images_are_not_discarded_while_the_registry_is_away(
    cluster: Registry, tmp_path: Path
) -> None:
    await taken(cluster, tmp_path / "fra")
    async with running(tmp_path / "fra", registry=cluster) as zone:
        await zone.drained_but_parked()
        first = places(zone)[0][0]
    async with running(tmp_path / "fra", feed_silence_max_s=0.3) as zone:
        with pytest.raises(RuntimeError, match="while it is away"):
            await operator(zone, "POST", f"/parked/{first}/discard", yes=True)
        assert len(parked(zone)) == 4
        assert zone.gateway.data.used_bytes == len(b"second's")


@contextlib.asynccontextmanager
async def lost(cluster: Registry, directory: Path, client: Client) -> AsyncIterator[tuple[Zone, list[dict[str, Any]]]]:
    """A zone whose session is lost, and images of it: the first two, with data in the second, were applied without an
    answer; the third was not."""
    async with running(directory, registry=cluster) as zone:
        await zone.drained()
    async with running(directory) as zone:
        images = [await zone.create(name="applied"), await zone.create_active(b"kept", name="filled")]
    async with running(directory, registry=cluster) as zone:
        link = lose(zone, lambda operations: True)
        await until(lambda: link.lost > 0, "the creates to be applied")
        images.append(await zone.create(name="never sent"))
        await fence(client)
        zone.gateway.drainer._link = zone.gateway.uplink
        await until(lambda: len(parked(zone)) == 4, f"all to be parked: {zone.gateway.status.document()}")
        await zone.drained_but_parked()
        await until(lambda: zone.gateway.catalogue.count(zone.gateway.store.committed()) == 2, "the feed to tell")
        yield zone, images


async def test_what_a_lost_session_parked_is_retried_at_once_and_nothing_is_there_twice(
    cluster: Registry, tmp_path: Path
) -> None:
    async with cluster.client() as client, lost(cluster, tmp_path / "fra", client) as (zone, images):
        before = {image["id"]: image["os_glance_v1_id"] for image in images}
        await operator(zone, "POST", "/parked/retry")
        await until(lambda: zone.gateway.retries.under_way() is None, "the retry to end")
        await zone.drained()
        assert parked(zone) == []
        after = {image["id"]: await client.get_image(image["id"]) for image in images}
        numbers = [image["number"] for image in after.values()]
        assert len(set(numbers)) == len(numbers) == len((await client.list_images())["images"])
        assert [before[uuid] == image["number"] for uuid, image in after.items()] == [True, True, False]
        assert after[images[1]["id"]]["status"] == "active"
        assert await zone.data(images[1]) == b"kept"
        ids = await operator(zone, "GET", "/ids")
        assert [(row["was"], row["number"]) for row in ids["renumbered"]] == [(before[images[2]["id"]], numbers[2])]


async def test_a_create_that_was_applied_is_not_doubled_by_a_retry_before_the_feed_tells_of_it(
    cluster: Registry, tmp_path: Path
) -> None:
    """The catalogue does not have the image when it is retried, and gets it when the registry has refused its UUID."""
    async with cluster.client() as client, lost(cluster, tmp_path / "fra", client) as (zone, (first, filled, _)):
        rows = {row["write"]["uuid"]: row for row in reversed(parked(zone))}
        for image in (first, filled):
            forgotten = bytes.fromhex(image["id"].replace("-", ""))
            with zone.gateway.store.transaction() as txn:
                zone.gateway.catalogue.forget(txn, forgotten)
            await retry(zone, rows[image["id"]]["write"]["position"])
            registered = await client.get_image(image["id"])
            with zone.gateway.store.transaction() as txn:
                zone.gateway.catalogue.put_bootstrapped(txn, registered)
            for row in [row for row in parked(zone) if row["behind"] is None and row["write"]["uuid"] == image["id"]]:
                with pytest.raises(RuntimeError, match="this very image"):
                    await operator(zone, "POST", f"/parked/{row['write']['position']}/retry", new_uuid=True)
                await retry(zone, row["write"]["position"])
        assert len((await client.list_images())["images"]) == 2
        assert [row["write"]["command"]["op"] for row in parked(zone)] == ["create_image"]
        assert await zone.data(filled) == b"kept"
        assert (await client.get_image(filled["id"]))["number"] == filled["os_glance_v1_id"]


async def test_a_lost_session_parks_its_writes_some_at_a_time_while_requests_are_served_and_ends_that_after_a_crash(
    cluster: Registry, tmp_path: Path
) -> None:
    directory, small = tmp_path / "fra", {"park_batch_max": 5}
    seed_block(directory, 1, 500)
    async with running(directory, **small) as zone:
        images = [await zone.create(name=f"n{n}") for n in range(23)]
        assert await zone.rename(images[20], "renamed") == 200
        zone.gateway.drainer._sessions.lose("session_diverged: test")
        parking = zone.gateway.drainer._sessions.parking
        sizes = [len(parking.step() or []), len(parking.step() or [])]
        assert sizes == [5, 5]
        # Made on top of a write that is still to be parked, and of one that is parked.
        assert await zone.rename(images[20], "renamed again") == 200
        assert await zone.rename(images[0], "renamed, too") == 200
        fresh = await zone.create(name="fresh")
        for image in images:
            assert await zone.status("GET", image["self"]) == 200
    async with running(directory, **small) as zone:
        await until(lambda: zone.gateway.queue.depth(zone.gateway.store.read()) == 1, "the rest to be parked")
        assert [write.uuid for write in zone.gateway.queue.pending(zone.gateway.store.read())] == [fresh["id"]]
        assert len(parked(zone)) == 26
        assert {row["behind"] for row in parked(zone) if row["write"]["uuid"] == images[20]["id"]} == {None, 21}
        heads = [row["write"]["position"] for row in parked(zone) if row["behind"] is None]
        assert heads == list(range(1, 24))
        assert (await zone.get(images[20]["self"]))["name"] == "renamed again"
        assert len(zone.gateway.status.document()["sessions_lost"]) == 1
        await operator(zone, "POST", "/parked/retry")
        await until(lambda: parked(zone) == [], "all to be retried")
    async with running(directory, registry=cluster, **small) as zone, cluster.client() as client:
        await zone.drained()
        assert (await client.get_image(images[20]["id"]))["name"] == "renamed again"
        assert (await client.get_image(images[0]["id"]))["name"] == "renamed, too"
        assert len((await client.list_images())["images"]) == 24


async def test_operators_list_show_retry_and_discard_on_the_command_line(
    cluster: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "fra"
    image = await conflicting(cluster, directory)
    settings = ["--config", str(directory / "zonegw.toml")]
    async with running(directory, registry=cluster) as zone:
        await zone.drained_but_parked()
        first = str(places(zone)[0][0])

        async def said(code: int, *arguments: str) -> str:
            assert await asyncio.to_thread(cli.main, ["parked", *arguments, *settings]) == code
            captured = capsys.readouterr()
            return captured.err if code else captured.out

        assert "conflict" in await said(0, "show", first)
        assert "no write is parked as position 99" in await said(1, "discard", "99")
        assert f"retried: 2 writes about image {image['id']}" in await said(0, "retry", first)
        assert "in the background" in await said(0, "retry", "--all")
        assert "--new-uuid goes with one position" in await said(2, "retry", "--all", "--new-uuid")
        await zone.drained()
    await conflicting_again(cluster, directory, image)
    assert cli.main(["parked", "list", *settings]) == 0
    assert "conflict" in capsys.readouterr().out
    assert cli.main(["parked", "list", "--limit", "1", "--json", *settings]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["write"]["uuid"] == image["id"]
    assert cli.main(["parked", "show", str(row["write"]["position"]), *settings]) == 1
    assert "needs the running gateway" in capsys.readouterr().err


async def conflicting_again(cluster: Registry, directory: Path, image: dict[str, Any]) -> None:
    async with running(directory) as zone:
        assert await zone.rename(image, "ours, once more") == 200
    async with cluster.client() as client:
        await client.update_image(image["id"], set={"name": "theirs, once more"}, force=True)
    async with running(directory, registry=cluster) as zone:
        await zone.drained_but_parked()
