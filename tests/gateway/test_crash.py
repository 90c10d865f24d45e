"""A real gateway process is killed in the middle of a burst; what it acknowledged must be there afterwards."""

import asyncio
import contextlib
import random
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp

from tests.gateway.running import WAIT_S, plain_tokens, queued_commands, running, seed_block, settings

CLIENTS = 8
ROUNDS = 3


@contextlib.asynccontextmanager
async def process(directory: Path, **options: Any) -> Any:
    """`zonegw serve` as a process of its own, with the options of `settings`; (process, URL of its Images API)."""
    settings(directory, **options)
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "zonegw.cli", "serve", "--config", str(directory / "zonegw.toml"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert started.stdout is not None
        async with asyncio.timeout(WAIT_S):
            line = (await started.stdout.readline()).decode()
        yield started, line.split()[-1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await started.wait()


async def burst(url: str, token: str, acknowledged: list[dict[str, Any]], enough: asyncio.Event, kill_at: int) -> None:
    """Create images until the gateway is gone; what it acknowledged is recorded."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(WAIT_S)) as http:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            while True:
                headers = {"X-Auth-Token": token}
                async with http.post(f"{url}/v2/images", json={"name": "burst"}, headers=headers) as answer:
                    assert answer.status == 201
                    acknowledged.append(await answer.json())
                if len(acknowledged) >= kill_at:
                    enough.set()


async def test_sigkill_in_a_burst_loses_no_acknowledged_create_and_reissues_no_number(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    seed_block(tmp_path, 1, 1_000_000)
    acknowledged: list[dict[str, Any]] = []
    for _ in range(ROUNDS):
        async with process(tmp_path) as (gateway, url):
            token = plain_tokens(tmp_path)["alice"]
            enough = asyncio.Event()
            kill_at = len(acknowledged) + chance.randrange(30, 120)
            clients = [asyncio.create_task(burst(url, token, acknowledged, enough, kill_at)) for _ in range(CLIENTS)]
            async with asyncio.timeout(WAIT_S):
                await enough.wait()
            gateway.send_signal(signal.SIGKILL)
            await asyncio.gather(*clients)
    numbers = [image["os_glance_v1_id"] for image in acknowledged]
    assert len(set(numbers)) == len(numbers)
    async with running(tmp_path) as zone:
        queued = {command["uuid"]: command["number"] for command in queued_commands(zone)}
        assert {image["id"]: image["os_glance_v1_id"] for image in acknowledged}.items() <= queued.items()
        assert len(set(queued.values())) == len(queued)
        fresh = await zone.create(name="after")
        assert fresh["os_glance_v1_id"] > max(queued.values())
        assert len(await all_names(zone)) == len(queued) + 1


async def all_names(zone: Any) -> list[str]:
    names: list[str] = []
    link = "/v2/images?limit=1000"
    while link:
        page = await zone.get(link)
        names += [image["name"] for image in page["images"]]
        link = page.get("next")
    return names


async def test_a_second_gateway_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    async with process(tmp_path):
        second = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "zonegw.cli", "serve", "--config", str(tmp_path / "zonegw.toml"),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(WAIT_S):
            _, complaint = await second.communicate()
        assert second.returncode == 2
        assert b"another gateway runs on" in complaint


async def test_sigterm_stops_a_gateway_in_order(tmp_path: Path) -> None:
    async with process(tmp_path) as (gateway, _):
        gateway.terminate()
        async with asyncio.timeout(WAIT_S):
            assert await gateway.wait() == 0


async def test_status_and_parked_writes_are_shown_by_the_command_line(tmp_path: Path) -> None:
    async with process(tmp_path) as (_, url):
        for arguments, expected in (
            (["status", "--endpoint", url], b"degraded"),
            (["status", "--endpoint", url, "--json"], b'"queue_depth": 0'),
            (["parked", "list", "--config", str(tmp_path / "zonegw.toml"), "--json"], b"[]"),
        ):
            command = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "zonegw.cli", *arguments, stdout=asyncio.subprocess.PIPE
            )
            async with asyncio.timeout(WAIT_S):
                output, _ = await command.communicate()
            assert command.returncode == 0
            assert expected in output
