"""A gateway process is killed in the middle of an import or a stage: the next life goes on or says that it failed."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.gateway.running import WAIT_S, plain_tokens, running, until
from tests.gateway.test_crash import process
from tests.gateway.test_imports import BLOB, FORMATS, OCTETS, files, imported, job_is_over, method, no_bytes
from tests.gateway.web_source import web_source
from tests.registry import registry
from zonegw.data_stores.interface import Stored

# Processes are started, killed and started again.
pytestmark = pytest.mark.slow


@contextlib.asynccontextmanager
async def killed(directory: Path, **options: Any) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A client of a gateway process that is killed at the end."""
    async with process(directory, **options) as (gateway, url):
        headers = {"X-Auth-Token": plain_tokens(directory)["alice"]}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(WAIT_S), headers=headers) as http:
            yield http, url
            gateway.send_signal(signal.SIGKILL)
            await gateway.wait()


async def created(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with http.post(f"{url}/v2/images", json={"name": "n", **FORMATS}) as answer:
        image: dict[str, Any] = await answer.json()
        return image


async def test_an_import_that_was_killed_in_its_download_is_finished_by_the_next_life(tmp_path: Path) -> None:
    async with web_source(BLOB) as source:
        async with killed(tmp_path, more=source.allowed()) as (http, url):
            image = await created(http, url)
            body = method("web-download", uri=source.url("/held"))
            async with http.post(f"{url}{image['self']}/import", json=body) as answer:
                assert answer.status == 202
            await source.half_sent.wait()
        source.released.set()
        async with running(tmp_path, more=source.allowed()) as zone:
            await until(lambda: job_is_over(zone, image), "the import to end")
            assert (await zone.get(image["self"]))["status"] == "active"
            assert await zone.data(image) == BLOB
            await until(lambda: len(files(zone)) == 1, "what the first life wrote to go")


async def test_an_import_during_which_the_gateway_always_dies_is_given_up(tmp_path: Path) -> None:
    async with web_source(BLOB) as source:
        options: dict[str, Any] = {"more": source.allowed(), "import_starts_max": 1}
        async with killed(tmp_path, **options) as (http, url):
            image = await created(http, url)
            body = method("web-download", uri=source.url("/held"))
            async with http.post(f"{url}{image['self']}/import", json=body) as answer:
                assert answer.status == 202
            await source.half_sent.wait()
        async with running(tmp_path, **options) as zone:
            await until(lambda: job_is_over(zone, image), "the import to end")
            shown = await zone.get(image["self"])
            assert (shown["status"], shown["os_glance_failed_import"]) == ("queued", "fra")
            await no_bytes(zone)


async def test_a_stage_that_was_killed_leaves_a_queued_image_and_no_bytes(tmp_path: Path) -> None:
    sent = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield BLOB
        sent.set()
        await asyncio.Event().wait()

    async with killed(tmp_path) as (http, url):
        image = await created(http, url)
        staging = asyncio.create_task(http.put(f"{url}{image['self']}/stage", data=body(), headers=OCTETS))
        await sent.wait()
        async with http.get(f"{url}{image['self']}") as answer:
            assert (await answer.json())["status"] == "uploading"
    with pytest.raises(aiohttp.ClientError):
        await staging
    async with running(tmp_path) as zone:
        assert (await zone.get(image["self"]))["status"] == "queued"
        await no_bytes(zone)


async def test_what_was_staged_before_a_kill_is_imported_after_it(tmp_path: Path) -> None:
    async with killed(tmp_path) as (http, url):
        image = await created(http, url)
        async with http.put(f"{url}{image['self']}/stage", data=BLOB, headers=OCTETS) as answer:
            assert answer.status == 204
    async with running(tmp_path) as zone:
        assert (await imported(zone, image, method("glance-direct")))["status"] == "active"
        assert await zone.data(image) == BLOB


async def test_an_import_to_two_stores_that_was_killed_between_them_ends_with_one_copy_in_each(tmp_path: Path) -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()
    async with (
        registry(tmp_path) as cluster,
        running(tmp_path / "ams", registry=cluster, zone="ams", gateway="ams-1") as ams,
    ):
        await ams.drained()
        write = ams.gateway.data.write

        async def held(key: str, body: AsyncIterator[bytes], size: int | None = None) -> Stored:
            begun.set()
            await goes_on.wait()
            return await write(key, body, size)

        ams.gateway.data.write = held  # type: ignore[method-assign]
        async with killed(tmp_path / "fra", registry=cluster) as (http, url):
            await knows_store(http, url, "ams")
            image = await created(http, url)
            async with http.put(f"{url}{image['self']}/stage", data=BLOB, headers=OCTETS) as answer:
                assert answer.status == 204
            body = method("glance-direct") | {"all_stores": True}
            async with http.post(f"{url}{image['self']}/import", json=body) as answer:
                assert answer.status == 202
            await begun.wait()
        goes_on.set()
        # What the first life sent may still be coming in when the second one withdraws it: it is asked again then.
        async with running(tmp_path / "fra", registry=cluster, far_garbage_retry_s=0.1) as fra:
            await until(lambda: job_is_over(fra, image), "the import to end")
            assert (await fra.get(image["self"]))["stores"] == "fra,ams"
            await until(lambda: len(files(fra)) == len(files(ams)) == 1, "what the first life left behind to go")
            await until(lambda: fra.gateway.store.committed().count("far_garbage") == 0, "the note of it to go")
            assert await fra.data(image) == BLOB


async def knows_store(http: aiohttp.ClientSession, url: str, name: str) -> None:
    """Wait until the gateway lists the store as one that can be reached."""
    async with asyncio.timeout(WAIT_S):
        while True:
            async with http.get(f"{url}/v2/info/stores") as answer:
                rows = (await answer.json())["stores"]
            if any(row["id"] == name and row["reachable"] == "true" for row in rows):
                return
            await asyncio.sleep(0.05)
