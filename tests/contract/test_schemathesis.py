"""Schemathesis makes requests up from the gateway's OpenAPI document, good ones and bad ones; a real gateway process
with a real registry behind it must answer each as documented, must keep what it acknowledged, and must never fail.

More of it, by hand: SEED=7 EXAMPLES=200 .venv/bin/python -m pytest -m slow -n 0 tests/contract
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ops.dev import environment, setup
from tests.gateway.running import WAIT_S, plain_tokens, settings
from tests.registry import registry

HERE = Path(__file__).parent
PROGRAM = setup.CONTRACT.command("st")
SEED = os.environ.get("SEED", "20261126")
# Of each operation while fuzzing.
EXAMPLES = os.environ.get("EXAMPLES", "3")
# The requests that cover the bounds of the document, some thousands, are the same for everybody: one user makes them.
PHASES = {"root": "examples,coverage,fuzzing,stateful", "alice": "examples,fuzzing,stateful"}
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "ignored_auth", "unsupported_method", "use_after_free",
    "ensure_resource_availability",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PROGRAM.exists(), reason="there is no Schemathesis: make test-all installs it in .run"),
]


@dataclass
class Running:
    """A gateway process."""

    url: str
    tokens: dict[str, str]
    log: Path

    async def status(self) -> dict[str, Any]:
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/zonegw/v1/status") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def drained(self) -> dict[str, Any]:
        """Its status once it is online and nothing is pending."""
        async with asyncio.timeout(WAIT_S):
            while True:
                status = await self.status()
                if (status["state"], status["queue_depth"]) == ("online", 0):
                    return status
                await asyncio.sleep(0.05)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    """`zonegw serve` with a registry; a revision that it has not is not waited for long."""
    zone, log = tmp_path / "zone", tmp_path / "log"
    async with registry(tmp_path) as cluster:
        settings(zone, registry=cluster, revision_wait_max_s=0.01)
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "zonegw.cli", "serve", "--config", str(zone / "zonegw.toml"),
                stdout=asyncio.subprocess.PIPE, stderr=out, cwd=setup.ROOT,
            )  # fmt: skip
        try:
            assert process.stdout is not None
            async with asyncio.timeout(WAIT_S):
                url = (await process.stdout.readline()).decode().split()[-1]
            yield Running(url, plain_tokens(zone), log)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


# Images in every state: who owns them, where their data go, what else they have; schemathesis.toml names them.
FORMATS = {"disk_format": "raw", "container_format": "bare"}
IMAGES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("alice", "", {"name": "queued"}),
    ("alice", "", {"name": "queued too"}),
    ("alice", "file", {"name": "active", "protected": True}),
    ("alice", "file", {"name": "shared", "protected": True, "tags": ["blue"], "p": "q"}),
    ("alice", "stage", {"name": "staged"}),
    ("root", "file", {"name": "public", "visibility": "public"}),
)


async def make_images(gateway: Running) -> None:
    """IMAGES, numbered from 1 on; the test fails where one can't be made."""
    await gateway.drained()
    async with aiohttp.ClientSession(gateway.url, raise_for_status=True) as http:
        for number, (user, data, attributes) in enumerate(IMAGES, 1):
            path = f"/v2/images/00000000-0000-4000-8000-{number:012}"
            token = {"X-Auth-Token": gateway.tokens[user]}
            await http.post("/v2/images", json={"id": path.rpartition("/")[2], **FORMATS, **attributes}, headers=token)
            octets = token | {"Content-Type": "application/octet-stream"}
            if data:
                await http.put(f"{path}/{data}", data=b"0123456789", headers=octets)
            if attributes["name"] == "shared":
                await http.post(f"{path}/members", json={"member": "other"}, headers=token)


async def schemathesis(gateway: Running, user: str, directory: Path) -> tuple[int, str]:
    """(exit status, what it said) of a run as this user."""
    options = {
        "--url": gateway.url, "--header": f"X-Auth-Token: {gateway.tokens[user]}", "--seed": SEED,
        "--max-examples": EXAMPLES, "--checks": ",".join(CHECKS), "--request-timeout": "20",
        "--phases": PHASES[user], "--generation-database": "none", "--suppress-health-check": "all",
        "--warnings": "off",
    }  # fmt: skip
    command = [PROGRAM, "--config-file", HERE / "schemathesis.toml", "--no-color", "run", "--no-shrink"]
    command += [part for option in options.items() for part in option]
    process = await asyncio.create_subprocess_exec(
        *map(str, command), f"{gateway.url}/zonegw/v1/openapi.json", cwd=directory,
        env=environment.clean(os.environ) | {"SCHEMATHESIS_HOOKS": str(HERE / "hooks.py")},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode is not None
    return process.returncode, said.decode(errors="replace")


@pytest.mark.parametrize("user", PHASES)
async def test_the_gateway_answers_requests_that_nobody_thought_of_as_documented(
    gateway: Running, user: str, tmp_path: Path
) -> None:
    """As an administrator, and as a member of a project."""
    await make_images(gateway)
    returned, said = await schemathesis(gateway, user, tmp_path)
    print(said)
    assert returned == 0
    status = await gateway.drained()
    assert status["catalogue_images"] > 0
    assert status["parked"] == 0, gateway.log.read_text()
    assert status["data_used_bytes"] >= 0
    assert "zonegw.http_frame: " not in gateway.log.read_text()
