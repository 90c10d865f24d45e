"""`raftreg verify`: digests of running peers at a common index, forced scrubs, and the store of a stopped peer."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import lmdb
import pytest

from raftreg import cli, cli_verify, offline_check
from raftreg.cli_verify import Verification, common_index, compare
from raftreg.client import Client
from raftreg.errors import Forbidden, RegistryError, Unreachable
from raftreg.store import StoreError
from raftreg.tables import IMAGES
from tests.registry import Registry, registry, until


def said(name: str, *, errors: list[str] | None = None, version: int = 1, **digests: str) -> dict[str, Any]:
    """A peer's answer with digests by index, as index_7="..."."""
    known = {index.removeprefix("index_"): digest for index, digest in digests.items()}
    return {"name": name, "applied": 9, "digests": known, "scrub": None, "errors": errors or [], "version": version}


def change_row(data_dir: Path, table: bytes = IMAGES) -> bytes:
    """Change one byte of a row of a stopped peer's state; its key."""
    with lmdb.open(str(data_dir / "store"), max_dbs=8, map_size=1 << 30) as env:
        state = env.open_db(b"state@1")
        with env.begin(write=True) as txn:
            with txn.cursor(state) as cursor:
                assert cursor.set_range(table)
                key, value = cursor.item()
            assert key.startswith(table)
            damaged = bytearray(value)
            damaged[len(value) // 2] ^= 1
            txn.put(key, bytes(damaged), db=state)
            return bytes(key)


async def populate(cluster: Registry, count: int = 20) -> None:
    async with cluster.client() as client:
        for number in range(count):
            await client.create_image(attributes={"name": f"image {number}", "owner": "demo"})


# -- what the answers mean ----------------------------------------------------------------------------------------


def test_the_highest_index_that_all_know_is_compared() -> None:
    assert common_index([said("a", index_4="x", index_8="y"), said("b", index_8="y", index_9="z")]) == 8
    assert common_index([said("a", index_4="x"), said("b", index_9="z")]) is None
    assert common_index([said("a", index_4="x"), said("b", index_4="x", version=2)]) is None
    assert common_index([]) is None


@pytest.mark.parametrize(
    ("digests", "verdicts"),
    [
        (("x", "x", "x"), ("agrees", "agrees", "agrees")),
        (("x", "y", "x"), ("agrees", "deviates", "agrees")),
        (("x", "y", "z"), ("deviates", "deviates", "deviates")),
        (("x", "x", None), ("agrees", "agrees", "away")),
        (("x", "y", None), ("deviates", "deviates", "away")),
    ],
)
def test_who_differs_from_a_majority_of_all_peers_deviates(
    digests: tuple[str | None, ...], verdicts: tuple[str, ...]
) -> None:
    answers: dict[str, dict[str, Any] | RegistryError] = {
        name: said(name, index_7=digest) if digest is not None else Unreachable(f"{name} cannot be reached")
        for name, digest in zip("abc", digests, strict=True)
    }
    found = Verification(7, answers)
    assert tuple(found.verdicts().values()) == verdicts
    assert found.sound is (set(verdicts) == {"agrees"})


def test_known_damage_and_troubles_of_a_scrub_are_not_sound_though_digests_agree() -> None:
    answers: dict[str, dict[str, Any] | RegistryError] = {"a": said("a", index_7="x"), "b": said("b", index_7="x")}
    assert Verification(7, answers).sound
    assert not Verification(7, answers, ["b was started anew"]).sound
    answers["b"] = said("b", index_7="x", errors=["a row has rotted"])
    assert Verification(7, answers).damages() == ["b: a row has rotted"]
    assert not Verification(7, answers).sound


def test_the_table_names_every_peer_with_its_verdict_and_what_is_known_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    begun: dict[str, Any] = {
        "running": True,
        "rows": 50,
        "rows_total": 200,
        "finished": 0,
        "finished_age_s": None,
        "findings": [],
    }
    done = {**begun, "running": False, "finished": 1, "finished_age_s": 120.0, "findings": ["row I:07 is wrong"]}
    answers: dict[str, dict[str, Any] | RegistryError] = {
        name: {**said(name, index_7=digest), "role": "follower", "scrub": scrub}
        for name, digest, scrub in (("a", "x", begun), ("b", "y", done), ("c", "x", None))
    }
    answers["d"] = Unreachable("d cannot be reached")
    cli_verify._show(Verification(7, answers))
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert rows == [
        ["a", "follower", "9", "x", "first: 25 %", "deviates"],
        ["b", "follower", "9", "y", "2 min ago", "deviates"],
        ["c", "follower", "9", "x", "none yet", "deviates"],
        ["d", "", "", "", "", "away"],
    ]
    assert "b: row I:07 is wrong" in shown
    assert "d cannot be reached" in shown


# -- online -------------------------------------------------------------------------------------------------------


async def test_running_peers_are_compared_at_a_common_index_at_rest_and_while_writes_go_on(tmp_path: Path) -> None:
    async with registry(tmp_path, "abc") as cluster, cluster.client() as client:
        await populate(cluster)
        found = await compare(client)
        assert found.sound
        assert found.index is not None
        assert found.index >= 20
        writing = asyncio.create_task(populate(cluster, 300))
        for _ in range(3):
            during = await compare(client)
            assert during.sound
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def test_a_peer_that_holds_something_else_deviates(tmp_path: Path) -> None:
    async with registry(tmp_path, "abc") as cluster, cluster.client() as client:
        await populate(cluster)
        view = cluster.peers["b"].store.view()
        head = _damaged_head(view)
        assert head
        found = await compare(client)
        verdicts = {answer["name"]: found.verdicts()[url] for url, answer in _answers(found).items()}
        assert verdicts == {"a": "agrees", "b": "deviates", "c": "agrees"}


def _answers(found: Verification) -> dict[str, dict[str, Any]]:
    return {url: answer for url, answer in found.answers.items() if isinstance(answer, dict)}


def _damaged_head(view: Any) -> bool:
    from raftreg.tables import read_head, write_head

    head = read_head(view)
    head.rows_digest ^= 1
    write_head(view, head)
    return True


async def test_only_operators_and_peers_ask_for_digests_and_have_rows_read(tmp_path: Path) -> None:
    async with registry(tmp_path, "a") as cluster:
        for who, status in (("operator", 200), ("a", 200), ("app", 403), ("ams-1", 403)):
            async with cluster.http(who) as http:
                assert (await http("GET", "digest")).status == status, who
                assert (await http("POST", "scrub")).status == status, who
        async with cluster.http() as http:
            assert (await http("GET", "digest?index=x")).status == 400


async def test_a_scrub_that_was_asked_for_is_over_soon_and_shows_in_status_and_metrics(tmp_path: Path) -> None:
    async with registry(tmp_path, "a") as cluster, cluster.http() as http:
        await populate(cluster)
        number = (await http("POST", "scrub")).body["pass"]

        async def over() -> bool:
            return bool((await http("GET", "digest")).body["scrub"]["finished"] >= number)

        await until(over)
        status = (await http("GET", "status")).body
        assert status["integrity"]["scrub"]["findings"] == []
        assert status["integrity"]["damage"] is None
        assert status["errors"] == []
        metrics = (await http("GET", "/metrics")).body
        assert "raftreg_damage_found 0.0" in metrics
        assert f"raftreg_scrub_passes {float(number)}" in metrics
        assert "raftreg_scrub_progress_ratio 1.0" in metrics
        assert "raftreg_digest_mismatches 0.0" in metrics
        assert "raftreg_digest_compared_age_seconds NaN" in metrics


async def test_a_lone_peer_that_finds_damage_says_so_and_goes_on(tmp_path: Path) -> None:
    """Nobody could take its place."""
    async with registry(tmp_path, "a") as cluster:
        await populate(cluster)
        await cluster.stop("a")
        change_row(cluster.configs["a"].data_dir)
        await cluster.start("a")
        await cluster.leader()
        async with cluster.http() as http, cluster.client() as client:
            await http("POST", "scrub")

            async def found() -> bool:
                return bool((await http("GET", "status")).body["integrity"]["damage"])

            await until(found)
            assert "raftreg_damage_found 1.0" in (await http("GET", "/metrics")).body
            verification = await compare(client)
            assert not verification.sound
            assert "a scrub found that" in verification.damages()[0]
            await client.allocate_ids(1)


# -- offline ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def stopped(tmp_path: Path) -> Path:
    """The data directory of a peer that was stopped after some writes."""
    async with registry(tmp_path, "a") as cluster:
        await populate(cluster)
        return cluster.configs["a"].data_dir


async def test_the_store_of_a_stopped_peer_is_sound_and_is_not_written_to(stopped: Path) -> None:
    before = (stopped / "store" / "data.mdb").read_bytes()
    seen: list[tuple[int, int]] = []
    report = offline_check.check(stopped, lambda done, total: seen.append((done, total)))
    assert report.findings == []
    assert (report.peer, report.digest is not None) == ("a", True)
    assert report.rows == seen[-1][0] > 100
    assert report.log_entries > 20
    assert (stopped / "store" / "data.mdb").read_bytes() == before
    assert cli.main(["verify", "--offline", str(stopped)]) == 0


@pytest.mark.parametrize("table", [b"I", b"C", b"K", b"U"], ids=["image", "change", "key", "uuid"])
async def test_a_changed_row_of_a_stopped_peer_is_found(
    stopped: Path, table: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    change_row(stopped, table)
    assert offline_check.check(stopped).findings
    assert cli.main(["verify", "--offline", str(stopped)]) == 1
    assert "raftreg rejoin" in capsys.readouterr().out
    assert cli.main(["verify", "--offline", str(stopped), "--json"]) == 1
    assert '"sound":false' in capsys.readouterr().out.replace(" ", "")


async def test_a_marked_store_is_opened_all_the_same_and_tells_why_it_was_marked(stopped: Path) -> None:
    from raftreg.store import Store

    store = Store(stopped, map_size_bytes=1 << 30)
    store.put_damage("a row has rotted")
    store.commit()
    store.close()
    assert offline_check.check(stopped).findings == ["this peer stopped for good because a row has rotted"]


def test_a_peer_that_was_never_started_has_nothing_to_verify(tmp_path: Path) -> None:
    assert cli.main(["init", str(tmp_path / "cluster"), "--offline"]) == 0
    with pytest.raises(StoreError, match="never started"):
        offline_check.check(tmp_path / "cluster" / "a")
    assert cli.main(["verify", "--offline", str(tmp_path / "cluster")]) == 1


async def test_peers_that_are_away_are_not_verified() -> None:
    async with Client(["https://127.0.0.1:1"]) as client:
        found = await compare(client)
    assert set(found.verdicts().values()) == {"away"}
    assert not found.sound


async def test_a_peer_that_did_not_read_its_rows_is_a_trouble_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peer c is away the whole time, peer b was started anew, and peer d refuses."""
    monkeypatch.setattr(cli_verify, "_SCRUB_SILENCE_S", 0.0)
    monkeypatch.setattr(cli_verify, "_SCRUB_POLL_S", 0.01)
    scrub = {"rows": 5, "rows_total": 9, "finished": 0, "pass": 1}
    rounds = itertools.count()

    async def each(_method: str, path: str, **_options: Any) -> dict[str, Any]:
        away = Unreachable("c cannot be reached")
        if path == "scrub":
            return {"a": {"pass": 1}, "b": {"pass": 3}, "c": away, "d": Forbidden("not for you")}
        finished = {**scrub, "finished": next(rounds)}
        others = {name: {"name": name, "scrub": scrub} for name in "bd"}
        return {"a": {"name": "a", "scrub": finished}, "c": away, **others}

    client = Client(["https://127.0.0.1:1"])
    monkeypatch.setattr(client, "each", each)
    troubles = await cli_verify._scrub(client)
    assert troubles == [
        "b was started anew while it was scrubbed",
        "c was not scrubbed: c cannot be reached",
        "d was not scrubbed: not for you",
    ]
