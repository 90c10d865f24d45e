"""Staging and import into the own zone, which needs no registry."""

import os
import ssl
from pathlib import Path
from typing import Any

import pytest

from raftreg import cluster_init
from tests.gateway.running import Zone, running, until
from tests.gateway.web_source import INTERNAL, web_source
from zonegw.limits import MIB

BLOB = os.urandom(2 * MIB + 11)
OCTETS = {"Content-Type": "application/octet-stream"}
FORMATS = {"disk_format": "raw", "container_format": "bare"}


def method(name: str, **more: Any) -> dict[str, Any]:
    return {"method": {"name": name, **more}}


async def stage(zone: Zone, image: dict[str, Any], data: Any, **options: Any) -> int:
    return await zone.status("PUT", f"{image['self']}/stage", data=data, headers=OCTETS, **options)


async def start(zone: Zone, image: dict[str, Any], body: Any, **options: Any) -> int:
    return await zone.status("POST", f"{image['self']}/import", json=body, **options)


def job_is_over(zone: Zone, image: dict[str, Any]) -> bool:
    job = zone.gateway.imports.jobs.latest(image["id"])
    return job is not None and job.done


async def imported(zone: Zone, image: dict[str, Any], body: Any, **options: Any) -> dict[str, Any]:
    """Import and wait for the end of it; the image as it is then."""
    assert await start(zone, image, body, **options) == 202
    await until(lambda: job_is_over(zone, image), "the import to end")
    shown: dict[str, Any] = await zone.get(image["self"], user=options.get("user", "alice"))
    return shown


async def last_message(zone: Zone, image: dict[str, Any]) -> str:
    task = (await zone.get(f"{image['self']}/tasks"))["tasks"][0]
    assert task["status"] == "failure"
    return str(task["message"])


def files(zone: Zone) -> list[Path]:
    """Files of the data store, whole and half."""
    return [path for path in zone.gateway.data.directory.rglob("*") if path.is_file()]


async def no_bytes(zone: Zone) -> None:
    await until(lambda: not files(zone) and zone.gateway.data.used_bytes == 0, "all bytes to go")


async def test_staged_data_become_the_images_own_while_the_zone_is_cut_off(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="n", **FORMATS)
        assert await stage(zone, image, BLOB) == 204
        staged = await zone.get(image["self"])
        assert (staged["status"], staged["size"]) == ("uploading", None)
        assert await zone.status("GET", f"{image['self']}/file") == 204
        shown = await imported(zone, image, method("glance-direct"))
        assert (shown["status"], shown["size"], shown["stores"]) == ("active", len(BLOB), "fra")
        assert "os_glance_failed_import" not in shown
        assert await zone.data(image) == BLOB
        assert len(files(zone)) == 1
        (task,) = (await zone.get(f"{image['self']}/tasks"))["tasks"]
        assert (task["status"], task["type"], task["message"]) == ("success", "api_image_import", "")


async def test_staged_data_wait_for_their_import_through_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="n", **FORMATS)
        assert await stage(zone, image, BLOB) == 204
    async with running(tmp_path) as zone:
        assert (await zone.get(image["self"]))["status"] == "uploading"
        assert (await imported(zone, image, method("glance-direct")))["status"] == "active"
        assert await zone.data(image) == BLOB


async def test_only_a_queued_image_is_staged_and_only_once(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="n", **FORMATS)
        assert await stage(zone, image, b"x") == 204
        assert await stage(zone, image, b"y") == 409
        assert await zone.status("PUT", f"{image['self']}/file", data=b"z", headers=OCTETS) == 409
        active = await zone.create_active(b"x")
        assert await stage(zone, active, b"y") == 409
        assert await stage(zone, image, b"y", user="bob") == 404
        assert await zone.status("PUT", f"{image['self']}/stage", json={}) == 415


async def test_a_stage_that_breaks_off_leaves_a_queued_image_and_no_bytes(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="n", **FORMATS)
        headers = OCTETS | {"x-openstack-image-size": str(len(BLOB) + 1)}
        assert await zone.status("PUT", f"{image['self']}/stage", data=BLOB, headers=headers) == 400
        assert (await zone.get(image["self"]))["status"] == "queued"
        await no_bytes(zone)


async def test_deleting_an_image_removes_what_was_staged_for_it(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="n", **FORMATS)
        assert await stage(zone, image, BLOB) == 204
        assert await zone.status("DELETE", image["self"]) == 204
        await no_bytes(zone)


async def test_staged_data_that_nobody_imports_go_in_the_end(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="n", **FORMATS)
        assert await stage(zone, image, BLOB) == 204
    async with running(tmp_path, staged_keep_h=1e-9) as zone:
        await no_bytes(zone)
        assert (await zone.get(image["self"]))["status"] == "queued"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ([], 400),
        (method("glance-direct", uri="http://example.org/"), 400),
        (method("web-download"), 400),
        (method("warp"), 400),
        (method("glance-direct") | {"stores": "fra"}, 400),
        (method("glance-direct") | {"stores": []}, 400),
        (method("glance-direct") | {"stores": ["nowhere"]}, 400),
        (method("glance-direct") | {"stores": ["fra"], "all_stores": True}, 400),
        (method("glance-direct") | {"all_stores": "yes"}, 400),
        (method("glance-direct") | {"all_stores_must_succeed": 1}, 400),
        (method("copy-image"), 409),
        (method("web-download", uri="http://example.org/"), 409),
    ],
)
async def test_an_import_that_is_not_asked_for_rightly_is_refused_and_changes_nothing(
    tmp_path: Path, body: Any, status: int
) -> None:
    async with running(tmp_path) as zone:
        image = await zone.create(name="n", **FORMATS)
        assert await stage(zone, image, b"x") == 204
        assert await start(zone, image, body) == status
        assert (await zone.get(image["self"]))["status"] == "uploading"
        assert zone.gateway.imports.jobs.all() == []


async def test_an_import_needs_formats_staged_data_and_the_right_to_change_the_image(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        bare = await zone.create(name="n", disk_format="raw", visibility="community")
        assert await start(zone, bare, method("glance-direct")) == 409
        assert await stage(zone, bare, b"x") == 204
        assert await start(zone, bare, method("glance-direct")) == 409
        assert await start(zone, bare, method("glance-direct"), user="bob") == 403
        add = {"op": "add", "path": "/container_format", "value": "bare"}
        assert await zone.patch(bare, add) == 200
        assert (await imported(zone, bare, method("glance-direct")))["status"] == "active"
        assert await start(zone, bare, method("glance-direct")) == 409


async def test_clients_are_told_the_methods_that_are_on_and_use_no_other(tmp_path: Path) -> None:
    async with running(tmp_path / "all") as zone:
        assert (await zone.get("/v2/info/import"))["import-methods"]["value"] == [
            "glance-direct", "web-download", "copy-image",
        ]  # fmt: skip
        async with zone.ask("POST", "/v2/images", json={}) as answer:
            assert answer.headers["OpenStack-image-import-methods"] == "glance-direct,web-download,copy-image"
            assert answer.headers["OpenStack-image-store-ids"] == "fra"
    async with running(tmp_path / "one", more='[import]\nmethods = ["glance-direct"]') as zone:
        assert (await zone.get("/v2/info/import"))["import-methods"]["value"] == ["glance-direct"]
        image = await zone.create(name="n", **FORMATS)
        assert await start(zone, image, method("web-download", uri="http://192.0.2.1/")) == 400


async def test_a_url_is_fetched_without_anything_of_the_clients_request(tmp_path: Path) -> None:
    async with web_source(BLOB) as source, running(tmp_path, more=source.allowed()) as zone:
        image = await zone.create(name="n", **FORMATS)
        url = source.url("/redirect?to=/image")
        shown = await imported(zone, image, method("web-download", uri=url))
        assert (shown["status"], shown["size"]) == ("active", len(BLOB))
        assert await zone.data(image) == BLOB
        assert len(files(zone)) == 1
        for request in source.asked:
            sent = {name.lower() for name in request.headers}
            assert sent <= {"host", "accept", "accept-encoding", "user-agent", "connection"}


async def test_the_image_shows_that_it_is_being_imported(tmp_path: Path) -> None:
    async with web_source(BLOB) as source, running(tmp_path, more=source.allowed()) as zone:
        image = await zone.create(name="n", **FORMATS)
        assert await start(zone, image, method("web-download", uri=source.url("/held"))) == 202
        await source.half_sent.wait()
        shown = await zone.get(image["self"])
        assert (shown["status"], shown["os_glance_importing_to_stores"]) == ("importing", "fra")
        assert shown["os_glance_failed_import"] == ""
        assert await start(zone, image, method("web-download", uri=source.url("/image"))) == 409
        assert await stage(zone, image, b"x") == 409
        assert await zone.status("PUT", f"{image['self']}/file", data=b"x", headers=OCTETS) == 409
        patch = {"op": "add", "path": "/os_glance_failed_import", "value": "x"}
        assert await zone.patch(image, patch) == 403
        source.released.set()
        await until(lambda: job_is_over(zone, image), "the import to end")
        assert "os_glance_importing_to_stores" not in await zone.get(image["self"])


@pytest.mark.parametrize("path", ["/missing", "/torn", "/loop", "/redirect?to=ftp://x/y", "/redirect?to=http://[/"])
async def test_a_source_that_does_not_give_the_data_leaves_a_queued_image_that_says_so(
    tmp_path: Path, path: str
) -> None:
    async with web_source(BLOB) as source, running(tmp_path, more=source.allowed()) as zone:
        image = await zone.create(name="n", **FORMATS)
        shown = await imported(zone, image, method("web-download", uri=source.url(path)))
        assert (shown["status"], shown["os_glance_failed_import"]) == ("queued", "fra")
        assert await last_message(zone, image)
        await no_bytes(zone)
        again = await imported(zone, image, method("web-download", uri=source.url("/image")))
        assert again["status"] == "active"
        assert "os_glance_failed_import" not in again


async def test_an_internal_address_is_refused_as_a_literal_behind_a_name_and_behind_a_redirect(tmp_path: Path) -> None:
    async with web_source(BLOB) as source, running(tmp_path, more=source.allowed()) as zone:
        image = await zone.create(name="n", **FORMATS)
        assert await start(zone, image, method("web-download", uri=source.url("/image", INTERNAL))) == 400
        target = source.url("/image", INTERNAL)
        shown = await imported(zone, image, method("web-download", uri=source.url(f"/redirect?to={target}")))
        assert shown["status"] == "queued"
        assert "internal address" in await last_message(zone, image)
        assert [request.path for request in source.asked] == ["/redirect"]


async def test_a_name_that_resolves_to_an_internal_address_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    async with web_source(BLOB) as source:
        more = f"[import.web_download]\nallowed_ports = [{source.port}]"
        async with running(tmp_path, more=more) as zone:
            image = await zone.create(name="n", **FORMATS)
            for host, said in (("localhost", "internal address"), ("2130706433", "can't be fetched")):
                shown = await imported(zone, image, method("web-download", uri=source.url("/image", host)))
                assert shown["status"] == "queued"
                assert said in await last_message(zone, image)
            assert source.asked == []


async def test_a_source_above_the_largest_image_and_one_without_progress_are_given_up(tmp_path: Path) -> None:
    limits: dict[str, Any] = {"image_max_bytes": 1 * MIB, "web_idle_max_s": 1}
    async with web_source(BLOB) as source, running(tmp_path, more=source.allowed(), **limits) as zone:
        image = await zone.create(name="n", **FORMATS)
        await imported(zone, image, method("web-download", uri=source.url("/image")))
        assert "at most" in await last_message(zone, image)
        source.blob = BLOB[:1000]
        await imported(zone, image, method("web-download", uri=source.url("/held")))
        assert await last_message(zone, image)
        await no_bytes(zone)


async def test_a_source_whose_certificate_nobody_trusts_is_refused(tmp_path: Path) -> None:
    plan = cluster_init.Plan([cluster_init.PlannedPeer("a", "127.0.0.1:9", "127.0.0.1:10")])
    cluster_init.initialise(tmp_path / "cluster", plan, offline=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own = tmp_path / "cluster" / "a" / "tls"
    tls.load_cert_chain(own / "cert.pem", own / "key.pem")
    async with web_source(BLOB, tls) as source, running(tmp_path / "fra", more=source.allowed()) as zone:
        image = await zone.create(name="n", **FORMATS)
        url = source.url("/image").replace("http:", "https:")
        assert (await imported(zone, image, method("web-download", uri=url)))["status"] == "queued"
        assert "certificate" in (await last_message(zone, image)).lower()
        assert source.asked == []


async def test_deleting_an_image_ends_its_import(tmp_path: Path) -> None:
    async with web_source(BLOB) as source, running(tmp_path, more=source.allowed()) as zone:
        image = await zone.create(name="n", **FORMATS)
        assert await start(zone, image, method("web-download", uri=source.url("/held"))) == 202
        await source.half_sent.wait()
        assert await zone.status("DELETE", image["self"]) == 204
        source.released.set()
        await until(lambda: job_is_over(zone, image), "the import to end")
        await no_bytes(zone)


async def test_imports_above_their_number_wait_and_above_the_next_are_refused(tmp_path: Path) -> None:
    limits: dict[str, Any] = {"imports_running_max": 1, "imports_pending_max": 2}
    async with web_source(BLOB) as source, running(tmp_path, more=source.allowed(), **limits) as zone:
        images = [await zone.create(name=f"{n}", **FORMATS) for n in range(3)]
        body = method("web-download", uri=source.url("/held"))
        assert [await start(zone, image, body) for image in images] == [202, 202, 503]
        await source.half_sent.wait()
        assert len(source.asked) == 1
        source.released.set()
        for image in images[:2]:
            await until(lambda image=image: job_is_over(zone, image), "the import to end")  # type: ignore[misc]
            assert await zone.data(image) == BLOB


async def test_usage_counts_the_images_of_the_callers_project(tmp_path: Path) -> None:
    async with running(tmp_path, list_chunk_rows=1) as zone:
        await zone.create_active(bytes(2 * MIB))
        await zone.create_active(bytes(MIB))
        staged = await zone.create(name="n", **FORMATS)
        assert await stage(zone, staged, bytes(MIB)) == 204
        await zone.create_active(bytes(MIB), user="bob")
        usage = (await zone.get("/v2/info/usage"))["usage"]
        assert {name: row["usage"] for name, row in usage.items()} == {
            "image_size_total": 3, "image_stage_total": 1, "image_count_total": 3, "image_count_uploading": 1,
        }  # fmt: skip
        assert {row["limit"] for row in usage.values()} == {-1}


async def test_imports_are_the_tasks_of_their_project(tmp_path: Path) -> None:
    async with running(tmp_path) as zone:
        images = [await zone.create(name=f"{n}", **FORMATS) for n in range(3)]
        for image in images:
            assert await stage(zone, image, b"x") == 204
            await imported(zone, image, method("glance-direct"))
        page = await zone.get("/v2/tasks?limit=2")
        assert [task["image_id"] for task in page["tasks"]] == [images[2]["id"], images[1]["id"]]
        assert "message" not in page["tasks"][0]
        rest = await zone.get(page["next"])
        assert [task["image_id"] for task in rest["tasks"]] == [images[0]["id"]]
        assert "next" not in rest
        task = page["tasks"][0]
        shown = await zone.get(task["self"])
        assert (shown["status"], shown["input"]["image_id"]) == ("success", images[2]["id"])
        assert (await zone.get("/v2/tasks?status=failure"))["tasks"] == []
        oldest = await zone.get("/v2/tasks?sort_key=created_at&sort_dir=asc")
        assert [row["image_id"] for row in oldest["tasks"]] == [image["id"] for image in images]
        assert (await zone.get("/v2/tasks", user="bob"))["tasks"] == []
        assert await zone.status("GET", task["self"], user="bob") == 404
        assert len((await zone.get("/v2/tasks", user="root"))["tasks"]) == 3
        for bad in ("limit=x", "marker=x", "sort_key=owner", "sort_dir=up"):
            assert await zone.status("GET", f"/v2/tasks?{bad}") == 400
    async with running(tmp_path, import_results_max=1) as zone:
        assert len((await zone.get("/v2/tasks"))["tasks"]) == 3
        another = await zone.create(name="another", **FORMATS)
        assert await stage(zone, another, b"x") == 204
        await imported(zone, another, method("glance-direct"))
        assert [row["image_id"] for row in (await zone.get("/v2/tasks"))["tasks"]] == [another["id"]]
