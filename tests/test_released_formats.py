"""What releases have written to disk is read by this one: stores of peers and gateways, logs, backups.

The fixtures and how to make them: `tests.fixtures.make`. A refusal's wording is among what a digest covers, so a log
that is replayed to another digest may just have been refused in other words: these are part of the format too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lmdb
import pytest

from raftreg import backup, cluster_init, commands, offline_check, queries, recovery, state_machine, tables
from raftreg.config import load
from raftreg.store import Store
from raftreg.stored_peer import Configured
from raftreg.tables import read_head
from tests.fixtures import make
from tests.gateway.running import running
from tests.registry import registry
from tests.state_life import a_state
from zonegw.store import TABLES

RELEASES = sorted(file.parent for file in make.HERE.glob("*/expected.json"))
BYTES_MAX = 200_000
# The indexes among them this release makes itself where they are not there.
UNUSED_TABLES = {"folded", "parked_images", "renumbered"}


@pytest.fixture(params=RELEASES, ids=lambda release: release.name)
def release(request: pytest.FixtureRequest) -> Path:
    directory: Path = request.param
    return directory


def expected(release: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((release / "expected.json").read_text())
    return document


def unpacked(release: Path, directory: Path) -> Path:
    """The data directory of the release's peer."""
    make.unpack_store(release / "peer.tar.xz", directory / "a" / "store")
    return directory / "a"


def test_the_store_of_a_peer_is_opened_whole_and_as_it_was_written(release: Path, tmp_path: Path) -> None:
    data_dir = unpacked(release, tmp_path)
    report = offline_check.check(data_dir)
    assert report.findings == []
    found = make.found_in(data_dir)
    wanted = expected(release)["peer"]
    # A later release may count more.
    found["counts"] = {name: found["counts"][name] for name in wanted["counts"]}
    assert found == wanted
    store = Store(data_dir, map_size_bytes=make.MAP_SIZE_BYTES)
    assert state_machine.recompute_digest(store.view()) == wanted["digest"]
    assert store.positions()
    assert store.recovered() is not None
    store.close()


def test_the_log_is_replayed_to_the_digest_that_was_written_down(release: Path, tmp_path: Path) -> None:
    wanted = expected(release)["peer"]
    store = Store(unpacked(release, tmp_path), map_size_bytes=make.MAP_SIZE_BYTES, read_only=True)
    assert store.load_log()[0][1] == 1, "the log is there from its beginning"
    entries = make.entries(store)
    store.close()
    with a_state(tmp_path) as view:
        for index, (payload, _) in enumerate(entries, 2):
            if index <= wanted["applied"]:
                state_machine.apply(view, index, payload)
        state_machine.validate_state(view)
        assert (state_machine.digest(view), read_head(view).level) == (wanted["digest"], wanted["level"])
        assert queries.counts(view).items() >= wanted["counts"].items()


async def test_a_peer_goes_on_from_the_store(release: Path, tmp_path: Path) -> None:
    wanted = expected(release)["peer"]
    async with registry(tmp_path, limits=make.LIMITS) as cluster:
        await cluster.stop("a")
        shutil.rmtree(cluster.configs["a"].data_dir / "store")
        make.unpack_store(release / "peer.tar.xz", cluster.configs["a"].data_dir / "store")
        await cluster.start("a")
        await cluster.leader()
        async with cluster.client() as client:
            for number, uuid, name in wanted["images"]:
                image = await client.get_image(number)
                assert (image["uuid"], image["name"]) == (uuid, name)
            assert (await client.create_image())["number"] == wanted["counts"]["next_id"]
            assert (await client.status())["epoch"] == wanted["epoch"]


def test_a_backup_is_read_and_restored(release: Path, tmp_path: Path) -> None:
    wanted = expected(release)
    label, rows = backup.verify(release / "registry.backup")
    assert (label.revision, label.log_last) == (wanted["backup"]["revision"], wanted["backup"]["log_last"])
    assert rows == sum(wanted["peer"]["rows"].values())
    peer = cluster_init.PlannedPeer("a", "127.0.0.1:9", "127.0.0.1:10")
    cluster_init.initialise(tmp_path / "registry", cluster_init.Plan([peer]), offline=True)
    data_dir = tmp_path / "registry" / "a"
    shutil.rmtree(data_dir / "store")
    configured = Configured(data_dir / "raftreg.toml", load(data_dir))
    identity = recovery.from_backup(configured, release / "registry.backup", epoch=None, id_floor=None, now_us=1)
    assert identity.epoch == wanted["peer"]["epoch"] + 1
    restored = make.found_in(data_dir)
    assert (restored["digest"], restored["images"]) == (wanted["peer"]["digest"], wanted["peer"]["images"])


async def test_a_gateway_goes_on_from_its_store(release: Path, tmp_path: Path) -> None:
    """On another machine, so its numbers are sealed; what it had acknowledged is shown, and still to be drained."""
    make.unpack_store(release / "gateway.tar.xz", tmp_path / "data" / "store")
    async with running(tmp_path) as zone:
        assert await make.found_by(zone) == expected(release)["gateway"]


# -- the fixtures themselves --------------------------------------------------------------------------------------


def test_the_fixtures_of_this_release_are_small_and_have_every_kind_of_row_and_entry(tmp_path: Path) -> None:
    """When this fails because a table, an index or a command is new: python -m tests.fixtures.make."""
    release = make.release()
    assert release in RELEASES, "python -m tests.fixtures.make"
    assert sum(file.stat().st_size for file in make.HERE.rglob("*") if file.suffix != ".py") < BYTES_MAX
    wanted = expected(release)["peer"]
    prefixes = {bytes((code,)).hex() for code in tables.DIGESTED} | {
        prefix.hex() for prefix in (tables.HEAD, tables.UUIDS, tables.KEYS_BY_AGE)
    }
    raising = {tables.MIGRATION.hex()}
    assert set(wanted["rows"]) == (prefixes - raising) | {index.prefix.hex() for index in tables.INDEXES}
    raised = {"raise_level"} if wanted["level"] == 1 else set()
    assert set(wanted["ops"]) == commands.OPS - raised
    make.unpack_store(release / "gateway.tar.xz", tmp_path / "store")
    assert tables_with_rows(tmp_path / "store") == set(TABLES) - UNUSED_TABLES


def tables_with_rows(directory: Path) -> set[str]:
    with lmdb.open(str(directory), max_dbs=len(TABLES), readonly=True) as env, env.begin() as txn:
        there = set(TABLES) - UNUSED_TABLES
        return {name for name in there if txn.stat(env.open_db(name.encode(), txn, create=False))["entries"]}
