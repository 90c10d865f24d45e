"""Several data stores in one zone, all of them files here; `tests/data_stores` has those that lie elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.gateway.running import Zone, running, until
from tests.gateway.test_imports import BLOB, FORMATS, OCTETS, imported, method, stage
from tests.gateway.test_stores import seen
from tests.registry import registry


def entry(name: str, *, default: bool = False) -> str:
    return f'[[stores]]\nname = "{name}"\ntype = "filesystem"\ndirectory = "{name}"\ndefault = {str(default).lower()}\n'


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def put(zone: Zone, image: dict[str, Any], data: bytes, store: str) -> int:
    headers = OCTETS | {"X-Image-Meta-Store": store}
    return await zone.status("PUT", f"{image['self']}/file", data=data, headers=headers)


async def test_each_store_takes_what_was_chosen_for_it_and_the_default_one_the_rest(tmp_path: Path) -> None:
    async with running(tmp_path, more=entry("default") + entry("fast", default=True)) as zone:
        rows = (await zone.get("/v2/info/stores"))["stores"]
        assert [(row["id"], row.get("default")) for row in rows] == [("fra.fast", "true"), ("fra", None)]
        made: dict[str | None, dict[str, Any]] = {None: await zone.create_active(BLOB)}
        for store in ("fra", "fra.fast"):
            image = made[store] = await zone.create(**FORMATS)
            assert await put(zone, image, BLOB, store) == 204
        stores = [(await zone.get(image["self"]))["stores"] for image in made.values()]
        assert stores == ["fra.fast", "fra", "fra.fast"]
        assert (len(files(tmp_path / "default")), len(files(tmp_path / "fast"))) == (1, 2)
        assert [await zone.data(image) for image in made.values()] == [BLOB] * 3
        assert await put(zone, await zone.create(**FORMATS), BLOB, "fra.none") == 400
        for image in made.values():
            assert await zone.status("DELETE", image["self"]) == 204
        await until(lambda: not files(tmp_path / "default") and not files(tmp_path / "fast"), "all bytes to go")


async def test_what_lay_in_the_zones_only_store_is_read_and_deleted_as_before_once_others_are_configured(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as zone:
        old = await zone.create_active(BLOB)
    async with running(tmp_path, more=entry("fast")) as zone:
        assert [row["id"] for row in (await zone.get("/v2/info/stores"))["stores"]] == ["fra.fast"]
        assert (await zone.get(old["self"]))["stores"] == "fra"
        assert await zone.data(old) == BLOB
        new = await zone.create(**FORMATS)
        assert await put(zone, new, BLOB, "fra") == 204, "a zone's own name is its default store"
        assert (await zone.get(new["self"]))["stores"] == "fra.fast"
        await imported(zone, old, method("copy-image") | {"all_stores": True})
        assert await zone.status("DELETE", f"/v2/stores/fra/{old['id']}") == 204
        assert (await zone.get(old["self"]))["stores"] == "fra.fast"
        assert await zone.data(old) == BLOB


async def test_a_store_that_was_taken_out_of_the_configuration_is_missed_by_name(tmp_path: Path) -> None:
    async with running(tmp_path, more=entry("slow", default=True) + entry("fast")) as zone:
        image, doomed = await zone.create_active(BLOB), await zone.create_active(BLOB)
    async with running(tmp_path, more=entry("fast"), far_garbage_retry_s=0.1) as zone:
        async with zone.ask("GET", f"{image['self']}/file") as answer:
            assert (answer.status, "no store 'slow' any more" in await answer.text()) == (503, True)
        assert await zone.status("DELETE", doomed["self"]) == 204
    async with running(tmp_path, more=entry("slow") + entry("fast")) as zone:
        assert await zone.data(image) == BLOB
        await until(lambda: len(files(tmp_path / "slow")) == 1, "the bytes of the deleted image to go")


async def test_an_import_brings_staged_data_into_every_store_of_the_zone(tmp_path: Path) -> None:
    async with running(tmp_path, more=entry("default") + entry("fast", default=True)) as zone:
        image = await zone.create(**FORMATS)
        assert await stage(zone, image, BLOB) == 204
        assert (len(files(tmp_path / "default")), len(files(tmp_path / "fast"))) == (1, 0)
        shown = await imported(zone, image, method("glance-direct") | {"all_stores": True})
        assert sorted(shown["stores"].split(",")) == ["fra", "fra.fast"]
        other = await zone.create(**FORMATS)
        assert await stage(zone, other, BLOB) == 204
        assert (await imported(zone, other, method("glance-direct")))["stores"] == "fra.fast"
        await until(lambda: len(files(tmp_path / "default")) == 1, "the staged bytes to go")
        assert len(files(tmp_path / "fast")) == 2


async def test_another_zone_puts_data_into_the_store_that_was_chosen_there(tmp_path: Path) -> None:
    async with (
        registry(tmp_path) as cluster,
        running(
            tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1",
            more=entry("default", default=True) + entry("fast"),
        ) as ams,
        running(tmp_path / "fra", registry=cluster) as fra,
    ):  # fmt: skip
        for zone in (ams, fra):
            await zone.drained()
            await zone.gateway.zones.refresh()
        await fra.get("/v2/info/stores")
        rows = (await fra.get("/v2/info/stores"))["stores"]
        assert [row["id"] for row in rows] == ["fra", "ams", "ams.fast"]
        image = await fra.create(name="n", **FORMATS)
        assert await put(fra, image, BLOB, "ams.none") == 400
        assert await put(fra, image, BLOB, "ams.fast") == 204
        assert (await fra.get(image["self"]))["stores"] == "ams.fast"
        assert (len(files(tmp_path / "ams" / "default")), len(files(tmp_path / "ams" / "fast"))) == (0, 1)
        await seen(ams, image, status="active")
        assert await ams.data(image) == BLOB
        assert await fra.data(image) == BLOB
        assert await fra.status("DELETE", image["self"]) == 204
        await until(lambda: not files(tmp_path / "ams" / "fast"), "the bytes to go")
